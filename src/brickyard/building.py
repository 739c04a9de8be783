"""Build what a recipe says: a plan of steps, of which only those run whose result would be another.

Every step has output files and says all that they depend on: what the recipe says, hashes of the files and images that
go in, versions, and hashes of the outputs of earlier steps. A step is up to date where nothing of that has changed
since it ran, and its outputs are as it left them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from brickyard._version import __version__
from brickyard.errors import BrickyardError, DataError, FileError, TaskError
from brickyard.fingerprints import Fingerprints, Seen, digest
from brickyard.manifest import Frozen, first_problem
from brickyard.recipes import ComponentRecipe, RecipeFile

if TYPE_CHECKING:
    from brickyard.assembly import Assembly
    from brickyard.component import Component
    from brickyard.datasets import ImageData
    from brickyard.manifest import Preprocessing
    from brickyard.relevance import Relevance
    from brickyard.scores import Scores
    from brickyard.sources import Source

__all__ = ["Planned", "Step", "build", "plan", "plan_text"]

STATE = ".build.json"
NOTES = ".build"  # a folder for what a step that was stopped has done so far
ASSEMBLY = "assembly.safetensors"
CARD = "README.md"
TABLES = ("scores.json", "scores.csv", "scores.md")

Say = Callable[[object], None]
Status = Literal["run", "up to date"]


@dataclass(frozen=True)
class Step:
    """One piece of work of a build.

    Attributes:
        name: What it does, such as "cut low".
        outputs: The files that it writes, below the output folder.
        inputs: Outputs of earlier steps that it reads.
        needs: All else that its outputs depend on, by name.
        run: Does it.
        place: The section of the recipe that it is about.
    """

    name: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    needs: dict[str, str]
    run: Callable[[], None] = field(repr=False, compare=False)
    place: tuple[str, ...] = ()


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
        return {
            "step": self.step.name,
            "outputs": list(self.step.outputs),
            "status": self.status,
            "reasons": list(self.reasons),
            "key": self.key,
        }


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


def plan(file: RecipeFile, *, force: bool = False, trust: bool = False) -> list[Planned]:
    """Say which steps a build has, and which of them have to run; nothing is written.

    Args:
        file: The recipe, as `load_recipe` gives it.
        force: Run all.
        trust: Allow sources that are Python code.

    Returns:
        The steps in order. One that depends on a step that has to run is taken to run too.

    Raises:
        OptionError: A source is code, and `trust` is false.
        FileError: A file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from brickyard.building import plan
        >>> from brickyard.recipes import load_recipe
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
    return _Build(file, force, trust).planned()


def build(
    file: RecipeFile, *, force: bool = False, trust: bool = False, say: Say = lambda text: None
) -> dict[str, Any]:
    """Run the steps that have to run.

    A build that was stopped goes on where it was; the files come out as they would have without the stop. One process
    at a time builds in a folder.

    Args:
        file: The recipe, as `load_recipe` gives it.
        force: Run all, and overwrite files that no build has written.
        trust: Allow sources that are Python code. It runs.
        say: Called with every text to show.

    Returns:
        The output folder, what each step did ("ran", "up to date", or "unchanged": its inputs were made again, and are
        the same), the scores by name, and files of earlier builds that are no longer of the recipe.

    Raises:
        FileError: A file cannot be read or written, or exists and is not from a build, or another process builds in
            the folder.
        BrickyardError: What a step raises.
    """
    job = _Build(file, force, trust)
    with job.alone():
        if job.changed():  # another build ended in the meantime
            job = _Build(file, force, trust)
        return job.run(say)


# -- running -----------------------------------------------------------------------------------------------


