"""In notebooks, components, assemblies and relevances are tables of their text, and figures of their numbers."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import brickyard as by
from brickyard.base._notebook import as_html
from brickyard.testing import chain
from errors import refused

DATA = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4)
HOSTILE = ("<script>alert(1)</script>", "$x^2$ & \"'", "plain", "d")


class Cells(HTMLParser):
    """The tags of a text, and what stands between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert attrs == []
        self.tags.add(tag)

    def handle_data(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def made():
    relevance = by.locate(chain(), DATA, classes=HOSTILE, name="<b>odd</b>")
    parts = [
        by.disassemble(chain(), relevance, task=task, budget=by.Budget(flops=0.6), select="l1")
        for task in ([0, 1], [2, 3])
    ]
    return relevance, *parts, by.assemble(parts)


def test_tables_say_what_the_text_says(made, monkeypatch) -> None:
    def never(*_args, **_options):
        raise AssertionError("a network ran")

    monkeypatch.setattr(torch.nn.Module, "__call__", never)
    for item in made:
        page = Cells(item._repr_html_())
        assert page.tags <= {"table", "caption", "tbody", "tr", "th", "td"}
        words = "".join(page.texts).replace(" ", "").replace(":", "")
        assert words == "".join(str(item).split()).replace(":", "")
        assert "<b>odd</b>" in "".join(page.texts)  # the control: the text of a stranger is there, as text
    long = as_html("\n".join(["head", *(f"  row          {k}" for k in range(100))]))
    assert Cells(long).texts[-1] == "and 60 more"
    assert len(as_html("x" * 10_000)) < 600


def widths(ax) -> list[float]:
    return [bar.get_width() for bar in ax.patches]


def test_figures_have_the_numbers(made) -> None:
    pytest.importorskip("matplotlib")
    relevance, part, other, whole = made
    (ax,) = part.plot().axes
    axes = part.manifest.axes.values()
    assert widths(ax) == [value for axis in axes for value in (axis.size, len(axis.kept))]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(part.manifest.axes)
    for ax, key in zip(whole.plot().axes, ("parameters", "flops"), strict=True):
        own = [getattr(one.manifest.selection, key) for one in (part, other)]
        source = getattr(part.manifest.source, key)
        shared = getattr(whole.manifest, f"shared_{key}")
        assert widths(ax) == [source, own[0], source, own[1], source, sum(own) - shared]
    panels = relevance.plot().axes
    assert [panel.get_title(loc="left") for panel in panels[: len(relevance.layers)]] == [
        f"inputs of {name}" for name in relevance.layers
    ]
    for panel, name in zip(panels, relevance.layers, strict=False):
        (image,) = panel.images
        expected = relevance.contribution(name)[list(relevance.task)].mean(1)
        assert np.allclose(image.get_array(), expected.numpy(), atol=1e-6)


def test_without_sums_a_figure_shows_relevance(made) -> None:
    pytest.importorskip("matplotlib")
    found = by.locate(chain(), DATA, keep_sums=False)
    figure = found.plot()
    assert "Relevance of channels" in figure.get_suptitle()
    for panel, name in zip(figure.axes, found.axes, strict=False):
        assert np.array_equal(panel.images[0].get_array(), found.axis(name).numpy())


def test_names_in_figures_are_no_formulas(made, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    for number, item in enumerate(made):
        item.plot().savefig(tmp_path / f"{number}.svg")  # a name in dollars would be set, or stop it
    assert "$x^2$ & \"'" in [label.get_text() for label in made[0].plot().axes[0].get_yticklabels()]


def test_without_matplotlib_it_says_what_to_install(made, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for item in made:
        with refused("option-missing-package", "brickyard[plots]"):
            item.plot()
