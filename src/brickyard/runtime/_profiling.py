"""Sizes and times: parameters, floating-point operations, latency."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brickyard.runtime._remembering import Remembering

MIN_RUNS, MAX_SECONDS = 5, 5.0


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of convolutions and matrix products for one image, two a multiply-add.

    Counted by `torch.utils.flop_counter` on the meta device; nothing is computed.
    """
    bones = copy.deepcopy(model).to("meta").float()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    with Remembering(), counter, torch.inference_mode():
        bones(torch.empty(1, *input_shape, device="meta", dtype=torch.float32))
    return int(counter.get_total_flops())


class _Untracked:
    """Stands in for the counter's tracker of modules, whose hooks torch runs in every thread: one total is wanted."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *problem: object) -> None:
        pass


def peak_memory(call: Callable[[], object]) -> int:
    """Most bytes of tensors on the CPU that a call held at one time, beyond what there was before it.

    Counted from torch's own allocations, so that the same work gives the same number.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Latency:
    """Time of one call in milliseconds, and how it was measured."""

    median_ms: float
    low_ms: float
    high_ms: float
    batch: int
    threads: int
    runs: int


def measure_latency(calls: dict[str, Callable[[], object]], *, batch: int, runs: int = 15) -> dict[str, Latency]:
    """Median time of each call, taken in turn after a warm-up, so that drift of the machine hits all alike.

    Slow calls are timed fewer times, five at least.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(2):
                call()
        begun = time.perf_counter()
        for done in range(runs):
            if done >= MIN_RUNS and time.perf_counter() - begun > MAX_SECONDS:
                break
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: Latency(statistics.median(t), min(t), max(t), batch, torch.get_num_threads(), len(t))
        for name, t in times.items()
    }
