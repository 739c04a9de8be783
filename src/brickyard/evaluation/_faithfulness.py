"""Faithfulness of decision routes: how a source answers with only a class's route, and without it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.base._boxes import check_no_boxes
from brickyard.base._checks import whole
from brickyard.base._classes import resolve_task
from brickyard.base._errors import DataError
from brickyard.component._predictor import run_images
from brickyard.evaluation._roc import Roc
from brickyard.evaluation._sieve import Sieve
from brickyard.inputs._batches import Images
from brickyard.network._identity import weights_like
from brickyard.network._layer_types import mixing_of
from brickyard.network._network import Network
from brickyard.network._untouched import guarded
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._outputs import find_outputs
from brickyard.relevance._relevance import Relevance
from brickyard.runtime._progress import bar, say


@dataclass(frozen=True)
class Answers:
    """How a network answers images of a class and other images, in percent.

    Attributes:
        hits: Share of the class's images answered as that class, with all classes of the source competing.
        others: Share of other images answered as that class, or None if there are none.
        auroc: Area under the ROC curve of the class's logit, its images against the others; 50 is chance. None
            if there are no other images.
    """

    hits: float
    others: float | None
    auroc: float | None


@dataclass(frozen=True)
class Faithfulness:
    """Faithfulness of one class's route.

    Attributes:
        name: Class name.
        images: Number of images of the class.
        other_images: Number of images of other classes.
        kept: Number of channels of the route, on axes that can be cut.
        channels: Number of channels of these axes.
        whole: Answers of the whole source.
        only: Answers with only the route: all other channels are zero wherever a layer reads them.
        without: Answers with all channels except the route.
        random_only: As `only`, for equally many random channels per axis; mean over the seeds.
        random_without: As `without`, for the same random channels.
        seeds: Number of random routes.
    """

    name: str
    images: int
    other_images: int
    kept: int
    channels: int
    whole: Answers
    only: Answers
    without: Answers
    random_only: Answers
    random_without: Answers
    seeds: int

    def cases(self) -> tuple[tuple[str, Answers], ...]:
        """The five cases with their names, for tables and pictures."""
        return (
            ("whole source", self.whole),
            ("route only", self.only),
            ("random only", self.random_only),
            ("route dropped", self.without),
            ("random dropped", self.random_without),
        )


@guarded
def faithfulness(
    model: nn.Module,
    relevance: Relevance,
    classes: Sequence[int | str],
    images: Any,
    *,
    seeds: int = 5,
    batch_size: int = 128,
    including_calibration: bool = False,
) -> tuple[Faithfulness, ...]:
    """Measure how faithfully the routes of classes explain the source's decisions.

    A network that always answers with one class has 100 % hits for it. Therefore the answers to images of other classes
    are counted too, and the AUROC tells how well the class's logit alone separates its images from others.

    Args:
        model: The source that was located.
        relevance: Its relevances.
        classes: Classes by name or index.
        images: Labelled images, as for `locate`; also of other classes. Those that were used to locate are left out,
            which is said.
        seeds: Number of random routes to compare with, each with equally many channels per axis.
        batch_size: Images per batch.
        including_calibration: Keep images that were used to locate.

    Raises:
        TaskError: A class is unknown.
        DataError: The model is not the located source, or a class has no images.
        OptionError: `seeds` is below 1.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.evaluation._faithfulness import faithfulness
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(80, 3, 8, 8), torch.arange(80) % 4
        >>> relevance = by.locate(chain(), (images[40:], labels[40:]))
        >>> (row,) = faithfulness(chain(), relevance, ["3"], (images, labels))
        >>> row.name, row.images, row.other_images, row.channels
        ('3', 10, 30, 14)
    """
    seeds, batch_size = whole("seeds", seeds), whole("batch_size", batch_size)
    check_no_boxes(relevance, "faithfulness", "score components of the detector with evaluate")
    chosen = resolve_task(classes, relevance.classes)
    graph = relevance.graph(model)
    outputs = find_outputs(relevance.outputs)
    data = Images(images, relevance.preprocessing, "the images to measure routes with", outputs.label_dims)
    sieve, labels = Sieve([relevance.used()], [relevance.preprocessing], including_calibration), data.all_labels()
    places = torch.arange(len(labels))
    places = places[sieve.fresh(data, places, labels)]
    sieve.check(len(places) > 0)
    for line in sieve.notes:
        say(line)
    labels = labels[places]
    inside = {k: outputs.members(labels, k) for k in chosen}
    missing = [relevance.classes[k] for k in chosen if not bool(inside[k].any())]
    if missing:
        why = f"none of the {len(labels)} images{' that are left' if sieve.used else ''} is of class {missing[0]!r}"
        raise DataError("data-class-without-images", f"{why}; give some, or leave the class out")
    keeps: list[dict[str, Tensor]] = [{}]
    for k in chosen:
        route = {axis.name: relevance.relevant(axis.name)[k] for axis in graph.free}
        routes = [route, *(_random(route, seed) for seed in range(seeds))]
        keeps += [*routes, *({name: ~mask for name, mask in one.items()} for one in routes)]
    said, logits = _answers(graph, keeps, chosen, data, places.tolist(), outputs, batch_size)
    rows: list[Faithfulness] = []
    for place, k in enumerate(chosen):
        first = 1 + place * 2 * (1 + seeds)
        rest = first + 1 + seeds
        runs = {"whole": [0], "only": [first], "random_only": range(first + 1, rest)}
        runs |= {"without": [rest], "random_without": range(rest + 1, rest + 1 + seeds)}
        rows.append(
            Faithfulness(
                name=relevance.classes[k],
                images=int(inside[k].sum()),
                other_images=int((~inside[k]).sum()),
                kept=sum(int(mask.sum()) for mask in keeps[first].values()),
                channels=sum(axis.size for axis in graph.free),
                seeds=seeds,
                **{
                    name: _counted(said[[*one], :, place], logits[[*one], :, place], inside[k])
                    for name, one in runs.items()
                },
            )
        )
    return tuple(rows)


def _random(route: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draw, with a seed, as many channels of every axis as the route has."""
    generator = torch.Generator().manual_seed(seed)
    return {name: mask[torch.randperm(len(mask), generator=generator)] for name, mask in route.items()}


