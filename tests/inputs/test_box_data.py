"""Data with boxes: four forms of the same images give the same truths, and what is broken is counted or refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brickyard.base._errors import BrickyardError
from brickyard.inputs import BoxData, Truth, load_box_data
from brickyard.inputs._box_table import Marked
from brickyard.inputs._decoding import decode_image, image_sides
from conftest import needed_package
from errors import judge, refused

NAMES = ["cat", "dog", "eel"]
SIDES = [(30, 40), (50, 20), (24, 24), (33, 47)]  # height, width
OBJECTS = [  # of each image: class, left, top, right, bottom
    [(0, 2, 3, 12, 20), (2, 0, 0, 40, 30)],
    [(1, 5, 10, 15, 50)],
    [],
    [(2, 1, 1, 4, 30), (2, 20, 2, 47, 9), (0, 7, 7, 9, 9)],
]


def picture(k: int) -> Image.Image:
    height, width = SIDES[k]
    return Image.fromarray(np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(k: int) -> bytes:
    out = io.BytesIO()
    picture(k).save(out, "PNG")
    return out.getvalue()


def pictures_in(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(len(SIDES)):
        picture(k).save(folder / f"{k}.png")


def coco(folder: Path, **changes: Any) -> Path:
    """Categories have numbers far apart, not in order."""
    ids = [7, 21, 90]
    rows = [
        {"image_id": 100 + k, "category_id": ids[c], "bbox": [x, y, r - x, b - y], "iscrowd": 0}
        for k, items in enumerate(OBJECTS)
        for c, x, y, r, b in items
    ]
    images = [{"id": 100 + k, "file_name": f"{k}.png", "height": h, "width": w} for k, (h, w) in enumerate(SIDES)]
    kinds = [{"id": ids[k], "name": NAMES[k]} for k in (2, 0, 1)]
    pictures_in(folder / "images" / "train2017")
    path = folder / "annotations" / "instances_train2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": kinds} | changes))
    return folder


def yolo(folder: Path) -> Path:
    pictures_in(folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    for k, items in enumerate(OBJECTS):
        h, w = SIDES[k]
        lines = [f"{c} {(x + r) / 2 / w} {(y + b) / 2 / h} {(r - x) / w} {(b - y) / h}" for c, x, y, r, b in items]
        if lines:
            (folder / "labels" / "train" / f"{k}.txt").write_text("\n".join(lines) + "\n\n")
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval:\nnames: {json.dumps(NAMES)}\n")
    return folder


def page(k: int, items: Any, more: str = "") -> str:
    h, w = SIDES[k]
    objects = "".join(
        f"<object><name>{NAMES[c]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{r}</xmax><ymax>{b}</ymax></bndbox><part><name>head</name></part></object>"
        for c, x, y, r, b in items
    )
    size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
    return f"<annotation><filename>{k}.png</filename>{size}{objects}{more}</annotation>"


def voc(folder: Path) -> Path:
    pictures_in(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for k, items in enumerate(OBJECTS):
        (folder / "Annotations" / f"{k}.xml").write_text(page(k, items))
    (folder / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n3\n")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("1\n")
    return folder


def parquet(folder: Path) -> Path:
    pa = needed_package("pyarrow")
    boxes = [
        [[(x + r) / 2 / w, (y + b) / 2 / h, (r - x) / w, (b - y) / h] for _, x, y, r, b in items]
        for items, (h, w) in zip(OBJECTS, SIDES, strict=True)
    ]
    table = pa.table(
        {
            "image": [{"bytes": encoded(k), "path": None} for k in range(len(SIDES))],
            "classes": pa.array([[c for c, *_ in items] for items in OBJECTS], pa.list_(pa.int64())),
            "boxes": pa.array(boxes, pa.list_(pa.list_(pa.float64()))),
        }
    )
    write(table.replace_schema_metadata({"names": json.dumps(NAMES)}), folder / "train.parquet")
    return folder


def write(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def hugging(folder: Path, corners: bool = False, rows: bool = False) -> Path:
    """The Hugging Face library's form: pixels, in lists by key or as a list of objects."""
    pa = needed_package("pyarrow")
    held = []
    for items in OBJECTS:
        boxes = [[x, y, r, b] if corners else [x, y, r - x, b - y] for _, x, y, r, b in items]
        kinds = [c for c, *_ in items]
        pairs = [{"bbox": box, "category": kind} for box, kind in zip(boxes, kinds, strict=True)]
        held.append(pairs if rows else {"bbox": boxes, "category": kinds})
    kind = {"bbox": {"_type": "List"}, "category": {"feature": {"names": NAMES, "_type": "ClassLabel"}}}
    one = pa.struct({"bbox": pa.list_(pa.float32()), "category": pa.int64()})
    lists = pa.struct({"bbox": pa.list_(pa.list_(pa.float32())), "category": pa.list_(pa.int64())})
    table = pa.table(
        {
            "image": [{"bytes": encoded(k), "path": None} for k in range(len(SIDES))],
            "objects": pa.array(held, pa.list_(one) if rows else lists),
        }
    )
    features = {"image": {"_type": "Image"}, "objects": {"feature": kind} if rows else kind}
    text = json.dumps({"info": {"features": features}})
    write(table.replace_schema_metadata({"huggingface": text}), folder / "train.parquet")
    return folder


