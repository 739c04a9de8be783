"""A summary says on how many of the images given a source was located, and what shares are shares of."""

from __future__ import annotations

import torch

import brickyard as by
from brickyard.relevance._checkpoint import Notebook
from brickyard.testing import chain
from shell import run

IMAGES = torch.rand(60, 3, 8, 8)
LABELS = torch.tensor([0] * 30 + [1] * 4 + [2] * 15 + [3] * 11)


def line(word: str, **options) -> str:
    relevance = by.locate(chain(), (IMAGES, LABELS), **options)
    part = by.disassemble(chain(), relevance, task=[0, 1], budget=by.Budget(flops=0.5), heal="none")
    assert part.manifest.located.given == 60
    return next(text for text in str(part).splitlines() if text.split()[0] == word)


def test_the_limit_per_class_is_told() -> None:
    assert "on 14 of 60 images (at most 10 per located class)" in line("located", per_class=10, task=[0, 1])
    assert "on 34 of 60 images (those of the located classes)" in line("located", choose="all", task=[0, 1])
    assert "on 60 images, of which" in line("located", per_class=50)  # the control


def test_what_a_share_of_the_flops_is_of_is_told_in_the_summary_and_the_help() -> None:
    assert line("FLOPs", per_class=5).endswith("of the source with all its classes)")
    said = " ".join(run("disassemble", "--help").stdout.replace("\u2502", " ").split())
    assert "FLOPs of the source with all its classes" in said
    assert by.disassemble(chain(), by.locate(chain(), (IMAGES, LABELS)), task=[0]).manifest.source.flops > 0


def test_notes_of_earlier_versions_go_on() -> None:
    from brickyard.inputs._batches import Images

    found = by.locate(chain(), (IMAGES, LABELS), per_class=2)
    held = Images((IMAGES, LABELS), None, "images", 1)
    before = Notebook(None, found, held)._about
    found.record = found.record.model_copy(update={"given": None})
    assert Notebook(None, found, held)._about == before
