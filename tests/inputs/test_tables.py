"""Tables and JSON files of paths and labels, and tables of pixels, compared with what was written."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brickyard import Preprocessing
from brickyard.inputs import _pictures, load_data
from brickyard.inputs._decoding import decode_image
from brickyard.recipes._fingerprints import Fingerprints, data_files
from errors import refused

NOISE = np.random.default_rng(3).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
NAMES = ("a.png", "b.png", "c.jpg", "deep/d.png", "e f.bmp", "g,h.png")
WORDS = ("dog", "cat", "dog", "eel", "cat", "dog")
CLASSES = ("cat", "dog", "eel")
NUMBERS = [CLASSES.index(word) for word in WORDS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pixels in zip(NAMES, NOISE, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def by_hand(folder: Path, names: Sequence[str] = NAMES) -> torch.Tensor:
    """The pictures as Pillow alone reads them."""
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1) for name in names]
    )


def table(
    head: Sequence[str] = ("path", "label"), labels: Sequence[object] = WORDS, sign: str = ",", names=NAMES, end="\n"
) -> str:
    quoted = [f'"{name}"' if sign in name else name for name in names]
    rows = [sign.join(head)] if head else []
    return end.join([*rows, *(f"{name}{sign}{label}" for name, label in zip(quoted, labels, strict=True)), ""])


TABLES = {
    "path,label": table(),
    "filename,class": table(("filename", "class")),
    "file_name;category": table(("file_name", "category"), sign=";"),
    "Image ID,Label Name": table(("Image ID", "Label Name")),
    "img\ttarget": table(("img", "target"), sign="\t"),
    "FilePath,ClassId": table(("FilePath", "ClassId")),
    "no header": table(()),
    "BOM and CRLF": "\ufeff" + table(end="\r\n"),
    "empty lines and spaces": table().replace("\n", "\n\n").replace("a.png,dog", " a.png , dog "),
    "without suffixes": table(names=[name.rpartition(".")[0] for name in NAMES]),
    "backslashes": table().replace("deep/d", "deep\\d"),
    "other columns too": "width,path,label\n"
    + "".join(f'9,"{name}",{label}\n' for name, label in zip(NAMES, WORDS, strict=True)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_paths_is_read_in_any_usual_spelling(name: str, folder: Path) -> None:
    path = folder / "t.csv"
    path.write_text(TABLES[name], encoding="utf-8", newline="")
    data = load_data(path)
    assert torch.equal(data.images, by_hand(folder))
    assert not torch.equal(data.images, by_hand(folder).flip(0))  # the control
    assert (data.classes, data.labels.tolist()) == (CLASSES, NUMBERS)


def test_tab_separated_in_utf16_and_absolute_paths(folder: Path, tmp_path_factory) -> None:
    away = tmp_path_factory.mktemp("away") / "t.tsv"
    away.write_text(table(names=[str(folder / name) for name in NAMES], sign="\t"), encoding="utf-16")
    assert torch.equal(load_data(away).images, by_hand(folder))


def test_numbers_are_indices_and_a_column_of_names_names_them(folder: Path, capsys) -> None:
    numbers = (4, 0, 4, 1, 0, 4)
    (folder / "t.csv").write_text(table(labels=numbers))
    data = load_data(folder / "t.csv")
    assert (data.labels.tolist(), data.classes) == (list(numbers), tuple("01234"))
    (folder / "t.csv").write_text(table(labels=[f"{k}.0" for k in numbers]))  # as pandas writes them
    assert load_data(folder / "t.csv").labels.tolist() == list(numbers)
    (folder / "t.csv").write_text(table(labels=["0", "1", "x", "1", "1", "1"]))  # the control: not only numbers
    assert load_data(folder / "t.csv").classes == ("0", "1", "x")
    ids = [{"dog": 0, "cat": 1, "eel": 2}[word] for word in WORDS]
    rows = [f'"{name}",{k},{word}' for name, k, word in zip(NAMES, ids, WORDS, strict=True)]
    (folder / "t.csv").write_text("\n".join(["file,class_id,class_name", *rows]))
    data = load_data(folder / "t.csv")
    assert (data.labels.tolist(), data.classes) == (ids, ("dog", "cat", "eel"))
    capsys.readouterr()
    (folder / "t.csv").write_text("\n".join(["file,class_id,class_name", *rows]).replace("0,dog", "1,dog"))
    assert load_data(folder / "t.csv").classes == ("0", "1", "2")  # the names do not fit the numbers
    assert "'class_id', not of class_name" in capsys.readouterr().err


def test_a_column_of_splits_is_honoured(folder: Path, capsys) -> None:
    splits = ("train", "Train", "val", "train", "val", "train")
    rows = [f'"{name}",{word},{part}' for name, word, part in zip(NAMES, WORDS, splits, strict=True)]
    (folder / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    data = load_data(folder / "t.csv")
    assert data.labels.tolist() == [NUMBERS[k] for k in (0, 1, 3, 5)]
    assert data.classes == CLASSES
    assert not capsys.readouterr().err
    held = load_data(folder / "t.csv", split="test")
    assert torch.equal(held.images, by_hand(folder)[[2, 4]])
    assert "'val' serves as it" in capsys.readouterr().err
    with refused("data-missing", "'extra'", "train (4)", "val (2)"):
        load_data(f"{folder}/t.csv?split=extra")
    (folder / "t.csv").write_text(table())
    with refused("data-missing", "'test'"):
        load_data(f"{folder}/t.csv?split=test")
    assert len(load_data(folder / "t.csv", split="test")) == 6  # not asked for by the text: a flat list is all there is


def test_pictures_lie_beside_the_table_or_in_a_usual_folder(folder: Path, capsys) -> None:
    (folder / "images").mkdir()
    for name in NAMES:
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        (folder / name).rename(folder / "images" / name)
    (folder / "t.csv").write_text(table())
    assert torch.equal(load_data(folder / "t.csv").images, by_hand(folder / "images"))
    assert "are those in images" in capsys.readouterr().err
    (folder / "images").rename(folder / "elsewhere")
    with refused("data-missing", "6 of 6", "'a.png'", "'b.png'"):
        load_data(folder / "t.csv")


def test_missing_pictures_are_counted_and_named_before_anything_is_decoded(folder: Path, monkeypatch) -> None:
    (folder / "b.png").unlink()
    (folder / "deep" / "d.png").unlink()
    (folder / "t.csv").write_text(table())
    monkeypatch.setattr(_pictures, "decode_image", lambda *_: pytest.fail("decoded"))
    with refused("data-missing", "2 of 6", "'b.png'", "'deep/d.png'"):
        load_data(folder / "t.csv")


def test_a_picture_in_several_rows_counts_once_or_is_refused(folder: Path, capsys) -> None:
    """As in a table with one row for each object in a picture."""
    (folder / "t.csv").write_text(table() + "a.png,dog\nb.png,cat\na.png,dog\n")
    data = load_data(folder / "t.csv")
    assert (len(data), data.labels.tolist()) == (6, NUMBERS)
    assert "left out: 3" in capsys.readouterr().err
    (folder / "t.csv").write_text(table() + "a.png,cat\nb.png,cat\n")
    with refused("data-label-mismatch", "1 of 6", "'a.png'"):
        load_data(folder / "t.csv")


def test_the_file_of_a_split_in_a_folder(folder: Path) -> None:
    (folder / "d_train.csv").write_text(table())
    (folder / "d_test.csv").write_text(table(names=NAMES[:2], labels=WORDS[:2]))
    assert len(load_data(folder)) == 6
    assert torch.equal(load_data(f"{folder}?split=test").images, by_hand(folder, NAMES[:2]))


@pytest.mark.parametrize(
    ("text", "code", "quoted"),
    [
        ("", "data-no-images", ()),
        ("path,label\n", "data-no-images", ()),
        ("foo,bar\n1,2\n", "data-unknown-format", ("foo, bar", "path,label")),
        ("path,size\na.png,2\n", "data-unknown-format", ("path, size",)),
        ("path,label\na.png,dog\nb.png\n", "data-damaged-file", ("row 1", "1 columns")),
        ("path,label\na.png,dog\nb.png,\n", "data-label-mismatch", ("'label'", "row 1")),
        ("path,label\na.png,-1\n", "data-label-out-of-range", ("-1",)),
        ("path,label\na.png,999999999\n", "data-label-out-of-range", ("999999999",)),
        ("path,label\n,dog\n", "data-damaged-file", ("row 0",)),
        ("path,label\na\x00b.png,dog\n", "data-missing", ("1 of 1",)),
    ],
)
def test_a_table_that_cannot_be_used_is_one_error(text: str, code: str, quoted: tuple[str, ...], folder: Path) -> None:
    (folder / "t.csv").write_text(text)
    with refused(code, "t.csv", *quoted):
        load_data(folder / "t.csv")
    (folder / "t.csv").write_bytes(b"path,label\n\xff\xfe\xfa.png,dog\n")
    with refused("data-damaged-file", "t.csv", "UTF-8"):
        load_data(folder / "t.csv")


def test_a_name_without_a_suffix_must_be_that_of_one_picture(folder: Path) -> None:
    (folder / "t.csv").write_text("path,label\na,dog\n")
    assert len(load_data(folder / "t.csv")) == 1
    Image.fromarray(NOISE[0]).save(folder / "a.jpg")
    with refused("data-missing", "'a'", "one picture"):
        load_data(folder / "t.csv")


def test_options_choose_before_pictures_are_decoded(folder: Path, monkeypatch) -> None:
    (folder / "t.csv").write_text(table())
    whole = load_data(folder / "t.csv")
    wanted = whole.of_classes(["dog", "eel"]).shuffled(0).subset(range(2))
    assert torch.equal(load_data(f"{folder}/t.csv?classes=dog,eel", max_images=2).images, wanted.images)
    seen: list[str] = []
    real = decode_image
    monkeypatch.setattr(_pictures, "decode_image", lambda path, title: seen.append(path) or real(path, title))
    some = load_data(f"{folder}/t.csv?classes=dog,eel", max_images=2, size=Preprocessing(size=(4, 4), channels=3))
    assert len(seen) == 1  # the first one, to see whether pictures can be read
    assert some.images.shape == (2, 3, 4, 4)
    assert len(set(seen)) == 2
    assert torch.equal(some.labels, wanted.labels)
    (folder / "t.csv").write_text(table(labels=(5, 0, 5, 5, 0, 0)))
    with refused("data-no-images", "classes 3"):
        load_data(f"{folder}/t.csv?classes=3")


def test_a_recipe_sees_that_a_listed_picture_has_changed(folder: Path) -> None:
    (folder / "t.csv").write_text(table())
    (folder / "m.jsonl").write_text(LINES)
    for name in ("t.csv", "m.jsonl"):
        assert set(data_files(folder / name, "train")) == {folder / name, *(folder / item for item in NAMES)}
        before = Fingerprints(folder).data(str(folder / name), "train")
        (folder / "beside.png").touch()
        assert Fingerprints(folder).data(str(folder / name), "train") == before  # the control: it is not listed
        Image.fromarray(NOISE[1] // len(name)).save(folder / "b.png")
        assert Fingerprints(folder).data(str(folder / name), "train") != before


# -- JSON ----------------------------------------------------------------------------------------------------------

ROWS = [{"file_name": name, "label": word} for name, word in zip(NAMES, WORDS, strict=True)]
LINES = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", LINES + "\n\n"),
        ("m.json", LINES),
        ("m.json", json.dumps(ROWS)),
        ("m.ndjson", "\ufeff" + LINES.replace("\n", "\r\n")),
        ("m.json", json.dumps([{"path": row["file_name"], "class": row["label"], "box": [1, 2]} for row in ROWS])),
    ],
)
def test_json_lists_pictures(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    data = load_data(folder / name)
    assert torch.equal(data.images, by_hand(folder))
    assert (data.classes, data.labels.tolist()) == (CLASSES, NUMBERS)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "labels.csv"])
def test_metadata_in_the_folder_of_a_split_or_of_all(name: str, tmp_path: Path, capsys) -> None:
    for part, rows in (("train", range(4)), ("test", range(4, 6))):
        (tmp_path / part).mkdir()
        for k in rows:
            Image.fromarray(NOISE[k]).save(tmp_path / part / f"{k}.png")
        text = "\n".join(json.dumps({"file_name": f"{k}.png", "label": NUMBERS[k]}) for k in rows)
        if name.endswith(".csv"):
            text = "file_name,label\n" + "\n".join(f"{k}.png,{NUMBERS[k]}" for k in rows)
        (tmp_path / part / name).write_text(text)
    assert load_data(tmp_path).labels.tolist() == NUMBERS[:4]
    assert load_data(f"{tmp_path}?split=test").labels.tolist() == NUMBERS[4:]
    both = [(f"{part}/{k}.png", NUMBERS[k]) for part, rows in (("train", range(4)), ("test", [4, 5])) for k in rows]
    if name.endswith(".csv"):
        text = "file_name,label\n" + "\n".join(f"{file},{label}" for file, label in both)
    else:
        text = "\n".join(json.dumps({"file_name": file, "label": label}) for file, label in both)
    (tmp_path / name).write_text(text)
    capsys.readouterr()
    data = load_data(tmp_path, split="test")
    assert torch.equal(data.images, torch.from_numpy(NOISE[4:]).permute(0, 3, 1, 2))
    assert "test, train" in capsys.readouterr().err


def test_a_table_of_something_else_leaves_the_folder_what_it_is(folder: Path) -> None:
    (folder / "deep" / "labels.csv").write_text("x,y\n")
    (folder / "labels.csv").write_text("name,class\nn01440764,tench\nn01443537,goldfish\n")
    data = load_data(folder)
    assert (data.classes, len(data)) == (("deep",), 1)


def coco(folder: Path, annotations: Sequence[tuple[int, int]], ids: Sequence[int] = (7, 3, 90)) -> Path:
    found = {
        "images": [{"id": 10 + k, "file_name": name, "width": 7, "height": 5} for k, name in enumerate(NAMES)],
        "categories": [{"id": number, "name": f"kind {number}"} for number in ids],
        "annotations": [
            {"id": k, "image_id": 10 + image, "category_id": kind, "bbox": [0, 0, 1, 1]}
            for k, (image, kind) in enumerate(annotations)
        ],
    }
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(found))
    return path


def test_coco_with_one_category_an_image(folder: Path) -> None:
    pairs = [(0, 90), (1, 3), (2, 7), (3, 7), (4, 3), (5, 90), (0, 90), (2, 7)]
    data = load_data(coco(folder, pairs))
    assert data.classes == ("kind 3", "kind 7", "kind 90")
    assert data.labels.tolist() == [2, 0, 1, 1, 0, 2]
    assert torch.equal(data.images, by_hand(folder))
    with refused("data-label-mismatch", "2 of 6 images", "several categories, 1 of none"):
        load_data(coco(folder, [*pairs[:5], (0, 3), (2, 90)]))
    with refused("data-damaged-file", "annotation 8", "(10, 5)"):
        load_data(coco(folder, [*pairs, (0, 5)]))
    with refused("data-damaged-file", "'categories'", "2 of 3"):
        load_data(coco(folder, pairs, ids=(7, 7, 90)))


@pytest.mark.parametrize(
    ("text", "code", "quoted"),
    [
        ("[", "data-damaged-file", ()),
        ("[" * 100_000, "data-damaged-file", ()),
        ('{"a": 1}', "data-unknown-format", ("'a'", "COCO")),
        ("[1, 2]", "data-unknown-format", ("list",)),
        ("[]", "data-unknown-format", ()),
        ('[{"path": "a.png"}]', "data-unknown-format", ("path", "label")),
        ('[{"path": "a.png", "label": 1}, {"path": "b.png"}]', "data-label-mismatch", ("row 1", "None")),
        ('[{"path": "a.png", "label": 1}, {"path": "b.png", "label": true}]', "data-label-mismatch", ("row 1",)),
        ('[{"path": "a.png", "label": 1e999}]', "data-label-mismatch", ("inf",)),
        ('[{"path": "z.png", "label": 1}]', "data-missing", ("'z.png'",)),
    ],
)
def test_json_that_cannot_be_used_is_one_error(text: str, code: str, quoted: tuple[str, ...], folder: Path) -> None:
    (folder / "m.json").write_text(text)
    with refused(code, "m.json", *quoted):
        load_data(folder / "m.json")


def test_texts_beyond_the_limit_are_not_read(folder: Path, monkeypatch) -> None:
    from brickyard.inputs import _json_files, _tables

    (folder / "m.json").write_text("[" + " " * 30_000_000)
    (folder / "t.csv").write_text(table() + "\n" * 30_000_000)
    for module in (_json_files, _tables):
        monkeypatch.setattr(module, "MAX_TEXT", 20_000_000)
    tracemalloc.start()
    for name in ("m.json", "t.csv"):
        with refused("data-too-large", name, "30 MB", "20 MB"):
            load_data(folder / name)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    monkeypatch.setattr(_json_files, "MAX_TEXT", 1 << 29)  # the control: this is what reading it takes
    with refused("data-damaged-file"):
        load_data(folder / "m.json")
    assert tracemalloc.get_traced_memory()[1] > 30e6
    tracemalloc.stop()


# -- pixels --------------------------------------------------------------------------------------------------------

GREYS = np.random.default_rng(4).integers(0, 256, (9, 16), dtype=np.uint8)
DIGITS = [3, 1, 0, 2, 1, 3, 0, 0, 2]
PIXELS = [",".join(map(str, row)) for row in GREYS.tolist()]


@pytest.mark.parametrize(
    "head",
    [
        ["label", *(f"pixel{k}" for k in range(16))],
        ["label", *(f"{i}x{j}" for i in range(1, 5) for j in range(1, 5))],
        [*(str(k) for k in range(16)), "class"],
        [*(f"pixel_{k}" for k in range(16)), "label"],
        None,
    ],
)
def test_a_table_of_pixels_is_read_as_square_pictures(head: list[str] | None, tmp_path: Path) -> None:
    first = head is None or head[0] == "label"
    rows = [f"{k},{row}" if first else f"{row},{k}" for k, row in zip(DIGITS, PIXELS, strict=True)]
    (tmp_path / "mnist_train.csv").write_text("\n".join([*([",".join(head)] if head else []), *rows]))
    data = load_data(tmp_path / "mnist_train.csv")
    assert torch.equal(data.images, torch.from_numpy(GREYS.reshape(9, 1, 4, 4)))
    assert not torch.equal(data.images, torch.from_numpy(GREYS.reshape(9, 1, 4, 4)).mT)  # the control
    assert (data.labels.tolist(), data.classes) == (DIGITS, tuple("0123"))


def test_without_a_header_a_first_column_that_never_changes_holds_no_labels(tmp_path: Path, capsys) -> None:
    greys = GREYS.copy()
    greys[:, 0] = 0
    np.savetxt(tmp_path / "t.csv", np.column_stack([greys, DIGITS]), "%d", ",")
    data = load_data(tmp_path / "t.csv")
    assert torch.equal(data.images.flatten(1), torch.from_numpy(greys))
    assert data.labels.tolist() == DIGITS
    assert "the last one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "quoted"),
    [
        ("label," + ",".join(f"pixel{k}" for k in range(12)) + "\n", "data-shape", ("12 columns",)),
        (",".join(f"pixel{k}" for k in range(16)) + "\n" + PIXELS[0], "data-no-labels", ("'label'",)),
        (PIXELS[0] + "\n" + PIXELS[1], "data-no-labels", ("4 x 4",)),
        ("label,p0,p1,p2,p3\n1,0,0,0,256\n", "data-type", ("row 0", "'256'")),
        ("label,p0,p1,p2,p3\n1,0,0,0,0\n1,0,0.5,0,0\n", "data-type", ("row 1", "'0.5'")),
        ("label,p0,p1,p2,p3\n1,0,0,0\n", "data-damaged-file", ("row 0", "4 columns")),
        ("label,p0,p1,p2,p3\n", "data-no-images", ()),
        ("label,p0,p1,p2,p3\n-1,0,0,0,0\n", "data-label-out-of-range", ("-1",)),
    ],
)
def test_pixels_that_make_no_pictures_are_one_error(
    text: str, code: str, quoted: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with refused(code, "t.csv", *quoted):
        load_data(tmp_path / "t.csv")


def test_pixels_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch) -> None:
    from brickyard.inputs import _tables

    (tmp_path / "t.csv").write_text("label,p0,p1,p2,p3\n" + "1,0,0,0,0\n" * 200)
    assert len(load_data(tmp_path / "t.csv")) == 200
    monkeypatch.setattr(_tables, "MAX_BYTES", 400)
    with refused("data-too-large", "t.csv"):
        load_data(tmp_path / "t.csv")
