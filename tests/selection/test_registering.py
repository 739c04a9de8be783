"""Scalings and criteria of one's own: what is registered, and what they return."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import brickyard as by
from brickyard.scaling import SCALINGS, Scale, scaling
from brickyard.selection._importance import CRITERIA, criterion
from brickyard.testing import chain
from errors import refused

DATA = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4

pytestmark = pytest.mark.filterwarnings("ignore::brickyard.BrickyardWarning")


@pytest.fixture(autouse=True)
def _tables():
    with patch.dict(SCALINGS), patch.dict(CRITERIA):
        yield


def cut(**options) -> by.Component:
    return by.disassemble(chain(), by.locate(chain(), DATA), task=[1], budget=by.Budget(flops=0.7), **options)


def test_the_names_of_its_own_are_taken() -> None:
    with refused("option-conflict", "'none'"):
        scaling("none", help="mine")(lambda evidence: Scale())
    with refused("option-conflict", "'l1'"):
        criterion("l1", help="mine")(lambda evidence: torch.zeros(1))
    for _ in range(2):  # one's own may be registered again, as in a notebook
        scaling("mine", help="mine")(lambda evidence: Scale(notes=("mine",)))
    assert by.assemble([cut()], scaling="mine").manifest.scaling.notes == ("mine",)


@pytest.mark.parametrize("value", [None, [0.5], torch.zeros(3), torch.full((1,), torch.nan)])
def test_a_criterion_returns_one_number_per_channel(value) -> None:
    criterion("mine", help="mine")(lambda evidence: value)
    with refused("option-wrong-object", "'mine'", "for each of the"):
        cut(select="mine")


def test_numbers_that_are_nan_are_no_scores() -> None:
    def scores(evidence) -> torch.Tensor:
        found = evidence.relevance.scores[2, 1].clone()
        found[0] = torch.nan
        return found

    criterion("mine", help="mine")(scores)
    with refused("option-wrong-object", "NaN"):
        cut(select="mine")


def test_errors_of_a_scaling_are_its_own() -> None:
    @scaling("mine", help="mine")
    def broken(evidence, *, power=1.0) -> Scale:
        return Scale(notes=(str(len(5)),))

    with pytest.raises(TypeError, match=r"has no len"):
        by.assemble([cut()], scaling="mine")
    with refused("option-unknown-name", "'powr'"):
        by.assemble([cut()], scaling="mine", powr=2)
    scaling("odd", help="mine")(lambda evidence: None)
    with refused("option-wrong-object", "NoneType"):
        by.assemble([cut()], scaling="odd")
