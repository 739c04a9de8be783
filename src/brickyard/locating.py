"""Component locating: from a source and some images to relevances (the paper's sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.contribution import class_sums
from brickyard.errors import DataError, OptionError, TaskError
from brickyard.graph import Graph, trace
from brickyard.images import Images, class_names
from brickyard.manifest import LocateRecord, Preprocessing
from brickyard.options import Choose, Thresholds, check_choice
from brickyard.progress import bar
from brickyard.relevance import LayerRecord, Relevance, fingerprint, resolve_task, weights_like

__all__ = ["locate"]

KEEP_BYTES = 1 << 30  # sums are kept in memory up to this size unless asked otherwise


def locate(
    model: nn.Module,
    data: Any,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    choose: Choose = "confident",
    per_class: int = 50,
    task: Sequence[int | str] | None = None,
    thresholds: Thresholds | None = None,
    keep_sums: bool | None = None,
    batch_size: int = 64,
    seed: int = 0,
    name: str | None = None,
) -> Relevance:
    """Find out which channels matter for which class.

    Args:
        model: The source: a classifier that takes one image batch and returns (batch, classes).
        data: Training images: `(images, labels)`, a data set, a `DataLoader`, or an iterable of batches.
            Labels are indices into the source's classes.
        classes: Names of the source's classes; default: those that `data` carries, or "0", "1", ...
        preprocessing: What is done to `data` before the model takes it; default: nothing.
        choose: Which images to use: the `per_class` that the source is most "confident" about (the paper's
            choice), as many at "random", or "all".
        per_class: Images a class.
        task: Restrict the work to these classes; default: all.
        thresholds: Thresholds that `Relevance.hard` uses; others may be used later while sums are kept.
        keep_sums: Keep the contribution sums of every class and layer; default: when they take at most 1 GiB.
        batch_size: Images at once.
        seed: Seed of the random choice.
        name: What to call the source; default: the name of its class.

    Returns:
        The relevances, with a memory of the images that they come from.

    Raises:
        TraceError: The model cannot be traced.
        DataError: A class has no image, or images or labels do not fit the model.
        TaskError: `task` names an unknown class.
        OptionError: An option has a value that cannot be used.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> relevance = by.locate(chain(), (images, labels), per_class=2)
        >>> relevance.hard("conv2").shape
        torch.Size([4, 6])
    """
    check_choice("choose", choose, Choose)
    if not isinstance(per_class, int) or per_class < 1 or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"per_class={per_class!r} and batch_size={batch_size!r} must be whole numbers above 0")
    like = weights_like(model)
    images = Images(data, preprocessing, "the images to locate with")
    graph = trace(model, images.example(like))
    names = _names(classes or class_names(data), graph.output_width)
    wanted = resolve_task(task, names) if task is not None else list(range(len(names)))
    chosen = _choose(graph, images, names, wanted, choose, per_class, batch_size, seed, like)
    size = sum(m.reads.size * m.writes.size for m in graph.mixers()) * 4 * len(wanted)
    relevance = Relevance(
        classes=names,
        task=tuple(wanted),
        thresholds=thresholds or Thresholds(),
        layers=_layer_records(graph),
        axes={axis.name: (axis.start, axis.size) for axis in graph.axes},
        record=LocateRecord(
            choose=choose,
            per_class=None if choose == "all" else per_class,
            seed=seed,
            images=tuple(len(chosen.get(k, ())) for k in range(len(names))),
            data=str(getattr(data, "name", type(data).__name__)),
        ),
        preprocessing=images.preprocessing,
        input_shape=graph.input_shape,
        source_sha256=fingerprint(model),
        source_name=name or type(model).__name__,
        sums={} if (size <= KEEP_BYTES if keep_sums is None else keep_sums) else None,
    )
    relevance.attach(images, [index for indices in chosen.values() for index in indices], graph)
    with bar("locating", len(wanted)) as advance:
        for k in wanted:
            batches = (x for x, _ in images.batches(chosen[k], batch_size, like))
            relevance.add_class(k, class_sums(graph, batches), graph)
            advance(text=f"locating {names[k]}")
    return relevance


def _names(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if classes is None:
        return tuple(map(str, range(count)))
    names = tuple(map(str, classes))
    if len(names) != count:
        raise TaskError(f"{len(names)} class names were given and the model has {count} outputs; give one a class")
    if len(set(names)) != count:
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(f"class name {twice!r} occurs twice; names must differ")
    return names


def _layer_records(graph: Graph) -> dict[str, LayerRecord]:
    return {
        mixer.name: LayerRecord(mixer.reads, mixer.writes, isinstance(graph.network.layer(mixer.name), nn.Linear))
        for mixer in sorted(graph.mixers(), key=lambda mixer: mixer.position)
    }


def _choose(
    graph: Graph,
    images: Images,
    names: Sequence[str],
    wanted: Sequence[int],
    choose: Choose,
    per_class: int,
    batch_size: int,
    seed: int,
    like: Tensor,
) -> dict[int, list[int]]:
    """For each wanted class, the indices of the images to use."""
    labels = images.all_labels()
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(names)):
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; the model has classes 0 to {len(names) - 1}"
        )
    pools = {k: torch.nonzero(labels == k).flatten().tolist() for k in wanted}
    for k, pool in pools.items():
        if not pool:
            raise DataError(
                f"class {names[k]!r} has no image among {len(labels)}; give at least one, or leave it out of task="
            )
    if choose == "all":
        return pools
    if choose == "random":
        generator = torch.Generator().manual_seed(seed)
        return {
            k: [pool[i] for i in torch.randperm(len(pool), generator=generator)[:per_class].tolist()]
            for k, pool in pools.items()
        }
    every = [index for pool in pools.values() for index in pool]
    confidence = dict(zip(every, _confidences(graph, images, every, batch_size, like), strict=True))
    return {k: sorted(pool, key=lambda i: (-confidence[i], i))[:per_class] for k, pool in pools.items()}


def _confidences(graph: Graph, images: Images, indices: list[int], batch_size: int, like: Tensor) -> Iterator[float]:
    """The source's log-probability of each image's own class."""
    with bar("choosing images", len(indices)) as advance, torch.inference_mode():
        for x, labels in images.batches(indices, batch_size, like):
            logits = graph.network(x).double()
            log_p = logits.log_softmax(1).gather(1, labels.to(logits.device).unsqueeze(1)).squeeze(1)
            advance(len(x))
            yield from log_p.tolist()
