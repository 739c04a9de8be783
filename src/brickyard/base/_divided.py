"""How a budget was divided among the parts of an assembly, as its manifest keeps it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from brickyard.base._frozen import Count, Frozen


class PartShare(Frozen):
    """What a part got of a budget that all parts share.

    `before` is what it cost, `limit` what it may cost, `after` what it costs. `expected` is what the assembly's answers
    were expected to lose by that, `lost` what they lose, on images held back; both in the unit of `BudgetRecord`.
    """

    before: Count
    limit: Count
    after: Count
    expected: float = 0.0
    lost: float = 0.0


class BudgetRecord(Frozen):
    """How a budget was divided among the parts of an assembly.

    `share` is that of `before`, what all parts cost whole; what they had in common, `shared`, counts once in it.
    `price` is what the last hundredth of `before` that was saved loses. Losses are how far the assembly's answers move
    on images held back, as a Kullback-Leibler divergence (a squared distance of logits where classes do not exclude
    each other).
    """

    resource: Literal["flops", "parameters"]
    share: Annotated[float, Field(gt=0, le=1)]
    before: Count
    shared: Count = 0
    price: float = 0.0
    parts: tuple[PartShare, ...]

    @property
    def text(self) -> str:
        """What was asked for and what each part kept, in words."""
        kept = (f"{one.after / max(1, one.before):.1%} of part {index}" for index, one in enumerate(self.parts))
        once = f"; {self.shared:,} that parts had in common counted once" if self.shared else ""
        what = "FLOPs" if self.resource == "flops" else self.resource
        return f"{self.share:.3g} of {self.before:,} {what}: {', '.join(kept)}{once}"
