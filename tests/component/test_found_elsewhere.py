"""What a component does where it is used in another state, on other images or at another size than it was cut with."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brickyard as by
from brickyard.testing import Residual, chain, randomised
from errors import refused

X = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 4


def component(images: Tensor = X, model: nn.Module | None = None, **how: Any) -> by.Component:
    model = model or chain()
    return by.disassemble(model, by.locate(model, (images, Y), **how), task=[0, 1], heal="none")


@pytest.mark.parametrize("kind", ["component", "assembly"])
def test_scores_in_training_mode_are_those_in_evaluation_mode(kind: str) -> None:
    source = randomised(Residual())
    relevance = by.locate(source, (X, Y))
    parts = [by.disassemble(source, relevance, task=task, heal="none") for task in ([0, 1], [2, 3])]
    model: Any = parts[0] if kind == "component" else by.assemble(parts)
    data = (X[:20], Y[:20]) if kind == "component" else [(X[:20], Y[:20])] * 2
    right = by.evaluate(model, data, latency=False, including_calibration=True).rows
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert by.evaluate(model, data, latency=False, including_calibration=True).rows == right
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("images", [X * 4 - 2, X * 255, (X - 0.5) / 0.25], ids=["wide", "up to 255", "normalised"])
def test_pictures_are_refused_where_the_preprocessing_is_unknown(images: Tensor, tmp_path) -> None:
    part = component(images)
    part = by.load(part.save(tmp_path / "c.safetensors"))
    picture = (X[:2] * 255).to(torch.uint8)
    with refused("data-preprocessing-unknown", "with_preprocessing"):
        part.predict(picture)
    assert len(part.predict(images[:2])) == 2  # the form in which it was located
    assert len(part.with_preprocessing(by.Preprocessing(mean=(0.5,), std=(0.25,))).predict(picture)) == 2


def test_pictures_are_taken_where_it_was_located_on_raw_images() -> None:
    assert not component().manifest.preprocessing.unknown
    assert len(component((X * 255).to(torch.uint8)).predict((X[:2] * 255).to(torch.uint8))) == 2


@pytest.mark.parametrize("images", [X * 255, (X - 0.5) / 0.25, -X], ids=["up to 255", "normalised", "negative"])
def test_images_that_are_normalised_here_must_be_raw(images: Tensor) -> None:
    how = by.Preprocessing(mean=(0.5,), std=(0.25,))
    part = component(preprocessing=how)
    for call in (
        lambda: part.predict(images),
        lambda: by.locate(chain(), (images, Y), preprocessing=how),
        lambda: by.evaluate(part, (images, Y)),
    ):
        with refused("data-not-raw"):
            call()
    assert len(part.predict(X)) == 40


def test_another_size_is_taken_or_named_with_the_one_that_it_takes() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 4)
            self.place = nn.Parameter(torch.zeros(1, 16, 12))
            randomised(self)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            return self.head(F.gelu(x + self.place).mean(1))

    part, larger = component(model=Patches()), torch.rand(2, 3, 24, 24)
    with refused("data-wrong-size", "(3, 16, 16)", "(3, 24, 24)"):
        part(larger)
    with refused("data-wrong-size", "(3, 16, 16)", "(3, 24, 24)"):
        part.predict(larger)
    assert component()(larger).shape == (2, 2)


@pytest.mark.parametrize("change", ["some images", "one pixel", "the order"])
def test_work_on_other_images_is_not_gone_on_with(change: str, tmp_path) -> None:
    new = X.clone()
    if change == "some images":
        new[4:] = torch.rand(36, 3, 16, 16)
    elif change == "one pixel":
        new[37, 1, 3, 3] += 0.5
    else:
        new = new[torch.tensor([*range(4), *range(36, 40), *range(8, 36), *range(4, 8)])]
    options: dict[str, Any] = {"choose": "all", "resume": tmp_path}
    by.locate(chain(), (X, Y), **options)
    again = by.locate(chain(), (X, Y), **options)
    assert torch.equal(again.scores, by.locate(chain(), (X, Y), choose="all").scores)
    assert again.record.right == by.locate(chain(), (X, Y), choose="all").record.right
    with refused("file-resume-mismatch", "other images"):
        by.locate(chain(), (new, Y), **options)


def test_a_source_at_chance_is_said() -> None:
    model = randomised(chain())
    with torch.no_grad():
        answers = model(X).argmax(1)
    with pytest.warns(by.BrickyardWarning, match="no better than chance"):
        relevance = by.locate(model, (X, Y), choose="all")
    right = int((answers == Y).sum())
    assert relevance.record.right == (right, 40)
    assert f"{right / 40:.1%} of 40 images right" in str(relevance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = by.locate(model, (X, answers), choose="all", task=answers.unique().tolist())
    assert known.record.right == (40, 40)


class Unknown(nn.Module):
    """A layer that no table knows: a scripted block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.block = torch.jit.script(randomised(block))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.conv(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::brickyard.BrickyardWarning")
def test_a_layer_that_nothing_knows_is_a_part_of_the_component() -> None:
    model = Unknown()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(by.BrickyardWarning, match="cannot be saved"):
        relevance = by.locate(model, (X, Y))
    part = by.disassemble(model, relevance, task=[0, 1, 2, 3], budget=by.Budget(flops=1.0), heal="none")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    names = set(part.state_dict())
    assert {"network.block.0.weight", "network.block.1.running_mean"} <= names
    source = part.manifest.source
    own = sum(value.numel() for value in model.parameters())
    assert source.parameters == own
    assert source.flops == 2 * 256 * (27 * 6 + 54 * 6) + 2 * 24
    with torch.no_grad():
        right = model.eval()(X[:2])
        assert torch.allclose(part.train().eval()(X[:2]), right, atol=1e-6)
        assert torch.allclose(part.double()(X[:2].double()).float(), right, atol=1e-5)