def listed(data: BoxData) -> list[tuple[tuple[int, int], list[tuple[int, ...]]]]:
    """All truths as whole numbers, in the order of the pictures' files."""
    found = []
    for k in range(len(data)):
        truth = data.truth(k)
        rows = zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True)
        assert torch.allclose(truth.boxes, truth.boxes.round(), atol=1e-4)
        assert truth.boxes.dtype == torch.float64
        found.append((truth.sides, [(label, *map(round, box)) for label, box in rows]))
    return found


WANTED = list(zip(SIDES, OBJECTS, strict=True))


@pytest.mark.parametrize("form", [coco, yolo, voc, parquet, hugging])
def test_every_form_gives_the_same_truths(form: Callable[[Path], Path], tmp_path: Path, capsys) -> None:
    data = load_box_data(form(tmp_path))
    assert listed(data) == WANTED
    assert data.classes == tuple(NAMES)
    assert data.presence.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert data.left_out == {}
    assert "left out" not in capsys.readouterr().err
    for k, pixels in enumerate(data.pictures([3, 0, 2, 1])):
        assert torch.equal(pixels, decode_image(picture([3, 0, 2, 1][k])))
    part = data.subset([3, 1])
    assert listed(part) == [WANTED[3], WANTED[1]]
    assert torch.equal(part.picture(1), decode_image(picture(1)))
    assert torch.equal(part.presence, data.presence[[3, 1]])
    assert listed(part.subset(torch.tensor([False, True]))) == [WANTED[1]]
    with refused("data-index-out-of-range", "4"):
        data.subset([4])
    with pytest.raises(IndexError):
        data.truth(4)


def test_objects_as_rows_and_boxes_as_corners(tmp_path: Path, capsys) -> None:
    assert listed(load_box_data(hugging(tmp_path, rows=True))) == WANTED
    assert "corners" not in capsys.readouterr().err
    assert listed(load_box_data(hugging(tmp_path, corners=True))) == WANTED
    assert "left, top, right and bottom" in capsys.readouterr().err


@pytest.mark.parametrize("form", [coco, yolo, voc, parquet])
def test_a_split_that_is_not_there(form: Callable[[Path], Path], tmp_path: Path) -> None:
    with refused("data-missing", "'extra'"):
        load_box_data(f"{form(tmp_path)}?split=extra")


# -- COCO ----------------------------------------------------------------------------------------------------------

IMAGE = {"id": 100, "file_name": "0.png", "height": 30, "width": 40}


def rows(*boxes: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"image_id": 100, "category_id": 7, "bbox": box, "iscrowd": 0} | more for box in boxes]


