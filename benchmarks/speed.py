"""What locating, surgery, healing and the forms of an assembly cost: times as ratios, memory, and how both grow.

    python benchmarks/speed.py                 # everything that is not there yet; about an hour on two cores
    python benchmarks/speed.py --only forms    # rows whose name contains the text
    python benchmarks/speed.py --fresh         # make the rows that are there again; with --only, those alone

Networks have random weights: time does not depend on them. Every time is a ratio of two things that run in turn, round
by round, in one process: the median over rounds, with the least and the most. What stands alone is in seconds of a
core's work. Rows that need a GPU say so where there is none.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import brickyard as by
import direct
import tables
from brickyard.axes._graph import trace
from brickyard.relevance._contribution import class_sums
from brickyard.runtime._processes import joined
from brickyard.runtime._profiling import peak_memory
from brickyard.training._sources import build_seeded

ROUNDS = 7
NETS = ("vgg16", "resnet50", "googlenet")
PATH = tables.RESULTS / "speed.json"
PAGE = tables.RESULTS / "speed.md"
PICTURE = tables.RESULTS / "speed.png"
REFITS = (100, 200, 400, 800)
WIDTHS = (0.25, 0.5, 1.0)
CLASSES = 4  # that images are of: 128 each, in batches of 64


@cache
def network(name: str, width: float = 1.0, seed: int = 0) -> nn.Module:
    return build_seeded(name, 10, width, seed).eval().to(DEVICE)


DEVICE = torch.device("cpu")


@cache
def images(each: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(each * CLASSES, 3, 32, 32, generator=generator), torch.arange(each * CLASSES) % CLASSES


def seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> dict[str, Any]:
    """The time of ours as a share of theirs."""
    with torch.inference_mode():
        ours(), theirs()
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "rounds": rounds,
        "ours_s": statistics.median(a for a, _ in pairs),
        "theirs_s": statistics.median(b for _, b in pairs),
    }


def plain_pass(model: nn.Module, x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> None:
    for batch in x.split(64):
        model(batch.to(DEVICE).contiguous(memory_format=layout))


# -- locating ----------------------------------------------------------------------------------------------


def locating(name: str, width: float = 1.0, each: int = 128) -> dict[str, Any]:
    """`locate` on all images against a plain pass over the same images: tracing, sums and allocation included."""
    model, data = network(name, width), images(each)

    def ours() -> object:
        return by.locate(model, data, choose="all", task=range(CLASSES), keep_sums=False)

    return in_turn(ours, lambda: plain_pass(model, data[0]))


def locating_laid_out(name: str) -> dict[str, Any]:
    """The same against a plain pass with channels last in memory, which is faster on CPUs."""
    model, data = network(name), images(128)

    def ours() -> object:
        return by.locate(model, data, choose="all", task=range(CLASSES), keep_sums=False)

    return in_turn(ours, lambda: plain_pass(model, data[0], torch.channels_last))


def memory(name: str) -> dict[str, Any]:
    """What locating holds beyond a plain pass, as a share of the most that such a pass holds at one time."""
    model, x = network(name), images(128)[0][:64]
    graph = trace(model, x[:2])
    with torch.inference_mode():
        theirs = peak_memory(lambda: model(x))
        plain = peak_memory(lambda: graph.network(x))
        ours = peak_memory(lambda: class_sums(graph, [x]))
    return {"ratio": max(0, ours - plain) / theirs, "ours_mib": ours / 2**20, "theirs_mib": theirs / 2**20}


def direct_time(name: str) -> dict[str, Any]:
    """The sums of a batch of eight the direct way, against ours: how many times as long."""
    model, x = network(name), images(128)[0][:8]
    graph = trace(model, x[:2])
    check = direct.class_sums(model, [x])
    ours = class_sums(graph, [x])
    wrong = max(
        float((found.dense() - check[layer]).abs().max() / check[layer].abs().max()) for layer, found in ours.items()
    )
    assert wrong < 1e-4, f"the two ways differ by {wrong}"
    return in_turn(lambda: direct.class_sums(model, [x]), lambda: class_sums(graph, [x]))


def direct_memory(name: str) -> dict[str, Any]:
    """Memory beyond a plain pass of a batch of 64, the direct way against ours: how many times as much."""
    model, x = network(name), images(128)[0][:64]
    graph = trace(model, x[:2])
    with torch.inference_mode():
        plain = peak_memory(lambda: model(x))
        theirs = peak_memory(lambda: direct.class_sums(model, [x])) - plain
        ours = peak_memory(lambda: class_sums(graph, [x])) - plain
    return {"ratio": theirs / max(ours, 2**20), "ours_mib": ours / 2**20, "theirs_mib": theirs / 2**20}


# -- many classes ------------------------------------------------------------------------------------------


class Drawn(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One image per class, made when it is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.count:
            raise IndexError(index)
        return torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(index)), index


def many_classes(name: str, count: int) -> dict[str, Any]:
    """`locate` for so many classes of a network for 224 x 224 images, an image each, in a process of its own."""
    return child("many", name, str(count))


def child_many(name: str, count: str) -> dict[str, Any]:
    model = full_size(name)
    before = resident()
    begun = time.process_time()
    by.locate(model, Drawn(int(count)), choose="all", task=range(int(count)), keep_sums=False)
    return {"seconds": time.process_time() - begun, "resident_gib": resident(), "before_gib": before}


def full_size(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    return model.eval()


def resident() -> float:
    """The most memory that this process has had, in GiB; Linux only."""
    status = Path("/proc/self/status").read_text()  # resource's number may be that of the process that started this one
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


# -- surgery and healing -----------------------------------------------------------------------------------


def cutting(name: str) -> dict[str, Any]:
    """`disassemble` without healing, of a network for 224 x 224 images with 1,000 classes."""
    model = full_size(name)
    relevance = by.locate(model, Drawn(4), choose="all", task=range(4))
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        by.disassemble(model, relevance, task=range(4), budget=by.Budget(flops=0.5), select="mda", heal="none")
        times.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(times), "low": min(times), "high": max(times), "rounds": ROUNDS}


def refit(name: str, count: int) -> dict[str, Any]:
    """The refit on so many images, in a process of its own."""
    return child("refit", name, str(count))


def child_refit(name: str, count: str) -> dict[str, Any]:
    model, (x, labels) = network(name), images(int(count) // CLASSES)
    relevance = by.locate(model, (x, labels), task=range(CLASSES), keep_sums=False)
    options: dict[str, Any] = {
        "task": range(CLASSES),
        "budget": by.Budget(flops=0.5),
        "select": "mda",
        "heal_images": int(count),
    }
    before = resident()
    begun = time.process_time()
    by.disassemble(model, relevance, heal="refit", **options)
    return {"seconds": time.process_time() - begun, "resident_gib": resident(), "before_gib": before}


# -- forms -------------------------------------------------------------------------------------------------


@cache
def parts(name: str) -> tuple[by.Component, by.Component]:
    """Half of the FLOPs of two sources, each for five of ten classes."""
    found = []
    for seed, task in enumerate((range(5), range(5, 10))):
        model = network(name, seed=seed)
        data = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 10
        relevance = by.locate(model, data, classes=[f"{seed}/{k}" for k in range(10)])
        budget = by.Budget(flops=0.5, round_to=8)
        found.append(by.disassemble(model, relevance, task=list(task), budget=budget, select="mda", heal="none"))
    return found[0], found[1]


def component_time(name: str, batch: int, prepared: bool) -> dict[str, Any]:
    """A fused component of half of the FLOPs against its source, as it is or prepared in the same way."""
    x = images(128)[0][:batch].to(DEVICE)
    source, part = network(name), parts(name)[0].fused()
    if prepared:
        from brickyard.network._fusing import quick

        source = quick(trace(source, x[:1].repeat(2, 1, 1, 1)).network, tuple(x.shape[1:]))
    return in_turn(lambda: part(x), lambda: source(x), rounds=9 if batch > 1 else 51)


def assembly_time(name: str, batch: int, form: str) -> dict[str, Any]:
    """A fused assembly of two components of half of the FLOPs against both sources, one after the other."""
    x = images(128)[0][:batch].to(DEVICE)
    sources = [network(name, seed=seed) for seed in (0, 1)]
    whole = by.assemble(parts(name), form=form)
    fast = whole.fused()
    found = in_turn(lambda: fast(x), lambda: [model(x) for model in sources], rounds=9 if batch > 1 else 51)
    return {**found, "notes": whole.manifest.notes}


# -- processes ---------------------------------------------------------------------------------------------


def processes(count: int) -> dict[str, Any]:
    """`locate` in so many processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return child("ranks", before=command if count > 1 else None, threads=1)


