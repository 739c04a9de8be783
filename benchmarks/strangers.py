"""What components turn away: pictures of their own classes, of other classes, and of something else altogether.

    python benchmarks/strangers.py             # everything that is not there yet; a few minutes
    python benchmarks/strangers.py --only MNIST   # rows whose name contains the text
    python benchmarks/strangers.py --fresh     # make the rows that are there again; with --only, those alone

Components have half of the FLOPs of their sources and know 2, 3 or 5 of ten classes, drawn at random, from at most a
hundred training images of each. All pictures that they are asked about are test images. The constants were chosen on
other tasks of MNIST, Fashion-MNIST and the two CIFAR-10 sources, uncut. The share of own images that may be called sure
was chosen on training photographs, of three components of the SqueezeNet for other tasks.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

import brickyard as by
import tables
from brickyard.component._predictor import Judgement
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.sources._loading import Source, load_source

PATH, PAGE = tables.RESULTS / "strangers.json", tables.RESULTS / "strangers.md"
SMALL = {"MNIST": "MNIST", "Fashion": "Fashion", "ResNet-20": "ResNet-20", "ResNet-32": "ResNet-20"}  # and whose images
PHOTOGRAPHS = {
    "MobileNetV2": ("torchvision:mobilenet_v2?transforms=IMAGENET1K_V1", "mobilenet_v2-imagenet"),
    "SqueezeNet": ("torchvision:squeezenet1_1", "squeezenet1_1-imagenet"),
    "EfficientNet-lite0": ("timm:tf_efficientnet_lite0", "efficientnet_lite0-imagenet"),
}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # its classes among ImageNet's
SIZES, LARGER, SEED = (2, 3, 5), (3, 5), 11  # classes of a task; LARGER for photographs
SHOWN, LOCATED = 100, 20  # training images of each class; those that relevances of photographs are located on
ASKED, FEWER = 1000, 250  # test images of a data set; FEWER for photographs
HALF = 0.5
CERTAIN = 0.9  # what was called confident before strangers were told
OWN, KINDS = ("right", "turned away", "sure"), ("same set", "other sets")


def tasks() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every row: its title, the source, and the task as classes of ten."""
    drawn = random.Random(SEED)
    for name in (*SMALL, *PHOTOGRAPHS):
        for size in SIZES if name in SMALL else LARGER:
            task = tuple(sorted(drawn.sample(range(10), size)))
            yield f"{name} {','.join(map(str, task))}", name, task


def few(data: ImageData, count: int) -> ImageData:
    """As many images of each class, the first of a shuffled set."""
    mixed = data.shuffled(0)
    chosen = [torch.nonzero(mixed.labels == k).flatten()[:count] for k in range(len(data.classes))]
    return mixed.subset(torch.cat(chosen))


@cache
def source(name: str) -> Source:
    if name in SMALL:
        return tables.source(name)
    spec, weights = PHOTOGRAPHS[name]
    return load_source(spec, weights=tables.SHARED / f"models/{weights}.safetensors")


@cache
def images(name: str, split: str) -> ImageData:
    """The images of a source's data set."""
    if name in SMALL:
        return tables.load(SMALL[name], split)
    return load_data(str(tables.SHARED / f"data/imagenette/{split}.parquet"))