def test_boxes_that_cannot_be_right_are_counted_and_left_out(tmp_path: Path, capsys) -> None:
    bad = rows([float("nan"), 0, 1, 1], [0, 0, 10**400, 1], [3, 3, 0, 5], [3, 3, -2, 5], [40, 0, 5, 5], [-9, 0, 9, 5])
    bad += rows([1, 1, 2, 2], category_id=5) + rows([1, 1, 2, 2], image_id=4)
    good = rows([-3, -3, 10, 10], [30, 20, 100, 100])
    crowd = rows([0, 0, 5, 5], iscrowd=1, segmentation={"counts": [1], "size": [30, 40]})
    coco(tmp_path, images=[IMAGE, {"id": 101, "file_name": "gone.png"}], annotations=bad + good + crowd)
    data = load_box_data(tmp_path)
    assert len(data) == 1
    truth = data.truth(0)
    assert truth.boxes.tolist() == [[0, 0, 7, 7], [30, 20, 40, 30], [0, 0, 5, 5]]
    assert truth.crowd.tolist() == [False, False, True]
    counts = {"finite": 2, "area": 2, "outside": 2, "unknown": 1, "not listed": 1, "missing": 1}
    assert sorted(data.left_out.values()) == sorted(counts.values())
    for word, count in counts.items():
        assert [n for reason, n in data.left_out.items() if word in reason] == [count], word
    said = capsys.readouterr().err
    assert said.count("left out") == 1
    assert all(reason in said for reason in data.left_out)


def test_where_no_box_is_left_that_is_an_error(tmp_path: Path) -> None:
    with refused("data-label-mismatch", "outside"):
        load_box_data(coco(tmp_path, annotations=rows([500, 500, 5, 5])))


def test_images_without_any_box_are_kept(tmp_path: Path) -> None:
    data = load_box_data(coco(tmp_path, annotations=[]))
    assert len(data) == 4
    assert not data.presence.any()


