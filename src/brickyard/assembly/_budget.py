"""One budget that the parts of an assembly share: each is cut until the next operation saved would lose as much.

Every part is cut stage by stage, and after each stage the assembly's answers are compared with those of the whole one,
on images that nothing was fitted to. These losses divide the budget (`brickyard.selection._split`), and tell which part
has to be cut further to know where its share ends. Then each part is cut to its share and repaired, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.assembly._forms import formed
from brickyard.base._divided import BudgetRecord, PartShare
from brickyard.base._errors import DataError, OptionError
from brickyard.base._history import UsedRecord
from brickyard.base._options import Budget
from brickyard.base._records import AssemblyManifest
from brickyard.base._sides import BATCHED
from brickyard.component._component import Component
from brickyard.component._further import Further
from brickyard.component._predictor import run_images
from brickyard.inputs._preprocessing import preprocess
from brickyard.network._network import Network, kind
from brickyard.runtime._progress import say
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import scale
from brickyard.selection._split import Point, Split, slope, split_budget

WHAT = "the images to cut with"
BATCH = 64


def check_budget(budget: Budget, images: Any, form: str, count: int) -> list[Any]:
    """The images of each part, or None for one that stays whole.

    Raises:
        OptionError: Images are missing, or the budget or the form is none that parts can share.
    """
    if budget.agreement is not None:
        raise OptionError(
            "option-conflict",
            f"agreement={budget.agreement:g} is that of one component with its source, and here all parts share a "
            "budget; give Budget(flops=...) or Budget(parameters=...)",
        )
    if form == "union":
        raise OptionError(
            "option-conflict",
            "form='union' lays channels of one source over each other, and a budget cuts every part by itself; give "
            "the budget to disassemble, or use form='parallel'",
        )
    asked = f"a budget of {budget.share:g} of the {budget.resource} was asked for"
    return listed_images(images, count, f"{asked}, and what it costs to cut a part is measured on images")


def listed_images(images: Any, count: int, why: str) -> list[Any]:
    """The images of each part, or None for one that stays whole.

    Raises:
        OptionError: There are none, or not as many as parts; `why` says what they are for.
    """
    if images is None:
        raise OptionError(
            "option-needs-data", f"{why}: give calibration=, a list with one entry for each of the {count} parts"
        )
    listed = isinstance(images, list | tuple) and not any(
        isinstance(data, Tensor) and data.ndim not in BATCHED for data in images
    )
    if not listed or len(images) != count:
        found = f"{len(images)} entries" if isinstance(images, list | tuple) else type(images).__name__
        raise OptionError(
            "option-count",
            f"calibration= must be a list with one entry for each of the {count} parts (None for one that stays "
            f"whole), got {found}; give one for each",
        )
    if all(data is None for data in images):
        raise OptionError(
            "option-needs-data", "calibration= has no images for any part; give some for each that may be cut"
        )
    return list(images)


def within_budget(
    parts: Sequence[Component], manifest: AssemblyManifest, options: Mapping[str, Any]
) -> tuple[list[Component], AssemblyManifest]:
    """Cut components so that together they fit a budget, each by what the assembly loses.

    Args:
        parts: The components; they are left unchanged.
        manifest: That of their assembly.
        options: Those of `assemble`.

    Returns:
        The components, and the manifest of their assembly, which says how the budget was divided.

    Raises:
        OptionError: The budget cannot be met, or images are missing.
        DataError: The images cannot be used.
    """
    budget: Budget = options["budget"]
    images = options["images"] if options["calibration"] is None else options["calibration"]
    given = check_budget(budget, images, manifest.form, len(parts))
    if budget.share == 1:
        return list(parts), manifest
    cuts = [
        None if data is None else Further(part, data, budget, options["seed"])
        for part, data in zip(parts, given, strict=True)
    ]
    costs = [_cost(part, one, budget.resource) for part, one in zip(parts, cuts, strict=True)]
    _check_form(parts, cuts, manifest)
    whole = _plain(parts, manifest)
    shared = min(int(getattr(whole.manifest, f"shared_{budget.resource}")), sum(costs))
    before = sum(costs) - shared
    limit = int(budget.share * before)
    _check_least(cuts, costs, limit, before, budget)
    meter = Meter(whole, cuts)
    paths = [_Path(one, cost, partial(meter.loss, at)) for at, (one, cost) in enumerate(zip(cuts, costs, strict=True))]
    found = divide(paths, limit)
    if sum(found.costs) > limit + 1:
        raise _too_small(sum(found.costs), before, budget)
    joined = manifest.form in ("padded", "grouped")
    made = [
        (one.itself() if joined and one else part) if one is None or cost >= own else one.within(cost)
        for part, one, own, cost in zip(parts, cuts, costs, found.costs, strict=True)
    ]
    shares = tuple(
        PartShare(
            before=own,
            limit=int(cost),
            after=own if cost >= own else int(getattr(new.manifest.selection, budget.resource)),
            expected=loss,
            lost=0.0 if cost >= own else meter.loss(at, new.network),
        )
        for at, (new, own, cost, loss) in enumerate(zip(made, costs, found.costs, found.losses, strict=True))
    )
    record = BudgetRecord(
        resource=budget.resource,
        share=budget.share,
        before=before,
        shared=shared,
        price=found.price * before / 100,
        parts=shares,
    )
    say(f"a budget for all parts: {record.text}")
    used = reduce(UsedRecord.joined, [one.used for one in cuts if one is not None], UsedRecord())
    update = {"parts": tuple(part.manifest for part in made), "budget": record, "used": used}
    return made, manifest.model_copy(update=update)


# -- what is lost ------------------------------------------------------------------------------------------


class Meter:
    """Measures what an assembly loses by another network in the place of a part's, on images held back.

    Every class counts alike, and so does every image of the part that it belongs to.

    Args:
        whole: The assembly in parallel form, with the scaling that needs no images.
        cuts: The parts with their images, None for one without.
    """

    def __init__(self, whole: Assembly, cuts: Sequence[Further | None]) -> None:
        self.whole = whole
        self._seen: list[tuple[float, Tensor, list[Tensor], Tensor]] = []
        tasks = whole.manifest.tasks
        total = sum(len(task) for task, one in zip(tasks, cuts, strict=True) if one is not None)
        with torch.inference_mode():
            for task, one in zip(tasks, cuts, strict=True):
                if one is None:
                    continue
                held = one.held
                for raw, _ in one.pool.images.raw(held, BATCH):
                    outputs = run_images(self._outputs, raw, WHAT)
                    weight = len(task) / total * len(raw) / len(held)
                    self._seen.append((weight, raw, outputs, self._answers(outputs)))

    def _outputs(self, raw: Tensor) -> list[Tensor]:
        """What each part's network returns."""
        return [self._output(index, part.network, raw) for index, part in enumerate(self.whole.components())]

    def _output(self, index: int, network: Network, raw: Tensor) -> Tensor:
        like = kind(network)
        x = preprocess(raw, self.whole.preprocessings[index]).to(like.device, like.dtype)
        found: Tensor = network(x).double()
        return found

    def _answers(self, outputs: Sequence[Tensor]) -> Tensor:
        """The assembly's logits."""
        return self.whole.scaled(self.whole.laid(outputs), energies=self.whole.energies(outputs))

    def loss(self, index: int, network: Network) -> float:
        """How far the assembly's answers move with another network in the place of a part's."""
        total = 0.0
        with torch.inference_mode():
            for weight, raw, outputs, wanted in self._seen:
                mine = self._output(index, network, raw)
                moved = self._answers([*outputs[:index], mine, *outputs[index + 1 :]])
                total += weight * float(self.whole.outputs.taught(moved, wanted, 1.0))
        if total != total:
            raise DataError(
                "data-overflow",
                f"the assembly's answers are not finite once part {index} is cut; check the preprocessing, or leave "
                "the part whole: give None in its place in calibration=",
            )
        return max(0.0, total)


