"""What must come of a file, whatever is in it: an object that equals what the file says, or one BrickyardError.

`Judge.case` makes one file from a seed and a number, reads it, and tells what is wrong, if anything is.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import brickyard as by
from brickyard import gnn as graphnets
from brickyard.base._errors import BrickyardError
from brickyard.base._messages import shown
from brickyard.base._records import ComponentManifest
from brickyard.gnn._component import GraphAssembly
from brickyard.recipes._reader import load_recipe
from brickyard.recipes._recipe_file import RecipeFile
from brickyard.sources._loading import load_source
from brickyard.testing import random_graph
from brickyard.yard._index import Entry, Known, read_entry, read_index, write_index
from fuzzing.mutating import flip, mutant
from fuzzing.seeding import Seed, parse

SHARES = {"file": 75, "graph": 6, "entry": 4, "weights": 5, "recipe": 7, "index": 4}
ASSEMBLIES = ("parallel", "gated", "few-shot", "padded", "grouped", "union")  # slow, so fewer
SECONDS = 60.0  # of a core, to read a file, and to run what it holds on two images: a guard against what never ends
FLOOR = 32 << 20  # bytes that reading any small file may take beyond twice its size
RUN = 2 << 30  # bytes that one run of two images may take: 2^27 numbers an image by bounding.py, and room
MOST_FEATURES = 10_000  # that a node is given to run a graph network
SPACE = 6 << 30  # bytes of address space beyond what there is
FORBIDDEN = ("exec", "compile", "import", "open", "pickle.find_class", "ctypes.", "socket.", "subprocess.", "shutil.")
FORBIDDEN += ("os.", "urllib.", "tempfile.", "glob.", "ftplib.", "http.", "webbrowser.", "code.__new__", "cpython.run")


TORCH = str(Path(torch.__file__).parent) + os.sep


class Hang(BaseException):
    """Too much of a core's time was taken; no `except Exception` holds it up."""


@dataclass
class Verdict:
    """What came of one file.

    Attributes:
        kind: What read it.
        how: How it was changed.
        outcome: "loaded", "unusable" (loaded, and a BrickyardError when it ran), or "refused".
        problem: What is wrong, or "".
        message: Of the BrickyardError.
        seconds: Of a core, to read it.
        memory: Bytes that reading took at most.
        run_seconds: Of a core, to run it.
        run_memory: Bytes that running took at most.
    """

    kind: str
    how: str
    outcome: str = ""
    problem: str = ""
    message: str = ""
    seconds: float = 0.0
    memory: int = 0
    run_seconds: float = 0.0
    run_memory: int = 0


@dataclass
class Watch:
    """Sees what Python does while a file is read: files, imports, code, processes, the network."""

    paths: tuple[str, ...] = ()
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or not event.startswith(FORBIDDEN):
            return
        if event == "open" and (isinstance(args[0], int) or os.fspath(args[0]) in self.paths):
            return  # a number is what was opened before
        if event == "os.putenv" or _torchs_own(event, args):
            return
        self.seen.append(f"{event} {str(args)[:120]}")

    @contextlib.contextmanager
    def over(self, *paths: str) -> Iterator[list[str]]:
        self.paths, self.seen, self.on = paths, [], True
        try:
            yield self.seen
        finally:
            self.on = False


def _torchs_own(event: str, args: tuple[Any, ...]) -> bool:
    """Whether torch is taking up a module of its own, as it does at the first use of some operations."""
    frame, importing = sys._getframe(2), False
    if event == "import" and str(args[0]).startswith("torch.") and frame.f_code.co_filename.startswith(TORCH):
        return True
    while frame is not None:
        name = frame.f_code.co_filename
        if importing and name.startswith(TORCH):
            return True
        importing = name.startswith("<frozen importlib")
        frame = frame.f_back  # type: ignore[assignment]
    return False


