"""Statistics of a component's own training images, kept for scaling later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._history import UsedRecord
from brickyard.base._statistics import DepthRecord, Statistics, StrangersRecord
from brickyard.component._component import Component
from brickyard.component._depths import Depths, Looking, find_layers
from brickyard.component._familiarity import Familiarity
from brickyard.component._features import observe
from brickyard.component._strangers import limits_of, scores
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes
from brickyard.network._identity import weights_like
from brickyard.outputs._kinds import ONE, Outputs

PER_CLASS = 100
FEW = 8  # images, of which a lowest tenth means little


def observed(
    component: Component, images: Images, by_class: Mapping[int, Sequence[int]], batch_size: int = 64
) -> Component:
    """Return the component with statistics of images of its own classes.

    Args:
        component: The component.
        images: Training images.
        by_class: For each class of the task, by its index in the source, the indices of its images; the first
            hundred are used.
        batch_size: Number of images to process at once.

    Raises:
        DataError: The component's outputs are not finite.
    """
    like = weights_like(component)
    features: list[Tensor] = []
    logits: list[Tensor] = []
    size, numbers = 0.0, 0
    counts = [len(by_class[k][:PER_CLASS]) for k in component.manifest.task]
    looking = Looking(component.network, find_layers(component.network, component.input_shape))
    with torch.inference_mode():
        for k in component.manifest.task:
            for x, _ in images.batches(by_class[k][:PER_CLASS], batch_size, like):
                found, entering, outputs = observe(component.network, component.reads_at, x, looking)
                features.append(found.double().cpu())
                logits.append(component.head(outputs)[:, : len(component.classes)].double().cpu())
                size += entering.abs().sum(dtype=torch.float64).item()
                numbers += entering.numel()
    z = torch.cat(logits)
    if not bool(torch.isfinite(z).all()):
        raise DataError(
            "data-overflow",
            f"the component for {', '.join(component.classes[:3])} returns outputs that are not "
            "finite: values overflow at layer "
            f"{_first_overflow(component, images, by_class, like)!r}; check the weights and the "
            "preprocessing, or use a source in float32 or float64",
        )
    members = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = torch.tensor([component.manifest.places[0][k] for k in component.manifest.task])[members]
    entered, seen = torch.cat(features), looking.seen()
    familiarity = Familiarity.fit(entered, members, Depths.fit(looking.layers, seen))
    changes = {
        "familiarity": None if familiarity is None else familiarity.record,
        "strangers": _strangers(z, entered, seen, members, looking.layers) if component.outputs.exclusive else None,
    }
    statistics = statistics_of(z, labels, size / numbers, component.outputs).model_copy(update=changes)
    wanted = [index for k in component.manifest.task for index in by_class[k][:PER_CLASS]]
    used = UsedRecord.of(as_bytes(images.marks(wanted))).joined(*component.manifest.uses)
    manifest = component.manifest.model_copy(update={"statistics": statistics, "used": used})
    known = None if familiarity is None else familiarity.to(like.device)
    return Component(component.network, manifest, component.skeleton, known)


def _strangers(
    logits: Tensor, features: Tensor, seen: Sequence[Tensor], members: Tensor, layers: Sequence[DepthRecord]
) -> StrangersRecord | None:
    """From when on images are strangers, measured on each half of some by statistics of the other."""

    def halves(known: Tensor, held: Tensor) -> Sequence[Tensor | None]:
        depths = Depths.fit(layers, [numbers[known] for numbers in seen])
        familiarity = Familiarity.fit(features[known], members[known], depths)
        kept = [] if depths is None else [numbers[held] for numbers in _of_layers(depths, layers, seen)]
        return scores(_energy(logits[known]), familiarity, logits[held], features[held], kept)

    return limits_of(len(logits), halves)


def _of_layers(depths: Depths, layers: Sequence[DepthRecord], seen: Sequence[Tensor]) -> list[Tensor]:
    """What was put before those layers that are compared: where all distances are alike, one is left out."""
    return [numbers for layer, numbers in zip(layers, seen, strict=True) if layer in depths.layers]


def _first_overflow(component: Component, images: Images, by_class: Mapping[int, Sequence[int]], like: Tensor) -> str:
    """Find the first step whose values are not finite for some image."""
    network = component.network
    wanted = [i for k in component.manifest.task for i in by_class[k][:PER_CLASS]]
    first = len(network.nodes) - 1
    with torch.inference_mode():
        for x, _ in images.batches(wanted, 64, like):
            for index, _, values in network.walk(x):
                value = values.get(network.nodes[index - 1].name) if 0 < index <= first else None
                if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                    first = index - 1
                    break
    return network.nodes[first].target or network.nodes[first].name


def statistics_of(logits: Tensor, labels: Tensor, magnitude: float, outputs: Outputs = ONE) -> Statistics:
    """Compute what scaling may need from a component's logits on its own classes, (examples, classes).

    `labels` hold a class that each example belongs to, (examples,); `magnitude` is the mean magnitude of the
    classifier's input; `outputs` says what the logits mean (default: one of many classes).
    """
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    right = outputs.says(logits).gather(1, labels.unsqueeze(1)).squeeze(1)
    classes = range(logits.shape[1])
    return Statistics(
        images=tuple(int((labels == k).sum()) for k in classes),
        correct=tuple(int(right[labels == k].sum()) for k in classes),
        winning_logit=tuple(_mean(own[right & (labels == k)]) for k in classes),
        mean_logit=tuple(_mean(own[labels == k]) for k in classes),
        magnitude=magnitude,
        margin=_margin(logits),
        energy=_energy(logits),
    )


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None


def _energy(logits: Tensor) -> tuple[float, float] | None:
    """The usual log-sum-exp of an image's logits, and how far below it the lowest tenth begins."""
    if len(logits) < FEW:
        return None
    usual, low = logits.logsumexp(1).quantile(torch.tensor([0.5, 0.1], dtype=logits.dtype)).tolist()
    return (usual, usual - low) if usual > low else None


def _margin(logits: Tensor) -> float:
    """Mean lead of the highest logit over the next; for a single class, how much its logit varies."""
    if logits.shape[1] == 1:
        return logits.std(correction=0).item()
    first, second = logits.topk(2, 1).values.unbind(1)
    return (first - second).mean().item()