def test_an_image_that_is_listed_twice_is_there_once_with_the_objects_of_both(tmp_path: Path) -> None:
    twin = IMAGE | {"id": 101}
    both = rows([1, 1, 4, 4], [2, 2, 4, 4]) + rows([1, 1, 4, 4], [5, 5, 4, 4], image_id=101)
    data = load_box_data(coco(tmp_path, images=[IMAGE, twin], annotations=both))
    assert len(data) == 1
    assert data.truth(0).boxes.tolist() == [[1, 1, 5, 5], [2, 2, 6, 6], [5, 5, 9, 9]]
    assert list(data.left_out.values()) == [1]


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"annotations": rows([1, 2, 3])}, "data-damaged-file", "annotation 0"),
        ({"annotations": [*rows([1, 2, 3, 4]), {"image_id": 100}]}, "data-damaged-file", "annotation 1"),
        ({"annotations": rows([1, 2, 3, "4"])}, "data-damaged-file", "annotation 0"),
        ({"annotations": rows([1, 2, 3, True])}, "data-damaged-file", "annotation 0"),
        ({"annotations": [7]}, "data-damaged-file", "annotation 0"),
        ({"annotations": {}}, "data-damaged-file", "annotations"),
        ({"images": [IMAGE, IMAGE]}, "data-damaged-file", "images"),
        ({"images": [{"id": 100, "file_name": None}]}, "data-damaged-file", "image 100"),
        ({"images": [{"id": 100, "file_name": "no.png"}]}, "data-missing", "no.png"),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]}, "data-class-names", "'a'"),
        ({"categories": [{"id": 7, "name": "\ud800"}]}, "data-class-names", "UTF-8"),
    ],
)
def test_coco_that_is_broken(changes: dict[str, Any], code: str, named: str, tmp_path: Path) -> None:
    with refused(code, named, "" if code == "data-class-names" else "instances_train2017.json"):
        load_box_data(coco(tmp_path, **changes))


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "{}", "[1]", '{"images": [], "annotations": [], "categories": []}']
)
def test_json_that_is_no_coco(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    code = "data-damaged-file" if (text[:1] in ("", "[") and len(text) != 3) or '"images"' in text else None
    with refused(code or "data-unknown-format", "a.json"):
        load_box_data(tmp_path / "a.json")


def test_several_json_files_of_a_split(tmp_path: Path) -> None:
    coco(tmp_path)
    for name in ("captions_train2017", "instances_val2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text("{}")
    assert len(load_box_data(tmp_path)) == 4
    (tmp_path / "annotations" / "train_again.json").write_text("{}")
    (tmp_path / "annotations" / "instances_train2017.json").rename(tmp_path / "annotations" / "train.json")
    with refused("data-unknown-format", "train_again.json"):
        load_box_data(tmp_path)


def test_annotations_beside_the_pictures_of_a_split(tmp_path: Path, capsys) -> None:
    coco(tmp_path / "made")
    (tmp_path / "made" / "images" / "train2017").rename(tmp_path / "valid")
    made = tmp_path / "made" / "annotations" / "instances_train2017.json"
    made.rename(tmp_path / "valid" / "_annotations.coco.json")
    (tmp_path / "made").rename(tmp_path / ".made")
    (tmp_path / "README.yaml").write_text("a: b")
    assert listed(load_box_data(tmp_path, "test")) == WANTED
    assert "'valid' serves as it" in capsys.readouterr().err


def test_pictures_that_cannot_be_decoded_or_have_another_size_are_left_out(tmp_path: Path) -> None:
    coco(tmp_path)
    folder = tmp_path / "images" / "train2017"
    (folder / "0.png").write_bytes(b"no picture")
    picture(0).save(folder / "1.png")
    data = load_box_data(tmp_path)
    assert listed(data) == WANTED[2:]
    assert sorted(data.left_out.values()) == [1, 1]
    for k in (2, 3):
        (folder / f"{k}.png").write_bytes(b"")
    with refused("data-no-images", "decoded"):
        load_box_data(tmp_path)


def test_a_picture_that_is_truncated_or_exchanged_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    data = load_box_data(coco(tmp_path))
    file = tmp_path / "images" / "train2017" / "0.png"
    file.write_bytes(file.read_bytes()[:-200])
    with refused("data-unreadable-image", "0.png"):
        data.picture(0)
    picture(1).save(file)
    with refused("data-damaged-file", "30x40", "50x20"):
        data.picture(0)


# -- EXIF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_boxes_marked_before_exif_rotates_a_picture_are_rotated_with_it(turned: int, form: str, tmp_path: Path) -> None:
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[8:16, 32:64] = 255
    exif = Image.Exif()
    exif[274] = turned
    name = f"0.{form.lower()}"
    kinds = [{"id": 7, "name": "a"}]
    item = {"id": 100, "file_name": name, "height": 48, "width": 80}
    coco(tmp_path, images=[item], categories=kinds, annotations=rows([32, 8, 32, 8]))
    Image.fromarray(pixels).save(tmp_path / "images" / "train2017" / name, form, exif=exif)
    data = load_box_data(tmp_path)
    seen = data.picture(0)
    assert data.truth(0).sides == tuple(seen.shape[1:])
    assert image_sides(tmp_path / "images" / "train2017" / name)[:2] == tuple(seen.shape[1:])
    if turned in (1, 5, 6, 7, 8):  # the file tells: its sides are exchanged
        down, across = (seen[0] > 128).nonzero().T
        wanted = [int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1]
        assert data.truth(0).boxes.tolist() == [wanted]


# -- YOLO ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nnames: [cat, dog, eel]",
        "train: ../images/train\nnames:\n  0: cat\n  2: eel\n  1: dog",
        "path: ../{name}\ntrain: [images/train]\nnc: 3\nnames: ['cat', 'dog', 'eel']",
        "path: {name}\ntrain: images\\train\nnames: [cat, dog, eel]",
        "path: {folder}\ntrain: {folder}/images/train\nnames: [cat, dog, eel]",
        "train: list.txt\nnames: [cat, dog, eel]",
    ],
)
def test_paths_as_people_write_them(text: str, tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "list.txt").write_text("".join(f"./images/train/{k}.png\n" for k in range(4)))
    text = text.replace("{name}", tmp_path.name).replace("{folder}", str(tmp_path))
    (tmp_path / "data.yaml").write_text(text)
    data = load_box_data(tmp_path / "data.yaml")
    assert listed(data) == WANTED
    assert data.classes == tuple(NAMES)


def test_a_list_that_repeats_a_picture_and_names_one_that_is_missing(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/train/0.png\nimages/train/no.png\nimages/train/0.png\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat, dog, eel]")
    data = load_box_data(tmp_path)
    assert listed(data) == WANTED[:1]
    assert sorted(data.left_out.values()) == [1, 1]


