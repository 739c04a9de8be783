"""Scalings and criteria of one's own: what is registered, and what they return."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import brickyard as by
from brickyard.scaling import SCALINGS, Scale, scaling
from brickyard.selection import CRITERIA, Selected, criterion
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


def test_who_misses_a_name_is_told_how_to_register_one() -> None:
    with refused("option-choice", "'l2'", "brickyard.selection.criterion"):
        cut(select="l2")
    with refused("option-choice", "'nome'", "brickyard.scaling.scaling", "'none'"):
        by.assemble([cut(), cut()], scaling="nome")
    with refused("option-choice", "'refitt'") as error:  # the control: nobody can add to these
        cut(heal="refitt")
    assert "register" not in str(error.value)


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


def test_a_criterion_that_divides_the_budget_itself_returns_channels_or_what_it_selected() -> None:
    def half(evidence):
        return {axis.name: torch.arange(0, axis.size, 2) for axis in evidence.graph.free if not axis.output}

    criterion("half", help="mine", images=False, keeps=True)(half)
    told = criterion("told", help="mine", images=False, keeps=True)
    told(lambda evidence: Selected(evidence.graph, half(evidence), notes=("every other channel",)))
    plain, noted = cut(select="half"), cut(select="told")
    free = [
        axis
        for name, axis in plain.manifest.axes.items()
        if len(axis.kept) < axis.size and name != plain.manifest.output_axis
    ]
    assert free
    assert all(axis.kept == tuple(range(0, axis.size, 2)) for axis in free)
    assert plain.manifest.axes == noted.manifest.axes
    assert "every other channel" in noted.manifest.heal.notes
    assert "every other channel" not in plain.manifest.heal.notes
    criterion("wrong", help="mine", images=False, keeps=True)(lambda evidence: [1, 2])
    with refused("option-wrong-object", "'wrong'", "brickyard.selection.Selected"):
        cut(select="wrong")
