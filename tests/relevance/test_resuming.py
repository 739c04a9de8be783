"""Work that was kept is gone on with for the same images and labels only, in every form of data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import brickyard as by
from brickyard.inputs import load_data
from brickyard.inputs._content import digests
from brickyard.testing import chain, randomised
from brickyard.training import TrainingOptions, finetune
from errors import refused

COUNT = 24
X = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(COUNT) % 4
Call = Callable[[Any, Path], Any]


class Rows(Dataset[Any]):
    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images_, self.labels_ = images, labels

    def __len__(self) -> int:
        return len(self.images_)

    def __getitem__(self, index: int) -> Any:
        return {"image": self.images_[index], "label": int(self.labels_[index])}


def _place(folder: Path) -> Path:
    """An empty place for data, always the same: relevances remember its name."""
    shutil.rmtree(folder / "there", ignore_errors=True)
    (folder / "there").mkdir()
    return folder / "there" / "data"


def _folder(images: torch.Tensor, labels: torch.Tensor, place: Path) -> Path:
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (place / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = (image * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / str(label) / f"{k:03}.png")
    return place


def _npz(images: torch.Tensor, labels: torch.Tensor, place: Path) -> Path:
    np.savez(place.with_suffix(".npz"), images=(images * 255).byte().numpy(), labels=labels.numpy())
    return place.with_suffix(".npz")


def _parquet(images: torch.Tensor, labels: torch.Tensor, place: Path) -> Path:
    import io

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for image in images:
        kept = io.BytesIO()
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(kept, "PNG")
        rows.append({"bytes": kept.getvalue(), "path": None})
    parquet.write_table(arrow.table({"image": rows, "label": labels.tolist()}), place.with_suffix(".parquet"))
    return place.with_suffix(".parquet")


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor, Path], Any]] = {
    "tensors": lambda x, y, p: (x, y),
    "arrays": lambda x, y, p: (x.numpy(), y.numpy()),
    "rows": lambda x, y, p: Rows(x, y),
    "loader": lambda x, y, p: DataLoader(TensorDataset(x, y), batch_size=5),
    "batches": lambda x, y, p: zip(x.split(5), y.split(5), strict=True),
    "folder": lambda x, y, p: load_data(_folder(x, y, p)),
    "npz": lambda x, y, p: load_data(_npz(x, y, p)),
    "parquet": lambda x, y, p: load_data(_parquet(x, y, p)),
}


def _changed(how: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = X.clone(), Y.clone()
    if how == "last pixel":
        x[-1, -1, -1, -1] = 1 - x[-1, -1, -1, -1].round()
    elif how == "all but the first":
        x[1:] = torch.rand(COUNT - 1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    elif how == "order":  # within a class
        x[[4, 8]] = x[[8, 4]]
    elif how == "labels":  # image for image the same
        y[[5, 6]] = y[[6, 5]]
    return x, y


def _located(data: Any, folder: Path, **options: Any) -> torch.Tensor:
    return by.locate(randomised(chain(), seed=3), data, per_class=4, resume=folder, **options).scores


def _part() -> by.Component:
    relevance = by.locate(randomised(chain(), seed=3), (X, Y))
    return by.disassemble(randomised(chain(), seed=3), relevance, task=[0, 1, 2, 3], heal="none")


def _tuned(data: Any, folder: Path, **options: Any) -> torch.Tensor:
    training = TrainingOptions(epochs=2, batch_size=8, lr=0.05)
    made = finetune(_part(), data, training=training, validation=0.2, resume=folder, **options)
    return torch.cat([value.flatten() for value in made.state_dict().values()])


CALLS: dict[str, Call] = {"locate": _located, "finetune": _tuned}


@pytest.mark.parametrize("change", ["last pixel", "all but the first", "order", "labels"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_what_was_kept_is_not_that_of_other_images(call: str, form: str, change: str, tmp_path) -> None:
    run, made = CALLS[call], FORMS[form]
    first = run(made(X, Y, _place(tmp_path)), tmp_path / "kept")
    again = run(made(X, Y, _place(tmp_path)), tmp_path / "kept")  # the control: it is gone on with
    assert torch.equal(first, again)
    with refused("file-resume-mismatch", "other images"):
        run(made(*_changed(change), _place(tmp_path)), tmp_path / "kept")


def test_confidences_are_of_the_classes_they_were_asked_for(tmp_path) -> None:
    """The same images in the same order, but another class begins at another place."""
    y = torch.arange(COUNT) // 6
    moved = y.clone()
    moved[5] = 1
    _located((X, y), tmp_path)
    for path in tmp_path.glob("class-*"):
        path.unlink()
    with refused("file-resume-mismatch", "confidences"):
        _located((X, moved), tmp_path)


def test_only_what_is_the_same_to_a_network_has_the_same_digest() -> None:
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.int32).reshape(2, 3, 4, 4)
    told = [digests(x)[0], digests(x.view(torch.float32))[0], digests(x.reshape(2, 3, 2, 8))[0], digests(x)[1]]
    assert len({bytes(row.tolist()) for row in told}) == 4
    assert torch.equal(digests(x.flip(0))[1], told[0])


@pytest.mark.parametrize("call", CALLS)
def test_images_are_read_no_more_often_for_being_kept(call: str, tmp_path) -> None:
    """Keeping costs one reading at most: where it is asked what the kept work was of."""
    read = []

    class Counted(Rows):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    run = CALLS[call]
    counts = []
    for folder in (None, tmp_path, tmp_path):
        read.clear()
        run(Counted(X, Y), folder)
        counts.append(len(read))
    assert counts[1] <= counts[0] + (COUNT if call == "finetune" else 0)
    assert counts[2] <= counts[0] + COUNT


def test_work_under_keys_that_looked_at_less_is_done_again(tmp_path) -> None:
    from brickyard.storage._safefile import read, write

    expected = _located((X, Y), tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        text, tensors = read(path)
        text.pop("keys")
        write(path, {name: torch.zeros_like(value) for name, value in tensors.items()}, text, overwrite=True)
    assert torch.equal(_located((X, Y), tmp_path), expected)
    assert torch.equal(_located((X, Y), tmp_path), expected)
