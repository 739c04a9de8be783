"""Images that a model was made with: known again in every form, counted, left out of scores, kept in files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import brickyard as by
from brickyard.base import _history
from brickyard.base._errors import FileError
from brickyard.base._history import UsedRecord
from brickyard.evaluation._faithfulness import faithfulness
from brickyard.inputs import load_data
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes, marks
from brickyard.reports import report
from brickyard.reports._cards import model_card
from brickyard.storage._safefile import read, write
from brickyard.testing import chain
from conftest import needed_package
from errors import refused

HOW = by.Preprocessing(size=(8, 8), mean=(0.5,), std=(0.25,))
CROPPED = by.Preprocessing(size=(8, 8), fit="crop", crop=0.8)


def photographs(count: int = 48, side: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side + 3), dtype=torch.uint8, generator=generator)


PHOTOS, LABELS = photographs(), torch.arange(48) % 4
MINE = torch.arange(0, 48, 3)  # those that are used


def pil(photo: torch.Tensor) -> Image.Image:
    return Image.fromarray(photo.permute(1, 2, 0).numpy())


def folder_of(photos: torch.Tensor, labels: torch.Tensor, at: Path) -> Path:
    for number, (photo, label) in enumerate(zip(photos, labels.tolist(), strict=True)):
        place = at / "test" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pil(photo).save(place / f"{number:03}.png")
    return at


def table_of(photos: torch.Tensor, labels: torch.Tensor, at: Path) -> Path:
    arrow, parquet = needed_package("pyarrow"), needed_package("pyarrow.parquet")
    rows = []
    for photo in photos:
        text = io.BytesIO()
        pil(photo).save(text, "PNG")
        rows.append({"bytes": text.getvalue(), "path": None})
    parquet.write_table(arrow.table({"image": rows, "label": labels.tolist()}), at)
    return at


def pieces(how: by.Preprocessing = HOW, **options):
    data = PHOTOS[MINE], LABELS[MINE]
    source = chain()
    relevance = by.locate(source, data, preprocessing=how)
    return source, relevance, by.disassemble(source, relevance, task=[0, 1, 2, 3], **options)


def used_of(component, data) -> int:
    overlap = by.evaluate(component, data, latency=False).overlap
    assert (overlap.left_out, overlap.unknown) == (overlap.used, 0)
    return overlap.used


@pytest.mark.parametrize("how", [HOW, CROPPED, by.Preprocessing()])
def test_a_photograph_is_known_again_in_every_form(how, tmp_path) -> None:
    photos = PHOTOS if how.size else photographs(side=8)
    data = photos[MINE], LABELS[MINE]
    component = by.disassemble(chain(), by.locate(chain(), data, preprocessing=how), task=[0, 1, 2, 3])
    folder, table = (
        load_data(str(made), split="test", size=how.size and how)
        for made in (folder_of(photos, LABELS, tmp_path / "a"), table_of(photos, LABELS, tmp_path / "a.parquet"))
    )
    forms = {
        "bytes": (photos, LABELS),
        "floats": (photos / 255, LABELS),
        "halves": ((photos / 255).half(), LABELS),
        "doubles": (photos.double() / 255, LABELS),
        "arrays": (photos.numpy(), LABELS.numpy()),
        "a data set": TensorDataset(photos, LABELS),
        "a loader": DataLoader(TensorDataset(photos / 255, LABELS), 7, shuffle=True),
        "batches": [(photos[:5], LABELS[:5]), (photos[5:], LABELS[5:])],
        "pictures": [{"image": pil(one), "label": k} for one, k in zip(photos, LABELS.tolist(), strict=True)],
        "a folder": folder,
        "a table": table,
    }  # fmt: skip
    assert {name: used_of(component, form) for name, form in forms.items()} == dict.fromkeys(forms, len(MINE))
    hashes = {by.evaluate(component, form, latency=False).data_sha256 for form in forms.values()}
    assert len(hashes) == 1
    other = photos.clone()
    other[:, 0, 4:6, 4:6] ^= 16
    assert used_of(component, (other, LABELS)) == 0
    assert by.evaluate(component, (photos, LABELS.roll(1)), latency=False).data_sha256 not in hashes


def test_marks_do_not_depend_on_the_batch_and_tell_images_apart() -> None:
    wide = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mixed = torch.cat([PHOTOS[:6, :, :8, :8] / 255, wide, wide * 1e-7, torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    together = as_bytes(marks(mixed, HOW))
    assert together == [as_bytes(marks(one[None], HOW))[0] for one in mixed]
    assert len(set(together)) == len(mixed)  # small numbers are not taken for black
    assert as_bytes(marks(wide.double(), HOW)) == as_bytes(marks(wide, HOW))
    grey = PHOTOS[:4, :1]
    assert as_bytes(marks(grey.expand(-1, 3, -1, -1), HOW)) == as_bytes(marks(grey, HOW))
    assert as_bytes(marks(grey, CROPPED)) != as_bytes(marks(grey, HOW))
    signals = wide.flatten(2)[:, :, :20]
    assert len(set(as_bytes(marks(signals, by.Preprocessing())))) == 6


def test_images_are_marked_as_they_are_read_and_not_read_again() -> None:
    seen: list[int] = []

    class Counting(Dataset):
        def __len__(self):
            return len(PHOTOS)

        def __getitem__(self, index):
            seen.append(index)
            return PHOTOS[index], int(LABELS[index])

    images = Images(Counting(), HOW)
    for _ in images.batches(range(10), 4):
        pass
    before = len(seen)
    found = images.marks([3, 1, 3])
    assert len(seen) == before
    assert torch.equal(found, marks(PHOTOS[[3, 1, 3]], HOW))
    images.marks([11])
    assert seen[before:] == [11]


def test_classes_without_a_scored_image_are_named_wherever_scores_are_told(tmp_path) -> None:
    source, relevance, _ = pieces()
    parts = [by.disassemble(source, relevance, task=task) for task in ([0, 1], [2, 3])]
    whole = by.assemble(parts)
    few = torch.tensor([k for k in range(48) if LABELS[k] in (1, 3) or k in MINE.tolist()])
    data = (PHOTOS[few], LABELS[few])
    found = by.evaluate(whole, [data, data], latency=False)
    left = [int(LABELS[k]) for k in few.tolist() if k not in MINE.tolist()]
    said = f"scored on {len(left)} images; no image of 0, 2: whether they are recognised was not tried"
    assert found.per_class_images == {str(k): left.count(k) for k in range(4)}
    assert (found.scope, found.notes[-1], str(found).count(said)) == (said, said, 1)
    every = by.evaluate(whole, [(PHOTOS, LABELS)] * 2, latency=False)
    assert every.untried == ()
    assert "no image of" not in str(every)
    assert str(every).count("scored on 32 images\n") == 1
    kept = whole.with_manifest(scores=found.remembered())
    page, card = report([kept]), model_card(kept)
    assert f"% of {len(left)} images right, which show 2 of its 4 classes, as stored in the file" in page
    assert said in page
    assert said in card
    whole_page = report([whole.with_manifest(scores=every.remembered())])
    assert "which show" not in whole_page
    assert "scored on 32 images" in whole_page


def test_what_is_scored_is_what_was_not_used() -> None:
    source, relevance, component = pieces()
    rest = torch.tensor([k for k in range(48) if k not in MINE.tolist()])
    found = by.evaluate(component, (PHOTOS, LABELS), source=source, latency=False)
    alone = by.evaluate(component, (PHOTOS[rest], LABELS[rest]), source=source, latency=False)
    every = by.evaluate(component, (PHOTOS, LABELS), source=source, latency=False, including_calibration=True)
    assert found.rows == alone.rows
    assert [scores.rows[0].images for scores in (alone, every)] == [32, 48]
    assert [row.accuracy for row in every.rows] != [row.accuracy for row in alone.rows]
    told = "16 of 48 images were used to locate, heal or scale"
    assert found.notes == (f"{told}, and are left out (--including-calibration scores them too)",)
    assert every.notes == (f"{told}, and are scored too: figures on such images are too good",)
    assert alone.notes == ()
    with refused("data-seen-in-training", "all 16 images", "--including-calibration"):
        by.evaluate(component, (PHOTOS[MINE], LABELS[MINE]))
    one = by.disassemble(source, relevance, task=[2])
    given = torch.tensor([k for k in range(48) if LABELS[k] != 2 or k in MINE.tolist()])
    with refused("data-seen-in-training", "all images of its classes"):
        by.evaluate(one, (PHOTOS[given], LABELS[given]))


def test_every_image_that_took_part_is_known() -> None:
    source, relevance, _ = pieces()
    own = set(as_bytes(marks(PHOTOS[MINE], HOW)))
    assert relevance.used().known == own
    assert relevance.used([1]).known == set(as_bytes(marks(PHOTOS[MINE[LABELS[MINE] == 1]], HOW)))
    part = by.disassemble(source, relevance, task=[1], heal="none")
    assert relevance.used([1]).known == part.manifest.used.known < own
    healing, more = photographs(30, seed=5), photographs(9, seed=6)
    other = by.disassemble(
        source, relevance, task=[1, 2], images=healing, more_images=more, budget=by.Budget(flops=0.6)
    )
    wanted = relevance.used([1, 2]).known | set(as_bytes(marks(torch.cat([healing, more]), HOW)))
    assert other.manifest.used.known == wanted
    tuned = by.finetune(other, (photographs(40, seed=7), LABELS[:40]), training=by.training.TrainingOptions(epochs=1))
    assert tuned.manifest.used.known > other.manifest.used.known
    classes = LABELS[:40] == 1
    assert set(as_bytes(marks(photographs(40, seed=7)[classes], HOW))) <= tuned.manifest.used.known


def test_an_assembly_knows_the_images_of_its_parts_and_its_own() -> None:
    source, relevance, _ = pieces()
    parts = [by.disassemble(source, relevance, task=task) for task in ([0, 1], [2, 3])]
    plain = by.assemble(parts)
    both = [(PHOTOS, LABELS)] * 2
    assert by.evaluate(plain, both, latency=False).overlap.used == 16
    few = photographs(24, seed=8), LABELS[:24]
    scaled = by.assemble(parts, scaling="affine", images=[few, few])
    assert by.evaluate(plain, [few, few], latency=False).overlap.used == 0
    with refused("data-seen-in-training", "24"):
        by.evaluate(scaled, [few, few])
    shots = by.assemble(parts, scaling="affine", images=[few, few], shots=2)
    assert by.evaluate(shots, [few, few], latency=False).overlap.used == 8
    rest = [(torch.cat([PHOTOS[1::3], few[0]]), torch.cat([LABELS[1::3], few[1]]))] * 2
    found = by.evaluate(scaled, rest, latency=False)
    alone = by.evaluate(scaled, [(PHOTOS[1::3], LABELS[1::3])] * 2, latency=False)
    assert (found.rows, found.overlap.used) == (alone.rows, 24)


def test_files_keep_what_was_used(tmp_path) -> None:
    source, relevance, component = pieces()
    few = photographs(24, seed=8), LABELS[:24]
    whole = by.assemble([component], scaling="affine", images=[few])
    for name, item in (("r", relevance), ("c", component), ("w", whole)):
        item.save(tmp_path / f"{name}.safetensors")
    loaded = {name: by.load(tmp_path / f"{name}.safetensors") for name in "rcw"}
    assert torch.equal(loaded["r"].marks, relevance.marks)
    assert loaded["c"].manifest.used == component.manifest.used
    assert loaded["w"].manifest.used == whole.manifest.used
    again = by.disassemble(source, loaded["r"], task=[0, 1, 2, 3], images=(PHOTOS[MINE], LABELS[MINE]))
    assert again.manifest.used == component.manifest.used


def test_files_of_earlier_versions_load_and_say_that_it_is_not_known(tmp_path) -> None:
    _, relevance, component = pieces()
    for name, item in (("r", relevance), ("c", component)):
        item.save(tmp_path / f"{name}.safetensors")
    text, tensors = read(tmp_path / "c.safetensors")
    del text["manifest"]["used"]
    write(tmp_path / "old.safetensors", tensors, text, False)
    old = by.load(tmp_path / "old.safetensors")
    scores = by.evaluate(old, (PHOTOS, LABELS), latency=False)
    assert (scores.overlap.used, scores.rows[0].images) == (0, 48)
    assert scores.overlap.unknown > 0
    assert "it is not known which" in scores.notes[0]
    text, tensors = read(tmp_path / "r.safetensors")
    del tensors["marks"]
    write(tmp_path / "oldr.safetensors", tensors, text, False)
    part = by.disassemble(chain(), by.load(tmp_path / "oldr.safetensors"), task=[0, 1], heal="none")
    assert part.manifest.used == UsedRecord(unknown=8)


@pytest.mark.parametrize("text", ["no base64!", "AAAA", "A" * 64])
def test_marks_that_are_none_are_refused(text, tmp_path) -> None:
    pieces()[2].save(tmp_path / "c.safetensors")
    told, tensors = read(tmp_path / "c.safetensors")
    told["manifest"]["used"] = {"images": 2, "marks": text}
    write(tmp_path / "bad.safetensors", tensors, told, False)
    with pytest.raises(FileError) as found:
        by.load(tmp_path / "bad.safetensors")
    assert found.value.code == "file-manifest-invalid"


def test_records_are_bounded_and_say_what_they_miss(monkeypatch) -> None:
    monkeypatch.setattr(_history, "MOST", 10)
    every = [bytes([k]) * 16 for k in range(25)]
    record = UsedRecord.of(reversed(every))
    assert (record.images, record.missing, record.known) == (25, 15, frozenset(every[:10]))
    joined = record.joined(UsedRecord.of([*every[:3], b"z" * 16], unknown=2))
    assert (joined.images, joined.unknown, joined.known) == (26, 2, frozenset(every[:10]))
    assert (record.forgotten().missing, record.forgotten().known) == (25, frozenset())


def test_another_frame_forgets_marks_and_another_mean_does_not() -> None:
    _, _, component = pieces()
    same = component.with_preprocessing(by.Preprocessing(size=(8, 8), mean=(0.4,), std=(0.2,)))
    assert by.evaluate(same, (PHOTOS, LABELS), latency=False).overlap.used == 16
    other = component.with_preprocessing(CROPPED)
    overlap = by.evaluate(other, (PHOTOS, LABELS), latency=False).overlap
    assert (overlap.used, overlap.unknown) == (0, 16)


def test_reports_and_routes_leave_them_out_too(capsys) -> None:
    source, relevance, component = pieces()
    rest = torch.tensor([k for k in range(48) if k not in MINE.tolist()])
    pages = [
        report([component], data=[(PHOTOS[some], LABELS[some])], sources=[source], **more)
        for some, more in ((torch.arange(48), {}), (rest, {}), (torch.arange(48), {"including_calibration": True}))
    ]
    assert "16 of 48 images were used to locate, heal or scale, and are left out" in pages[0]
    assert "were used to locate" not in pages[1]
    assert "and are scored too" in pages[2]
    every, kept, all_of_them = (
        faithfulness(source, relevance, [1], (PHOTOS[some], LABELS[some]), seeds=1, **more)
        for some, more in ((torch.arange(48), {}), (rest, {}), (torch.arange(48), {"including_calibration": True}))
    )
    assert every == kept
    assert (kept[0].images, all_of_them[0].images) == (8, 12)
    with refused("data-seen-in-training", "16"):
        faithfulness(source, relevance, [1], (PHOTOS[MINE], LABELS[MINE]))
    assert json.loads(component.manifest.model_dump_json())["used"]["images"] == 16
