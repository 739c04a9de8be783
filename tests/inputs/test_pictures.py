"""Pictures in files: decoded when they are asked for, in any order, few at a time, and as Pillow alone reads them."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import brickyard as by
from brickyard import Preprocessing
from brickyard.inputs import ImageData, _pictures, load_data
from brickyard.inputs._pictures import AHEAD, PROBES
from errors import refused

COUNT, SIDES = 300, (9, 12)
HOW = Preprocessing(size=(8, 8), fit="crop", crop=0.9, channels=3)
NOISE = np.random.default_rng(5).integers(0, 256, (COUNT, *SIDES, 3), dtype=np.uint8)
CLASSES = ("cat", "dog", "eel")


def name(k: int) -> str:
    return f"{CLASSES[k % 3]}/{k:04}.png"


def as_folder(folder: Path) -> Path:
    for k, pixels in enumerate(NOISE):
        (folder / name(k)).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(folder / name(k))
    return folder


def as_table(folder: Path) -> Path:
    as_folder(folder)
    rows = [f"{name(k)},{CLASSES[k % 3]}" for k in range(COUNT)]
    (folder / "all.csv").write_text("\n".join(["path,label", *rows]))
    return folder / "all.csv"


def as_parquet(folder: Path) -> Path:
    """Two shards of several groups of rows each."""
    as_folder(folder / "pictures")
    content = [(folder / "pictures" / name(k)).read_bytes() for k in range(COUNT)]
    for part, rows in enumerate((range(170), range(170, COUNT))):
        columns = {"image": [{"bytes": content[k]} for k in rows], "label": [CLASSES[k % 3] for k in rows]}
        pq.write_table(pa.table(columns), folder / f"train-{part:05}-of-00002.parquet", row_group_size=37)
    return folder


FORMS = {"folder": as_folder, "table": as_table, "parquet": as_parquet}


@pytest.fixture(scope="module", params=FORMS)
def place(request, tmp_path_factory) -> Path:
    return FORMS[request.param](tmp_path_factory.mktemp(request.param))


def number(image: torch.Tensor, known: dict[bytes, int]) -> int:
    return known[image.numpy().tobytes()]


@pytest.fixture(scope="module")
def known() -> dict[bytes, int]:
    """The number of each picture, by what Pillow alone makes of it."""
    return {np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes(): k for k, pixels in enumerate(NOISE)}


def test_any_order_gives_the_pictures_that_pillow_reads(place: Path, known, monkeypatch) -> None:
    monkeypatch.setattr(_pictures, "KEPT_BYTES", 40 * NOISE[0].nbytes)  # so that few are kept
    data = load_data(place)
    wanted = [number(image, known) for images in data.batches(7) for image in images]
    assert sorted(wanted) == list(range(COUNT))
    assert [number(data[k][0], known) for k in (5, 0, COUNT - 1)] == [wanted[k] for k in (5, 0, COUNT - 1)]
    assert all(CLASSES[wanted[k] % 3] == data.classes[int(data.labels[k])] for k in range(COUNT))
    order = [7, 7, 250, *range(60, 0, -1), 7, 299, 250]
    found = [number(image, known) for images in data.batches(16, order) for image in images]
    assert found == [wanted[k] for k in order]
    part = data.of_classes(["dog", "eel"]).shuffled(3).subset(range(90, 20, -2))
    kinds = [data.classes[k] for k in part.labels.tolist()]
    assert [CLASSES[number(image, known) % 3] for images in part.batches(64) for image in images] == kinds
    assert torch.equal(part.images, torch.cat([*part.batches(3)]))
    assert not torch.equal(part.images, part.images.flip(0))


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The pictures that are decoded, in the order in which that begins."""
    seen: list[str] = []
    real = _pictures.decode_image

    def decode(source, title):
        seen.append(title or source)
        return real(source, title)

    monkeypatch.setattr(_pictures, "decode_image", decode)
    return seen


def test_only_what_is_used_is_decoded_and_once(place: Path, opened: list[str]) -> None:
    data = load_data(place, size=HOW)
    assert len(opened) == 1  # one tells whether pictures can be read
    used = data.of_classes(["cat"]).subset(range(20, 60))
    assert len(opened) == 1
    for _ in range(3):
        assert sum(map(len, used.batches(8))) == 40
    assert 40 <= len(opened) <= 41
    assert len(set(opened)) == len(opened)
    load_data(place)  # without a size, a few tell that all have one
    assert len(opened) <= 41 + PROBES + 1


