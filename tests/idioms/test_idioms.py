"""A slice of the networks drawn from idioms, and controls: each thing that may go wrong must be seen."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from brickyard.axes import trace
from brickyard.surgery import _steps as steps
from brickyard.surgery import cut
from idioms.drawing import drawn, images
from idioms.judging import Verdict, judged, keep_sets, running
from idioms.oracle import expected
from idioms.writing import IDIOMS

SLICE = range(0, 70)


def test_drawn_networks_are_right_or_refused() -> None:
    found: Counter[str] = Counter()
    controls = compared = 0
    for seed in SLICE:
        if (one := running(seed)) is None:
            continue
        verdict = judged(*one, save=seed % 25 == 0)
        found[verdict.outcome] += 1
        assert verdict.outcome in ("right", "refused"), f"{seed}: {verdict.what}\n{one[0].source}"
        controls += verdict.control
        compared += verdict.cuts[0]
    assert found["right"] >= 0.9 * len(SLICE), found
    assert controls >= 0.85 * len(SLICE)
    assert compared >= 1.5 * len(SLICE)


def test_a_network_is_drawn_from_its_number_alone() -> None:
    assert [drawn(seed).source for seed in range(20)] == [drawn(seed).source for seed in range(20)]
    assert len({drawn(seed).source for seed in range(100)}) == 100
    assert {name for seed in range(3000) for name, _ in drawn(seed).parts} == set(IDIOMS)


def outcomes(seeds: range, **options) -> list[Verdict]:
    return [judged(*one, **options) for seed in seeds if (one := running(seed)) is not None]


def test_a_wrong_keep_set_is_seen() -> None:
    def other(graph, keep):
        """Keep one channel less or another one."""
        moved = {
            name: torch.tensor(sorted({(int(c) + 1) % graph.axis(name).size for c in channels}))
            for name, channels in keep.items()
        }
        return cut(graph, moved)

    found = Counter(verdict.outcome for verdict in outcomes(range(200, 230), cutting=other))
    assert found["wrong"] >= 20, found


@pytest.mark.parametrize(("rule", "text"), [("getitem", "x[:, :"), ("split", ".split("), ("mean", "x.mean(1")])
def test_a_missing_rule_is_seen(rule: str, text: str, monkeypatch) -> None:
    """Without one of surgery's rules, some network is cut wrong, or is found out by the library's own check."""
    monkeypatch.delitem(steps._REWRITE, rule)
    seeds = (seed for seed in range(200, 2000) if text in drawn(seed).source and not drawn(seed).exotic)
    for seed, _ in zip(seeds, range(40), strict=False):
        one = running(seed)
        if one is None:
            continue
        verdict = judged(*one)
        if verdict.outcome in ("wrong", "raw error") or verdict.code == "surgery-check-failed":
            return
    pytest.fail(f"cutting without the rule for {rule} is not seen")


def test_the_judge_has_a_mind_of_its_own() -> None:
    """What hooks compute is neither the uncut model, nor what a cut of other channels computes."""
    _, model = next(one for seed in range(300, 340) if (one := running(seed)) is not None and not one[0].exotic)
    graph = trace(model, images(2, 0))
    one, half = keep_sets(graph, 0)
    x = images(3, 1)
    with torch.no_grad():
        whole, less, least = model(x.clone()), expected(model, graph, one, x), expected(model, graph, half, x)
        assert torch.allclose(expected(model, graph, {}, x), whole)
    assert not torch.allclose(whole, less)
    assert not torch.allclose(less, least)
    assert torch.equal(model(x.clone()), whole)  # no hook stays
