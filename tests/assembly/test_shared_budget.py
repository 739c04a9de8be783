"""One budget for all parts of an assembly: each is cut by what the whole loses."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.assembly._budget import Meter, _Path, divide
from brickyard.component._component import Component
from brickyard.component._further import Further
from brickyard.runtime._profiling import count_flops, count_parameters
from brickyard.selection._damage import Descent
from brickyard.selection._split import split_budget
from brickyard.testing import chain, randomised
from errors import refused

DRAWN = torch.rand(60, 3, 2, 2, generator=torch.Generator().manual_seed(1))
X = nn.functional.interpolate(DRAWN, size=6, mode="bilinear", align_corners=True) ** 2  # smooth, and not alike
DATA = (X, torch.arange(60) % 4)
HALF = by.Budget(flops=0.5, factors=False)


def redundant(copies: int = 3) -> nn.Sequential:
    """A chain in which every channel is there several times: most of it can go at no loss."""
    small, (one, two) = randomised(chain(widths=(4, 4)), 5), (4 * copies, 4 * copies)
    made = chain(widths=(one, two))
    with torch.no_grad():
        for name, layer in made.named_children():
            for key, value in layer.state_dict().items():
                own = getattr(small, name).state_dict()[key]
                if value.ndim and name != "linear":
                    own = own.repeat(copies, *(1,) * (own.ndim - 1))
                if value.ndim > 1 and name != "conv1":  # readers
                    own = own.repeat(1, copies, *(1,) * (own.ndim - 2)) / copies
                value.copy_(own)
    return made.eval()


def decided(source: nn.Sequential) -> nn.Sequential:
    """A chain whose logits differ from image to image, by as much for every class."""
    with torch.no_grad():
        logits = source(X)
        source.linear.weight.mul_(3 / logits.std(0)[:, None])
        source.linear.bias.sub_(logits.mean(0)).mul_(3 / logits.std(0))
    return source


def part(source: nn.Module, task: list[int], names: str) -> by.Component:
    relevance = by.locate(source, DATA, classes=[f"{names}{k}" for k in range(4)], per_class=2)
    return by.disassemble(source, relevance, task=task, budget=by.Budget(flops=1.0), heal="none", images=DATA)


@pytest.fixture(scope="module")
def easy() -> by.Component:
    return part(decided(redundant()), [0, 1], "a")


@pytest.fixture(scope="module")
def hard() -> by.Component:
    return part(decided(randomised(chain(widths=(12, 12)), 1)), [2, 3], "b")


@pytest.fixture(scope="module")
def whole(easy, hard) -> by.Assembly:
    return by.assemble([easy, hard], budget=HALF, calibration=[DATA, DATA])


def flops(component: by.Component) -> int:
    return count_flops(component.network, component.input_shape)


# -- the total, and who gives it ---------------------------------------------------------------------------


def test_the_whole_is_within_the_budget_and_the_easier_part_gives_more(easy, hard, whole) -> None:
    first, second = (flops(one) for one in whole.components())
    assert first + second <= 0.5 * (flops(easy) + flops(hard))
    assert first + second > 0.4 * (flops(easy) + flops(hard))
    assert first / flops(easy) < 0.4 < second / flops(hard)  # the control is the same share of each
    record = whole.manifest.budget
    assert (record.resource, record.share, record.shared) == ("flops", 0.5, 0)
    assert record.before == flops(easy) + flops(hard)
    assert [one.after for one in record.parts] == [first, second]
    assert all(one.after <= one.limit <= one.before for one in record.parts)
    assert record.text in str(whole)
    assert [one.manifest.selection.of for one in whole.components()] == ["component"] * 2


def test_what_loses_nothing_gives_all_and_the_rest_stays_as_it_is(easy, hard) -> None:
    found = by.assemble([easy, hard], budget=by.Budget(flops=0.7, factors=False), calibration=[X, DATA])
    first, second = found.components()
    assert flops(first) < 0.5 * flops(easy)
    assert torch.equal(second.logits(X), hard.logits(X))
    assert second.manifest == hard.manifest
    with torch.no_grad():
        moved = (first.logits(X) - easy.logits(X)).square().mean() / easy.logits(X).var()
    assert 0 < moved < 1e-2
    own = easy.outputs.says(easy.logits(X)).sum(0).tolist()
    assert list(first.manifest.statistics.images) == own  # of images without labels, by the part's answers


def test_files_keep_how_it_was_divided(whole, tmp_path) -> None:
    path = whole.save(tmp_path / "whole.safetensors")
    again = by.load(path)
    assert again.manifest == whole.manifest
    assert torch.equal(again(X), whole(X))
    before = whole.manifest.model_dump(mode="json")
    del before["budget"]  # as files had it
    assert type(whole.manifest).model_validate(before).budget is None
    before["budget"] = {"resource": "flops", "share": 0.5, "before": 9, "parts": []}
    with pytest.raises(ValueError, match="0 parts for 2"):
        type(whole.manifest).model_validate(before)


def test_parameters_and_a_part_that_stays_whole(easy, hard) -> None:
    budget = by.Budget(parameters=0.75, factors=False)
    found = by.assemble([easy, hard], budget=budget, calibration=[None, DATA])
    first, second = found.components()
    assert first.manifest == easy.manifest
    assert count_parameters(second) < count_parameters(hard)
    assert count_parameters(found) <= 0.75 * (count_parameters(easy) + count_parameters(hard))


def test_padded_equals_parallel_and_a_cut_can_be_cut_again(easy, hard, whole) -> None:
    padded = by.assemble([easy, hard], form="padded", budget=HALF, calibration=[DATA, DATA])
    assert torch.allclose(padded.side_by_side(X), whole.side_by_side(X), atol=1e-4)
    assert padded.manifest.budget == whole.manifest.budget
    again = by.assemble([whole], budget=by.Budget(flops=0.8, factors=False), calibration=[DATA, DATA])
    assert sum(map(flops, again.components())) <= 0.8 * sum(map(flops, whole.components()))
    with refused("surgery-not-paddable"):
        by.assemble([whole], form="padded", budget=HALF, calibration=[DATA, DATA])


def test_what_parts_have_in_common_is_counted_once(hard) -> None:
    other = part(decided(randomised(chain(widths=(12, 12)), 1)), [0, 1], "c")
    budget = by.Budget(flops=0.8, factors=False)
    found = by.assemble([hard, other], budget=budget, calibration=[DATA, DATA]).manifest.budget
    assert found.shared > 0.9 * flops(hard)
    assert found.before == flops(hard) + flops(other) - found.shared
    assert sum(one.after for one in found.parts) <= 0.8 * found.before


# -- what is lost ------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_whole_classifier(easy, hard) -> None:
    known = [Component(one.network, one.manifest) for one in (easy, hard)]  # by their outputs only
    plain = by.assemble(known)
    cuts = [Further(one, DATA, HALF, 0) for one in (easy, hard)]
    meter = Meter(plain, cuts)
    _, network = cuts[1].descent.further()
    swapped = by.assemble([easy, Component(network, hard.manifest)])
    expected = []
    for one in cuts:
        held = X[one.held]
        assert set(DATA[1][one.held].tolist()) <= set(one.component.manifest.task)
        with torch.no_grad():
            p, q = (model(held).double().softmax(1) for model in (plain, swapped))
        expected.append(float((p * (p / q).log()).sum(1).mean()))
    assert meter.loss(1, network) == pytest.approx(sum(expected) / 2, rel=1e-2)
    assert meter.loss(1, hard.network) == 0
    assert meter.loss(1, network) > 0


class Staged:
    """A part whose stages are known beforehand."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self.left, self.descent = points[1:], self

    def further(self):
        return self.left.pop(0) if self.left else None