class _Build:
    """One build of one recipe."""

    def __init__(self, file: RecipeFile, force: bool, trust: bool) -> None:
        self.file = file
        self.force = force
        self.folder = file.folder / file.recipe.outputs.folder
        self.state = self._read_state()
        self.prints = Fingerprints(file.folder, self.state.files)
        self.work = Work(file, self.folder, self.prints, trust)
        self.steps = self.work.steps()

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
            raise FileError(f"{place} cannot be used: {problem}; --force builds all again") from None

    def changed(self) -> bool:
        """Whether the folder is no longer as it was when the plan was made."""
        return self._read_state() != self.state

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the output folder, which is made where it is missing; the lock ends with the process.

        Raises:
            FileError: Another process holds it, or it cannot be made.
        """
        from brickyard.container import lock_folder

        missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        held: int | None = None
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held = lock_folder(self.folder)
            except BlockingIOError:
                raise FileError(
                    f"{self.folder} is being built by another process; wait until it has ended, or give another "
                    "outputs.folder"
                ) from None
            except OSError as error:
                raise FileError(
                    f"folder {self.folder} cannot be made: {error.strerror or error}; give another outputs.folder"
                ) from None
            yield
        finally:
            try:
                for place in missing:  # those that stayed empty
                    with contextlib.suppress(OSError):
                        place.rmdir()
            finally:
                if held is not None:
                    os.close(held)

    def _write_state(self) -> None:
        from brickyard.container import write_content

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
        done: dict[str, str] = {}
        for item in planned:
            done[item.step.name] = self._run_step(item, say)
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
        try:
            for name in step.outputs:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            step.run()
        except OSError as error:
            raise FileError(f"{step.name} in {self.folder}: {error}; see to the folder, and build again") from error
        except BrickyardError as error:
            if str(error).startswith(f"{self.file.path}:"):
                raise
            raise type(error)(self.file.told(step.place, f"{step.name}: {error}")) from error
        outputs = {name: self.prints.file(self.folder / name) for name in step.outputs}
        steps = {**self.state.steps, step.name: Made(needs=needs, outputs=outputs)}
        self.state = self.state.model_copy(update={"steps": steps})
        self._write_state()
        return "ran"

    def _sweep(self) -> None:
        """Remove what stopped steps that have run since or changed had kept, and half files of killed ones."""
        from brickyard.container import clear_stages

        for place in (self.folder / NOTES).glob("locate-*"):
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / NOTES).rmdir()
        for folder in {(self.folder / name).parent for name in (STATE, *self.state.owned)}:
            clear_stages(folder)

    def _claim(self, outputs: Sequence[str]) -> None:
        """Note what will be written; refuse where it would replace a file that is not from a build."""
        for name in outputs:
            path = self.folder / name
            if path.is_dir() or (path.exists() and name not in self.state.owned and not self.force):
                raise FileError(
                    f"{path} exists and is not from a build; give another outputs.folder, or --force to overwrite it"
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


# -- the steps ---------------------------------------------------------------------------------------------


class Work:
    """The steps of a recipe, and what they share: sources and images are read once."""

    def __init__(self, file: RecipeFile, folder: Path, prints: Fingerprints, trust: bool) -> None:
        self.file = file
        self.recipe = file.recipe
        self.folder = folder
        self.prints = prints
        self.trust = trust
        self._hashes: dict[tuple[str, str], str] = {}
        self._sources: dict[str, tuple[Source, ImageData]] = {}
        self._scored: dict[str, tuple[ImageData, str | None]] = {}

    def steps(self) -> list[Step]:
        """All steps, in an order in which they can run."""
        return list(self._steps())

    def _steps(self) -> Iterator[Step]:
        recipe = self.recipe
        for name in recipe.used:
            if recipe.sources[name].train is not None:
                yield self._train(name)
        for name in recipe.used:
            yield self._locate(name)
        for name in recipe.components:
            yield self._cut(name)
        if recipe.assembly is not None:
            yield self._assemble()
        if recipe.evaluate is not None:
            subjects = [*recipe.components, *(["assembly"] if recipe.assembly is not None else [])]
            for name in recipe.components:
                yield self._evaluate(name, _component_scores(name), [name])
            if recipe.assembly is not None:
                yield self._evaluate("assembly", "scores/assembly.json", list(recipe.parts))
            yield self._tables(subjects)
        yield from self._cards()
        copy = self.folder / "recipe.yaml"
        if copy.resolve() != self.file.path.resolve():
            sha = hashlib.sha256(self.file.content).hexdigest()
            needs = {"file of the recipe": sha}
            yield Step("copy the recipe", ("recipe.yaml",), (), needs, lambda: self._write("recipe.yaml", None))

    def unweighted(self) -> list[str]:
        """The sources that were never trained, as far as the recipe says."""
        kinds = ("zoo:", "torchvision:", "timm:")
        sources = {name: self.recipe.sources[name] for name in self.recipe.used}
        return [name for name, s in sources.items() if (s.network or "").startswith(kinds) and s.weights is None]

    # -- what steps depend on

    def _versions(self) -> dict[str, str]:
        return {"Brickyard": __version__, "PyTorch": version("torch")}

    def _images_need(self, text: str, split: str) -> dict[str, str]:
        found = self._hashes.get((text, split))
        if found is None:
            found = self._hashes[text, split] = self.prints.data(self.file.resolved(text), split)
        return {f"images {text} ({split})": found}

    def _source_need(self, name: str) -> dict[str, str]:
        """What a source is made of, but for one that is trained: that is an input."""
        source = self.recipe.sources[name]
        needs = {f"source {name}": json.dumps(source.said("train", "data", "locate"))}
        if source.network is None:
            return needs
        paths = [Path(source.weights)] if source.weights else []
        if ".py:" in source.network:
            paths.append(Path(source.network.rpartition(":")[0]))
            if not self.trust:
                raise self.file.problem(
                    ("sources", name, "network"),
                    f"sources.{name}.network is {source.network!r}: building runs that file's code; read it, then give "
                    "--trust-code",
                )
        elif ":" not in source.network:
            paths.append(Path(source.network))
        for path in paths:
            place = self.file.folder / path
            needs[f"file {path}"] = self.prints.file(place)
            beside = place.with_suffix(".json")
            if place.suffix != ".py" and beside.is_file():
                needs[f"file {path.with_suffix('.json')}"] = self.prints.file(beside)
        return needs

    def _trained(self, *names: str) -> tuple[str, ...]:
        """The files of sources that are trained."""
        wanted = dict.fromkeys(names)
        return tuple(_source_file(name) for name in wanted if self.recipe.sources[name].train is not None)

    def _of(self, *components: str) -> list[str]:
        """The sources of components, each once."""
        return list(dict.fromkeys(self.recipe.components[name].source for name in components))

    def _all_needs(self, sources: Sequence[str], images: bool) -> dict[str, str]:
        needs = self._versions()
        for name in sources:
            needs |= self._source_need(name)
            needs |= self._images_need(self.recipe.sources[name].images, "train") if images else {}
        return needs

    # -- what is read once

    def _source(self, name: str) -> tuple[Source, ImageData]:
        """A source under its name in the recipe, and its training images, numbered as it numbers its classes."""
        from brickyard.commands.common import data_of, fitted, named_after, source_of

        if name not in self._sources:
            said = self.recipe.sources[name]
            if said.train is not None:
                source = source_of(str(self.folder / _source_file(name)), None, None, None)
                title = said.train.network
            else:
                weights = None if said.weights is None else self.file.folder / said.weights
                title = said.network or ""
                source = source_of(self.file.resolved(title), weights, said.class_names, self._how(name))
            images = data_of(self.file.resolved(said.images), source.preprocessing)
            source = named_after(source, images)
            short = title.partition("?")[0].rpartition("/")[2]
            self._sources[name] = replace(source, name=f"{name} ({short})"), fitted(images, source.classes)
        return self._sources[name]

    def _test_images(self, name: str) -> tuple[ImageData, str | None]:
        """The images that a source's components are scored on, and what is to be said of them."""
        from brickyard.commands.common import data_of, fitted

        said = self.recipe.evaluate
        assert said is not None
        if name not in self._scored:
            source, training = self._source(name)
            text = self.file.resolved(said.of(name))
            found = fitted(data_of(text, source.preprocessing, "test", said.max_images), source.classes)
            self._scored[name] = found, _shared_images(training, found, name)
        return self._scored[name]

    def _how(self, name: str) -> Preprocessing | None:
        said = self.recipe.sources[name].preprocessing
        return None if said is None else said.value()

    def _component(self, name: str) -> Component:
        from brickyard.commands.common import loaded
        from brickyard.component import Component

        found: Component = loaded(self.folder / _component_file(name), Component)
        return found

    def _assembled(self) -> Assembly:
        from brickyard.assembly import Assembly
        from brickyard.commands.common import loaded

        found: Assembly = loaded(self.folder / ASSEMBLY, Assembly)
        return found

    def _scores_of(self, place: str) -> Scores:
        from brickyard.manifest import validated
        from brickyard.scores import Scores

        return validated(Scores, json.loads((self.folder / place).read_text(encoding="utf-8")), place)

    def all_scores(self) -> dict[str, Any]:
        """The scores by name, as JSON values."""
        place = self.folder / TABLES[0]
        if self.recipe.evaluate is None or not place.is_file():
            return {}
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found

    def _write(self, name: str, text: str | None) -> None:
        """Write a text, or the recipe."""
        from brickyard.container import write_content

        write_content(self.folder / name, self.file.content if text is None else text, overwrite=True)

    # -- train, locate, cut

    def _train(self, name: str) -> Step:
        said = self.recipe.sources[name].train
        assert said is not None

        def run() -> None:
            from brickyard.commands.common import data_of
            from brickyard.datasets import parse_classes
            from brickyard.training import train_source

            how = self._how(name)
            images = data_of(self.file.resolved(said.data), how)
            if said.classes:
                images = images.renumbered(parse_classes(said.classes, images.classes))
            options = said.model_dump(exclude={"network", "data", "classes"})
            made = train_source(said.network, images, preprocessing=how, **options)
            made.save(self.folder / _source_file(name), overwrite=True)

        needs = self._versions() | self._images_need(said.data, "train")
        needs |= _options(said.said())
        preprocessing = self.recipe.sources[name].preprocessing
        needs |= {} if preprocessing is None else {"preprocessing": json.dumps(preprocessing.said())}
        return Step(f"train {name}", (_source_file(name),), (), needs, run, ("sources", name, "train"))

    def _locate(self, name: str) -> Step:
        said = self.recipe.sources[name].locate
        tasks = {part: cut.task for part, cut in self.recipe.components.items() if cut.source == name}
        texts = sorted({text for task in tasks.values() for text in task})
        needs = self._all_needs([name], images=True) | _options(said.said()) | {"classes": json.dumps(texts)}
        key = digest(json.dumps(needs, sort_keys=True))

        def run() -> None:
            from brickyard.datasets import parse_classes
            from brickyard.locating import locate
            from brickyard.relevance import resolve_task

            source, images = self._source(name)
            notes = self.folder / NOTES / f"locate-{name}-{self._input_key(name, key)}"
            task: set[int] = set()
            for part, said_task in tasks.items():
                try:
                    task.update(resolve_task(parse_classes(said_task, source.classes), source.classes))
                except TaskError as error:
                    raise self.file.problem(
                        ("components", part, "task"),
                        f"components.{part}.task cannot be used: {error}. Ranges count the source's classes from 0; "
                        "names go by commas",
                    ) from None
            relevance = locate(
                source.model,
                images,
                classes=source.classes,
                preprocessing=source.preprocessing,
                choose=said.choose,
                per_class=said.per_class,
                task=sorted(task),
                thresholds=said.thresholds(),
                seed=said.seed,
                name=source.name,
                resume=notes,
            )
            relevance.save(self.folder / _relevance_file(name), overwrite=True)
            shutil.rmtree(notes, ignore_errors=True)

        return Step(f"locate {name}", (_relevance_file(name),), self._trained(name), needs, run, ("sources", name))

    def _input_key(self, name: str, key: str) -> str:
        """A name for the notes of locating: of all that it depends on, the trained source included."""
        return digest(key, *(self.prints.file(self.folder / place) for place in self._trained(name)))[:16]

    def _cut(self, name: str) -> Step:
        said: ComponentRecipe = self.recipe.components[name]

        def run() -> None:
            from brickyard.commands.common import loaded
            from brickyard.datasets import parse_classes
            from brickyard.disassembling import disassemble
            from brickyard.relevance import Relevance

            source, images = self._source(said.source)
            relevance: Relevance = loaded(self.folder / _relevance_file(said.source), Relevance)
            budget = said.budget()
            component = disassemble(
                source.model,
                relevance,
                task=parse_classes(said.task, relevance.classes),
                thresholds=None if budget else said.thresholds(relevance.thresholds),
                budget=budget,
                select=said.select,
                reject=said.reject,
                heal=said.heal,
                images=images,
                heal_images=said.heal_images,
                ridge=said.ridge,
                seed=said.seed,
            )
            component.save(self.folder / _component_file(name), overwrite=True)

        inputs = (*self._trained(said.source), _relevance_file(said.source))
        needs = self._all_needs([said.source], images=True) | _options(said.said("source"))
        return Step(f"cut {name}", (_component_file(name),), inputs, needs, run, ("components", name))

    # -- assemble, evaluate

    def _assemble(self) -> Step:
        said = self.recipe.assembly
        assert said is not None
        parts = self.recipe.parts
        sources = self._of(*parts)
        few = _few_shot(said.scaling)
        union = said.form == "union"

        def run() -> None:
            from brickyard.assembling import assemble

            images = [self._source(self.recipe.components[name].source)[1] for name in parts] if few else None
            whole = assemble(
                [self._component(name) for name in parts],
                form=said.form,
                scaling=said.scaling,
                images=images,
                shots=said.shots if few else None,
                on_duplicate=said.on_duplicate,
                votes=said.votes,
                source=self._source(sources[0])[0].model if union else None,
                seed=said.seed,
            )
            whole.save(self.folder / ASSEMBLY, overwrite=True)

        needs = self._all_needs(sources, images=few) if few or union else self._versions()
        idle = () if few else ("shots", "seed")
        needs |= _options(said.said("parts", *idle)) | {"parts": json.dumps(parts)}
        inputs = (*(self._trained(*sources) if few or union else ()), *map(_component_file, parts))
        return Step("assemble", (ASSEMBLY,), inputs, needs, run, ("assembly",))

    def _evaluate(self, name: str, place: str, parts: list[str]) -> Step:
        said = self.recipe.evaluate
        assert said is not None
        whole = place == "scores/assembly.json"
        origins = [self.recipe.components[part].source for part in parts]
        sources = self._of(*parts)

        def run() -> None:
            from brickyard.evaluation import evaluate

            images = [self._test_images(origin)[0] for origin in origins]
            models: list[Any] = [self._source(origin)[0].model for origin in origins]
            notes = [note for origin in sources if (note := self._test_images(origin)[1])]
            if whole:
                scores = evaluate(self._assembled(), images, source=models, latency=said.latency)
            else:
                scores = evaluate(self._component(name), images[0], source=models[0], latency=said.latency)
            scores = scores.model_copy(update={"notes": (*scores.notes, *notes)})
            scores.to_json(self.folder / place)

        needs = self._all_needs(sources, images=True) | _options(said.said("data"))
        for origin in sources:
            needs |= self._images_need(said.of(origin), "test")
        inputs = (*self._trained(*sources), ASSEMBLY if whole else _component_file(name))
        title = f"evaluate {'the assembly' if whole else name}"
        return Step(title, (place,), inputs, needs, run, ("evaluate",))

    def _tables(self, subjects: Sequence[str]) -> Step:
        places = {name: _scores_file(name, self.recipe.assembly is not None) for name in subjects}

        def run() -> None:
            from brickyard.cards import score_table

            found = {name: self._scores_of(place) for name, place in places.items()}
            values = {name: scores.as_dict() for name, scores in found.items()}
            self._write(TABLES[0], json.dumps(values, indent=1, ensure_ascii=False) + "\n")
            self._write(TABLES[1], _csv(found))
            texts = [f"## {name}\n\n{score_table(scores)}\n" for name, scores in found.items()]
            self._write(TABLES[2], "\n".join(texts))

        return Step("tabulate", TABLES, tuple(places.values()), {"Brickyard": __version__}, run)

    # -- cards

    def _cards(self) -> Iterator[Step]:
        recipe = self.recipe
        if recipe.assembly is not None:
            yield self._card("write the card", CARD, None)
            return
        for name in recipe.components:
            alone = len(recipe.components) == 1
            yield self._card(f"write the card of {name}", CARD if alone else f"components/{name}.md", name)

    def _card(self, title: str, place: str, name: str | None) -> Step:
        """The card of the assembly, or of one component."""
        recipe = self.recipe
        parts = list(recipe.parts) if name is None else [name]
        model = ASSEMBLY if name is None else _component_file(name)
        scored = {} if recipe.evaluate is None else {part: _component_scores(part) for part in parts}
        if recipe.evaluate is not None and name is None:
            scored["assembly"] = "scores/assembly.json"
        data = None
        if recipe.evaluate is not None:
            data = " and ".join(dict.fromkeys(_called(recipe.evaluate.of(name)) for name in self._of(*parts)))

        def run() -> None:
            from brickyard.cards import model_card

            text = model_card(
                self._assembled() if name is None else self._component(name),
                {key: self._scores_of(file) for key, file in scored.items()},
                recipe.license,
                title=recipe.name if name is None or place == CARD else f"{recipe.name or 'Component'}: {name}",
                file=model if place == CARD else f"{name}.safetensors",
                data=data,
                names=parts,
            )
            self._write(place, text)

        said = {"name": recipe.name, "license": recipe.license, "scored on": data}
        needs = {"Brickyard": __version__} | {key: value for key, value in said.items() if value is not None}
        return Step(title, (place,), (model, *scored.values()), needs, run)


