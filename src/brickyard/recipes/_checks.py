"""Checks of a recipe against what is there, before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from brickyard.base._boxes import FAMILIES, KIND
from brickyard.base._declare import declared
from brickyard.base._errors import OptionError
from brickyard.base._messages import near, nearest
from brickyard.base._options import JOINT, LIMITS, Budget, Thresholds
from brickyard.recipes._recipe_file import NAMED, Place, RecipeFile, dotted, key_of
from brickyard.recipes._schema import EVERY, VERSION, ComponentRecipe, Recipe, SourceRecipe


def said(place: Place, problem: Any) -> str:
    """A problem that pydantic found, in words."""
    if problem["type"] == "missing":
        return f"{dotted(place[:-1])} lacks the key {place[-1]!r}; add it"
    if problem["type"] in ("model_type", "dict_type"):
        return f"{dotted(place)} is {problem['input']!r}; a mapping is needed"
    why = str(problem["msg"]).removeprefix("Value error, ")
    return f"{dotted(place)} is {problem['input']!r}; {why[:1].lower()}{why[1:]}"


# -- what fits together ------------------------------------------------------------------------------------


def problems_of(file: RecipeFile) -> Iterator[tuple[Place, str]]:
    """What is wrong between the keys of a recipe, in the order of its sections."""
    recipe = file.recipe
    if recipe.brickyard != VERSION:
        yield ("brickyard",), f"recipe version {recipe.brickyard} was asked for; this Brickyard reads {VERSION}"
    for name, source in recipe.sources.items():
        yield from _source_problems(file, ("sources", name), source)
    for name, component in recipe.components.items():
        yield from _component_problems(recipe, ("components", name), component)
    yield from _assembly_problems(recipe)
    yield from _evaluate_problems(file)


def _source_problems(file: RecipeFile, place: Place, source: SourceRecipe) -> Iterator[tuple[Place, str]]:
    what = dotted(place)
    if (source.network is None) == (source.train is None):
        given = "both were" if source.train else "neither was"
        yield place, f"{what} needs one of 'network' and 'train'; {given} given"
    if source.train is not None:
        for key in ("weights", "class_names", "output_name"):
            if getattr(source, key) is not None:
                name = key_of(key)
                yield (*place, name), f"{what}.{name} would change nothing: the source is trained; remove it"
        yield from _zoo_problems((*place, "train", "network"), source.train.network)
        yield from _data_problems(file, (*place, "train", "data"), source.train.data)
    if (kind := dict(source.locate)["outputs"]) in (*FAMILIES, KIND):
        why = f"{what}.locate.outputs is {kind!r}, and recipes are for classifiers"
        yield (*place, "locate", "outputs"), f"{why}; cut detectors with the command disassemble, or in Python"
    if source.network is not None:
        if source.data is None:
            yield place, f"{what} lacks the key 'data'; add its training images, to locate and to heal with"
        yield from _network_problems(file, (*place, "network"), source.network)
        bare = source.network.startswith(("zoo:", *NAMED)) and source.weights is None
        if bare and not source.random_weights:
            yield (
                place,
                (
                    f"{what} has a network without weights, which would be cut as it is initialised; add 'weights', or "
                    "'random-weights: true' where that is meant"
                ),
            )
    if source.weights is not None and not _there(file.folder / source.weights, plain=True):
        yield (*place, "weights"), f"{what}.weights is {source.weights!r}, and there is no such file; check the path"
    if source.data is not None:
        yield from _data_problems(file, (*place, "data"), source.data)
    if source.preprocessing is not None:
        try:
            source.preprocessing.value()
        except OptionError as error:
            yield (*place, "preprocessing"), f"{what}.{error}"


def _network_problems(file: RecipeFile, place: Place, text: str) -> Iterator[tuple[Place, str]]:
    path = text.rpartition(":")[0] if ".py:" in text else text
    if text.startswith("zoo:"):
        yield from _zoo_problems(place, text)
    elif text.startswith(NAMED):
        return
    elif ".py:" not in text and not text.endswith((".safetensors", ".onnx")):
        forms = "zoo:NAME, torchvision:NAME, timm:NAME, file.py:function, or an .onnx or .safetensors file of a source"
        yield place, f"{dotted(place)} is {text!r}, which is not a source; give {forms}"
    elif not _there(file.folder / path, plain=True):
        yield place, f"{dotted(place)} is {text!r}, and there is no file {path!r} in the recipe's folder"


def _zoo_problems(place: Place, text: str) -> Iterator[tuple[Place, str]]:
    from brickyard.sources import _zoo as zoo

    name = text.removeprefix("zoo:").partition("?")[0]
    try:
        known = name == "auto" or bool(zoo.entry(name))
    except OptionError:
        known = False
    if not known:
        yield place, f"{dotted(place)} is {text!r}, and the zoo has no {name!r}{nearest(name, zoo.available())}"


def _there(path: Path, plain: bool = False) -> bool:
    """Whether a path leads anywhere, or to a plain file; one that no system takes does not."""
    try:
        return path.is_file() if plain else path.exists()
    except (OSError, ValueError):
        return False


def _data_problems(file: RecipeFile, place: Place, text: str) -> Iterator[tuple[Place, str]]:
    from brickyard.inputs._datasets import place_and_options

    path, options = place_and_options(file.resolved(text))
    for key in options:
        if key not in ("split", "classes"):
            yield place, f"{dotted(place)} is {text!r} with the option {key!r}{nearest(key, ('split', 'classes'))}"
    if path != "digits" and not _there(Path(path)):
        hint = near(Path(path).name, ["digits"]) or "; check the path"
        yield place, f"{dotted(place)} is {text!r}, and there is no file or folder {path!r}{hint}"


def _component_problems(recipe: Recipe, place: Place, part: ComponentRecipe) -> Iterator[tuple[Place, str]]:
    what = dotted(place)
    if place[-1] == "assembly":
        yield (*place, "key"), "a component is called 'assembly', as the whole is in the score table; name it otherwise"
    if part.source not in recipe.sources:
        hint = nearest(part.source, recipe.sources)
        yield (*place, "source"), f"{what}.source is {part.source!r}, and there is no such source{hint}"
    budget = [key for key in LIMITS if getattr(part, key) is not None]
    yield from _limit_problems(place, budget)
    idle = declared(Thresholds) if budget else ("select", *(key for key in declared(Budget) if key not in LIMITS))
    for key in idle:
        if getattr(part, key) != ComponentRecipe.model_fields[key].default:
            name = key_of(key)
            why = "is for a budget, and none was given; add 'flops', 'parameters' or 'agreement'"
            if budget:
                why = f"is a threshold, and {budget[0]!r} a budget; a component has one of them: remove the other"
            yield (*place, name), f"{what}.{name} {why}"


def _limit_problems(place: Place, budget: Sequence[str]) -> Iterator[tuple[Place, str]]:
    if len(budget) > 1:
        given = f"{budget[0]!r} and {budget[1]!r}"
        yield (*place, budget[1]), f"{dotted(place)} has {given}; a budget is one of them: remove the other"


def _assembly_problems(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    assembly = recipe.assembly
    if assembly is None:
        return
    place: Place = ("assembly", "parts")
    for index, name in enumerate(assembly.parts or ()):
        if name not in recipe.components:
            yield (*place, index), f"assembly.parts has {name!r}, no component{nearest(name, recipe.components)}"
        if name in (assembly.parts or ())[:index]:
            yield (*place, index), f"assembly.parts has {name!r} twice; name every component once"
    sources = {recipe.components[name].source for name in recipe.parts if name in recipe.components}
    options = dict(assembly)
    if options["form"] == "union" and len(sources) > 1:
        found = f"assembly.form is 'union', and its parts come from {', '.join(sorted(sources))}"
        yield ("assembly", "form"), f"{found}; a union has one source: use 'parallel'"
    budget = [key for key in JOINT if key in LIMITS and options.get(key) is not None]
    yield from _limit_problems(("assembly",), budget)
    judged = options["form"] in ("cascade", "merged")
    if options["agreement"] is not None and not judged:
        why = f"assembly.agreement is for forms 'cascade' and 'merged', not {options['form']!r}"
        yield ("assembly", "agreement"), f"{why}; remove it"
    if budget and judged:
        why = (
            f"assembly.form is {options['form']!r}, which takes images of its own, so there is no budget for all parts"
        )
        yield ("assembly", budget[0]), f"{why}; give each component one"
    for key in () if budget else (key for key in JOINT if options.get(key) is not None):
        why = "is for a budget, and none was given; add 'flops' or 'parameters'"
        yield ("assembly", key_of(key)), f"assembly.{key_of(key)} {why}"
    if options["votes"] and not any(dict(part)["reject"] for part in recipe.components.values()):
        yield ("assembly", "votes"), "assembly.votes needs parts with 'reject: true'; add it to some, or remove votes"


def _evaluate_problems(file: RecipeFile) -> Iterator[tuple[Place, str]]:
    recipe, place = file.recipe, ("evaluate", "data")
    if recipe.evaluate is None:
        return
    texts = recipe.evaluate.data
    for name, text in texts.items():
        if name != EVERY and name not in recipe.sources:
            hint = nearest(name, recipe.sources)
            yield (*place, name, "key"), f"evaluate.data has {name!r}, and there is no such source{hint}"
        yield from _data_problems(file, place if name == EVERY else (*place, name), text)
    missing = [name for name in recipe.used if name not in texts and EVERY not in texts]
    if missing:
        yield place, f"evaluate.data lacks test images of the source {missing[0]!r}; add them"
