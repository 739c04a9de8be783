"""Which leading layers of an assembly's parts were merged, as its manifest keeps it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from brickyard.base._frozen import Count, Frozen


class MergedGroup(Frozen):
    """Parts with a common trunk.

    Attributes:
        parts: Which parts.
        layers: How many leading layers that mix channels they have in common.
        of: How many they could have: with equal steps and shapes.
        agreement: For each part, how many images held back it answers as before, and how many there are.
    """

    parts: Annotated[tuple[Count, ...], Field(min_length=2)]
    layers: Annotated[int, Field(ge=1)]
    of: Count
    agreement: tuple[tuple[Count, Count], ...]


class MergedRecord(Frozen):
    """Which leading layers were merged, and what that cost.

    Attributes:
        wanted: The share of images that each part was to answer as before.
        groups: The parts that were merged; empty where none could be.
    """

    wanted: Annotated[float, Field(gt=0, lt=1)]
    groups: tuple[MergedGroup, ...] = ()

    def check(self, parts: int) -> None:
        """Check that it fits an assembly of so many parts.

        Raises:
            ValueError: It does not.
        """
        found = [part for group in self.groups for part in group.parts]
        if len(set(found)) != len(found) or any(part >= parts for part in found):
            raise ValueError(f"merged parts {found} of {parts} parts")
        for group in self.groups:
            if len(group.agreement) != len(group.parts) or any(same > count for same, count in group.agreement):
                raise ValueError(f"the agreement of merged parts {group.parts} is told for {len(group.agreement)}")

    @property
    def text(self) -> str:
        """What was merged, in words."""
        if not self.groups:
            return f"no layer, as a part would answer less than {self.wanted:.1%} of its images held back as before"
        return "; ".join(_told(group) for group in self.groups)


def _told(group: MergedGroup) -> str:
    named = " and ".join(map(str, group.parts))
    same = ", ".join(f"{same:,} of {count:,}" for same, count in group.agreement)
    return f"{group.layers} of {group.of} layers of parts {named}; images held back answered as before: {same}"