class Judge:
    """Makes files and judges what comes of them.

    Args:
        seeds: Valid files by what reads them.
        folder: For the files; better in memory than on a disk.
        seed: Of all random choices.
    """

    def __init__(self, seeds: dict[str, list[Seed]], folder: Path, seed: int) -> None:
        self.seeds, self.folder, self.seed = seeds, folder, seed
        self.watch = Watch()
        self.original: dict[str, torch.Tensor] = {}
        warnings.simplefilter("ignore")
        shown("\x1b")  # Python takes up the codec at its first use

    def make(self, index: int) -> tuple[str, Seed, bytes, str]:
        """The file of that number: what reads it, what it was made from, its bytes, and how it was changed."""
        rng = random.Random(f"{self.seed}/{index}")
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        usual = [2 if seed.name in ASSEMBLIES else 5 for seed in self.seeds[kind]]
        seed = rng.choices(self.seeds[kind], usual)[0]
        for _ in range(8):
            with contextlib.suppress(Exception):  # a change may have no place in what earlier changes left
                content, how = mutant(rng, seed, self.seeds[kind])
                return kind, seed, content, how
        return kind, seed, flip(rng, seed.content), "bytes"

    def case(self, index: int) -> Verdict:
        """Make the file of that number, read it, and judge."""
        kind, seed, content, how = self.make(index)
        return self.judge(kind, seed, content, how)

    def judge(self, kind: str, seed: Seed, content: bytes, how: str) -> Verdict:
        """Read a file and judge what comes of it."""
        path = self.folder / f"case-{os.getpid()}{seed.ending}"
        path.write_bytes(content)
        beside = (str(path.with_suffix(".json")),) if kind == "weights" else ()  # a text may lie there
        verdict = Verdict(kind, how)
        start_memory = reset_peak()
        try:
            with self.watch.over(str(path), *beside) as seen:
                start = time.process_time()
                found: Any = None
                with limited():
                    try:
                        found = READERS[kind](path)
                        verdict.outcome = "loaded"
                    except BrickyardError as error:
                        verdict.outcome, verdict.message = "refused", str(error)
                verdict.seconds = time.process_time() - start
            verdict.memory = peak() - start_memory
            verdict.problem = self._looked_at(verdict, seen, len(content))
            if verdict.outcome == "loaded" and not verdict.problem:
                self._use(verdict, found, seed, content, path)
        except Hang:
            verdict.problem = f"takes more than {SECONDS:g} s\n{traceback.format_exc(limit=-6)}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            verdict.problem = f"{type(error).__name__}: {error}"[:400] + f"\n{traceback.format_exc(limit=-6)}"
        verdict.outcome = verdict.outcome or "failed"
        return verdict

    def _looked_at(self, verdict: Verdict, seen: list[str], size: int) -> str:
        if seen:
            return f"did {seen[0]}"
        if verdict.memory > FLOOR + 2 * size:
            return f"took {verdict.memory >> 20} MiB for {size} bytes"
        if verdict.outcome == "refused":
            text = verdict.message
            if not text or len(text) > 2000 or not all(c.isprintable() for c in text):
                return f"message is not one printable line of moderate length: {text[:200]!r}"
            if "allocate " in text or "out of memory" in text:
                return f"asked for too much memory: {text[:200]}"
        return ""

    def _use(self, verdict: Verdict, found: Any, seed: Seed, content: bytes, path: Path) -> None:
        if verdict.kind == "index":
            again = write_index(path, found, None)
            if read_index(path) != again or again[1] != found:
                verdict.problem = "the index is another when written and read again"
        elif isinstance(found, by.Component | by.Assembly | by.Relevance | graphnets.GraphComponent | GraphAssembly):
            again = self.folder / f"again-{os.getpid()}.safetensors"
            found.save(again, overwrite=True)
            verdict.problem = differs(content, again.read_bytes())
            if verdict.problem:
                return
            second = READERS[verdict.kind](again)
            third = self.folder / f"third-{os.getpid()}.safetensors"
            second.save(third, overwrite=True)
            if again.read_bytes() != third.read_bytes():
                verdict.problem = "saved and loaded and saved, it is another file"
                return
            str(found)
            if isinstance(found, graphnets.GraphComponent | GraphAssembly):
                self._run_graph(verdict, found, second)
            elif not isinstance(found, by.Relevance):
                self._run(verdict, found, second, seed)
        elif not isinstance(found, Entry | RecipeFile | tuple) and found is not None:
            verdict.problem = f"a {type(found).__name__} was loaded"

    def _run(self, verdict: Verdict, found: Any, second: Any, seed: Seed) -> None:
        first = found.manifest.parts[0]
        images = torch.rand(2, *first.input_shape, generator=torch.Generator().manual_seed(0))
        before = images.clone()
        start, start_memory = time.process_time(), reset_peak()
        with self.watch.over() as seen, limited():
            try:
                outputs = answers(found, images)
            except BrickyardError as error:
                verdict.outcome, verdict.message = "unusable", str(error)
                outputs = None
        verdict.run_seconds, verdict.run_memory = time.process_time() - start, peak() - start_memory
        if seen:
            verdict.problem = f"did {seen[0]} when it ran"
        elif verdict.run_memory > RUN:
            verdict.problem = f"took {verdict.run_memory >> 20} MiB to run"
        elif not torch.equal(images, before):
            verdict.problem = "changed the images that it was given"
        elif outputs is not None and tuple(outputs.shape) != (2, len(found.classes_)):
            verdict.problem = f"gave {tuple(outputs.shape)} for {len(found.classes_)} outputs"
        elif outputs is not None and not equal(answers(second, images), outputs):
            verdict.problem = "gives other outputs once it was saved and loaded"
        elif outputs is not None and not equal(answers(found, images), outputs):
            verdict.problem = "gives other outputs at the second time"
        elif outputs is not None and verdict.how == "same" and not equal(outputs, self._outputs_of(seed, images)):
            verdict.problem = "gives other outputs than the file that says the same"

    def _run_graph(self, verdict: Verdict, found: Any, second: Any) -> None:
        parts = [found.manifest] if isinstance(found.manifest, ComponentManifest) else found.manifest.parts
        sizes = [part.input_shape[0] for part in parts]
        if max(sizes) > MOST_FEATURES:
            return
        like = next(found.parameters())
        x, edges, _ = random_graph(24, max(4, *sizes))
        x = x[:, : sizes[0]].to(like.dtype)
        with self.watch.over() as seen, limited(), torch.inference_mode():
            try:
                outputs = found(x, edges)
            except BrickyardError as error:
                verdict.outcome, verdict.message = "unusable", str(error)
                return
        if seen:
            verdict.problem = f"did {seen[0]} when it ran"
        elif len(outputs) != 24 or not equal(second(x, edges), outputs):
            verdict.problem = "gives other outputs once it was saved and loaded"

    def _outputs_of(self, seed: Seed, images: torch.Tensor) -> torch.Tensor:
        if seed.name not in self.original:
            path = self.folder / f"original-{os.getpid()}.safetensors"
            path.write_bytes(seed.content)
            self.original[seed.name] = answers(by.load(path), images)
        return self.original[seed.name]


