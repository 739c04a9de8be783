"""Build what a recipe says: a plan of steps, of which only those run whose result would be another.

Every step has output files and says all that they depend on: what the recipe says, hashes of the files and images that
go in, versions, and hashes of the outputs of earlier steps. A step is up to date where nothing of that has changed
since it ran, and its outputs are as it left them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from brickyard.base._errors import BrickyardError, FileError
from brickyard.base._frozen import Frozen, first_problem
from brickyard.network._untouched import guarded
from brickyard.recipes._fingerprints import Fingerprints, Seen, digest
from brickyard.recipes._recipe_file import RecipeFile
from brickyard.recipes._steps import NOTES, Say, Status, Step, Work

STATE = ".build.json"


@dataclass(frozen=True)
class Planned:
    """A step, and whether it has to run.

    Attributes:
        step: The step.
        status: "run" or "up to date".
        reasons: Why it has to run.
        key: Hash of all that its outputs depend on, or None where an earlier step has to run first.
    """

    step: Step
    status: Status
    reasons: tuple[str, ...]
    key: str | None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        about = {"step": self.step.name, "outputs": list(self.step.outputs), "status": self.status}
        return {**about, "reasons": list(self.reasons), "key": self.key}


class Made(Frozen):
    """What a step depended on when it ran, and hashes of what it wrote."""

    needs: dict[str, str]
    outputs: dict[str, str]


class State(Frozen):
    """What is known of earlier builds in a folder.

    Attributes:
        build: Version of this text.
        steps: By name, the steps that have run.
        owned: Files of the folder that builds have written or were about to.
        files: Hashes of files, with sizes and times when they were taken.
    """

    build: Literal[1] = 1
    steps: dict[str, Made] = {}
    owned: tuple[str, ...] = ()
    files: dict[str, Seen] = {}


def plan(
    file: RecipeFile, *, force: bool = False, trust: bool = False, folder: str | Path | None = None
) -> list[Planned]:
    """Say which steps a build has, and which of them have to run; nothing is written.

    Args:
        file: The recipe, as `load_recipe` gives it.
        force: Run all.
        trust: Allow sources that are Python code.
        folder: Where results go, in place of the recipe's own; a recipe's own lies in the recipe's folder.

    Returns:
        The steps in order. One that depends on a step that has to run is taken to run too.

    Raises:
        OptionError: A source is code, and `trust` is false.
        FileError: A file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from brickyard.recipes._build import plan
        >>> from brickyard.recipes._reader import load_recipe
        >>> text = '''
        ... brickyard: 1
        ... sources: {a: {train: {network: lenet5?width=0.5, data: digits}}}
        ... components: {low: {source: a, task: 0-2, flops: 0.5}}
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "recipe.yaml")
        ...     _ = path.write_text(text)
        ...     [item.step.name for item in plan(load_recipe(path))]
        ['train a', 'locate a', 'cut low', 'write the card of low', 'copy the recipe']
    """
    return _Build(file, force, trust, folder).planned()


@guarded
def build(
    file: RecipeFile,
    *,
    force: bool = False,
    trust: bool = False,
    folder: str | Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run the steps that have to run.

    A build that was stopped goes on where it was; the files come out as they would have without the stop. One process
    at a time builds in a folder.

    Args:
        file: The recipe, as `load_recipe` gives it.
        force: Run all, and overwrite files that no build has written.
        trust: Allow sources that are Python code. It runs.
        folder: Where results go, in place of the recipe's own; a recipe's own lies in the recipe's folder.
        say: Called with every text to show.

    Returns:
        The output folder, what each step did ("ran", "up to date", or "unchanged": its inputs were made again, and are
        the same), the scores by name, and files of earlier builds that are no longer of the recipe.

    Raises:
        FileError: A file cannot be read or written, or exists and is not from a build, or another process builds in
            the folder.
        BrickyardError: What a step raises.
    """
    job = _Build(file, force, trust, folder)
    with job.alone():
        if job.changed():  # another build ended in the meantime
            job = _Build(file, force, trust, folder)
        return job.run(say)


class _Build:
    """One build of one recipe."""

    def __init__(self, file: RecipeFile, force: bool, trust: bool, folder: str | Path | None) -> None:
        self.file = file
        self.force = force
        self.asked = folder is not None
        self.folder = file.folder / file.recipe.outputs.folder if folder is None else Path(folder)
        self._check_inside(self.folder, self.folder / STATE, self.folder / NOTES)
        self.state = self._read_state()
        self.prints = Fingerprints(file.folder, self.state.files)
        self.work = Work(file, self.folder, self.prints, trust)
        self.steps = list(self.work.steps())

    def _check_inside(self, *places: Path) -> None:
        """Refuse to write where a recipe leads out of its own folder, through links too.

        Raises:
            OptionError: It does, and the folder was not asked for by who builds.
        """
        own = self.file.folder.resolve()
        for place in () if self.asked else places:
            if not place.resolve().is_relative_to(own):
                folder = self.file.recipe.outputs.folder
                why = f"outputs.folder {folder!r} leads out of the recipe's folder, to {place.resolve()}"
                advice = "give a folder inside it, or say where results go with --output-folder"
                raise self.file.problem(("outputs", "folder"), f"{why}; {advice}")

    def _read_state(self) -> State:
        place = self.folder / STATE
        if not place.exists():
            return State()
        try:
            return State.model_validate_json(place.read_bytes())
        except (OSError, ValidationError, RecursionError) as error:
            if self.force:
                return State()
            problem = first_problem(error) if isinstance(error, ValidationError) else error
            raise FileError(
                "file-damaged", f"{place} cannot be used: {problem}; rebuild everything with --force"
            ) from None

    def changed(self) -> bool:
        """Whether the folder is no longer as it was when the plan was made."""
        return self._read_state() != self.state

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the output folder, which is made where it is missing; the lock ends with the process.

        Raises:
            FileError: Another process holds it, or it cannot be made.
        """
        from brickyard.storage._atomic import folder_for, lock_folder

        with folder_for(self.folder, "give another with --output-folder"):
            try:
                held = lock_folder(self.folder)
            except BlockingIOError:
                why = f"{self.folder} is being built by another process; wait for its end"
                raise FileError("file-busy", f"{why}, or give another folder with --output-folder") from None
            try:
                yield
            finally:
                if held is not None:
                    os.close(held)

    def _write_state(self) -> None:
        from brickyard.storage._atomic import write_content

        self.state = self.state.model_copy(update={"files": dict(sorted(self.prints.used.items()))})
        text = json.dumps(self.state.model_dump(mode="json"), indent=1) + "\n"
        write_content(self.folder / STATE, text, overwrite=True)

    def _needs(self, step: Step) -> dict[str, str]:
        """All that a step depends on; its inputs are there."""
        return step.needs | {f"file {name}": self.prints.file(self.folder / name) for name in step.inputs}

    def _reasons(self, step: Step, remade: set[str]) -> tuple[list[str], str | None]:
        """Why a step has to run, where these files will be made again; and its key."""
        made = self.state.steps.get(step.name)
        later = [name for name in step.inputs if name in remade or not (self.folder / name).is_file()]
        needs = step.needs if later else self._needs(step)
        key = None if later else digest(json.dumps(needs, sort_keys=True))
        reasons = ["asked for with --force"] if self.force else []
        if made is None:
            return [*reasons, "never run"], key
        for name in step.outputs:
            if not (self.folder / name).is_file():
                reasons.append(f"{name} is missing")
            elif self.prints.file(self.folder / name) != made.outputs.get(name):
                reasons.append(f"{name} was changed")
        for name in dict.fromkeys((*needs, *made.needs)):
            new, old = needs.get(name), made.needs.get(name)
            if new != old and not (new is None and later and name.startswith("file ")):
                reasons.append(_change(name, old, new))
        return [*reasons, *(f"{name} is made again" for name in later)], key

    def planned(self) -> list[Planned]:
        found: list[Planned] = []
        remade: set[str] = set()
        for step in self.steps:
            reasons, key = self._reasons(step, remade)
            remade |= set(step.outputs) if reasons else set()
            found.append(Planned(step, "run" if reasons else "up to date", tuple(reasons), key))
        return found

    def run(self, say: Say) -> dict[str, Any]:
        planned = self.planned()
        say(plan_text(planned, self.folder))
        self._claim([name for item in planned if item.status == "run" for name in item.step.outputs])
        for name in self.work.unweighted():
            say(f"source {name} has no weights: its network stays as it is drawn; give sources.{name}.weights")
        done = {item.step.name: self._run_step(item, say) for item in planned}
        left = sorted(set(self.state.owned) - {name for step in self.steps for name in step.outputs})
        left = [name for name in left if (self.folder / name).is_file()]
        for name in left:
            say(f"{self.folder / name} is from an earlier recipe; delete it if it is not needed")
        self._sweep()
        self._write_state()
        return {
            "recipe": str(self.file.path),
            "folder": str(self.folder),
            "steps": [{**item.as_dict(), "status": done[item.step.name]} for item in planned],
            "scores": self.work.all_scores(),
            "left_over": left,
        }

    def _run_step(self, item: Planned, say: Say) -> str:
        step = item.step
        reasons, _ = self._reasons(step, set())  # now that all inputs are there
        if not reasons:
            return "up to date" if item.status == "up to date" else "unchanged"
        say(f"{step.name} ...")
        needs = self._needs(step)
        self._check_inside(*((self.folder / name).parent for name in step.outputs))
        try:
            for name in step.outputs:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            step.run()
        except OSError as error:
            raise FileError(
                "file-system", f"{step.name} in {self.folder} failed: {error}; check the folder, and build again"
            ) from error
        except BrickyardError as error:
            if str(error).startswith(f"{self.file.path}:"):
                raise
            raise type(error)(error.code, self.file.told(step.place, f"{step.name}: {error}")) from error
        outputs = {name: self.prints.file(self.folder / name) for name in step.outputs}
        steps = {**self.state.steps, step.name: Made(needs=needs, outputs=outputs)}
        self.state = self.state.model_copy(update={"steps": steps})
        self._write_state()
        return "ran"

    def _sweep(self) -> None:
        """Remove what stopped steps that have run since or changed had kept, and half files of killed ones."""
        from brickyard.storage._atomic import clear_stages

        for place in (self.folder / NOTES).glob("locate-*"):
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / NOTES).rmdir()
        root = self.folder.resolve()
        for folder in {(self.folder / name).parent for name in (STATE, *self.state.owned)}:
            if folder.resolve().is_relative_to(root):
                clear_stages(folder)

    def _claim(self, outputs: Sequence[str]) -> None:
        """Note what will be written; refuse where it would replace a file that is not from a build."""
        for name in outputs:
            path = self.folder / name
            if path.is_dir() or (path.exists() and name not in self.state.owned and not self.force):
                raise FileError(
                    "file-exists",
                    f"{path} exists, but no build wrote it; give another folder with --output-folder, or --force",
                )
        mine = {step.name for step in self.steps}
        steps = {name: made for name, made in self.state.steps.items() if name in mine}
        owned = tuple(sorted({*(name for name in self.state.owned if (self.folder / name).is_file()), *outputs}))
        self.state = self.state.model_copy(update={"owned": owned, "steps": steps})
        self._write_state()


def _change(name: str, old: str | None, new: str | None) -> str:
    """What has changed, in a few words."""
    if name.startswith(("file ", "images ")):
        return f"{name} changed" if old and new else f"{name} is {'new' if new else 'no longer used'}"
    return f"{name} was {'not set' if old is None else old}, now {'not set' if new is None else new}"


def plan_text(planned: Sequence[Planned], folder: Path) -> str:
    """A plan as text: a line a step."""
    running = sum(item.status == "run" for item in planned)
    lines = [f"{len(planned)} steps into {folder}, {running} to run"]
    width = max(len(item.step.name) for item in planned)
    for item in planned:
        text = "up to date" if item.status == "up to date" else f"runs: {'; '.join(item.reasons)}"
        lines.append(f"  {item.step.name:<{width}}  {text}")
    return "\n".join(lines)
