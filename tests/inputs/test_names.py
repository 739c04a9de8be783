"""Data that name their classes in another order than the source, and files that a folder leaves out."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import brickyard as by
from brickyard.inputs._datasets import load_data
from brickyard.testing import chain, randomised
from brickyard.training import TrainingOptions

X, Y = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4
NAMES = ("ant", "bee", "cow", "dog")


class Named(Dataset):
    """Images of a folder: labels count the names."""

    def __init__(self, *names: str) -> None:
        self.classes = list(names)

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return X[index], int(Y[index])


@pytest.fixture(scope="module")
def component() -> by.Component:
    model = randomised(chain())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)  # the source is at chance
        relevance = by.locate(model, Named(*NAMES))
    return by.disassemble(model, relevance, task=["ant", "dog"], budget=by.Budget(flops=0.9), heal="none")


ORDERS = {
    "the same": (NAMES, False),
    "the first ones": (NAMES[:3], False),
    "other words for them": (("n01", "n02", "n03", "n04"), False),
    "reversed": (NAMES[::-1], True),
    "one is missing": (NAMES[1:], True),
    "one more between": (("ant", "bat", *NAMES[1:]), True),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("verb", ["evaluate", "finetune", "assemble", "evaluate an assembly"])
def test_an_order_of_classes_that_is_not_the_sources_is_told_of(name: str, verb: str, component: by.Component) -> None:
    names, odd = ORDERS[name]
    data = Named(*names)
    whole = by.assemble([component, component], on_duplicate="rename")
    calls = {
        "evaluate": lambda: by.evaluate(component, DataLoader(data, 8), latency=False, including_calibration=True),
        "finetune": lambda: by.finetune(component, data, training=TrainingOptions(epochs=1)),
        "assemble": lambda: by.assemble(
            [component, component], on_duplicate="rename", scaling="affine", images=[data, data]
        ),
        "evaluate an assembly": lambda: by.evaluate(whole, [data, data], latency=False, including_calibration=True),
    }
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", by.BrickyardWarning)
        calls[verb]()
    told = [str(item.message) for item in found if "the source's index" in str(item.message)]
    assert bool(told) == odd
    assert all(any(f"is {name!r} to the data" in text for name in names) for text in told)


def test_names_given_to_locate_are_compared_too() -> None:
    model = randomised(chain())
    with pytest.warns(by.BrickyardWarning, match="the source's index") as found:
        by.locate(model, Named(*NAMES[::-1]), classes=NAMES)
    assert found[0].filename == __file__
    with warnings.catch_warnings(record=True) as none:
        warnings.simplefilter("always")
        by.locate(model, Named("0", "1", "10", "2"), classes=["0", "1", "2", "3"])  # numbers are no names
    assert not any("the source's index" in str(item.message) for item in none)


def test_files_that_a_folder_leaves_out_are_told_of(tmp_path, capsys) -> None:
    picture = Image.new("RGB", (8, 8))
    for name in ("a/1.png", "a/Thumbs.db", "b/1.png", "b/.hidden", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name, "png")
    assert len(load_data(tmp_path)) == 2
    assert not capsys.readouterr().err
    for name in ("a/2.jfif", "b/deeper/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name, "png")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    assert len(load_data(tmp_path)) == 3
    told = capsys.readouterr().err
    assert "left out: 2, such as a/2.jfif" in told
    assert "topmost one: 1, such as b/deeper/2.png" in told