def child_ranks() -> dict[str, Any]:
    model, data = network("googlenet"), images(128)
    times = []
    for _ in range(1 + ROUNDS):
        begun = time.perf_counter()
        by.locate(model, data, choose="all", task=range(CLASSES), keep_sums=False)
        times.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(times[1:]), "low": min(times[1:]), "high": max(times[1:]), "rounds": ROUNDS}


# -- a GPU -------------------------------------------------------------------------------------------------


def on_gpu(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The same on a GPU, timed by its own events."""
    global DEVICE
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device is here"}
    before, DEVICE = DEVICE, torch.device("cuda")
    network.cache_clear()
    parts.cache_clear()
    try:
        return {**work(*arguments), "card": torch.cuda.get_device_name()}
    finally:
        DEVICE = before
        network.cache_clear()
        parts.cache_clear()


# -- rows --------------------------------------------------------------------------------------------------

Job = tuple[str, str, Callable[..., dict[str, Any]], tuple[Any, ...]]


def jobs() -> Iterator[Job]:
    """Every row: its title, what it should be, and the work."""
    for name in NETS:
        yield f"locating | {name} | time against a plain pass", "at most 1.3", locating, (name,)
        yield f"locating | {name} | time against a channels-last pass", "", locating_laid_out, (name,)
        yield f"locating | {name} | memory beyond a plain pass, of that pass", "at most 1", memory, (name,)
        yield f"locating | {name} | the direct way: times as long", "at least 8", direct_time, (name,)
        yield f"locating | {name} | the direct way: times as much memory", "at least 20", direct_memory, (name,)
    for name in NETS:
        for batch in (1, 64):
            title = f"forms | {name}, batch {batch} | component against its source"
            yield title, "at most 0.65", component_time, (name, batch, False)
            yield f"{title}, fused too", "", component_time, (name, batch, True)
            for form in ("parallel", "padded", "grouped"):
                title = f"forms | {name}, batch {batch} | {form} against both sources"
                yield title, "at most 0.65" if form == "parallel" else "", assembly_time, (name, batch, form)
    for name in ("vgg16_bn", "resnet50"):
        for count in (250, 500, 1000):
            target = "below 4 GiB" if count == 1000 else ""
            yield f"many classes | {name}, 224 x 224 | {count} classes", target, many_classes, (name, count)
    yield "surgery | resnet50, 224 x 224 | cut", "below 2 s", cutting, ("resnet50",)
    for count in REFITS:
        yield f"refit | resnet20 | {count} images", "linear", refit, ("resnet20", count)
    for width in WIDTHS:
        title = f"growth | vgg16, width {width} | time against a plain pass"
        yield title, "", locating, ("vgg16", width)
    for name in ("resnet20", "resnet32", "resnet56"):
        yield f"growth | {name} | time against a plain pass", "", locating, (name,)
    for each in (32, 64, 128, 256):
        yield (
            f"growth | googlenet, {each * CLASSES} images | time against a plain pass",
            "",
            locating,
            (
                "googlenet",
                1.0,
                each,
            ),
        )
    for count in (1, 2):
        yield f"processes | googlenet | {count} of one thread", "", processes, (count,)
    for name in NETS:
        yield f"GPU | {name} | locating against a plain pass", "at most 1.3", on_gpu, (locating, name)
        for batch in (1, 64):
            title = f"GPU | {name}, batch {batch} | component against its source"
            yield title, "at most 0.65", on_gpu, (component_time, name, batch, False)
            title = f"GPU | {name}, batch {batch} | grouped against both sources"
            yield title, "", on_gpu, (assembly_time, name, batch, "grouped")


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Speed and scale",
        "",
        "Written by `python benchmarks/speed.py`. Networks in CIFAR form at full width and batches of 64 unless a row",
        "says otherwise; random weights. Times are ratios of two things that ran in turn in one process: the median",
        "over rounds, with the least and the most in brackets. Seconds of `many classes` and `refit` are those of all",
        "cores together, others are of the clock. The refit takes shifted copies of few images: up to 400 the work is",
        "the same. Memory below 1 MiB counts as 1 MiB.",
        "",
        "| what | network | measure | found | wanted |",
        "|---|---|---|---|---|",
    ]
    for title, target, *_ in jobs():
        if title in rows:
            lines.append(f"| {' | '.join(title.split(' | '))} | {cell(rows[title])} | {target} |")
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    return "\n".join([*lines, "", "![How cost grows](speed.png)", "", f"Machine: {about}.", ""])


def draw(rows: dict[str, Any]) -> None:
    """How the cost of locating and of the refit grows: four panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    time = "time against a plain pass"
    many = "many classes | {}, 224 x 224 | {{}} classes"
    of_images = curve(rows, f"growth | googlenet, {{}} images | {time}", "ours_s", (128, 256, 512, 1024))
    panels: list[tuple[str, str, dict[str, list[tuple[float, float]]]]] = [
        ("images", "s, locating, GoogLeNet", {"": of_images}),
        (
            "classes, one 224 x 224 image each",
            "s of a core, locating",
            {name: curve(rows, many.format(name), "seconds", (250, 500, 1000)) for name in ("vgg16_bn", "resnet50")},
        ),
        (
            "images",
            "s of a core, refit, ResNet-20",
            {"": curve(rows, "refit | resnet20 | {} images", "seconds", REFITS)},
        ),
        (
            "width of VGG-16",
            "times a plain pass",
            {"": curve(rows, f"growth | vgg16, width {{}} | {time}", "ratio", WIDTHS)},
        ),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.1), constrained_layout=True)
    for ax, (x_label, y_label, curves) in zip(axes, panels, strict=True):
        for name, points in curves.items():
            ax.plot(*zip(*points, strict=True), marker="o", label=name) if points else None
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            ax.legend(frameon=False)
    figure.savefig(PICTURE, dpi=100)
    plt.close(figure)