def _source_file(name: str) -> str:
    return f"sources/{name}.safetensors"


def _relevance_file(name: str) -> str:
    return f"relevance/{name}.safetensors"


def _component_file(name: str) -> str:
    return f"components/{name}.safetensors"


def _component_scores(name: str) -> str:
    return f"scores/components/{name}.json"


def _scores_file(name: str, assembled: bool) -> str:
    return "scores/assembly.json" if assembled and name == "assembly" else _component_scores(name)


def _options(said: dict[str, Any]) -> dict[str, str]:
    """Options one by one, so that a plan can say which has changed."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in said.items()}


def _few_shot(scaling: str) -> bool:
    if scaling == "none":
        return False
    from brickyard.scaling import find

    return find(scaling).few_shot


def _shared_images(training: ImageData, scored: ImageData, source: str) -> str | None:
    """What to say of images that are scored and were there to locate, heal and scale with.

    Raises:
        DataError: All of them are.
    """

    def hashes(data: ImageData) -> list[bytes]:
        return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in data.images]

    known = set(hashes(training))
    count = sum(item in known for item in hashes(scored))
    if count and count == len(scored):
        raise DataError(
            f"all {count} images to score of source {source!r} are among its training images; images that were used to "
            "locate, heal or scale are not scored: give others at evaluate.data"
        )
    if not count:
        return None
    return f"{count} of the {len(scored)} scored images of {source} are equal to one of its training images"


def _called(text: str) -> str:
    """What a card calls data: no folder of this machine."""
    path, mark, options = text.partition("?")
    if path == "digits" and "split=" not in options:
        return f"the test split of {text}"
    return Path(path).name + mark + options


def _csv(tables: dict[str, Scores]) -> str:
    """All rows of several tables, with the table's name first."""
    import csv
    import io

    from brickyard.scores import Row

    text = io.StringIO()
    fields = [name for name in Row.model_fields if name != "latency"]
    writer = csv.DictWriter(text, ["of", *fields, "latency_ms"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, scores in tables.items():
        for row in scores.rows:
            writer.writerow({"of": name, **row.model_dump(), "latency_ms": (row.latency or {}).get("median_ms")})
    return text.getvalue()
