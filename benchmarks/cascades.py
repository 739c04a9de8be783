"""What parts save that run in turn, on mixed streams of images: `form="cascade"` against parallel form.

    python benchmarks/cascades.py              # everything that is not there yet
    python benchmarks/cascades.py --only M5F5  # rows whose name contains the text

Parts are whole. Thresholds are chosen on training images, without labels; the full test splits are run once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import brickyard as by
import tables
from assemblies import component
from brickyard.assembly._cascade import course_of, measured
from brickyard.assembly._labelled import shared_signals
from brickyard.runtime._profiling import count_flops, measure_latency

ASSEMBLIES = {"M5F5": tables.M5F5, "CF": tables.CF, "MF": tables.MF, "SAME": tables.SAME}
GOAL = {"M5F5": 0.65, "CF": 0.65}
AGREEMENT = 0.99
SHOWN = 2_000  # calibration images per part
BATCH, TIMED = 64, 256
PATH, PAGE = tables.RESULTS / "cascades.json", tables.RESULTS / "cascades.md"


def row(title: str) -> dict[str, Any]:
    """One assembly: costs as shares of those in parallel form, answers on the full test splits."""
    torch.set_num_threads(1)
    parts = ASSEMBLIES[title]
    components = [component(name, task, 1.0, False) for name, task in parts]
    shown = [tables.load(name, "train").of_classes(list(task)).shuffled(0) for name, task in parts]
    shown = [data.subset(range(min(SHOWN, len(data)))) for data in shown]
    parallel = by.assemble(components, on_duplicate="rename")
    whole = by.assemble(components, on_duplicate="rename", form="cascade", calibration=shown, agreement=AGREEMENT)
    record = whole.manifest.cascade
    assert record is not None
    seen = shared_signals(parallel, [tables.load(name, "test") for name, _ in parts], features=False)
    logits = parallel.scaled(*seen.signals)
    course = course_of(whole, seen, logits)
    costs = [count_flops(*pair) for pair in parallel.shaped_networks()]
    found = measured(whole.manifest, course, logits, costs)
    right = {"parallel": logits.argmax(1) == seen.targets, "cascade": course.logits.argmax(1) == seen.targets}
    return {
        "images": len(logits),
        "calibration": record.images,
        "agreement held back": 100 * record.agreement,
        "flops held back": record.flops,
        "agreement": 100 * found["agreement"],
        "flops": found["flops"],
        "first is enough": 100 * float((course.ran == 1).double().mean()),
        **{form: 100 * float(value.double().mean()) for form, value in right.items()},
        "time": time_share(parallel, whole, seen),
    }


def time_share(parallel: by.Assembly, whole: by.Assembly, seen: Any) -> float:
    """The time of batches drawn from all test images, as a share of parallel form's, both fused."""
    drawn = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:TIMED]
    batches = [batch for rows in drawn.split(BATCH) for batch, _ in seen.raw(rows)]
    forms = {"parallel": parallel.fused(), "cascade": whole.fused()}
    calls: dict[str, Callable[[], object]] = {name: partial(_answers, model, batches) for name, model in forms.items()}
    times = measure_latency(calls, batch=BATCH)
    return times["cascade"].median_ms / times["parallel"].median_ms


def _answers(model: by.Assembly, batches: list[Tensor]) -> list[Tensor]:
    return [model(batch) for batch in batches]


def write(rows: dict[str, Any]) -> None:
    PAGE.write_text(page(tables.write_rows(PATH, rows, ASSEMBLIES)))


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Parts that run in turn",
        "",
        f'Written by `python benchmarks/cascades.py`. `form="cascade"` with agreement={AGREEMENT}, from at most',
        f"{SHOWN:,} training images per part, without labels. Full test splits, run once: the images of each part's",
        "classes. FLOPs and time: shares of parallel form's. time: batches of the mixed stream, each of images of one",
        "size, both forms fused. one part: images for which the first part was enough.",
        "",
        "| assembly | FLOPs | goal | same answer | one part | accuracy, parallel | cascade | time | FLOPs held back |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, found in rows.items():
        goal = f"at most {GOAL[title]}" if title in GOAL else ""
        cells = [f"{found['flops']:.2f}", goal, f"{found['agreement']:.2f} %", f"{found['first is enough']:.1f} %"]
        cells += [f"{found[form]:.2f}" for form in ("parallel", "cascade")]
        cells += [f"{found['time']:.2f}", f"{found['flops held back']:.2f}"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def main() -> None:
    options = tables.parser("What parts save that run in turn.").parse_args()
    tables.run_rows(options, PATH, [(title,) for title in ASSEMBLIES], row, write)


if __name__ == "__main__":
    main()