@cache
def shown(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images, with the source's classes."""
    data = few(images(name, "train"), count)
    return data.images, data.labels if name in SMALL else torch.tensor(IMAGENETTE)[data.labels]


@cache
def relevance(name: str) -> by.Relevance:
    found = source(name)
    return by.locate(
        found.model,
        shown(name, SHOWN if name in SMALL else LOCATED),
        task=list(range(10)) if name in SMALL else list(IMAGENETTE),
        classes=found.classes,
        preprocessing=found.preprocessing,
        name=name,
    )


@cache
def others(name: str) -> dict[str, Any]:
    """Pictures of other data sets."""
    if name in SMALL:
        sets = dict.fromkeys(SMALL.values())
        return {
            other: images(other, "test").shuffled(0).subset(range(ASKED)).images
            for other in sets
            if other != SMALL[name]
        }
    import pyarrow.parquet as pq
    from PIL import Image

    found = []
    for split in ("train", "test"):
        rows = pq.read_table(tables.SHARED / f"data/coco128/{split}.parquet", columns=["image"]).to_pylist()
        found += [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    one = load_data(str(tables.SHARED / "data/imagenet-one-a-class/train.parquet"))
    rest = [k for k in range(len(one)) if int(one.labels[k]) not in IMAGENETTE]
    return {"COCO": found, "other ImageNet classes": one.subset(rest).shuffled(0).subset(range(FEWER)).images}


def row(_: str, name: str, task: tuple[int, ...]) -> dict[str, Any]:
    """One component, asked about its own pictures and about others."""
    torch.set_num_threads(1)
    most = ASKED if name in SMALL else FEWER
    leads = [k if name in SMALL else IMAGENETTE[k] for k in task]
    part = by.disassemble(
        source(name).model,
        relevance(name),
        task=leads,
        images=shown(name, SHOWN),
        budget=by.Budget(flops=HALF),
        select="mda",
    )
    test = images(name, "test")
    test = test.shuffled(0).subset(range(min(4 * ASKED, len(test))))
    own, rest = test.of_classes(list(task)), test.without(list(task))
    at_home = part.judge(own.images)
    labels = [part.classes[task.index(k)] for k in own.labels.tolist()]
    best = [part.classes[k] for k in at_home.probabilities.argmax(1).tolist()]
    strangers = {"same set": part.judge(rest.subset(range(min(most, len(rest)))).images)}
    away = [part.judge(some) for some in others(name).values()]
    strangers["other sets"] = Judgement.of(away, len(part.classes))
    found: dict[str, Any] = {
        "images": len(own),
        "calibration": part.stranger_limits[0].images,
        "right": share(torch.tensor([a == b for a, b in zip(labels, best, strict=True)])),
        "turned away": share(at_home.strangeness > 1),
        "sure": share(at_home.sure),
    }
    for kind in KINDS:
        found[kind] = told(at_home, strangers[kind])
    return found


def told(own: Judgement, others: Judgement) -> dict[str, Any]:
    """What becomes of strangers."""
    values = torch.cat([own.strangeness, others.strangeness])
    foreign = torch.arange(len(values)) >= len(own.strangeness)
    return {
        "images": len(others.strangeness),
        "kept": share(others.strangeness <= 1),
        "sure": share(others.sure),
        "confident": share(others.probabilities.amax(1) >= CERTAIN),
        "auroc": float(roc_auc_score(foreign, values)),
    }


def share(which: torch.Tensor) -> float:
    return 100 * float(which.double().mean())


def write(rows: dict[str, Any]) -> None:
    PAGE.write_text(page(tables.write_rows(PATH, rows, [title for title, _, _ in tasks()])))


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Pictures of something else",
        "",
        "Written by `python benchmarks/strangers.py`. Components with half of the FLOPs, cut and calibrated with at",
        f"most {SHOWN} training images per class; the pictures here are test images. In percent, but for AUROC.",
        "",
        "own: pictures of the component's classes. right: the best class is right. turned away: answered as none of",
        "these. sure: answered, and called sure. kept: strangers that are answered. In brackets: strangers whose best",
        f"class has a probability of {CERTAIN} or more, which is all that could be told before. AUROC: how well",
        "strangeness tells strangers from own pictures. same set: other classes of the source's data set. other sets:",
        "the other two of MNIST, Fashion-MNIST and CIFAR-10; for photographs, COCO and other classes of ImageNet.",
        "",
        f"| component | own: {' | '.join(OWN)} | same set: kept | sure | AUROC | other sets: kept | sure | AUROC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, found in rows.items():
        lines.append(f"| {title} | {cells(found)} |")
    for title, names in (("mean, small pictures", SMALL), ("mean, photographs", PHOTOGRAPHS)):
        some = [found for name, found in rows.items() if name.split()[0] in names]
        if some:
            lines.append(f"| **{title}** | {cells(mean(some))} |")
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def cells(found: dict[str, Any]) -> str:
    shown = [f"{found[key]:.1f}" for key in OWN]
    for kind in KINDS:
        one = found[kind]
        shown += [f"{one['kept']:.1f}", f"{one['sure']:.1f} ({one['confident']:.1f})", f"{one['auroc']:.3f}"]
    return " | ".join(shown)


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The means of figures over rows."""
    return {
        key: mean([one[key] for one in rows]) if isinstance(value, dict) else sum(one[key] for one in rows) / len(rows)
        for key, value in rows[0].items()
    }


def main() -> None:
    tables.run_rows(tables.parser(__doc__.splitlines()[0]).parse_args(), PATH, list(tasks()), row, write)


if __name__ == "__main__":
    main()