def test_classes_keep_their_names_where_yaml_would_read_something_else(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [no, 1e3, null]")
    with refused("data-class-names", "''"):
        load_box_data(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [no, 1e3, 2026-01-01]")
    assert load_box_data(tmp_path).classes == ("no", "1e3", "2026-01-01")


def test_outlines_and_poses_are_reduced_to_their_box(tmp_path: Path) -> None:
    yolo(tmp_path)
    file = tmp_path / "labels" / "train" / "0.txt"
    file.write_text("1 0.1 0.1 0.5 0.2 0.3 0.4\n2 .2 .2 .4 .2 .4 .6 .2 .6")
    height, width = SIDES[0]
    wanted = [[0.1 * width, 0.1 * height, 0.5 * width, 0.4 * height], [8, 6, 16, 18]]
    assert np.allclose(load_box_data(tmp_path).truth(0).boxes, wanted)
    with (tmp_path / "data.yaml").open("a") as text:
        text.write("kpt_shape: [1, 2]\n")
    file.write_text("1 0.5 0.5 0.5 0.2 0.3 0.4")
    assert np.allclose(load_box_data(tmp_path).truth(0).boxes, [[10, 12, 30, 18]])


def test_classes_out_of_range_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    yolo(tmp_path)
    lines = "3 .5 .5 .1 .1\n-1 .5 .5 .1 .1\n1e300 .5 .5 .1 .1\n0 nan .5 .1 .1\n0 .5 .5 inf .1\n0 .5 .5 0 .1\n"
    (tmp_path / "labels" / "train" / "1.txt").write_text(lines + "0 .5 .5 -.1 .1\n0 9 9 .1 .1\n0 .1 .1 .1 .1")
    data = load_box_data(tmp_path)
    assert data.truth(1).labels.tolist() == [0]
    assert sorted(data.left_out.values()) == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "line",
    ["0 .5 .5 .1", "0 .5 .5 .1 .1 .9", "cat .5 .5 .1 .1", "1.5 .5 .5 .1 .1", "0,.5,.5,.1,.1", "nan 1 1 1 1", "\0"],
)
def test_labels_that_have_another_form(line: str, tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels" / "train" / "1.txt").write_text("0 .5 .5 .1 .1\n" + line)
    with refused("data-damaged-file", "1.txt", "line 2"):
        load_box_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("train: images/train\nnames: !!python/object/apply:os.system ['true']", "data-damaged-file"),
        ("train: &a images/train\nnames: [*a, *a]", "data-damaged-file"),
        ("train: images/train\nnames: " + "[" * 50 + "]" * 50, "data-damaged-file"),
        ("train: images/train\nnames: [a", "data-damaged-file"),
        ("train: images/train\nnames: {0: cat, 0: dog}", "data-damaged-file"),
        ("train: images/train\nnames: {0: cat, 2: dog}", "data-class-names"),
        ("train: images/train\nnames: [[cat]]", "data-class-names"),
        ("train: images/train\nnames: cat", "data-class-names"),
        ("train: images/train\n", "data-class-names"),
        ("train: nowhere\nnames: [cat]", "data-missing"),
        ("val: images/train\nnames: [cat]", "data-missing"),
        ("names: [cat]", "data-unknown-format"),
        ("- cat", "data-unknown-format"),
        ("", "data-unknown-format"),
        ("# " + "x" * 600_000, "data-damaged-file"),
    ],
)
def test_yaml_that_is_broken(text: str, code: str, tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with refused(code, "data.yaml"):
        load_box_data(tmp_path)


def test_pictures_without_any_labels_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "label")
    with refused("data-no-labels", "data.yaml"):
        load_box_data(tmp_path)
    for file in (tmp_path / "label" / "train").iterdir():
        file.rename(tmp_path / "images" / "train" / file.name)  # beside the pictures
    assert listed(load_box_data(tmp_path)) == WANTED


# -- Pascal VOC ----------------------------------------------------------------------------------------------------


def test_the_lists_of_splits_count(tmp_path: Path, capsys) -> None:
    inner = tmp_path / "VOC2007"
    inner.mkdir()
    voc(inner)
    data = load_box_data(tmp_path, "test")
    assert listed(data) == [WANTED[1]]
    assert data.classes == tuple(NAMES)  # of all files
    assert "'val' serves as it" in capsys.readouterr().err