def test_no_more_are_decoded_ahead_than_a_bound(place: Path, opened: list[str], monkeypatch) -> None:
    monkeypatch.setattr(_pictures, "KEPT_BYTES", 0)
    data = load_data(place, size=HOW)
    for count, _ in enumerate(data.batches(1), 1):
        assert len(opened) <= 1 + count + AHEAD
    assert count == COUNT
    before = threading.active_count()
    batches = data.batches(4)
    next(batches)
    batches.close()  # as where Ctrl-C or an error ends the loop
    assert threading.active_count() <= before
    assert len(opened) <= 1 + COUNT + 4 + AHEAD


def test_a_picture_that_cannot_be_read_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    data = load_data(as_folder(tmp_path), size=HOW)
    (tmp_path / name(30)).write_bytes(b"no picture")
    place = data.classes.index("cat") * (COUNT // 3) + 10
    batches = data.batches(1)
    assert sum(1 for _ in zip(range(place), batches, strict=False)) == place
    with refused("data-unreadable-image", name(30)):
        next(batches)
    assert len(data.subset(range(place + 1, COUNT)).images) == COUNT - place - 1


@pytest.mark.parametrize("later", [(9, 13, 3), (9, 12)])
def test_pictures_of_other_sizes_or_kinds_are_one_error(tmp_path: Path, later: tuple[int, ...]) -> None:
    """Unless a size is given, and grey ones become colour."""
    folder = as_folder(tmp_path)
    Image.fromarray(np.zeros(later, np.uint8)).save(folder / name(3 * 40 + 1))
    data = load_data(folder)
    if len(later) == 3:
        with refused("data-not-batchable", "9x12", "9x13", name(3 * 40 + 1), "give a size"):
            _ = data.images
    else:
        assert data.images.shape == (COUNT, 3, *SIDES)
    assert load_data(folder, size=HOW).images.shape[0] == COUNT


def test_colour_among_grey_pictures_is_one_error_unless_channels_are_given(tmp_path: Path) -> None:
    for k in range(40):
        pixels = NOISE[k] if k == 17 else NOISE[k, :, :, 0]
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{k:02}.png")
    with refused("data-not-batchable", "17.png", "grey", "channels="):
        _ = load_data(tmp_path).images
    for channels in (1, 3):
        data = load_data(tmp_path, size=HOW.model_copy(update={"channels": channels}))
        assert [len(images) for images in data.batches(20)] == [20, 20]


def test_it_goes_to_other_processes(place: Path) -> None:
    data = load_data(place, size=HOW)
    again: ImageData = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert torch.equal(again.images, data.images)
    loader = DataLoader(load_data(place, size=HOW), batch_size=50, num_workers=2)
    assert torch.equal(torch.cat([images for images, _ in loader]), data.images)


# -- a million -----------------------------------------------------------------------------------------------------

CLASS_COUNT, MANY = 10, 100_000


@pytest.fixture
def million(tmp_path: Path, monkeypatch) -> tuple[Path, dict[str, int]]:
    """Ten folders that seem to hold 100,000 pictures each, and how often one is listed or opened."""
    counts = {"listed": 0, "opened": 0}
    names = [f"{k:06}.png" for k in range(MANY)]
    for k in range(CLASS_COUNT):
        (tmp_path / f"class{k}").mkdir()
        (tmp_path / f"class{k}" / names[0]).touch()
    real = os.walk

    def walk(top, *rest, **options):
        if str(top).startswith(f"{tmp_path}{os.sep}class"):
            counts["listed"] += 1
            yield str(top), [], list(names)
        else:
            yield from real(top, *rest, **options)

    def decode(source, title):
        counts["opened"] += 1
        kind, file = Path(source).parts[-2:]
        shade = 20 * int(kind.removeprefix("class")) + int(Path(file).stem) % 20
        return torch.full((3, 8, 8), shade, dtype=torch.uint8)

    monkeypatch.setattr(os, "walk", walk)
    monkeypatch.setattr(_pictures, "decode_image", decode)
    return tmp_path, counts


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, CLASS_COUNT)
    ).eval()


def test_a_million_pictures_are_listed_once_and_fifty_a_class_are_read(million, capsys) -> None:
    folder, counts = million
    data = load_data(folder, size=Preprocessing(size=(8, 8), channels=3))
    assert (len(data), counts) == (CLASS_COUNT * MANY, {"listed": CLASS_COUNT, "opened": 1})
    model = network()
    with pytest.warns(by.BrickyardWarning, match="no better than chance|none of"):
        relevance = by.locate(model, data, choose="random", per_class=50)
    assert relevance.record.images == (50,) * CLASS_COUNT
    assert counts == {"listed": CLASS_COUNT, "opened": 50 * CLASS_COUNT + 1}  # the first one is an example
    by.disassemble(model, relevance, task=[0, 3], budget=by.Budget(flops=0.5), images=data, heal_images=30)
    assert counts["opened"] <= 50 * CLASS_COUNT + 1 + 60 + 2 * 100  # to heal with, and to describe two classes
    assert counts["listed"] == CLASS_COUNT
    assert not capsys.readouterr().err