def curve(rows: dict[str, Any], title: str, key: str, at: Sequence[float]) -> list[tuple[float, float]]:
    """(x, value) for the rows of a title with a place for x that are there."""
    return [(x, rows[title.format(x)][key]) for x in at if title.format(x) in rows]


def cell(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    found = f"{row['ratio']:.2f}" if "ratio" in row else f"{row['seconds']:.2f} s"
    if "low" in row:
        found += f" ({row['low']:.2f} to {row['high']:.2f})"
    if "resident_gib" in row:
        found += f", {row['resident_gib']:.2f} GiB resident, {row['before_gib']:.2f} before"
    if "ours_mib" in row:
        found += f" ({row['ours_mib']:.0f} and {row['theirs_mib']:.0f} MiB)"
    return found + (f" on {row['card']}" if "card" in row else "")


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return {**tables.machine(), "cpu": names[0] if names else platform.machine()}


# -- processes of their own --------------------------------------------------------------------------------

CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"many": child_many, "refit": child_refit, "ranks": child_ranks}


def child(name: str, *words: str, before: list[str] | None = None, threads: int | None = None) -> dict[str, Any]:
    variables = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [*(before or [sys.executable]), __file__, "--child", name, *words]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def run_child(name: str, *words: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with joined():
            found = CHILDREN[name](*words)
    else:
        found = CHILDREN[name](*words)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
        return
    options = tables.parser("Times, memory, and how both grow.", workers=False).parse_args()
    rows, todo = tables.begun(options, list(jobs()), PATH)
    order = [job[0] for job in jobs()]
    for done, (title, target, work, arguments) in enumerate(todo, start=1):
        rows[title] = {**work(*arguments), "wanted": target}
        tables.write_rows(PATH, rows, order)
        PAGE.write_text(page(rows))
        print(f"{done}/{len(todo)} {title}: {cell(rows[title])} [{target}]", flush=True)
    PAGE.write_text(page(rows))
    draw(rows)


if __name__ == "__main__":
    main()