def answers(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What a model answers; random numbers that it may draw are the same each time."""
    torch.random.default_generator.manual_seed(0)
    result: torch.Tensor = model.predict_proba(images)
    return result


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _load_weights(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return (load_source(str(path)),)
    return (load_source("zoo:lenet5", weights=path),)


def _read_index(path: Path) -> Known:
    found = read_index(path)
    if found is None:
        raise BrickyardError("file-damaged", "the index is not believed")
    return found[1]


READERS = {
    "file": by.load,
    "graph": graphnets.load,
    "entry": lambda path: read_entry(path, "case"),
    "weights": _load_weights,
    "recipe": load_recipe,
    "index": _read_index,
}


# -- whether a file and what was loaded from it say the same -------------------------------------------------


def differs(content: bytes, again: bytes) -> str:
    """What a file says otherwise than the one that was written from what was loaded; "" if nothing.

    Read by hand. Every tensor must be there with the same bytes, and every value of the text; defaults may be added.
    """
    (header, body), (other, other_body) = parse(content), parse(again)
    names, others = ({n for n in h if n != "__metadata__"} for h in (header, other))
    if names != others:
        return f"tensors {sorted(names ^ others)[:3]} are in one file only"
    for name in names:
        a, b = header[name], other[name]
        if (a["dtype"], a["shape"]) != (b["dtype"], b["shape"]):
            return f"tensor {name!r} is {a} and {b}"
        if body[slice(*a["data_offsets"])] != other_body[slice(*b["data_offsets"])]:
            return f"tensor {name!r} has other numbers"
    return _other_value(
        json.loads(header["__metadata__"]["brickyard"]), json.loads(other["__metadata__"]["brickyard"]), ()
    )


def _other_value(said: Any, kept: Any, place: tuple[Any, ...]) -> str:
    """The first place where a text's value was not kept."""
    if isinstance(said, dict) and isinstance(kept, dict):
        for key, value in said.items():
            if key not in kept:
                return f"{(*place, key)} was lost"
            found = _other_value(value, kept[key], (*place, key))
            if found:
                return found
        return ""
    if isinstance(said, list) and isinstance(kept, list) and len(said) == len(kept):
        for index, (a, b) in enumerate(zip(said, kept, strict=True)):
            found = _other_value(a, b, (*place, index))
            if found:
                return found
        return ""
    if said == kept or _number(said) == _number(kept) is not None or "config" in place[-3:]:
        return ""
    return f"{place} is {str(said)[:80]!r} and became {str(kept)[:80]!r}"


def _number(value: Any) -> float | None:
    try:
        return float({"true": 1, "false": 0}.get(str(value).lower(), value))
    except (TypeError, ValueError):
        return None


# -- time and memory -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Stop what takes more than `seconds` of a core."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_space() -> None:
    """Let this process have so much more address space, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def reset_peak() -> int:
    """Forget the highest memory so far; what there is now, in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()


def peak() -> int:
    """The most memory since `reset_peak`, in bytes; where that is not known, since the process began."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
