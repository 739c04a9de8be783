"""Cutting a finished component further: it stands in the place of its source, which need not be there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from brickyard.axes._graph import analyse
from brickyard.base._declare import checked
from brickyard.base._history import UsedRecord
from brickyard.base._options import Budget, DisassembleOptions
from brickyard.base._records import AxisRecord, ComponentManifest, HealRecord, SelectionRecord
from brickyard.component._calibration import Pool, calibration
from brickyard.component._component import Component
from brickyard.component._disassemble import made_with, narrow, skeleton_of, today
from brickyard.component._statistics import observed
from brickyard.healing._heal import heal_network
from brickyard.network._identity import weights_like
from brickyard.network._network import Network
from brickyard.selection._damage import Descent, Selected
from brickyard.surgery._cost import CostModel, Removable, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._pairs import paired
from brickyard.surgery._verify import check_cut


class Further:
    """A component that is to be cut further, on images of its own classes; it is left unchanged.

    Args:
        component: The component.
        images: Images, labelled by the source's classes, or a tensor without labels.
        budget: Which resource is saved, and how; its share does not matter.
        seed: Seed of all random draws.

    Attributes:
        graph: The axes of its network.
        pool: The images.

    Raises:
        DataError: The images cannot be used.
    """

    def __init__(self, component: Component, images: Any, budget: Budget, seed: int) -> None:
        manifest, like = component.manifest, weights_like(component.network)
        network = component.network
        if like.dtype in (torch.float16, torch.bfloat16):  # sums and repairs need the precision
            network, like = copy.deepcopy(network).float(), like.float()
        example = torch.zeros(2, *manifest.input_shape, device=like.device, dtype=like.dtype)
        boxes = manifest.boxes
        if boxes is not None and manifest.output_axis is not None:
            boxes = boxes.of_task(len(manifest.task))
        self.component, self.budget, self.graph = component, budget, analyse(network, example, boxes=boxes)
        self._options = checked(DisassembleOptions, {"task": component.classes, "seed": seed}, "disassemble")
        given = manifest.preprocessing, manifest.source.classes, manifest.outputs, manifest.task
        self.pool = Pool.given(images, *given, 9)
        strangers = len(component.classes) == 1 or component.reject
        self.images = calibration(self.graph, self.pool, self._options, "budget=", strangers=strangers)
        whole = CostModel(self.graph).whole
        self.cost = int(getattr(whole, budget.resource))
        self.least = round((1 - getattr(Removable.of(self.graph), budget.resource)) * self.cost)

    @property
    def used(self) -> UsedRecord:
        """The images that the component was made with, and those that are at hand to cut it with."""
        return self.images.used.joined(*self.component.manifest.uses)

    @cached_property
    def descent(self) -> Descent:
        """The network on its way down."""
        return Descent(self.graph, self.images.shown, range(self.graph.output_width), self.budget)

    @property
    def held(self) -> list[int]:
        """Which images of the pool nothing is fitted to; all that are used where they are too few to hold some back."""
        count, seed = self._options["heal_images"], self._options["seed"]
        return list(self.images.held_at) or self.pool.draw(count, seed)

    def itself(self) -> Component:
        """The component as it is, told of as a cut of itself."""
        chosen = Selected(self.graph, self.graph.everything())
        manifest = self._manifest(chosen, self.component.network, self.cost, self.component.manifest.heal)
        before, same = self.component.manifest, ("agreement", "statistics", "precisions", "scores")
        kept = {name: getattr(before, name) for name in same}
        return Component(
            self.component.network,
            manifest.model_copy(update=kept),
            skeleton_of(self.graph),
            self.component.familiarity,
        )

    def within(self, limit: float) -> Component:
        """The component, cut down to a cost and repaired.

        Raises:
            OptionError: Even one channel per axis costs more.
        """
        chosen = self.descent.within(limit)
        network = cut(chosen.graph, chosen.keep)
        check_cut(chosen.graph, chosen.keep, network, self.images.shown.fit[0][:2])
        report = heal_network(chosen.graph, chosen.keep, network, self.images.shown, "refit")
        narrow(network, weights_like(self.component.network).dtype)
        healed = HealRecord(
            method="refit",
            images=self.images.fitted,
            copies=self.images.copies,
            layers=report.layers,
            notes=(*chosen.notes, *report.notes),
            held=self.images.held,
            others=self.images.others,
            ridges=report.ridges,
        )
        manifest = self._manifest(chosen, network, limit, healed)
        return self.described(Component(network, manifest, skeleton_of(chosen.graph)))

    def described(self, made: Component) -> Component:
        """What was made of the component, with statistics of the images of its classes."""
        known = self._answered() if self.pool.by_class is None else self.pool.by_class
        return observed(made, self.pool.images, known, self._options["batch_size"])

    def _answered(self) -> dict[int, list[int]]:
        """Images of each class of the task where none is labelled, by the component's own answers."""
        drawn = self.pool.draw(self._options["heal_images"], self._options["seed"])
        with torch.inference_mode():
            found = self.pool.images.raw(drawn, self._options["batch_size"])
            said = torch.cat([self.component.outputs.says(self.component.logits(raw)).cpu() for raw, _ in found])
        by_class: dict[int, list[int]] = {k: [] for k in self.component.manifest.task}
        for column, k in enumerate(self.component.manifest.leads):
            by_class[k] = [drawn[row] for row in said[:, column].nonzero().flatten().tolist()]
        return by_class

    def _manifest(self, chosen: Selected, network: Network, limit: float, healed: HealRecord) -> ComponentManifest:
        """The component's manifest, whose axes are now those of the network that it was cut from."""
        before, graph = self.component.manifest, chosen.graph
        cost = CostModel(graph)(keep_mask(graph, chosen.keep))
        limited = self.budget.limited(limit / self.cost)
        changed = _added(before.selection.budget or {}, chosen.changed) | {"factors": len(paired(network))}
        everything = graph.everything()
        output = before.output_axis if graph.output is None else graph.output.name
        return before.model_copy(
            update={
                "axes": {
                    axis.name: AxisRecord(
                        size=axis.size,
                        kept=tuple(chosen.keep.get(axis.name, everything[axis.name]).tolist()),
                        pinned=bool(axis.pinned),
                    )
                    for axis in graph
                },
                "output_axis": None if before.output_axis is None else output,
                "pinned": graph.pinned(),
                "selection": SelectionRecord(
                    budget=limited.record("damage", changed),
                    parameters=cost.parameters,
                    flops=cost.flops,
                    of="component",
                ),
                "heal": healed,
                "agreement": None,
                "used": self.used,
                "statistics": None,
                "precisions": None,
                "scores": {},
                "versions": made_with(),
                "created": today(),
            }
        )


def _added(before: Mapping[str, Any], changed: Mapping[str, int]) -> dict[str, int]:
    """How often a network was rewritten in all."""
    return {name: count + int(before.get(name) or 0) for name, count in changed.items()}