# -- how it is divided -------------------------------------------------------------------------------------


@dataclass
class _Path:
    """A part on its way down, and what was measured of it so far.

    Attributes:
        cut: The part, or None for one that stays whole.
        cost: What it costs whole.
        loss: What a network in its place loses.
        points: What it costs and loses after each stage.
        ended: Whether nothing more can be cut.
    """

    cut: Further | None
    cost: int
    loss: Callable[[Network], float]
    points: list[Point] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self.points = [(self.cost, 0.0)]
        self.ended = self.cut is None

    @property
    def price(self) -> float:
        """What an operation saved has lost in the last stage."""
        return slope(*self.points[-2:]) if len(self.points) > 1 else 0.0

    def further(self) -> None:
        """Cut and measure another stage."""
        found = None if self.cut is None else self.cut.descent.further()
        if found is None:
            self.ended = True
            return
        cost, network = found
        if cost < self.points[-1][0]:
            self.points.append((cost, self.loss(network)))


def divide(paths: Sequence[_Path], limit: float) -> Split:
    """Divide a budget; cut each part only as far as it takes to know where its share ends."""
    while True:
        found = split_budget([path.points for path in paths], limit)
        at_end = [
            path for path, cost in zip(paths, found.costs, strict=True) if not path.ended and cost <= path.points[-1][0]
        ]
        if not at_end:
            return found
        min(at_end, key=lambda path: path.price).further()


# -- costs and records -------------------------------------------------------------------------------------


def _plain(parts: Sequence[Component], manifest: AssemblyManifest) -> Assembly:
    """The assembly as it is without a budget, in parallel form and with the scaling that needs no images."""
    whole = formed(parts, manifest.model_copy(update={"form": "parallel"}))
    return whole.with_scaling(*scale("auto", Evidence(whole.manifest), {}))


def _check_form(parts: Sequence[Component], cuts: Sequence[Further | None], manifest: AssemblyManifest) -> None:
    """Refuse before any work parts that cannot be laid side by side once they are cut.

    Raises:
        SurgeryError: They cannot.
    """
    if manifest.form in ("padded", "grouped"):
        alike = [part if one is None else one.itself() for part, one in zip(parts, cuts, strict=True)]
        formed(alike, manifest.model_copy(update={"parts": tuple(part.manifest for part in alike)}))


def _cost(part: Component, cut: Further | None, resource: str) -> int:
    return int(getattr(part.manifest.selection, resource)) if cut is None else cut.cost


def _check_least(cuts: Sequence[Further | None], costs: Sequence[int], limit: int, before: int, budget: Budget) -> None:
    """Refuse before any work what even one channel per axis exceeds.

    Raises:
        OptionError: It does.
    """
    least = sum(cost if one is None else one.least for one, cost in zip(cuts, costs, strict=True))
    if least > limit:
        raise _too_small(least, before, budget)


def _too_small(least: float, before: int, budget: Budget) -> OptionError:
    return OptionError(
        "option-budget-too-small",
        f"a budget of {budget.share:.3g} of the parts' {budget.resource} was asked for; the least that can be left of "
        f"them is {least / max(1, before):.3g}: raise the budget",
    )
