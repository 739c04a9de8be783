"""What the page asks for: a yard's bricks, plans, classifiers that are kept for a while, and their answers."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._assemble import assemble, assembly_manifest
from brickyard.assembly._assembly import Assembly
from brickyard.assembly._labelled import shared_signals
from brickyard.base._boxes import check_no_boxes
from brickyard.base._declare import Opt, declared, flat
from brickyard.base._errors import DataError, FileError, OptionError
from brickyard.base._messages import told
from brickyard.base._options import SCALINGS as SCALING_HELP
from brickyard.base._options import AssembleOptions
from brickyard.base._records import AssemblyManifest, AxisRecord, ComponentManifest
from brickyard.component._component import Component
from brickyard.component._describe import kept_text, selection_text
from brickyard.component._predictor import REJECT
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import SCALINGS, scale
from brickyard.workbench import _pictures as pictures
from brickyard.workbench._limits import BusyError, GoneError, Limits
from brickyard.workbench._overlap import level, measured, predicted
from brickyard.yard._index import Entry
from brickyard.yard._yard import SAMPLES, Yard

FORMS = {
    "parallel": "Runs the bricks one after the other. Works for any mix, with no multiplications by zero.",
    "padded": "Merges the bricks into one plain network, side by side in every layer. Needs one architecture.",
    "grouped": "Like padded, with groups in place of zeros. Needs one architecture.",
    "union": "Merges the channels of all bricks into one. Needs bricks of the same source.",
    "cascade": "Runs the bricks in turn, until the answer is sure. Needs calibration images: brickyard assemble.",
    "merged": "Makes the first layers of bricks of one ancestor one. Needs calibration images: brickyard assemble.",
    "auto": "Picks the fastest of parallel, padded and grouped, measured when you assemble.",
}
DUPLICATES = {
    "error": "do not allow duplicates",
    "average": "average the scores",
    "max": "use the higher score",
    "rename": "keep both, rename one",
}
WORDS = {"form": FORMS, "scaling": SCALING_HELP, "on_duplicate": DUPLICATES}
CELLS = 48  # in the picture of one axis
MANIFESTS = 512  # manifests that are kept
SOURCES = "sources"  # a folder in a yard for models and pictures to make bricks from
LEFT_OUT = 20  # files without a brick of which the page says why, at most


def form_options() -> dict[str, Opt]:
    """The options of `brickyard.assemble` that the page asks for."""
    own = declared(AssembleOptions)
    return {name: option for name, option in flat(AssembleOptions).items() if name in own and option.only != "shell"}


def _control(option: Opt) -> dict[str, Any]:
    """An option as the page draws it."""
    words = WORDS.get(option.name, {})
    return {
        "name": option.name,
        "kind": "choice" if option.names else option.plain.__name__,
        "default": option.default,
        "text": option.help,
        "choices": [{"name": name, "text": words.get(name, "")} for name in option.names],
    }


@dataclass(frozen=True)
class Plan:
    """What is to be built: names of components in the yard, and options of `brickyard.assemble`."""

    bricks: tuple[str, ...]
    options: dict[str, Any]

    @classmethod
    def of(cls, value: Any, limits: Limits) -> Plan:
        """Read what a page sends."""
        known = form_options()
        if not isinstance(value, dict) or not set(value) <= {"bricks", *known}:
            raise OptionError("option-plan-invalid", f"a plan is an object with bricks, {', '.join(known)}")
        bricks = value.get("bricks")
        if not isinstance(bricks, list) or not all(isinstance(name, str) for name in bricks):
            raise OptionError("option-plan-invalid", "the bricks of a plan must be a list of names")
        if len(bricks) > limits.bricks:
            raise OptionError("option-range", f"a classifier has at most {limits.bricks} bricks, got {len(bricks)}")
        if len(set(bricks)) != len(bricks):
            raise OptionError("option-plan-invalid", "a brick is in the plan twice; remove one of them")
        options = {name: one.check(value.get(name, one.default)) for name, one in known.items()}
        return cls(tuple(bricks), options)


@dataclass(frozen=True)
class Kept:
    """A classifier, its parts, the plan that it was built by, and what is held while it runs.

    `measured` counts how often parts won pictures of each other, where labelled ones were given.
    """

    assembly: Assembly
    parts: tuple[Component, ...]
    plan: Plan
    measured: tuple[dict[str, int], ...]
    lock: threading.Lock

    @property
    def bricks(self) -> tuple[str, ...]:
        """What the parts are called in the yard."""
        return self.plan.bricks


class Bench:
    """All that the page's requests do; what cannot be done is a BrickyardError that says why.

    What takes long goes a few at a time, so that memory is bounded. Looking at the yard does not wait for it.
    """

    def __init__(self, yard: Yard | Path | str, limits: Limits) -> None:
        self.yard = Yard(yard) if isinstance(yard, str | Path) else yard
        self.limits = limits
        self._samples = self.yard.path / SAMPLES
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._manifests: OrderedDict[tuple[str, str], ComponentManifest] = OrderedDict()
        self._yard_lock, self._kept_lock = threading.Lock(), threading.Lock()
        self._computing = threading.BoundedSemaphore(limits.computing)

    @contextmanager
    def _turn(self, held: threading.Lock | threading.BoundedSemaphore | None = None) -> Iterator[None]:
        """A turn of computing, or with something that is held by one request at a time."""
        held = held or self._computing
        if not held.acquire(timeout=self.limits.wait):
            raise BusyError("workbench-busy", "the workbench is busy with another request; try again in a moment")
        try:
            yield
        finally:
            held.release()

    # -- the yard ------------------------------------------------------------------------------------------

    def overview(self) -> dict[str, Any]:
        """The bricks, the samples, and what may be chosen."""
        with self._turn(self._yard_lock):
            entries = self.yard.entries()
            out = self.yard.left_out()
        return {
            "yard": self.yard.path.resolve().name,
            "bricks": [entry.as_dict() for entry in entries],
            "left_out": {
                "count": len(out),
                "files": [{"name": item.name, "what": told(self.named(item.what), 200)} for item in out[:LEFT_OUT]],
            },
            "samples": list(pictures.sample_paths(self._samples)),
            "forms": [{"name": name, "text": text} for name, text in FORMS.items()],
            "scalings": [
                {"name": name, "text": s.help, "few_shot": s.few_shot, "gated": s.gated} for name, s in SCALINGS.items()
            ],
            "options": [_control(option) for option in form_options().values()],
            "limits": {
                name: getattr(self.limits, name)
                for name in ("file_bytes", "files", "body_bytes", "bricks", "assemblies")
            },
        }

    def named(self, text: str) -> str:
        """A text with the yard's name where it has its path, which a page need not know."""
        path = self.yard.path
        for place in sorted({str(path.absolute()), str(path.resolve()), str(path)} - {"."}, key=len, reverse=True):
            text = text.replace(place, path.resolve().name)
        return text

    def manifest(self, name: str) -> ComponentManifest:
        """The manifest of a brick."""
        key = name, self.yard.entry(name).sha256
        if key not in self._manifests:
            self._manifests[key] = self._component(name).manifest
            while len(self._manifests) > MANIFESTS:
                self._manifests.popitem(last=False)
        return self._manifests[key]

    def _component(self, name: str) -> Component:
        """A brick; names go through the index, where a path is an unknown name."""
        return self.yard.load(self.yard.entry(name).name)

    def keep(self, path: Path, name: str | None = None) -> dict[str, Any]:
        """Put a brick that was made into the yard; its entry."""
        with self._turn(self._yard_lock):
            return self.yard.add(path, name).as_dict()

    def empty(self) -> bool:
        """Whether the yard has no brick."""
        with self._turn(self._yard_lock):
            return not self.yard.entries()

    def take_demo(self, folder: Path) -> None:
        """Put a demo that was made into the yard: its bricks, and folders that the yard has not."""
        with self._turn(self._yard_lock):
            for name in (SAMPLES, SOURCES):
                if not os.path.lexists(self.yard.path / name):
                    shutil.copytree(folder / name, self.yard.path / name)
            for path in sorted(folder.glob("*.safetensors")):
                self.yard.add(path, path.stem)

    def inside(self, name: str) -> dict[str, Any]:
        """Which channels of its source a brick keeps: for each axis, shares of runs of channels."""
        with self._turn(self._yard_lock):
            manifest = self.manifest(name)
        axes = [
            {"name": axis, "size": record.size, "kept": len(record.kept), "cells": cells(record)}
            for axis, record in manifest.axes.items()
        ]
        return {
            "name": name,
            "classes": manifest.classes,
            "source": manifest.source.name,
            "source_classes": len(manifest.source.classes),
            "parameters": [manifest.selection.parameters, manifest.source.parameters],
            "flops": [manifest.selection.flops, manifest.source.flops],
            "chosen": selection_text(manifest),
            "kept": kept_text(manifest),
            "heal": manifest.heal.method,
            "notes": [*manifest.heal.notes, *(f"{p.axis} is kept whole: {p.reason}" for p in manifest.pinned)],
            "axes": axes,
        }

    def sample(self, name: str) -> bytes:
        """The bytes of a sample picture."""
        found = pictures.sample_paths(self._samples).get(name)
        content = b""
        if found is not None:
            with suppress(OSError):  # it may have gone, or become a link, in this moment
                place = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                with open(place, "rb") as file:
                    content = file.read(self.limits.file_bytes + 1)
        if not 0 < len(content) <= self.limits.file_bytes:
            raise FileError("file-missing", "the yard has no such sample, or it is too large; reload the page")
        return content

    def sample_thumbnail(self, name: str) -> bytes:
        """A sample picture as a small PNG."""
        content = self.sample(name)
        with self._turn():
            return pictures.thumbnail(pictures.decode(content, name, self.limits))

    # -- plans ---------------------------------------------------------------------------------------------

    def plan(self, plan: Plan) -> dict[str, Any]:
        """What a plan would give: classes, costs, what its bricks share, and which forms are possible."""
        with self._turn(self._yard_lock):
            entries = [self.yard.entry(name) for name in plan.bricks]
            parts = [self.manifest(name) for name in plan.bricks]
        if not parts:
            return {"classes": [], "duplicates": [], "parameters": 0, "flops": 0, "forms": {}, "overlap": []}
        owners: dict[str, list[int]] = {}
        for index, part in enumerate(parts):
            for name in part.classes:
                owners.setdefault(name, []).append(index)
        duplicates = [{"name": name, "bricks": found} for name, found in owners.items() if len(found) > 1]
        how = "rename" if duplicates and plan.options["on_duplicate"] == "error" else plan.options["on_duplicate"]
        for part in parts:
            check_no_boxes(part, "the workbench", "use the commands assemble and predict")
        manifest = assembly_manifest(parts, on_duplicate=how)  # type: ignore[arg-type]
        return {
            "classes": manifest.classes,
            "duplicates": duplicates,
            "parameters": sum(part.selection.parameters for part in parts),
            "flops": sum(part.selection.flops for part in parts),
            "forms": {name: why for name in FORMS if (why := _unfit(name, entries))},
            "overlap": _overlap(manifest, plan.options["scaling"]),
        }

    # -- classifiers ---------------------------------------------------------------------------------------

    def build(self, plan: Plan, labelled: dict[tuple[int, int], list[tuple[str, bytes]]]) -> dict[str, Any]:
        """Assemble, and keep what was made.

        Args:
            plan: What to build.
            labelled: Names and bytes of labelled pictures, by part and by class of the part.
        """
        if not plan.bricks:
            raise OptionError("option-empty", "the tray is empty; add one or more bricks first")
        with self._turn():
            parts = [self._component(name) for name in plan.bricks]
            for part in parts:
                check_no_boxes(part, "the workbench", "use the commands assemble and predict")
            images = self._labelled([part.manifest for part in parts], labelled)
            few = plan.options["scaling"] == "auto" or SCALINGS[plan.options["scaling"]].few_shot
            whole = assemble(parts, images=images if few else None, **plan.options)
            counts: list[dict[str, int]] = []
            if images is not None:
                plain = assemble(parts, on_duplicate=whole.manifest.on_duplicate, scaling="none")
                seen = shared_signals(plain, images, features=False)
                counts = measured(plain.manifest, seen.signals[0], seen.owners)
            name = secrets.token_urlsafe(12)
            with self._kept_lock:
                self._kept[name] = Kept(whole, tuple(parts), plan, tuple(counts), threading.Lock())
                while len(self._kept) > self.limits.assemblies:
                    self._kept.popitem(last=False)
        return self.described(name)

    def described(self, name: str) -> dict[str, Any]:
        """What a classifier is, for the page."""
        kept = self.kept(name)
        manifest = kept.assembly.manifest
        return {
            "id": name,
            "bricks": kept.bricks,
            "options": kept.plan.options,
            "classes": manifest.classes,
            "form": manifest.form,
            "scaling": manifest.scaling.name,
            "images": manifest.scaling.images,
            "notes": [*manifest.notes, *manifest.scaling.notes],
            "measured": kept.measured,
        }

    def kept(self, name: str) -> Kept:
        """A classifier that was built before."""
        with self._kept_lock:
            if name not in self._kept:
                raise GoneError("workbench-gone", "this classifier is no longer stored; assemble it again")
            self._kept.move_to_end(name)
            return self._kept[name]

    def _labelled(
        self, parts: Sequence[ComponentManifest], labelled: dict[tuple[int, int], list[tuple[str, bytes]]]
    ) -> list[tuple[Tensor, Tensor] | None] | None:
        if not labelled:
            return None
        end = time.monotonic() + self.limits.work_seconds
        pictures.check_all((item for items in labelled.values() for item in items), self.limits)
        found: list[tuple[Tensor, Tensor] | None] = []
        for index, part in enumerate(parts):
            shown: list[Tensor] = []
            labels: list[int] = []
            for place, name in enumerate(part.classes):
                own = labelled.pop((index, place), [])
                if not own:
                    raise DataError(
                        "data-class-without-images",
                        f"class {name!r} has no picture; give at least one, preferably five",
                    )
                shown += [self.picture(title, content, parts, end) for title, content in own]
                labels += [part.leads[place]] * len(own)
            found.append((pictures.stacked(shown, parts), torch.tensor(labels)))
        if labelled:
            raise DataError(
                "data-unknown-class", f"pictures were given for a class that brick {min(labelled)[0]} does not have"
            )
        return found

    def classify(self, name: str, shown: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
        """What a classifier says to pictures, and what each of its bricks says by itself."""
        with self.at_work(name) as kept:
            pictures.check_all(shown, self.limits)
            end = time.monotonic() + self.limits.work_seconds
            return [self._answer(kept, title, content, end) for title, content in shown]

    @contextmanager
    def at_work(self, name: str) -> Iterator[Kept]:
        """A classifier, for as long as it is this request's turn to compute with it."""
        kept = self.kept(name)
        with self._turn(kept.lock), self._turn():
            yield kept

    def picture(self, title: str, content: bytes, parts: Sequence[ComponentManifest], end: float) -> Tensor:
        """A picture as the parts can take it; none is begun after the end of a request's time."""
        if time.monotonic() > end:
            raise BusyError(
                "workbench-too-slow", "the pictures take too long to process; send fewer at once, or shrink them first"
            )
        pictures.check_wanted(parts)
        picture = pictures.decode(content, title, self.limits)
        return pictures.fitted(pictures.shrunk(picture, parts), parts)

    def _answer(self, kept: Kept, title: str, content: bytes, end: float) -> dict[str, Any]:
        image = self.picture(title, content, kept.assembly.manifest.parts, end)
        judged = kept.assembly.judge([image])
        chances, verdict = judged.probabilities[0], judged.verdicts()[0]
        owners = dict(zip(kept.assembly.classes, kept.assembly.manifest.owners, strict=True))
        best = _top(chances[: len(kept.assembly.classes)], kept.assembly.classes, 5)
        classes = [{**item, "bricks": sorted(set(owners[item["name"]]))} for item in best]
        several = not kept.assembly.outputs.exclusive
        answer = list(verdict.answer) if several else [classes[0]["name"]]
        return {
            "picture": title[:80],
            "classes": classes,
            "answer": answer,
            "several": several,
            "none": verdict.none,
            "strangeness": verdict.strangeness,
            "words": verdict.words,
            "answered": sorted({owner for name in answer for owner in owners[name]}) or classes[0]["bricks"],
            "views": [_view(brick, part, image) for brick, part in zip(kept.bricks, kept.parts, strict=True)],
        }


def cells(record: AxisRecord) -> list[float]:
    """For each of a few runs of channels, the share that is kept."""
    count = min(record.size, CELLS)
    kept = Counter(channel * count // record.size for channel in record.kept)
    starts = [-(-cell * record.size // count) for cell in range(count + 1)]
    return [round(kept[cell] / (starts[cell + 1] - starts[cell]), 3) for cell in range(count)]


def _top(chances: Tensor, names: Sequence[str], most: int) -> list[dict[str, Any]]:
    best = chances.topk(min(most, len(chances)))
    return [
        {"name": names[k], "probability": p} for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _view(brick: str, part: Component, image: Tensor) -> dict[str, Any]:
    """What a brick says to a picture by itself."""
    judged = part.judge([image])
    verdict = judged.verdicts()[0]
    return {
        "brick": brick,
        "classes": _top(judged.probabilities[0], (*part.classes, REJECT), 3),
        "none": verdict.none,
        "strangeness": verdict.strangeness,
        "words": verdict.words,
    }


def _overlap(manifest: AssemblyManifest, scaling: str) -> list[dict[str, Any]]:
    """For every two parts, how often the second is expected to answer for the first's images."""
    factors: list[list[float] | None] = [None] * len(manifest.parts)
    scaled = False
    if not SCALINGS[scaling].few_shot and not SCALINGS[scaling].gated:
        try:
            found, _ = scale(scaling, Evidence(manifest), {})
        except OptionError:  # a part has no statistics: then nothing is known of its level either
            found = None
        if found is not None and not found.log_probability:
            scaled = True
            if found.matrix is not None:
                sizes = [len(part.classes) for part in manifest.parts]
                factors = [block.tolist() for block in found.matrix.diagonal().split(sizes)]
    levels = [level(part, own) for part, own in zip(manifest.parts, factors, strict=True)]
    result: list[dict[str, Any]] = []
    for a, own in enumerate(manifest.parts):
        for b, other in enumerate(manifest.parts):
            if a == b:
                continue
            mine, theirs = levels[a], levels[b]
            share = None if mine is None or theirs is None else round(predicted(mine, theirs), 4)
            known = [name for name in own.classes if name in other.source.classes]
            result.append({"of": a, "by": b, "share": share, "scaled": scaled, "known": known[:8]})
    return result


def _unfit(form: str, entries: Sequence[Entry]) -> str | None:
    """Why bricks cannot take a form, as far as the yard knows."""
    if form == "union" and len({entry.source_sha256 for entry in entries}) > 1:
        return "the bricks are cut from different sources"
    if form in ("cascade", "merged"):
        return "it needs calibration images, which brickyard assemble takes"
    if form not in ("padded", "grouped"):
        return None
    built = {entry.architecture for entry in entries}
    if "" in built:
        return "the structure of a brick's source is not known"
    if len(built) > 1:
        names = list(dict.fromkeys(entry.source for entry in entries))
        return f"the bricks' sources are not built alike ({', '.join(names[:4])})"
    return None
