"""What work costs, counted instead of timed: floating-point operations and bytes of tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.healing import _places, _streams
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.relevance._contribution import class_sums
from brickyard.runtime._profiling import peak_memory
from brickyard.surgery._join import cut
from brickyard.testing import Residual, chain, randomised
from brickyard.training._sources import build_seeded


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return int(counter.get_total_flops())


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "most"), [("vgg16", 1.06), ("resnet50", 1.02), ("googlenet", 1.04)])
def test_locating_costs_few_operations_and_bytes_beyond_a_plain_pass(name, most) -> None:
    model = build_seeded(name, 10, 0.5, 0).eval()
    x = images(16)
    graph = trace(model, x[:2])
    plain = flops(lambda: model(x))
    assert plain < flops(lambda: class_sums(graph, [x])) <= most * plain
    with torch.inference_mode():
        pass_bytes = peak_memory(lambda: graph.network(x))
        bytes_held = peak_memory(lambda: class_sums(graph, [x]))
        again = peak_memory(lambda: class_sums(graph, [x, x, x, x]))
    sums = sum(found.totals.numel() * 8 for found in class_sums(graph, [x[:1]]).values())
    assert bytes_held <= pass_bytes + 1.5 * sums + 2**22  # what is returned, and blocks of a fixed size
    assert again <= 1.01 * bytes_held


def test_memory_of_locating_does_not_grow_with_classes() -> None:
    peaks = []
    for classes in (10, 100):
        model = randomised(chain(classes=classes, widths=(64, 96)))
        data = images(100, 16), torch.arange(100) % classes

        def find(model=model, data=data) -> by.Relevance:
            return by.locate(model, data, choose="all", keep_sums=False)

        relevance = find()
        returned = relevance.scores.nbytes + sum(mask.nbytes for mask in relevance.hard_masks.values())
        peaks.append(peak_memory(find) - returned)
    assert peaks[1] <= 1.1 * peaks[0]


def test_the_refit_is_linear_in_images_and_its_memory_is_bounded(monkeypatch) -> None:
    model = Residual(width=16, inner=12)
    graph = trace(model, images(2, 16))
    keep = {**graph.everything(), "stem": torch.arange(8), "conv1": torch.arange(6)}

    def refit(count: int) -> None:
        heal_network(graph, keep, cut(graph, keep), Shown(list(images(count, 16).split(16))), "refit", 1e-3)

    with monkeypatch.context() as patch:
        patch.setattr(_places, "FEWEST", 1 << 30)  # all positions
        counted = [flops(lambda count=count: refit(count)) for count in (32, 64, 96)]
    assert counted[2] - counted[1] == counted[1] - counted[0] > 0
    drawn = [flops(lambda count=count: refit(count)) for count in (32, 64, 96)]
    assert drawn[2] - drawn[1] < 0.5 * (counted[2] - counted[1])  # more images cost little more than running them
    given = [images(count, 16).nbytes for count in (32, 128)]
    held = [peak_memory(lambda count=count: refit(count)) for count in (32, 128)]
    assert held[1] - given[1] > 1.2 * (held[0] - given[0])  # few images are held between layers ...
    monkeypatch.setattr(_streams, "MEMORY", 0)
    held = [peak_memory(lambda count=count: refit(count)) for count in (32, 128)]
    assert held[1] - given[1] <= 1.05 * (held[0] - given[0])  # ... and of many, most wait on disk


def test_forms_cost_what_their_parts_cost() -> None:
    parts = []
    for seed in (0, 1):
        model = randomised(Residual(width=16, inner=12), seed)
        relevance = by.locate(model, (images(8, 16), torch.arange(8) % 4), classes=[f"{seed}{k}" for k in range(4)])
        budget = by.Budget(flops=0.5, round_to=4, factors=False)
        parts.append(by.disassemble(model, relevance, task=[0, 1], budget=budget, heal="none"))
    x = images(4, 16)
    alone = sum(flops(lambda part=part: part(x)) for part in parts)
    parallel, padded, grouped = (by.assemble(parts, form=form) for form in ("parallel", "padded", "grouped"))
    assert flops(lambda: parallel(x)) == alone
    assert alone <= flops(lambda: grouped(x)) <= 1.01 * alone  # the linear layer has zeros
    assert flops(lambda: padded(x)) > 1.5 * alone
    fused = padded.fused()
    assert flops(lambda: fused(x)) == flops(lambda: padded(x))
