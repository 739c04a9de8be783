"""Two networks fine-tuned from one ancestor, merged as far as their answers allow: full test splits.

    python benchmarks/merged.py              # everything that is not there yet
    python benchmarks/merged.py --only 0.95  # rows whose name contains the text

The ancestor is the ResNet-20 for CIFAR-10. Each sibling gets a new last layer, and is trained on 5,000 images: of five
classes of CIFAR-10 each, which the ancestor knows; or of ten classes of CIFAR-100 each, which it does not.
`assemble(form="merged")` sees 500 of these images of each sibling, and no label. Test images are scored, once, and
nothing else. Every row is written as soon as it is known.
"""

from __future__ import annotations

import copy
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import brickyard as by
import tables
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.inputs._preprocessing import preprocess

KINDS = {
    "CIFAR-10, five classes each": ("ResNet-20", (range(5), range(5, 10))),
    "CIFAR-100, ten classes each": ("VGG-16-w25 CIFAR-100", (range(10), range(10, 20))),
}
AGREEMENTS = (0.99, 0.95)
IMAGES, EPOCHS, BATCH, STEP = 5000, 3, 64, 0.005
PATH, PAGE = tables.RESULTS / "merged.json", tables.RESULTS / "merged.md"


@cache
def images_of(kind: str, split: str, turn: int) -> ImageData:
    """Images of a sibling's classes, counted from 0."""
    name, tasks = KINDS[kind]
    data, task = load_data(str(tables.SOURCES[name][2]), split=split), tasks[turn]
    chosen = torch.isin(torch.as_tensor(data.labels), torch.tensor(list(task))).nonzero().flatten()[:IMAGES]
    found = data.subset(chosen.tolist())
    return ImageData(found.images, torch.as_tensor(found.labels) - task[0], [data.classes[k] for k in task])


@cache
def sibling(kind: str, turn: int) -> nn.Module:
    """The ancestor, fine-tuned."""
    source = tables.source("ResNet-20")
    model, data = copy.deepcopy(source.model), images_of(kind, "train", turn)
    torch.manual_seed(turn)
    head = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    setattr(model, head, nn.Linear(getattr(model, head).in_features, len(data.classes)))
    optimizer = torch.optim.SGD(model.parameters(), STEP, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    images = preprocess(data.images, source.preprocessing)
    model.train()
    for _ in range(EPOCHS):
        for some in torch.randperm(len(images)).split(BATCH):
            x: Tensor = images[some]
            x = x.flip(-1) if torch.rand(()) < 0.5 else x
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), torch.as_tensor(data.labels)[some]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@cache
def part(kind: str, turn: int) -> by.Component:
    """A sibling as a whole component."""
    data, model = images_of(kind, "train", turn), sibling(kind, turn)
    how = tables.source("ResNet-20").preprocessing
    relevance = by.locate(model, data, classes=data.classes, preprocessing=how, name=f"sibling {turn}", per_class=20)
    budget = by.Budget(flops=1.0)
    return by.disassemble(
        model, relevance, task=list(range(len(data.classes))), budget=budget, images=data, heal="none"
    )


def work(title: str, kind: str, wanted: float | None) -> dict[str, Any]:
    """Accuracy of one pair, side by side or merged, how often it answers alike, and what it costs."""
    torch.set_num_threads(1)
    parts = [part(kind, turn) for turn in (0, 1)]
    tests = [images_of(kind, "test", turn) for turn in (0, 1)]
    plain, started = by.assemble(parts), time.process_time()
    made = plain
    if wanted is not None:
        trains = [images_of(kind, "train", turn).images for turn in (0, 1)]
        made = by.assemble(parts, form="merged", calibration=trains, agreement=wanted)
    seconds = time.process_time() - started
    scores = by.evaluate(made, tests, latency=False)
    same, alone = [], []
    for data, before, after in zip(tests, parts, made.components(), strict=True):
        answers = [tables.answers(one.logits, data.images).argmax(1) for one in (before, after)]
        same.append(float((answers[0] == answers[1]).double().mean()))
        alone.append(float((answers[1] == torch.as_tensor(data.labels)).double().mean()))
    both = [tables.answers(one, torch.cat([data.images for data in tests])).argmax(1) for one in (plain, made)]
    flops = [part.manifest.selection.flops for part in made.components()]
    record = made.manifest.merged
    return {
        "accuracy": scores.row("assembled").class_accuracy,
        "accuracy error": scores.row("assembled").class_error,
        "oracle": scores.row("oracle").class_accuracy,
        "alone": alone,
        "same": same,
        "same of both": float((both[0] == both[1]).double().mean()),
        "flops": (sum(flops) - made.manifest.shared_flops) / max(flops),
        "seconds": seconds,
        "merged": None if record is None else record.model_dump(),
    }


def jobs() -> list[tuple[str, str, float | None]]:
    return [
        (f"{kind} | {'side by side' if wanted is None else wanted}", kind, wanted)
        for kind in KINDS
        for wanted in (None, *AGREEMENTS)
    ]


def write(rows: dict[str, Any]) -> None:
    PAGE.write_text(page(tables.write_rows(PATH, rows, (job[0] for job in jobs()))))


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Siblings, merged",
        "",
        "Written by `python benchmarks/merged.py`. Two networks fine-tuned from one ResNet-20, on",
        f"{IMAGES:,} images each for {EPOCHS} epochs with a step size of {STEP}. Full test splits; in percent.",
        "layers: how many leading layers became one. FLOPs: of the assembly, over one sibling's. same: test images",
        "that each part answers as before, and the assembly. alone: each part among its own classes. accuracy: of the",
        "assembly; oracle: with each image sent to the right part.",
        "",
        "| siblings | wanted | layers | FLOPs | same, each part | same, assembly | alone | accuracy | oracle | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        kind, wanted = title.split(" | ")
        groups = (row["merged"] or {}).get("groups") or []
        layers = ", ".join(f"{group['layers']} of {group['of']}" for group in groups) or "0"
        same, alone = (", ".join(f"{value:.1%}" for value in row[key]) for key in ("same", "alone"))
        lines.append(
            f"| {kind} | {wanted} | {layers} | {row['flops']:.2f} | {same} | {row['same of both']:.1%} | {alone} | "
            f"{tables.with_error(row, 'accuracy')} | {row['oracle']:.1f} | {row['seconds']:.0f} |"
        )
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def main() -> None:
    options = tables.parser("Siblings, merged.").parse_args()
    tables.run_rows(options, PATH, jobs(), work, write)


if __name__ == "__main__":
    main()
