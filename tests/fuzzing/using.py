"""What a user does with a file, each within limits: `Legal.case` draws a file, uses it, and tells what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.base._records import Preprocessing
from brickyard.cli._look import _show_file
from brickyard.export._module import export_module
from brickyard.export._onnx import export_onnx
from brickyard.reports import model_card, report
from brickyard.testing import chain
from brickyard.workbench._bench import Bench
from brickyard.workbench._limits import Limits
from brickyard.yard._yard import Yard
from fuzzing.drawing import drawn_file
from fuzzing.judging import Hang, Verdict, limited, peak, reset_peak

SECONDS = 10.0  # of a core, for one use
MEMORY = 1 << 30  # bytes beyond the file's own size, for one use
ONNX = 300  # one file of so many is exported as ONNX, which takes seconds
AUTO = 25  # one of so many is joined in the fastest form, which is timed


def partner(folder: Path) -> Any:
    """A component to join others with."""
    data = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
    model = chain(4, (3, 4))
    made = by.disassemble(model, by.locate(model, data), task=["1", "3"], budget=by.Budget(parameters=0.7))
    return by.load(made.save(folder / "partner.safetensors", overwrite=True))


class Legal:
    """Draws files and uses them.

    Args:
        folder: For the files; better in memory than on a disk.
        seed: Of all random choices.
        partner: A component to join others with.
    """

    def __init__(self, folder: Path, seed: int, partner: Any) -> None:
        self.folder, self.seed, self.partner = folder, seed, partner
        warnings.simplefilter("ignore")

    def make(self, index: int) -> tuple[str, None, bytes, str]:
        """The file of that number: what it is, and its bytes."""
        path = self.folder / f"drawn-{os.getpid()}.safetensors"
        kind = drawn_file(random.Random(f"legal/{self.seed}/{index}"), path, self.folder)
        return kind, None, path.read_bytes() if path.exists() else b"", "legal"

    def case(self, index: int) -> Verdict:
        """Draw the file of that number, use it, and judge."""
        try:
            kind, _, content, how = self.make(index)
        except Exception as error:
            problem = "" if isinstance(error, BrickyardError) else f"not drawn: {type(error).__name__}: {error}"
            return Verdict("component", "not drawn", "not drawn", problem)
        verdict = Verdict(kind, how)
        path = self.folder / f"drawn-{os.getpid()}.safetensors"
        if not content:
            verdict.outcome = "not drawn"
            return verdict
        found = self._use(verdict, "load", path, lambda: by.load(path))
        if found is None:
            verdict.outcome = verdict.outcome or "refused"
            return verdict
        verdict.outcome = "loaded"
        sizes = {part.input_shape for part in found.manifest.parts if part.preprocessing.size is None}
        for name, call in self._uses(index, found, path).items():
            self._use(verdict, name, path, call, odd=len(sizes) > 1)
            if verdict.problem:
                break
        return verdict

    def _uses(self, index: int, found: Any, path: Path) -> dict[str, Callable[[], Any]]:
        work = self.folder / f"uses-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        uses: dict[str, Callable[[], Any]] = {f"predict {n}": lambda n=n: answered(found, n) for n in (1, 2, 3)}
        uses |= {
            "show": lambda: (str(found), _show_file(path, True)),
            "card": lambda: model_card(found),
            "report": lambda: report([found]),
            "fused": lambda: answered(found.fused(), 2),
            "module": lambda: export_module(found, work / "part.py"),
            "save": lambda: by.load(found.save(work / "again.safetensors")),
            "renamed": lambda: found.renamed({found.classes[0]: "another"}),
        }
        forms = ["parallel", "padded", "grouped", "union"] + (["auto"] if index % AUTO == 0 else [])
        for form in forms:
            uses[f"join {form}"] = lambda form=form: joined([found, found], form)
        uses["join with another"] = lambda: joined([found, self.partner], "parallel")
        if isinstance(found, by.Component):
            uses["yard"] = lambda: stored(path, work / "yard")
        if index % ONNX == 0:
            uses["onnx"] = lambda: export_onnx(found, work / "part.onnx")
        return uses

    def _use(self, verdict: Verdict, name: str, path: Path, call: Callable[[], Any], odd: bool = False) -> Any:
        """Do one thing with a file; what came of it, or None where it was refused.

        `odd`: its parts take images of different sizes, which nothing brings to theirs, so that none need fit them.
        """
        before, start = reset_peak(), time.process_time()
        result = None
        try:
            with limited(SECONDS):
                try:
                    result = call()
                except BrickyardError as error:
                    verdict.message = str(error)
                    if name.startswith("predict") and not odd:
                        verdict.problem = f"{name}: loads and does not answer: {error}"
                    if "allocate" in str(error) or "out of memory" in str(error):
                        verdict.problem = f"{name}: asked for too much memory: {error}"
        except Hang:
            verdict.problem = f"{name}: takes more than {SECONDS:g} s\n{traceback.format_exc(limit=-6)}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            verdict.problem = f"{name}: {type(error).__name__}: {error}"[:400] + f"\n{traceback.format_exc(limit=-6)}"
        seconds, memory = time.process_time() - start, peak() - before
        if name == "load":
            verdict.seconds, verdict.memory = seconds, memory
        verdict.run_seconds, verdict.run_memory = max(verdict.run_seconds, seconds), max(verdict.run_memory, memory)
        if memory > MEMORY + path.stat().st_size and not verdict.problem:
            verdict.problem = f"{name}: took {memory >> 20} MiB"
        return result


def answered(model: Any, count: int) -> None:
    """Ask a model about drawn images; it must give one answer to each.

    Raises:
        AssertionError: It does not.
    """
    if any(how.unknown for how in model.preprocessings):
        model = with_known(model)
    images = torch.rand(count, *model.input_shape, generator=torch.Generator().manual_seed(0))
    shape, answers = tuple(model.predict_proba(images).shape), model.predict(images)
    wanted = (count, len(model.classes_))
    if (shape, len(answers)) != (wanted, count):
        raise AssertionError(f"{len(answers)} answers and probabilities {shape} for {count} images")


def with_known(model: Any) -> Any:
    """The same model with a preprocessing that is known, since unknown ones are refused."""
    if isinstance(model, by.Component):
        return model.with_preprocessing(model.manifest.preprocessing.model_copy(update={"unknown": False}))
    parts = [part.model_copy(update={"preprocessing": Preprocessing()}) for part in model.manifest.parts]
    return model.with_manifest(parts=tuple(parts))


def joined(parts: Sequence[Any], form: str) -> None:
    """Join, and ask."""
    answered(by.assemble(parts, form=form, on_duplicate="rename"), 2)


def stored(path: Path, place: Path) -> None:
    """Put a component in a yard, list it, look into it on the workbench."""
    yard = Yard(place, create=True)
    yard.add(path, "part")
    entries = yard.entries()
    if len(entries) != 1 or yard.verify():
        raise AssertionError("the yard lost it")
    bench = Bench(yard, Limits())
    bench.overview()
    bench.inside("part")
    yard.search(classes=entries[0].classes[:1])
