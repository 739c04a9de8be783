"""Components that are likely to be bad are warned of at every step; good ones are not."""

from __future__ import annotations

import warnings

import pytest
import torch

import brickyard as by
from brickyard.base._doubts import doubts
from brickyard.base._errors import BrickyardWarning
from brickyard.reports import report
from brickyard.reports._cards import model_card
from brickyard.testing import chain

IMAGES = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def said(act) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return [str(one.message) for one in found if issubclass(one.category, BrickyardWarning)]


class World:
    """A source that tells its classes apart, and its own answers as labels."""

    def __init__(self) -> None:
        self.source = chain()
        with torch.no_grad():
            last = [layer for layer in self.source.modules() if isinstance(layer, torch.nn.Linear)][-1]
            last.bias -= self.source(IMAGES).mean(0)
            last.weight.mul_(20)
            last.bias.mul_(20)
        self.labels = self.source(IMAGES).argmax(1)
        self.relevance = by.locate(self.source, (IMAGES, self.labels), per_class=20)

    def data(self, task: list[int], each: int):
        some = torch.cat([(self.labels == k).nonzero().flatten()[:each] for k in task])
        return IMAGES[some], self.labels[some]

    def part(self, task: list[int], each: int = 200, **options) -> by.Component:
        return by.disassemble(self.source, self.relevance, task=task, images=self.data(task, each), **options)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def pages(item) -> list[str]:
    return [str(item), model_card(item), report([item])]


def test_three_photographs_are_warned_of_at_every_step(world) -> None:
    good = world.part([0, 1])
    found: list[by.Component] = []
    (alone,) = said(lambda: found.append(world.part([2, 3], each=1)))
    assert "the component for 2, 3: it was repaired with 2 images" in alone
    assert "give 300 more: any photographs help, and labels are not needed" in alone
    assert "1 image of class 2" in alone
    wholes: list[by.Assembly] = []
    (joined,) = said(lambda: wholes.append(by.assemble([good, found[0]])))
    assert joined.startswith("part 1 (2, 3): it was repaired with 2 images")
    assert "part 0" not in joined
    for item in (found[0], wholes[0]):
        for page in pages(item):
            assert "repaired with 2 images" in page
            assert "1 image of class 2" in page


def test_good_parts_are_not_warned_of(world) -> None:
    parts: list[by.Component] = []
    assert said(lambda: parts.extend(world.part(task) for task in ([0, 1], [2, 3]))) == []
    wholes: list[by.Assembly] = []
    assert said(lambda: wholes.append(by.assemble(parts))) == []
    for item in (*parts, *wholes):
        assert doubts(item.manifest) == ()
        assert not any("likely to be bad" in page.lower() or "  warning  " in page for page in pages(item))


def test_what_is_doubted_follows_from_what_the_manifest_counts(world) -> None:
    good = world.part([0, 1])
    changed = good.manifest.model_copy

    def of(**update) -> list[str]:
        return [text.partition(" ")[0] + " " + text.split()[1] for text in doubts(changed(update=update))]

    heal = good.manifest.heal.model_copy
    assert of(agreement=(79, 100)) == ["it gives"]
    assert of(agreement=(80, 100)) == []
    few = {"heal": heal(update={"images": 30, "held": 10})}
    assert of(**few, agreement=(10, 10)) == ["it was"]
    assert of(**few, agreement=(20, 20)) == []  # which was measured, and is good
    assert of(heal=heal(update={"images": 40, "held": 20}), agreement=None) == []
    assert of(heal=heal(update={"method": "none", "images": 0, "held": 0}), agreement=None) == []
    statistics = good.manifest.statistics.model_copy
    assert of(statistics=statistics(update={"images": (4, 90)})) == ["it has"]
    assert of(statistics=statistics(update={"images": (5, 90)})) == []
    assert of(statistics=None) == []  # by itself, it needs none


def test_statistics_matter_where_logits_are_compared_by_them(world) -> None:
    good, data = world.part([0, 1]), world.data([2, 3], 200)
    blind = by.disassemble(world.source, world.relevance, task=[2, 3], images=data[0])
    assert doubts(blind.manifest) == ()
    (joined,) = said(lambda: by.assemble([good, blind]))
    assert "part 1 (2, 3): it was made without labelled images" in joined
    shots = [world.data([0, 1], 20), world.data([2, 3], 20)]
    assert said(lambda: by.assemble([good, blind], scaling="affine", images=shots)) == []
    assert said(lambda: by.assemble([blind])) == []