def test_the_most_confident_are_chosen_from_a_bounded_number(million, capsys) -> None:
    folder, counts = million
    data = load_data(folder, size=Preprocessing(size=(8, 8), channels=3))
    with pytest.warns(by.BrickyardWarning, match="no better than chance|none of"):
        relevance = by.locate(network(), data, per_class=5, batch_size=256)
    assert relevance.record.candidates == 100
    assert counts["opened"] <= 100 * CLASS_COUNT + 1
    assert "10 classes have more than 100 images" in capsys.readouterr().err
    some = data.of_classes(["class0"]).subset(range(100))
    less = by.locate(network(), some, per_class=5, task=[0], classes=data.classes)
    assert less.record.candidates is None


@pytest.mark.parametrize("form", FORMS)
def test_no_pictures_at_all_are_an_empty_tensor_of_their_shape(form: str, tmp_path: Path) -> None:
    data = load_data(FORMS[form](tmp_path), size=(8, 8))
    for none in (data.subset([]), data.of_classes(["cat"]).of_classes(["dog"]), data.subset([]).shuffled(1)):
        assert (len(none), list(none.batches(2)), none.images.shape) == (0, [], (0, 3, 8, 8))
        assert none.images.dtype == torch.uint8
    assert data.subset([0]).images.shape == (1, 3, 8, 8)  # the control


@pytest.mark.parametrize(("indices", "named"), [([-1, 3], "index -1"), ([3, COUNT], f"index {COUNT}")])
def test_an_index_out_of_range_is_named(indices: list[int], named: str, tmp_path: Path) -> None:
    data = load_data(as_folder(tmp_path))
    with refused("data-index-out-of-range", named, f"0 to {COUNT - 1}"):
        data.subset(indices)
    with refused("data-index-out-of-range", "no images"):
        data.subset([]).subset([0])


@pytest.mark.parametrize("size", [None, (9, 12)])
def test_fewer_pictures_are_decoded_ahead_where_they_are_large(size, tmp_path: Path, monkeypatch) -> None:
    data = load_data(as_folder(tmp_path), size=size)
    decoded: list[str] = []
    decode = _pictures.decode_image
    monkeypatch.setattr(
        _pictures, "decode_image", lambda source, title: [decoded.append(str(source)), decode(source)][1]
    )
    monkeypatch.setattr(_pictures, "KEPT_BYTES", 5 * 3 * 9 * 12)
    pictures = data.batches(1, range(1, COUNT))
    for taken in range(1, 4):
        next(pictures)
        threading.Event().wait(0.05)
        assert len(decoded) <= taken + 5
    assert len(list(pictures)) == COUNT - 4
    assert len(decoded) >= COUNT - 1 - 5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", [b"no picture", "size"])
def test_pictures_that_are_not_asked_for_are_not_looked_at(other: bytes | str, form: str, tmp_path: Path) -> None:
    as_folder(tmp_path)
    for file in (tmp_path / "dog").iterdir():
        if other == "size":
            Image.new("RGB", (5, 5)).save(file)
        else:
            file.write_bytes(b"no picture")
    if form == "table":
        rows = [f"{name(k)},{CLASSES[k % 3]}" for k in range(COUNT)]
        (tmp_path / "all.csv").write_text("\n".join(["path,label", *rows]))
    if form == "parquet":
        content = [{"bytes": (tmp_path / name(k)).read_bytes()} for k in range(COUNT)]
        columns = {"image": content, "label": [CLASSES[k % 3] for k in range(COUNT)]}
        pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=37)
    place = {"folder": tmp_path, "table": tmp_path / "all.csv", "parquet": tmp_path / "train.parquet"}[form]
    data = load_data(f"{place}?classes=cat,eel")
    assert (len(data), data.shape) == (200, (3, *SIDES))
    assert torch.equal(data.of_classes(["cat"]).images, torch.from_numpy(NOISE[0::3]).permute(0, 3, 1, 2))
    with refused("data-not-batchable" if other == "size" else "data-unreadable-image"):
        _ = load_data(place).images  # the control: where they are asked for


def test_a_split_of_what_has_none_is_to_be_left_out(tmp_path: Path) -> None:
    with refused("data-missing", "no split 'test'", "leave split= out"):
        load_data(f"{as_table(tmp_path)}?split=test")
