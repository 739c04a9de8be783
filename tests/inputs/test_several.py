"""Labels of several classes at once, in the forms in which people have them, become rows of 0 and 1."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.inputs import ImageData, load_data
from brickyard.inputs._batches import Images
from brickyard.inputs._several import (
    MAX_CELLS,
    one_each,
    rows_of_array,
    rows_of_columns,
    rows_of_ids,
    rows_of_names,
    rows_of_pairs,
    rows_of_sets,
)
from brickyard.testing import chain
from errors import refused

SHOWN = [["dog", "cat"], [], ["cat"], ["lamp", "cat"]]
CLASSES = ("cat", "dog", "lamp")
ROWS = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0, 1]]

FORMS: dict[str, list[Any]] = {
    "bars": ["|".join(names) for names in SHOWN],
    "semicolons": ["; ".join(names) for names in SHOWN],
    "commas": [", ".join(names) for names in SHOWN],
    "blanks": [" ".join(names) for names in SHOWN],
    "a sign at the end": ["".join(f"{name}|" for name in names) for names in SHOWN],
    "twice": ["dog|cat|dog", "", "cat", "lamp|cat"],
    "lists": SHOWN,
    "tuples": [tuple(names) for names in SHOWN],
    "arrays": [np.array(names) for names in SHOWN],
    "JSON in a cell": [json.dumps(names) for names in SHOWN],
    "Python in a cell": [repr(names) for names in SHOWN],
    "Python's sets": ["{'dog', 'cat'}", "{}", "{'cat'}", "{'lamp', 'cat'}"],
    "None for none": ["dog|cat", None, "cat", "lamp|cat"],
    "NaN for none": ["dog|cat", math.nan, "cat", "lamp|cat"],
    "lists and None": [["dog", "cat"], None, ["cat"], ["lamp", "cat"]],
}


@pytest.mark.parametrize("known", [None, CLASSES])
@pytest.mark.parametrize("form", FORMS)
def test_a_column_of_names(form: str, known: Any) -> None:
    found = rows_of_names(FORMS[form], "a.csv", known)
    assert found.classes == CLASSES
    assert found.labels.tolist() == ROWS
    assert found.labels.dtype == torch.int64


def test_known_classes_give_the_order_and_those_that_are_not_shown() -> None:
    found = rows_of_names(["b", "a"], "a.csv", ["b", "c", "a"])
    assert (found.classes, found.labels.tolist()) == (("b", "c", "a"), [[1, 0, 0], [0, 0, 1]])


def test_signs_within_names_are_told_from_those_between(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["tench, Tinca tinca", "traffic light", "cat"]
    for values in (
        ["tench, Tinca tinca|cat", "traffic light", ""],
        ["tench, Tinca tinca; cat", "traffic light", ""],
    ):
        assert rows_of_names(values, "a.csv", names).labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    alone = ["tench, Tinca tinca", "traffic light", "cat"]
    assert rows_of_names(alone, "a.csv", names).labels.tolist() == torch.eye(3).long().tolist()
    assert capsys.readouterr().err == ""  # nothing is assumed where the names are known
    guessed = rows_of_names(["traffic light;cat", "cat"], "a.csv")
    assert guessed.classes == ("cat", "traffic light")
    assert "';' separates" in capsys.readouterr().err
    rows_of_names(["cat dog"], "a.csv")
    assert "a blank separates" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values", [["1 0", "", "0", "2 0"], [[1, 0], [], [0], [2, 0]], ["[1, 0]", "[]", "[0]", "[2,0]"]]
)
def test_numbers_are_indices(values: list[Any]) -> None:
    assert rows_of_names(values, "a.csv", CLASSES).labels.tolist() == ROWS
    found = rows_of_names(values, "a.csv")
    assert (found.classes, found.labels.tolist()) == (("0", "1", "2"), ROWS)


def test_numbers_that_are_names_are_names() -> None:
    found = rows_of_names(["7 9", "9"], "a.csv", ["9", "7"])
    assert found.labels.tolist() == [[1, 1], [1, 0]]


def test_what_names_no_class_is_refused() -> None:
    with refused("data-label-mismatch", "'cow'", "cat, dog, lamp"):
        rows_of_names(["cat|cow"], "a.csv", CLASSES)
    with refused("data-label-mismatch", "row 1", "0.5"):
        rows_of_names(["cat", 0.5], "a.csv")
    with refused("data-label-mismatch", "row 0"):
        rows_of_names([[["cat"]]], "a.csv")
    with refused("data-label-out-of-range", "0 to 3"):
        rows_of_names([[0, 3]], "a.csv", CLASSES)
    with refused("data-label-out-of-range", "-1"):
        rows_of_names(["-1", "0"], "a.csv")
    with refused("data-no-labels"):
        rows_of_names(["", None, []], "a.csv")
    with refused("data-too-large", "limit"):
        rows_of_sets([[]] * 2, [""] * (MAX_CELLS // 2 + 1), "a.csv")
    with refused("data-label-out-of-range"):
        rows_of_names([[10**9]], "a.csv")


# -- other forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), (1, 0), ("1.0", "0.0"), (True, False), ("True", "false"), (1.0, 0.0)]
)
def test_a_column_for_each_class(yes: Any, no: Any, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {name: [yes if row[k] else no for row in ROWS] for k, name in enumerate(CLASSES)}
    found = rows_of_columns({"sex": list("mffm"), **columns, "age": [1, 0, 40, 3]}, "a.csv")
    assert (found.classes, found.labels.tolist()) == (CLASSES, ROWS)
    assert "sex, age" in capsys.readouterr().err


def test_columns_that_leave_rows_open_are_refused() -> None:
    for open_value in ("-1", -1.0, "", None, math.nan):
        with refused("data-label-mismatch", "'dog'", "row 2"):
            rows_of_columns({"cat": [1, 0, 1], "dog": [0, 1, open_value]}, "a.csv")
    with refused("data-label-mismatch", "'age'"):
        rows_of_columns({"age": [7, 40]}, "a.csv")


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.bool_])
def test_an_array(kind: Any) -> None:
    assert rows_of_array(np.array(ROWS, kind), "a.npz").labels.tolist() == ROWS
    assert rows_of_array(torch.tensor(ROWS).float(), "a.npz", CLASSES).classes == CLASSES
    with refused("data-label-out-of-range", "0.5", "row 1, column 2"):
        rows_of_array(np.array([[0, 1, 1], [0, 1, 0.5]]), "a.npz")
    with refused("data-label-out-of-range", "nan"):
        rows_of_array(np.array([[0, math.nan]]), "a.npz")
    with refused("data-label-mismatch", "(4,)"):
        rows_of_array(np.zeros(4), "a.npz")
    with refused("data-class-names", "3 columns"):
        rows_of_array(np.array(ROWS), "a.npz", ["cat"])


def test_a_line_for_each_picture_and_class() -> None:
    pictures, found = rows_of_pairs(list("abacca"), ["dog", "cat", "cat", "cat", "lamp", "dog"], "a.csv")
    assert (pictures, found.classes) == (["a", "b", "c"], CLASSES)
    assert found.labels.tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 1]]


def test_annotations_of_a_coco_file() -> None:
    text: dict[str, Any] = {
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in (4, 5, 9, 7)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "lamp"}],
        "annotations": [
            {"image_id": i, "category_id": c} for i, c in ((4, 18), (4, 3), (4, 3), (9, 3), (7, 90), (7, 3))
        ],
    }
    kinds = [{a["category_id"] for a in text["annotations"] if a["image_id"] == item["id"]} for item in text["images"]]
    found = rows_of_ids(kinds, {item["id"]: item["name"] for item in text["categories"]}, "a.json")
    assert (found.classes, found.labels.tolist()) == (CLASSES, ROWS)
    with refused("data-damaged-file", "5"):
        rows_of_ids([{5}], {3: "cat"}, "a.json")
    with refused("data-class-names"):
        rows_of_ids([{3}], {3: "cat", 4: "cat"}, "a.json")


def test_the_data_go_through_locating() -> None:
    images = torch.rand(12, 3, 8, 8)
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).repeat(4, 1)
    data = ImageData(images, labels, ("cat", "dog", "hen", "owl"), "pets")
    assert torch.equal(Images(data, label_dims=2).all_labels(), labels)
    relevance = by.locate(chain(), data, outputs="several")
    assert (relevance.classes, relevance.record.data) == (data.classes, "pets")
    assert torch.equal(data.without(["cat", "hen"]).images, images[2::3])
    assert len(data.without([0, 2, 3])) == 0
    part = data.of_classes(["dog", "owl"]).renumbered(["owl", "dog"])
    assert torch.equal(part.images, images[labels[:, [1, 3]].any(1)])
    assert part.labels.tolist() == [[0, 1], [1, 0]] * 4
    one, other = data.split(0.5)
    assert sorted(torch.cat([one.images, other.images])[:, 0, 0, 0].tolist()) == sorted(images[:, 0, 0, 0].tolist())
    assert torch.equal(data[1][1], labels[1])
    assert len(data) == 12


def test_columns_follow_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageData(torch.rand(4, 3, 8, 8), torch.tensor(ROWS), CLASSES, "pets")
    found = data.in_order(["hen", "dog", "cat"])
    assert found.labels.tolist() == [[0, row[1], row[0]] for row in ROWS]
    said = capsys.readouterr().err
    assert "absent: 'hen'" in said
    assert "left out: 'lamp'" in said
    assert torch.equal(data.in_order(CLASSES).labels, data.labels)
    assert capsys.readouterr().err == ""
    with refused("data-unknown-class", "cat, dog, lamp", "0, 1"):
        data.in_order(["0", "1"])


def test_one_label_per_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_each(torch.tensor([2, 0]), 3, "pets").tolist() == [[0, 0, 1], [1, 0, 0]]
    assert "absent" in capsys.readouterr().err


# -- through every reader ------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(8).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
NAMES = [f"{k}.png" for k in range(4)]


def in_bytes(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def written(suffix: str, make: Callable[[], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / f"all{suffix}").write_text(make())
        return folder / f"all{suffix}"

    return write


def lines(head: str, rows: list[str]) -> str:
    return "\n".join([head, *rows])


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.table({"image": [{"bytes": in_bytes(x)} for x in NOISE], "labels": SHOWN}), folder / "a.parquet")
    return folder / "a.parquet"


def as_classes(folder: Path) -> Path:
    """As the Hugging Face library writes a sequence of class labels."""
    numbers = [[CLASSES.index(name) for name in names] for names in SHOWN]
    table = pa.table({"image": [{"bytes": in_bytes(x)} for x in NOISE], "labels": numbers})
    feature = {"feature": {"names": list(CLASSES), "_type": "ClassLabel"}, "_type": "Sequence"}
    told = {b"huggingface": json.dumps({"info": {"features": {"labels": feature}}}).encode()}
    pq.write_table(table.replace_schema_metadata(told), folder / "a.parquet")
    return folder / "a.parquet"


def as_arrays(folder: Path) -> Path:
    np.savez(folder / "a.npz", images=NOISE, labels=np.array(ROWS, np.float32), classes=np.array(CLASSES))
    return folder / "a.npz"


def columns() -> str:
    rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(NAMES, ROWS, strict=True)]
    return lines("filename,cat,dog,lamp", rows)


def objects() -> str:
    """A line for each object; a picture without one has a line without a name."""
    pairs = [(name, word) for name, words in zip(NAMES, SHOWN, strict=True) for word in words or [""]]
    return lines("file_name,label", [f"{name},{word}" for name, word in pairs])


def coco() -> str:
    kinds = {name: k + 3 for k, name in enumerate(CLASSES)}
    return json.dumps(
        {
            "images": [{"id": k, "file_name": name} for k, name in enumerate(NAMES)],
            "categories": [{"id": number, "name": name} for name, number in kinds.items()],
            "annotations": [{"image_id": k, "category_id": kinds[w]} for k, words in enumerate(SHOWN) for w in words],
        }
    )


READ: dict[str, Callable[[Path], Path]] = {
    "names": written(
        ".csv", lambda: lines("path,labels", [f"{n},{'|'.join(w)}" for n, w in zip(NAMES, SHOWN, strict=True)])
    ),
    "columns": written(".csv", columns),
    "objects": written(".csv", objects),
    "lines of lists": written(
        ".jsonl",
        lambda: "\n".join(json.dumps({"file_name": n, "labels": w}) for n, w in zip(NAMES, SHOWN, strict=True)),
    ),
    "lines of columns": written(
        ".jsonl",
        lambda: "\n".join(
            json.dumps({"path": n, **dict(zip(CLASSES, r, strict=True))}) for n, r in zip(NAMES, ROWS, strict=True)
        ),
    ),
    "coco": written(".json", coco),
    "parquet": as_parquet,
    "class labels": as_classes,
    "arrays": as_arrays,
}


@pytest.mark.parametrize("form", READ)
def test_every_reader_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    for name, pixels in zip(NAMES, NOISE, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    data = load_data(READ[form](tmp_path), several=True)
    assert (data.classes, data.labels.tolist()) == (CLASSES, ROWS)
    assert torch.equal(data.images, torch.from_numpy(NOISE).permute(0, 3, 1, 2))
    some = load_data(f"{READ[form](tmp_path)}?classes=dog,lamp", several=True)
    assert some.labels.tolist() == [ROWS[0], ROWS[3]]
    with pytest.raises(by.BrickyardError) as caught:  # an image has one class, unless it is said
        load_data(READ[form](tmp_path))
    assert caught.value.code in ("data-label-mismatch", "data-unknown-format")


def test_a_folder_of_classes_has_one_class_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        Image.fromarray(NOISE[k]).save(tmp_path / name / "x.png")
    assert load_data(tmp_path, several=True).labels.tolist() == [[1, 0], [0, 1]]
    assert "absent" in capsys.readouterr().err


def test_rows_of_floats_are_labels_as_training_has_them() -> None:
    rows = torch.tensor(ROWS).float()
    for labels in (rows, rows.bool(), rows.int()):
        assert torch.equal(Images((torch.rand(4, 3, 8, 8), labels), label_dims=2).all_labels(), torch.tensor(ROWS))
    with refused("data-label-mismatch"):
        Images((torch.rand(4, 3, 8, 8), rows / 2), label_dims=2)


@pytest.mark.parametrize(
    "form", [list, np.asarray, str, lambda row: " ".join(map(str, row)), lambda row: [*map(float, row)]]
)
@pytest.mark.parametrize("wanted", [[[0, 1, 1], [1, 0, 0], [0, 0, 0]], [[0, 1], [1, 0]], [[1, 1], [0, 1]]])
def test_lists_of_0_and_1_for_each_class_are_no_indices(form, wanted, capsys) -> None:
    found = rows_of_names([form(row) for row in wanted], "a.json")
    assert (found.labels.tolist(), found.classes) == (wanted, tuple(map(str, range(len(wanted[0])))))
    assert "0 and 1" in capsys.readouterr().err
    named = rows_of_names([form(row) for row in wanted], "a.json", ["cat", "dog", "eel"][: len(wanted[0])])
    assert named.labels.tolist() == wanted


@pytest.mark.parametrize(
    ("values", "classes", "wanted"),
    [
        ([[0, 1], [0, 1]], None, [[1, 1], [1, 1]]),
        ([[0, 1], [1]], None, [[1, 1], [0, 1]]),
        ([[0], [1]], None, [[1, 0], [0, 1]]),
        ([[1, 0], [0, 1]], ["cat", "dog", "eel"], [[1, 1, 0], [1, 1, 0]]),
        ([[0, 2], [1, 2]], None, [[1, 0, 1], [0, 1, 1]]),
    ],
)
def test_lists_of_indices_stay_indices(values, classes, wanted) -> None:
    assert rows_of_names(values, "a.json", classes).labels.tolist() == wanted
