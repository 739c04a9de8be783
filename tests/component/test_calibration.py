"""The images that a component is chosen, repaired and judged with, and what it says of its agreement."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from torch import nn

import brickyard as by
from brickyard.component import _calibration, _disassemble
from brickyard.component._calibration import parted
from brickyard.testing import Residual, randomised
from errors import refused

IMAGES = torch.rand(120, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def world(seed: int = 0):
    model = randomised(Residual(width=16, inner=12), seed)
    with torch.no_grad():
        logits = model(IMAGES)
        model.linear.bias -= logits.mean(0)
        model.linear.weight.mul_(20)
        model.linear.bias.mul_(20)
    labels = model(IMAGES).argmax(1)
    return model, by.locate(model, (IMAGES, labels)), labels


@pytest.mark.parametrize(
    ("count", "held"), [(1, 0), (2, 0), (3, 1), (30, 10), (60, 20), (99, 20), (100, 20), (500, 100)]
)
def test_a_fifth_is_held_back_and_at_least_twenty_where_they_are_a_third(count, held) -> None:
    aside, rest = parted(range(1000, 1000 + count), 0)
    assert len(aside) == held
    assert sorted([*aside, *rest]) == list(range(1000, 1000 + count))
    assert rest == sorted(rest)


def watched(monkeypatch) -> list:
    seen: list = []
    original = _calibration.calibration

    def calibration(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(_disassemble, "calibration", calibration)
    return seen


def test_agreement_is_what_both_networks_say_to_images_that_nothing_was_fitted_to(monkeypatch) -> None:
    seen = watched(monkeypatch)
    model, relevance, labels = world()
    task = [int(k) for k in labels.unique()[:3]]
    part = by.disassemble(model, relevance, task=task, budget=by.Budget(flops=0.3))
    held = torch.cat(list(seen[0].shown.held))
    fitted = torch.cat(list(seen[0].shown.fit))
    assert len(held) == part.manifest.heal.held > 0
    assert not any(bool((fitted == image).flatten(1).all(1).any()) for image in held)
    same = int((part(held).argmax(1) == model(held)[:, task].argmax(1)).sum())
    assert part.manifest.agreement == (same, len(held))
    assert f"{same / len(held):.1%} of {len(held)} images held back" in str(part)
    assert 0 < same < len(held)  # the control: not all or none


def test_rejecting_components_are_judged_and_fitted_with_images_of_other_classes(monkeypatch) -> None:
    seen = watched(monkeypatch)
    model, relevance, labels = world()
    task = [int(labels.mode().values)]
    part = by.disassemble(model, relevance, task=task, reject=True, budget=by.Budget(flops=0.5))
    assert part.manifest.heal.others == seen[0].others > 0
    held = torch.cat(list(seen[0].shown.held))
    others = [k for k in range(4) if k not in task]
    goal = torch.cat([model(held)[:, task], model(held)[:, others].logsumexp(1, keepdim=True)], 1)
    assert part.manifest.agreement == (int((part(held).argmax(1) == goal.argmax(1)).sum()), len(held))
    alone = by.disassemble(model, relevance, task=task, budget=by.Budget(flops=0.5))
    assert alone.manifest.agreement is None  # one class has one answer
    assert alone.manifest.heal.others > 0
    several = by.disassemble(model, relevance, task=[0, 1, 2, 3], budget=by.Budget(flops=0.5))
    assert several.manifest.heal.others == 0


def test_too_few_images_are_told_of() -> None:
    torch.manual_seed(0)
    images = torch.rand(240, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    wide = nn.Conv2d(3, 128, 8), nn.Linear(128, 128), nn.Linear(128, 4)
    model = nn.Sequential(wide[0], nn.Tanh(), nn.Flatten(), wide[1], nn.Tanh(), wide[2])
    with torch.no_grad():
        for layer in wide:
            layer.weight.mul_(4)
        wide[2].bias -= model(images).mean(0)
    labels = model(images).argmax(1)
    relevance = by.locate(model, (images, labels))
    few = torch.cat([torch.nonzero(labels == k).flatten()[:6] for k in range(4)])
    options = {"task": [0, 1, 2, 3], "budget": by.Budget(flops=0.6)}
    with pytest.warns(by.BrickyardWarning, match=r"16 are too few.*labels are not needed"):
        by.disassemble(model, relevance, images=(images[few], labels[few]), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", by.BrickyardWarning)  # the control: with all of them, none is given
        by.disassemble(model, relevance, **options)


def test_a_budget_of_agreement_is_the_least_that_agrees() -> None:
    model, relevance, _ = world()
    costs = []
    for share in (1.0, 0.9, 0.6):
        part = by.disassemble(model, relevance, task=[0, 1, 2, 3], budget=by.Budget(agreement=share))
        same, count = part.manifest.agreement
        assert same / count >= share
        assert part.manifest.selection.budget["agreement"] == share
        costs.append(part.manifest.selection.flops)
    assert costs[0] > costs[2]
    assert costs == sorted(costs, reverse=True)


def test_agreement_that_cannot_be_measured_is_refused() -> None:
    model, relevance, labels = world()
    with refused("option-conflict", "agreement=", "reject=True"):
        by.disassemble(model, relevance, task=[0], budget=by.Budget(agreement=0.9))
    with refused("option-conflict", "agreement=0.9", "select='mda'"):
        by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(agreement=0.9), select="mda")
    for heal in ("none", "moments"):  # what is cut would not be what agreed
        with refused("option-conflict", "agreement=", repr(heal), "'refit'"):
            by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(agreement=0.9), heal=heal)
    two = torch.cat([torch.nonzero(labels == k).flatten()[:1] for k in labels.unique()[:2]])
    with refused("option-needs-data", "at least 3"):
        task = [int(k) for k in labels.unique()[:2]]
        given = IMAGES[two], labels[two]
        by.disassemble(model, relevance, task=task, images=given, budget=by.Budget(agreement=0.9))


def test_distillation_follows_the_refit_and_says_its_steps() -> None:
    model, relevance, _ = world()
    options = {"task": [0, 1, 2, 3], "budget": by.Budget(flops=0.3)}
    plain = by.disassemble(model, relevance, **options)
    longer = by.disassemble(model, relevance, heal="distil", minutes=0.05, **options)
    assert (plain.manifest.heal.steps, plain.manifest.heal.method) == (0, "refit")
    assert longer.manifest.heal.method == "distil"
    assert longer.manifest.heal.steps > 0
    assert longer.manifest.agreement[0] >= plain.manifest.agreement[0]
    with refused("option-needs-data", "heal='distil'", "at least 3"):
        by.disassemble(model, relevance, heal="distil", images=IMAGES[:2], **options)
    with refused("option-requires-option", "minutes="):
        by.disassemble(model, relevance, minutes=1, **options)


def test_more_images_of_anything_are_fitted_to_and_judge_nothing(monkeypatch, tmp_path) -> None:
    seen = watched(monkeypatch)
    model, relevance, _ = world()
    strange = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, picture in enumerate((strange * 255).byte()):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "deep" / "er" / f"{number:02}.png")
    options = {"task": [0, 1, 2, 3], "budget": by.Budget(flops=0.5)}
    plain = by.disassemble(model, relevance, **options)
    part = by.disassemble(model, relevance, more_images=strange, **options)
    from_disk = by.disassemble(model, relevance, more_images=tmp_path, **options)
    assert (part.manifest.heal.others, plain.manifest.heal.others) == (30, 0)
    assert from_disk.manifest.heal.others == 30
    assert part.manifest.agreement[1] == plain.manifest.agreement[1]
    assert all(torch.equal(a, b) for a, b in zip(seen[0].shown.held, seen[1].shown.held, strict=True))
    with torch.no_grad():
        goal = model(strange)
        errors = [float((one(strange) - goal).square().sum()) for one in (part, plain)]
    assert errors[0] < errors[1]
    with refused("option-conflict", "more_images="):
        by.disassemble(model, relevance, more_images=strange, heal="none", select="mda", **options)
    with refused("data-wrong-size", "more_images", "(3, 9, 9)"):
        by.disassemble(model, relevance, more_images=torch.rand(4, 3, 9, 9), **options)
    (tmp_path / "empty").mkdir()
    with refused("data-no-images", "empty"):
        by.disassemble(model, relevance, more_images=tmp_path / "empty", **options)
