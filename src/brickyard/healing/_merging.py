"""One trunk for networks that were trained from one ancestor: leading layers merged in closed form, one by one.

Each network runs on its own images beside its own source. The inputs of a layer already come from the common trunk. The
common layer starts from the mean of theirs, and ridge least squares bring it as close as one layer can come to what
every source has there on its own images (`brickyard.healing._heal`). Least squares over several models at once: Jin et
al., 2023, arXiv 2212.09849, where each layer reads what it read in its own model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.healing._heal import Job, Sample, Side, job_of, refit, repairable
from brickyard.healing._least_squares import HealReport
from brickyard.healing._places import PER_INPUT, Draws, Shown
from brickyard.network._layer_types import describe_layer, find_mixing, find_type
from brickyard.network._network import Network, Node
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import bar


def common_ends(networks: Sequence[Network]) -> list[int]:
    """Positions up to which all networks could run as one, ascending: their steps and the shapes of layers are equal.

    Each lies before a layer that mixes channels or behind the last equal step, and one such layer at least lies before
    it. No layer is used on both sides.
    """
    first = networks[0]
    alike = 0
    for nodes in zip(*(network.nodes for network in networks), strict=False):
        if nodes[0].op == "output" or not all(
            _alike(first, nodes[0], network, node) for network, node in zip(networks, nodes, strict=True)
        ):
            break
        alike += 1
    mixing = [index for index in range(alike) if _mixes(first, first.nodes[index])]
    ends = [*mixing[1:], alike] if mixing else []
    return sorted({end for end in ends if not names_in(first, 0, end) & names_in(first, end, len(first.nodes))})


def names_in(network: Network, start: int, end: int) -> set[str]:
    """The layers and bare tensors that steps use."""
    return {node.target for node in network.nodes[start:end] if node.op in ("layer", "tensor")}


def mixing_in(network: Network, end: int) -> int:
    """How many layers that mix channels leading steps have."""
    return len({node.target for node in network.nodes[:end] if _mixes(network, node)})


def _mixes(network: Network, node: Node) -> bool:
    return node.op == "layer" and find_mixing(network.layer(node.target)) is not None


def _alike(first: Network, node: Node, other: Network, theirs: Node) -> bool:
    """Whether two steps do the same, with numbers of the same shapes."""
    if (node.op, node.target, node.name) != (theirs.op, theirs.target, theirs.name):
        return False
    if node.op != "input" and (node.args, dict(node.kwargs)) != (theirs.args, dict(theirs.kwargs)):
        return False
    if node.op == "layer":
        layer, own = other.layer(node.target), first.layer(node.target)
        if type(layer) is not type(own) or find_type(layer) is None or describe_layer(layer) != describe_layer(own):
            return False
    numbers, their_numbers = _numbers(first, [node.target]), _numbers(other, [node.target])
    return [v.shape for v in numbers] == [v.shape for v in their_numbers]


def _numbers(network: Network, names: Collection[str]) -> list[Tensor]:
    """Parameters and buffers of layers, and bare tensors."""
    found: list[Tensor] = []
    for name in names:
        if name in network.layer_names:
            layer = network.layer(name)
            found += [*layer.parameters(), *layer.buffers()]
        elif name in network.tensor_names:
            found.append(network.tensor(name))
    return [value.detach() for value in found]


@dataclass(frozen=True)
class Sibling:
    """A network to be merged with others.

    Attributes:
        graph: The axes of its source, which is the network as it was.
        shown: Images of its own, preprocessed.
    """

    graph: Graph
    shown: Shown


class Trunk:
    """Leading steps that several networks have in common, merged layer by layer.

    Args:
        siblings: The networks.
        end: Up to which step, of those that `common_ends` gives.

    Attributes:
        networks: The siblings' networks, with common numbers in the steps merged so far.
        report: How the layers were refitted.
    """

    def __init__(self, siblings: Sequence[Sibling], end: int) -> None:
        self.siblings = siblings
        self.report = HealReport()
        sources = [one.graph.network for one in siblings]
        self.networks = [copy.deepcopy(source) for source in sources]
        self._names = sorted(names_in(sources[0], 0, end))
        for name in self._names:
            self._tie(name, mean=True)
        self._merge(end)

    def _tie(self, name: str, mean: bool = False) -> None:
        """Give all networks the numbers of the first in a layer, or the mean of all."""
        every = [_numbers(network, [name]) for network in self.networks]
        for values in zip(*every, strict=True):
            common = values[0]
            if mean and common.is_floating_point():
                common = torch.stack([value.double() for value in values]).mean(0).to(common.dtype)
            for value in values:
                value.copy_(common)

    def _merge(self, end: int) -> None:
        ranks = Ranks.current()
        sides = [
            [Side(one.graph, network, images, ranks) for images in (one.shown.fit, one.shown.held)]
            for one, network in zip(self.siblings, self.networks, strict=True)
        ]
        layers = [runs for runs in repairable(self.networks[0]) if runs[0][0] < end]
        with torch.no_grad(), bar("merging layers", len(layers)) as advance:
            for number, runs in enumerate(layers):
                jobs = [
                    job_of(one.graph, one.graph.everything(), network, runs, ranks)
                    for one, network in zip(self.siblings, self.networks, strict=True)
                ]
                fit, held = (self._samples(jobs, [side[turn] for side in sides], number) for turn in (0, 1))
                assert fit is not None
                refit(jobs[0], fit, held, None, self.report)
                for name in self._names:
                    self._tie(name)
                advance(text=f"merging {jobs[0].name}")

    def _samples(self, jobs: Sequence[Job], sides: Sequence[Side], number: int) -> Sample | None:
        """What all networks' images ask of a layer."""
        found = [
            side.sample(job, Draws(PER_INPUT, one.shown.seed + number))
            for job, side, one in zip(jobs, sides, self.siblings, strict=True)
        ]
        known = [one for one in found if one is not None]
        if not known:
            return None
        added = {name: torch.cat([one.added[name] for one in known], 1) for name in known[0].added}
        return Sample(torch.cat([one.x for one in known], 2), torch.cat([one.goal for one in known], 1), added)

    def until(self, end: int) -> list[Network]:
        """The networks as they were, with the trunk's numbers up to an earlier end."""
        found = [copy.deepcopy(one.graph.network) for one in self.siblings]
        names = sorted(names_in(self.networks[0], 0, end))
        for network in found:
            for value, common in zip(_numbers(network, names), _numbers(self.networks[0], names), strict=True):
                value.copy_(common)
        return found