def path(points: list[tuple[float, float]]) -> _Path:
    return _Path(Staged(points), points[0][0], lambda network: network)  # a network is its loss


def test_parts_are_cut_only_as_far_as_it_takes() -> None:
    easy = [(100.0 * 0.8**k, 1e-3 * (1.5**k - 1)) for k in range(16)]
    hard = [(100.0 * 0.8**k, 0.1 * (2.0**k - 1)) for k in range(16)]
    for limit in (180, 120, 60):
        paths = [path(easy), path(hard)]
        assert divide(paths, limit) == split_budget([easy, hard], limit)
        asked = [len(one.points) for one in paths]
        assert asked[0] > asked[1]
        assert max(asked) < 16
    assert sum(divide([path(easy[:3]), path(hard[:2])], 20).costs) == 64 + 80  # there is no more


# -- what is refused, before any work ----------------------------------------------------------------------

TOO_FEW = by.Budget(flops=0.001)
REFUSED = [
    ({"budget": HALF}, "option-needs-data", "calibration="),
    ({"budget": HALF, "calibration": [None, None]}, "option-needs-data", "calibration="),
    ({"budget": HALF, "calibration": [DATA]}, "option-count", "2 parts"),
    ({"budget": HALF, "calibration": DATA}, "option-count", "2 parts"),
    ({"budget": HALF, "calibration": X}, "option-count", "Tensor"),
    ({"budget": by.Budget(agreement=0.9), "calibration": [DATA, DATA]}, "option-conflict", "agreement=0.9"),
    ({"budget": HALF, "calibration": [DATA, DATA], "form": "union"}, "option-conflict", "union"),
    ({"budget": TOO_FEW, "calibration": [DATA, DATA]}, "option-budget-too-small", "0.001"),
    ({"budget": by.Budget(flops=0.3), "calibration": [None, DATA]}, "option-budget-too-small", "0.3"),
    ({"calibration": [DATA, DATA]}, "option-without-effect", "calibration="),
    ({"budget": 0.5, "calibration": [DATA, DATA]}, "option-type", "Budget"),
]


@pytest.mark.parametrize(("options", "code", "quoted"), REFUSED, ids=[f"{i}-{c[1]}" for i, c in enumerate(REFUSED)])
def test_what_cannot_be_is_refused_before_work(easy, hard, monkeypatch, options, code, quoted) -> None:
    monkeypatch.setattr(Descent, "__init__", lambda *_: pytest.fail("work was done"))
    with refused(code, quoted):
        by.assemble([easy, hard], **options)


def test_other_architectures_are_not_laid_side_by_side(easy, monkeypatch) -> None:
    monkeypatch.setattr(Descent, "__init__", lambda *_: pytest.fail("work was done"))
    plain = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
    plain.add_module("linear", nn.Linear(8, 4))
    other = part(randomised(plain), [2], "d")
    with refused("surgery-not-paddable"):
        by.assemble([easy, other], form="padded", budget=HALF, calibration=[DATA, DATA])


def test_a_union_refuses_what_was_cut_further(whole) -> None:
    with refused("surgery-union-sources"):
        by.assemble([whole.components()[0]], form="union")


def test_the_workbench_asks_for_no_budget() -> None:
    from brickyard.workbench._bench import form_options

    assert not {"flops", "budget", "calibration"} & set(form_options())
    assert SimpleNamespace(**form_options()).form.default == "parallel"