def test_difficult_objects_are_crowds_and_zero_tells_where_counting_starts(tmp_path: Path, capsys) -> None:
    voc(tmp_path)
    box = "<bndbox><xmin>0</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9.5</ymax></bndbox>"
    (tmp_path / "Annotations" / "2.xml").write_text(
        page(2, [], f"<object><name>dog</name><difficult>1</difficult>{box}</object>")
    )
    data = load_box_data(tmp_path)
    assert data.truth(2).boxes.tolist() == [[0, 2, 9, 9.5]]
    assert data.truth(2).crowd.tolist() == [True]
    assert data.truth(1).boxes.tolist() == [[6, 11, 15, 50]]  # one more than where VOC counts from 1
    assert "count from 0" in capsys.readouterr().err


@pytest.mark.parametrize("kaggle", [True, False])
def test_xml_beside_pictures_and_in_other_folders(kaggle: bool, tmp_path: Path) -> None:
    voc(tmp_path / "made")
    for k in range(4):
        for file, folder in ((f"Annotations/{k}.xml", "annotations"), (f"JPEGImages/{k}.png", "images")):
            home = tmp_path / "set" / (folder if kaggle else "train")
            home.mkdir(exist_ok=True, parents=True)
            (tmp_path / "made" / file).rename(home / Path(file).name)
    assert listed(load_box_data(tmp_path / "set")) == WANTED


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        BOMB.encode("utf-16"),
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
        "<a>" * 100 + "</a>" * 100,
        "<a>" + "<b/>" * 300_000 + "</a>",
        "<annotation>",
        "",
        '<?xml version="1.0" encoding="nothing"?><a/>',
        page(1, [], "<object><name>cat</name></object>"),
        page(1, [], "<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"),
        page(1, OBJECTS[1]).replace("<xmax>15<", "<xmax>wide<"),
    ],
)
def test_xml_that_is_hostile_or_broken(text: str | bytes, tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "Annotations" / "1.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused("data-damaged-file", "1.xml"):
        load_box_data(tmp_path)


def test_lists_and_pictures_that_are_missing(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "JPEGImages" / "0.png").unlink()
    data = load_box_data(tmp_path)
    assert listed(data) == WANTED[1:]
    assert list(data.left_out.values()) == [1]
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("0\n9\n")
    with refused("data-missing", "train.txt", "'9'"):
        load_box_data(tmp_path)


# -- parquet -------------------------------------------------------------------------------------------------------


def test_columns_that_have_another_form(tmp_path: Path) -> None:
    pa = needed_package("pyarrow")
    image = [{"bytes": encoded(0), "path": None}]
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"boxes": [[[0.5, 0.5, 0.1]]], "classes": [[0]]}, "data-damaged-file", "row 0"),
        ({"boxes": [[[0.5, 0.5, 0.1, None]]], "classes": [[0]]}, "data-damaged-file", "row 0"),
        ({"boxes": [[[0.5, 0.5, 0.1, 0.1]]], "classes": [[0, 1]]}, "data-damaged-file", "row 0"),
        ({"boxes": [[[0.5, 0.5, 0.1, 0.1]]], "classes": [[0.5]]}, "data-label-mismatch", "0.5"),
        ({"boxes": [[[0.5, 0.5, 0.1, 0.1]]], "classes": [[1 << 40]]}, "data-label-out-of-range", str(1 << 40)),
        ({"boxes": [[[50.0, 50.0, 10.0, 10.0]]], "classes": [[0]]}, "data-label-mismatch", "outside"),
        ({"boxes": [[]], "label": [[]]}, "data-label-mismatch", "train.parquet"),
        ({"objects": [{"bbox": [[0.0, 0.0, 1.0, 1.0]]}]}, "data-unknown-format", "row 0"),
        ({"objects": ["cat"]}, "data-unknown-format", "row 0"),
        ({"label": [0]}, "data-unknown-format", "label"),
    ]
    for columns, code, named in cases:
        write(pa.table({"image": image} | columns), tmp_path / "train.parquet")
        with refused(code, named):
            load_box_data(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with refused("data-damaged-file", "train.parquet"):
        load_box_data(tmp_path)


def test_shards_of_one_set_are_read_together_and_others_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path)
    pq = needed_package("pyarrow.parquet")
    table = pq.read_table(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").unlink()
    first, second = (tmp_path / f"train-{k:05}-of-00002.parquet" for k in range(2))
    write(table.slice(0, 1), first)
    write(table.slice(1), second)
    data = load_box_data(tmp_path)
    assert listed(data) == WANTED
    assert torch.equal(data.picture(2), decode_image(picture(2)))
    for other in (table.slice(1).drop_columns("boxes"), table.slice(1).replace_schema_metadata({"names": '["a"]'})):
        write(other, second)
        with refused("data-damaged-file" if "boxes" in other.column_names else "data-unknown-format", second.name):
            load_box_data(tmp_path)


def test_a_column_that_repeats_itself_is_counted_while_it_is_read(tmp_path: Path, monkeypatch) -> None:
    pa = needed_package("pyarrow")
    image = [{"bytes": encoded(0), "path": None}] * 400
    boxes = [[[0.5, 0.5, 0.1, 0.1]] * 9] * 400
    write(pa.table({"image": image, "boxes": boxes, "labels": [[0] * 9] * 400}), tmp_path / "train.parquet")
    monkeypatch.setattr("brickyard.inputs._box_columns.MOST_BOXES", 3_999)
    seen: list[int] = []
    real = Marked.of
    monkeypatch.setattr(Marked, "of", lambda *given, **named: seen.append(1) or real(*given, **named))
    with refused("data-too-large", "3,999"):
        load_box_data(tmp_path)
    assert 300 < len(seen) < 400


def test_names_in_place_of_numbers_and_rows_without_a_picture(tmp_path: Path) -> None:
    pa = needed_package("pyarrow")
    image = [{"bytes": encoded(0), "path": None}, {"bytes": None, "path": "/etc/passwd"}, None]
    box = [[0.5, 0.5, 0.5, 0.5]]
    write(pa.table({"image": image, "boxes": [box] * 3, "labels": [["b"], ["a"], ["c"]]}), tmp_path / "train.parquet")
    data = load_box_data(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert data.truth(0).labels.tolist() == [1]
    assert list(data.left_out.values()) == [2]


def test_the_same_folder_as_datasets_saves_it(tmp_path: Path) -> None:
    datasets = needed_package("datasets")
    lists, one = datasets.List, datasets.Value
    kinds = {"other": lists(datasets.ClassLabel(names=["no"])), "category": lists(datasets.ClassLabel(names=NAMES))}
    features = {"image": datasets.Image(), "objects": {"bbox": lists(lists(one("float32"), 4)), **kinds}}
    objects = [
        {"bbox": [[x, y, r - x, b - y] for _, x, y, r, b in items], "category": [c for c, *_ in items], "other": []}
        for items in OBJECTS
    ]
    rows = {"image": [{"bytes": encoded(k), "path": None} for k in range(4)], "objects": objects}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "train.parquet")
    assert listed(load_box_data(tmp_path / "train.parquet")) == WANTED
    data = load_box_data(tmp_path / "saved")
    assert listed(data) == WANTED
    assert data.classes == tuple(NAMES)


# -- places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("", "option-empty"),
        ("{}?size=3", "option-unknown-name"),
        ("{}/nowhere", "data-missing"),
        ("{}", "data-unknown-format"),
        ("{}/a.txt", "data-unknown-format"),
        ("\0", "file-path-invalid"),
    ],
)
def test_places_that_hold_no_such_data(spec: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with refused(code):
        load_box_data(spec.format(tmp_path))


WORDS = (
    b"-1",
    b"1e400",
    b"NaN",
    b"null",
    b"{}",
    b"[]",
    b'""',
    b"true",
    b"<",
    b"\xff",
    b"\0",
    b"9" * 5000,
    b"../",
    b"\n",
)


@pytest.mark.parametrize("form", [coco, yolo, voc])
def test_whatever_is_changed_in_a_file_is_read_or_refused(form: Callable[[Path], Path], tmp_path: Path) -> None:
    """Words and bytes of the texts are replaced: boxes that are read lie in their pictures, all else is an error."""
    form(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png")
    rng = np.random.default_rng(3)
    outcomes = set()
    for k in range(60):
        path = files[int(rng.integers(len(files)))]
        before = path.read_bytes()
        words = list(re.finditer(rb"[^\s,:<>\[\]{}]+", before))
        word = words[int(rng.integers(len(words)))]
        new = WORDS[k % len(WORDS)] if k % 3 else bytes([int(rng.integers(256))])
        path.write_bytes(before[: word.start()] + new + before[word.end() if k % 3 else word.start() + 1 :])
        try:
            data = load_box_data(tmp_path)
        except BrickyardError as error:
            judge(error, error.code)
            outcomes.add(error.code)
        else:
            outcomes.add("")
            for truth in map(data.truth, range(len(data))):
                assert bool((truth.boxes >= 0).all() & (truth.boxes[:, 2:] > truth.boxes[:, :2]).all())
                assert bool((truth.boxes[:, 2:] <= torch.tensor(truth.sides[::-1])).all())
                assert bool(((truth.labels >= 0) & (truth.labels < len(data.classes))).all())
        path.write_bytes(before)
    assert {"", "data-damaged-file"} <= outcomes


@pytest.mark.shared
def test_real_photographs_in_four_forms(tmp_path: Path, shared: Path) -> None:
    """A part of COCO, written anew from its truths: all forms give the same boxes."""
    data = load_box_data(shared / "data/coco128")
    assert (len(data), len(data.classes), sum(len(data.truth(k).labels) for k in range(128))) == (128, 80, 929)
    assert len(load_box_data(shared / "data/coco128", "test")) == 128
    assert data.left_out == {}
    some = data.subset([0, 5, 77, *(~data.presence.any(1)).nonzero().flatten().tolist()])
    assert len(some.truth(3).labels) == 0
    for write_as in (as_coco, as_yolo, as_voc):
        folder = tmp_path / write_as.__name__
        write_as(some, folder)
        again = load_box_data(folder)
        assert len(again) == len(some)
        for k in range(len(some)):
            mine, other = some.truth(k), again.truth(k)
            assert [some.classes[c] for c in mine.labels] == [again.classes[c] for c in other.labels]
            assert torch.allclose(mine.boxes, other.boxes, atol=1e-6)
            assert mine.sides == other.sides
            assert torch.equal(some.picture(k), again.picture(k))
    shifted = Truth(mine.boxes + 1e-3, mine.labels, mine.crowd, mine.sides)  # the control
    assert len(mine.labels) == 0 or not torch.allclose(shifted.boxes, other.boxes, atol=1e-6)


def saved_pictures(data: BoxData, folder: Path) -> None:
    folder.mkdir(parents=True)
    for k, pixels in enumerate(data.pictures()):
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(folder / f"{k:03}.png")


def as_coco(data: BoxData, folder: Path) -> None:
    saved_pictures(data, folder / "train")
    truths = [data.truth(k) for k in range(len(data))]
    found = {
        "images": [{"id": k, "file_name": f"{k:03}.png"} for k in range(len(data))],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(data.classes)],
        "annotations": [
            {"image_id": k, "category_id": label + 1, "bbox": [x, y, r - x, b - y]}
            for k, truth in enumerate(truths)
            for label, (x, y, r, b) in zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True)
        ],
    }
    (folder / "train.json").write_text(json.dumps(found))


def as_yolo(data: BoxData, folder: Path) -> None:
    saved_pictures(data, folder / "images")
    (folder / "labels").mkdir()
    for k in range(len(data)):
        truth = data.truth(k)
        h, w = truth.sides
        pairs = zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True)
        lines = [f"{c} {(x + r) / 2 / w} {(y + b) / 2 / h} {(r - x) / w} {(b - y) / h}" for c, (x, y, r, b) in pairs]
        (folder / "labels" / f"{k:03}.txt").write_text("\n".join(lines))
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(data.classes))
    (folder / "data.yaml").write_text(f"train: images\nnames:\n{names}")


def as_voc(data: BoxData, folder: Path) -> None:
    saved_pictures(data, folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for k in range(len(data)):
        truth = data.truth(k)
        objects = "".join(
            f"<object><name>{data.classes[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{r}</xmax>"
            f"<ymax>{b}</ymax></bndbox></object>"
            for c, (x, y, r, b) in zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True)
        )
        (folder / "Annotations" / f"{k:03}.xml").write_text(f"<annotation>{objects}</annotation>")
