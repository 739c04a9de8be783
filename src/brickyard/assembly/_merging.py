"""Parts that were trained from one ancestor, merged as far as their answers allow.

The leading layers of such parts are nearly equal. They become one trunk (`brickyard.healing._merging`), and what
follows in each part is refitted to it in closed form. How many layers: the most with which each part answers the wanted
share of its images held back as before, found by halving. Equal layers run once in an assembly, so that is all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brickyard.assembly._budget import listed_images
from brickyard.base._errors import DataError, SurgeryError
from brickyard.base._merged import MergedGroup, MergedRecord
from brickyard.base._options import Budget
from brickyard.base._records import HealRecord
from brickyard.component._component import Component
from brickyard.component._disassemble import narrow
from brickyard.component._further import Further
from brickyard.healing._heal import heal_network
from brickyard.healing._merging import Sibling, Trunk, common_ends, mixing_in, names_in
from brickyard.network._identity import weights_like
from brickyard.network._network import Network
from brickyard.runtime._progress import say

AGREEMENT = 0.99
LEAST = 20  # images held back


@dataclass(frozen=True)
class _Tried:
    """Parts with a common trunk, and how many images held back each answers as before, of how many."""

    end: int
    networks: list[Network]
    agreement: tuple[tuple[int, int], ...]

    def good(self, wanted: float) -> bool:
        """Whether each part agrees with itself often enough."""
        return all(same >= wanted * count for same, count in self.agreement)


def merged(
    parts: Sequence[Component], images: Any, wanted: float | None, seed: int
) -> tuple[list[Component], MergedRecord]:
    """Merge leading layers of components; those given stay unchanged.

    Args:
        parts: The components.
        images: For each part images of its classes, labelled or not, or None for one that stays as it is.
        wanted: The share of images held back that each part is to answer as before; None stands for 0.99.
        seed: Seed of all random draws.

    Returns:
        The components, and what was merged.

    Raises:
        OptionError: Images are missing.
        DataError: The images cannot be used, or are too few to hold some back.
        SurgeryError: No two parts have equal leading steps.
    """
    wanted = AGREEMENT if wanted is None else wanted
    given = listed_images(images, len(parts), "form='merged' brings parts together on images of each")
    cuts = {
        at: Further(part, data, Budget(flops=1.0), seed)
        for at, (part, data) in enumerate(zip(parts, given, strict=True))
        if data is not None
    }
    groups = _groups(cuts)
    if not groups:
        raise SurgeryError(
            "surgery-structure-mismatch",
            "form='merged' merges leading layers of the same kind and shape, and no two of the parts with images begin "
            "with such; use form='parallel'",
        )
    for at in sorted({at for group in groups for at in group}):
        if cuts[at].images.held < LEAST:
            raise DataError(
                "data-too-few",
                f"of the images of part {at}, {cuts[at].images.held} can be held back, too few to see what merging "
                f"costs: give {3 * LEAST} or more",
            )
    made, records = list(parts), []
    for group in groups:
        own = [cuts[at] for at in group]
        ends = common_ends([one.graph.network for one in own])
        best = _deepest(own, ends, wanted)
        if best is None:
            continue
        for at, one, network in zip(group, own, best.networks, strict=True):
            made[at] = _component(one, network)
        first = own[0].graph.network
        counts = [mixing_in(first, end) for end in (best.end, ends[-1])]
        records.append(MergedGroup(parts=tuple(group), layers=counts[0], of=counts[1], agreement=best.agreement))
    record = MergedRecord(wanted=wanted, groups=tuple(records))
    say(f"merged: {record.text}")
    return made, record


def _groups(cuts: dict[int, Further]) -> list[list[int]]:
    """Parts that could have a trunk in common, at least two each."""
    groups: list[list[int]] = []
    for at, one in cuts.items():
        for group in groups:
            first = cuts[group[0]].component
            same = one.component.preprocessings == first.preprocessings
            alike = same and one.component.input_shape == first.input_shape
            networks = [cuts[other].graph.network for other in (*group, at)]
            if alike and weights_like(networks[0]).dtype == weights_like(networks[-1]).dtype and common_ends(networks):
                group.append(at)
                break
        else:
            groups.append([at])
    return [group for group in groups if len(group) > 1]


def _deepest(parts: Sequence[Further], ends: Sequence[int], wanted: float) -> _Tried | None:
    """The longest trunk with which all parts agree with themselves often enough; None if the shortest is too long."""
    trunk = Trunk([Sibling(one.graph, one.images.shown) for one in parts], ends[-1])
    best = None
    low, high = 0, len(ends)  # the first `low` ends are good, those from `high` on are not
    turn = high - 1  # all of them, which is often right
    while low < high:
        tried = _tried(parts, trunk, ends[turn], wanted)
        if tried.good(wanted):
            best, low = tried, turn + 1
        else:
            high = turn
        turn = (low + high) // 2
    return best


def _tried(parts: Sequence[Further], trunk: Trunk, end: int, wanted: float) -> _Tried:
    """The parts with a common trunk, each refitted behind it unless it answers well enough as it is, or better."""
    networks, found = trunk.until(end), []
    for at, one in enumerate(parts):
        agreement = _agreement(one, networks[at])
        if agreement[0] < wanted * agreement[1]:
            network = copy.deepcopy(networks[at])
            own = names_in(network, 0, end)
            heal_network(one.graph, one.graph.everything(), network, one.images.shown, "refit", leave=own)
            refitted = _agreement(one, network)
            if refitted > agreement:
                networks[at], agreement = network, refitted
        found.append(agreement)
    return _Tried(end, networks, tuple(found))


def _agreement(one: Further, network: Network) -> tuple[int, int]:
    """How many images held back are answered as by the part as it was."""
    part, same = one.component, 0
    with torch.inference_mode():
        for batch in one.images.shown.held:
            before, after = (part.outputs.says(part.head(net(batch))) for net in (one.graph.network, network))
            same += int((before == after).flatten(1).all(1).sum())
    return same, one.images.held


def _component(one: Further, network: Network) -> Component:
    """A part with other numbers, and what is usual of these."""
    before, network = one.component, copy.deepcopy(network)
    narrow(network, weights_like(before.network).dtype)
    healed = HealRecord(
        method="refit",
        images=one.images.fitted,
        copies=one.images.copies,
        layers=0,
        notes=("leading layers were merged with other parts; what follows was refitted where that helped",),
        held=one.images.held,
        others=one.images.others,
    )
    fresh: dict[str, Any] = {"heal": healed, "agreement": None, "statistics": None, "used": one.used, "scores": {}}
    manifest = before.manifest.model_copy(update=fresh)
    return one.described(Component(network, manifest, before.skeleton))
