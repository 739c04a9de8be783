"""The steps of a build: what each reads, makes and writes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brickyard._version import __version__
from brickyard.base._declare import checked, gathered
from brickyard.base._errors import DataError, TaskError
from brickyard.base._messages import json_text
from brickyard.base._options import AssembleOptions, DisassembleOptions, EvaluateOptions, LocateOptions
from brickyard.recipes._fingerprints import Fingerprints, digest, source_files
from brickyard.recipes._recipe_file import NAMED, RecipeFile
from brickyard.recipes._schema import ComponentRecipe, Task

if TYPE_CHECKING:
    from brickyard.assembly._assembly import Assembly
    from brickyard.base._records import Preprocessing
    from brickyard.component._component import Component
    from brickyard.evaluation._scores import Scores
    from brickyard.inputs._datasets import ImageData
    from brickyard.relevance._relevance import Relevance
    from brickyard.sources._loading import Source


NOTES = ".build"  # a folder for what a step that was stopped has done so far
ASSEMBLY = "assembly.safetensors"
CARD = "README.md"
TABLES = ("scores.json", "scores.csv", "scores.md")
WHOLE_SCORES = "scores/assembly.json"  # no component is called so

_source_file = "sources/{}.safetensors".format
_relevance_file = "relevance/{}.safetensors".format
_component_file = "components/{}.safetensors".format
_component_scores = "scores/components/{}.json".format

_READ = 256  # images that are read at once
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

    def steps(self) -> Iterator[Step]:
        """All steps, in an order in which they can run."""
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
            for name in recipe.components:
                yield self._evaluate(name)
            if recipe.assembly is not None:
                yield self._evaluate(None)
            yield self._tables()
        yield from self._cards()
        copy = self.folder / "recipe.yaml"
        if copy.resolve() != self.file.path.resolve():
            needs = {"file of the recipe": hashlib.sha256(self.file.content).hexdigest()}
            yield Step(
                "copy the recipe", ("recipe.yaml",), (), needs, lambda: self._write("recipe.yaml", self.file.content)
            )

    def unweighted(self) -> list[str]:
        """The sources that were never trained, as far as the recipe says."""
        sources = {name: self.recipe.sources[name] for name in self.recipe.used}
        return [name for name, s in sources.items() if (s.network or "").startswith(NAMED) and s.weights is None]

    # -- what steps depend on

    def _versions(self) -> dict[str, str]:
        return {"Brickyard": __version__, "PyTorch": version("torch")}

    def _numbers(self) -> dict[str, str]:
        """The type of numbers that networks are brought to, where one was asked for."""
        from brickyard.network._place import Place

        asked = Place.of().dtype
        return {} if asked is None else {"dtype": str(asked).removeprefix("torch.")}

    def _images_need(self, text: str, split: str) -> dict[str, str]:
        if (text, split) not in self._hashes:
            self._hashes[text, split] = self.prints.data(self.file.resolved(text), split)
        return {f"images {text} ({split})": self._hashes[text, split]}

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
                why = f"sources.{name}.network runs the code of {source.network!r}; read it, then give --trust-code"
                raise self.file.problem(("sources", name, "network"), why)
        elif ":" not in source.network:
            paths.append(Path(source.network))
        for path in paths:
            for place in source_files(self.file.folder / path):
                needs[f"file {path.parent / os.path.relpath(place, (self.file.folder / path).parent)}"] = (
                    self.prints.file(place)
                )
        return needs

    def _trained(self, *names: str) -> tuple[str, ...]:
        """The files of sources that are trained."""
        trained = [name for name in dict.fromkeys(names) if self.recipe.sources[name].train is not None]
        return tuple(map(_source_file, trained))

    def _of(self, *components: str) -> list[str]:
        """The sources of components, each once."""
        return list(dict.fromkeys(self.recipe.components[name].source for name in components))

    def _all_needs(self, sources: Sequence[str], images: bool) -> dict[str, str]:
        needs = self._versions() | self._numbers()
        for name in sources:
            needs |= self._source_need(name)
            needs |= self._images_need(self.recipe.sources[name].images, "train") if images else {}
        return needs

    # -- what is read once

    def _source(self, name: str) -> tuple[Source, ImageData]:
        """A source under its name in the recipe, and its training images, numbered as it numbers its classes."""
        from brickyard.sources._resolve import data_of, fitted, kind_of, named_after, source_of

        if name not in self._sources:
            said = self.recipe.sources[name]
            if said.train is not None:
                source = source_of(str(self.folder / _source_file(name)), None, None, None)
                title = said.train.network
            else:
                weights = None if said.weights is None else self.file.folder / said.weights
                title = said.network or ""
                network, how = self.file.resolved(title), self._how(name)
                which: dict[str, Any] = {"random_weights": said.random_weights, "output_name": said.output_name}
                source = source_of(network, weights, said.class_names, how, **which)
            kind: Any = {"outputs": kind_of(source, dict(said.locate)["outputs"]), "shape": source.input_shape}
            images = data_of(self.file.resolved(said.images), source.preprocessing, **kind)
            source = named_after(source, images)
            short = title.partition("?")[0].rpartition("/")[2]
            self._sources[name] = replace(source, name=f"{name} ({short})"), fitted(images, source.classes)
        return self._sources[name]

    def _test_images(self, name: str) -> tuple[ImageData, str | None]:
        """The images that a source's components are scored on, and what is to be said of them."""
        from brickyard.sources._resolve import data_of, fitted, kind_of

        said = self.recipe.evaluate
        assert said is not None
        if name not in self._scored:
            source, training = self._source(name)
            text = self.file.resolved(said.of(name))
            outputs = kind_of(source, dict(self.recipe.sources[name].locate)["outputs"])
            kind: Any = {"outputs": outputs, "shape": source.input_shape}
            images = data_of(text, source.preprocessing, "test", said.max_images, **kind)
            found = fitted(images, source.classes)
            including = bool(dict(said)["including_calibration"])
            self._scored[name] = found, _shared_images(training, found, name, source.preprocessing, including)
        return self._scored[name]

    def _how(self, name: str) -> Preprocessing | None:
        said = self.recipe.sources[name].preprocessing
        return None if said is None else said.value()

    def _model(self, name: str | None) -> Component | Assembly:
        """A component, or the assembly."""
        from brickyard._files import loaded
        from brickyard.assembly._assembly import Assembly
        from brickyard.component._component import Component

        place, kind = (ASSEMBLY, Assembly) if name is None else (_component_file(name), Component)
        found: Component | Assembly = loaded(self.folder / place, kind)
        return found

    def _scores_of(self, place: str) -> Scores:
        from brickyard.base._frozen import validated
        from brickyard.evaluation._scores import Scores

        return validated(Scores, json.loads((self.folder / place).read_text(encoding="utf-8")), place)

    def all_scores(self) -> dict[str, Any]:
        """The scores by name, as JSON values."""
        place = self.folder / TABLES[0]
        there = self.recipe.evaluate is not None and place.is_file()
        return dict(json.loads(place.read_text(encoding="utf-8"))) if there else {}

    def _write(self, name: str, content: str | bytes) -> None:
        from brickyard.storage._atomic import write_content

        write_content(self.folder / name, content, overwrite=True)

    # -- train, locate, cut

    def _train(self, name: str) -> Step:
        said = self.recipe.sources[name].train
        assert said is not None

        def run() -> None:
            from brickyard.base._classes import parse_classes
            from brickyard.sources._resolve import data_of
            from brickyard.training._sources import train_source

            how = self._how(name)
            images = data_of(self.file.resolved(said.data), how)
            if said.classes:
                images = images.renumbered(parse_classes(said.classes, images.classes))
            options = said.model_dump(exclude={"network", "data", "classes"})
            made = train_source(said.network, images, preprocessing=how, **options)
            made.save(self.folder / _source_file(name), overwrite=True)

        needs = self._versions() | self._images_need(said.data, "train") | _options(said.said())
        if (preprocessing := self.recipe.sources[name].preprocessing) is not None:
            needs["preprocessing"] = json.dumps(preprocessing.said())
        return Step(f"train {name}", (_source_file(name),), (), needs, run, ("sources", name, "train"))

    def _locate(self, name: str) -> Step:
        said = self.recipe.sources[name].locate
        tasks = {part: cut.task for part, cut in self.recipe.components.items() if cut.source == name}
        texts = sorted({text for task in tasks.values() for text in _words(task)})
        needs = self._all_needs([name], images=True) | _options(said.said()) | {"classes": json.dumps(texts)}
        key = digest(json.dumps(needs, sort_keys=True))

        def run() -> None:
            from brickyard.base._classes import task_classes
            from brickyard.relevance._locate import check_savable, located

            source, images = self._source(name)
            trained = (self.prints.file(self.folder / place) for place in self._trained(name))
            notes = self.folder / NOTES / f"locate-{name}-{digest(key, *trained)[:16]}"
            task: set[int] = set()
            for part, said_task in tasks.items():
                try:
                    task.update(task_classes(_classes(said_task, source.classes), source.classes))
                except TaskError as error:
                    why = f"components.{part}.task cannot be used: {error}. Ranges count from 0; names go by commas"
                    raise self.file.problem(("components", part, "task"), why) from None
            given = gathered(LocateOptions, dict(said)) | {
                "classes": source.classes,
                "preprocessing": source.preprocessing,
                "task": sorted(task),
                "accuracy": source.accuracy,
                "name": source.name,
                "output": source.output,
                "resume": notes,
            }
            options: Any = checked(LocateOptions, given, "locate")
            relevance = located(source.model, images, options, check_savable)
            relevance.record = relevance.record.model_copy(update={"assumed": source.assumed})
            relevance.save(self.folder / _relevance_file(name), overwrite=True)
            shutil.rmtree(notes, ignore_errors=True)

        return Step(f"locate {name}", (_relevance_file(name),), self._trained(name), needs, run, ("sources", name))

    def _cut(self, name: str) -> Step:
        said: ComponentRecipe = self.recipe.components[name]

        def run() -> None:
            from brickyard._files import loaded
            from brickyard.component._disassemble import disassemble
            from brickyard.relevance._relevance import Relevance

            source, images = self._source(said.source)
            relevance: Relevance = loaded(self.folder / _relevance_file(said.source), Relevance)
            options = gathered(DisassembleOptions, dict(said), thresholds=relevance.thresholds)
            options["task"] = _classes(said.task, relevance.classes)
            component = disassemble(source.model, relevance, images=images, **options)
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
        options = gathered(AssembleOptions, dict(said))
        few = _few_shot(options["scaling"])
        union, cascade = options["form"] == "union", options["form"] == "cascade"
        limited = "budget" in options or options["form"] == "merged"
        shown = few or cascade or limited

        def run() -> None:
            from brickyard.assembly._assemble import assemble
            from brickyard.sources._resolve import check_seen_by_all

            models = [self._model(name) for name in parts]
            if shown:
                check_seen_by_all([part for one in models for part in one.manifest.parts])
            data = [self._source(self.recipe.components[name].source)[1] for name in parts] if shown else []
            own = zip(data, models, strict=True) if cascade else ()
            stream = [images.of_classes(model.manifest.parts[0].task) for images, model in own]
            whole = assemble(
                models,
                images=data if few else None,
                calibration=data if limited else stream or None,
                source=self._source(sources[0])[0].model if union else None,
                **{**options, "shots": options.get("shots") if few else None},
            )
            whole.save(self.folder / ASSEMBLY, overwrite=True)

        needs = self._all_needs(sources, images=shown) if shown or union else self._versions() | self._numbers()
        idle = () if few else ("shots",) if cascade or limited else ("shots", "seed")
        needs |= _options(said.said("parts", *idle)) | {"parts": json.dumps(parts)}
        inputs = (*(self._trained(*sources) if shown or union else ()), *map(_component_file, parts))
        return Step("assemble", (ASSEMBLY,), inputs, needs, run, ("assembly",))

    def _evaluate(self, name: str | None) -> Step:
        """Score a component, or the assembly."""
        said = self.recipe.evaluate
        assert said is not None
        parts = self.recipe.parts if name is None else (name,)
        place = WHOLE_SCORES if name is None else _component_scores(name)
        origins = [self.recipe.components[part].source for part in parts]
        sources = self._of(*parts)

        def run() -> None:
            from brickyard.evaluation._evaluate import evaluate
            from brickyard.sources._resolve import check_seen_by_all

            options, model = gathered(EvaluateOptions, dict(said)), self._model(name)
            check_seen_by_all(model.manifest.parts)
            images = [self._test_images(origin)[0] for origin in origins]
            models: list[Any] = [self._source(origin)[0].model for origin in origins]
            notes = [note for origin in sources if (note := self._test_images(origin)[1])]
            given = (images, models) if name is None else (images[0], models[0])
            scores = evaluate(model, given[0], source=given[1], **options)
            scores = scores.model_copy(update={"notes": (*scores.notes, *notes)})
            scores.to_json(self.folder / place)

        needs = self._all_needs(sources, images=True) | _options(said.said("data"))
        for origin in sources:
            needs |= self._images_need(said.of(origin), "test")
        inputs = (*self._trained(*sources), ASSEMBLY if name is None else _component_file(name))
        return Step(f"evaluate {name or 'the assembly'}", (place,), inputs, needs, run, ("evaluate",))

    def _tables(self) -> Step:
        places = {name: _component_scores(name) for name in self.recipe.components}
        places |= {} if self.recipe.assembly is None else {"assembly": WHOLE_SCORES}

        def run() -> None:
            from brickyard.reports._cards import score_table

            found = {name: self._scores_of(place) for name, place in places.items()}
            values = {name: scores.as_dict() for name, scores in found.items()}
            self._write(TABLES[0], json_text(values, 1) + "\n")
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
        data = None
        if recipe.evaluate is not None:
            scored |= {"assembly": WHOLE_SCORES} if name is None else {}
            data = " and ".join(dict.fromkeys(_called(recipe.evaluate.of(name)) for name in self._of(*parts)))

        def run() -> None:
            from brickyard.reports._cards import model_card

            text = model_card(
                self._model(name),
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


def _words(task: Task) -> list[str]:
    """What a task says of the classes to locate."""
    return [text for members in task.values() for text in members] if isinstance(task, Mapping) else list(task)


def _classes(task: Task, names: Sequence[str]) -> Any:
    """A task as `disassemble` takes it, of a source whose classes have these names."""
    from brickyard.base._classes import parse_classes

    if not isinstance(task, Mapping):
        return parse_classes(task, names)
    return {
        name: members[0] if len(members) == 1 and "+" in members[0] else parse_classes(members, names)
        for name, members in task.items()
    }


def _options(said: dict[str, Any]) -> dict[str, str]:
    """Options one by one, so that a plan can say which has changed."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in said.items()}


def _few_shot(scaling: str) -> bool:
    if scaling in ("auto", "none"):
        return False
    from brickyard.scaling._strategies import find

    return find(scaling).few_shot


def _shared_images(
    training: ImageData, scored: ImageData, source: str, how: Preprocessing | None, including: bool
) -> str | None:
    """What to say of images to score that are among those that a source's components may be made with.

    Raises:
        DataError: All of them are.
    """
    from brickyard.inputs._batches import Images
    from brickyard.inputs._content import as_bytes

    def shown(data: ImageData) -> list[bytes]:
        images = Images(data, how, label_dims=data.labels.ndim)
        return as_bytes(images.marks(range(len(images)), batch_size=_READ))

    known = set(shown(training))
    count = sum(item in known for item in shown(scored))
    if not count:
        return None
    if count == len(scored) and not including:
        why = f"all {count} images to score of source {source!r} are among its training images"
        raise DataError("data-seen-in-training", f"{why}; give others at evaluate.data")
    return f"{count} of the {len(scored)} images to score of {source} are equal to one of its training images"


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

    from brickyard.evaluation._scores import Row

    text = io.StringIO()
    fields = [name for name in Row.model_fields if name != "latency"]
    writer = csv.DictWriter(text, ["of", *fields, "latency_ms"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, scores in tables.items():
        for row in scores.rows:
            writer.writerow({"of": name, **row.model_dump(), "latency_ms": (row.latency or {}).get("median_ms")})
    return text.getvalue()