def _counted(said: Tensor, logits: Tensor, own: Tensor) -> Answers:
    """Means over the rows: whether the class was answered, and its logits, (runs, images)."""
    said = said.double()
    hits = 100 * float(said[:, own].mean())
    if bool(own.all()):
        return Answers(hits, None, None)
    areas = [Roc.of(row, own).area for row in logits]
    return Answers(hits, 100 * float(said[:, ~own].mean()), sum(areas) / len(areas))


def _answers(
    graph: Graph,
    keeps: Sequence[Mapping[str, Tensor]],
    chosen: Sequence[int],
    data: Images,
    places: Sequence[int],
    outputs: Outputs,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Per set of channels, whether each chosen class is answered, and its logits, for the images at these places.

    (sets, images, chosen)
    """
    said = torch.zeros(len(keeps), len(places), len(chosen), dtype=torch.bool)
    logits = torch.zeros(said.shape)
    like = weights_like(graph.network)
    network = copy.deepcopy(graph.network).eval()
    with torch.inference_mode(), bar("measuring routes", len(keeps) * len(places)) as advance:
        for row, keep in enumerate(keeps):
            run = masked(graph, keep, network)
            place = 0
            for x, _ in data.batches(places, size, like):
                output = run_images(run, x, data.what).float().cpu()
                some = slice(place, place + len(x))
                said[row, some] = outputs.says(output)[:, list(chosen)]
                logits[row, some] = output[:, list(chosen)]
                place += len(x)
                advance(len(x))
    return said, logits


def masked(graph: Graph, keep: Mapping[str, Tensor], network: Network | None = None) -> Any:
    """Return the network with all but some channels set to zero wherever a layer reads them.

    Zeroing an input is the same as zeroing the weights that read it, so only weights change and the network runs at
    its usual speed. `keep` holds a mask per axis, (channels,); axes that are not listed stay whole. `network` is a copy
    of the graph's network to modify, reused over many calls; default: a new copy.
    """
    network = copy.deepcopy(graph.network).eval() if network is None else network
    kept = torch.ones(graph.channels, dtype=torch.bool)
    for name, mask in keep.items():
        kept[graph.axis(name).channels] = mask
    with torch.no_grad():
        for name in network.layer_names:
            reads = graph.at(name, "in")
            if reads is None:
                continue
            rows = mixing_of(graph.network.layer(name)).rows
            mask = kept[torch.from_numpy(reads)].to(rows.device, rows.dtype)
            mixing_of(network.layer(name)).set_rows(rows * mask.reshape(1, -1, *[1] * (rows.ndim - 2)))
    masks = {name: kept[torch.from_numpy(labels)] for name, labels in graph.sums.items()}
    sums = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    return partial(_summed, network, sums) if sums else network


def _summed(network: Network, masks: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run a network in which masked channels become zero where a step sums over channels, and from there on."""
    for _, node, values in network.walk(x):
        if node.name in masks:
            name = node.args[0].node
            values[name] = values[name] * masks[node.name].to(values[name].device, values[name].dtype)
    output: Tensor = values[node.name]
    return output
