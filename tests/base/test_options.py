"""One declaration of an option: one that is added is found and checked everywhere, without any other change."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.base._declare import checked, declared, flat
from brickyard.base._options import (
    CRITERIA,
    SCALINGS,
    AssembleOptions,
    DisassembleOptions,
    EvaluateOptions,
    FinetuneOptions,
    LocateOptions,
)
from brickyard.recipes._schema import AssemblyRecipe, ComponentRecipe
from brickyard.scaling._scale import Scale
from brickyard.scaling._strategies import SCALINGS as STRATEGIES
from brickyard.scaling._strategies import scaling
from brickyard.selection._importance import CRITERIA as RANKINGS
from brickyard.selection._importance import criterion
from brickyard.testing import chain
from shell import python, run

ROOT = Path(__file__).parents[2]
VERBS = {
    by.locate: LocateOptions,
    by.disassemble: DisassembleOptions,
    by.assemble: AssembleOptions,
    by.evaluate: EvaluateOptions,
    by.finetune: FinetuneOptions,
}

# What is found of an option everywhere. In a process of its own it is declared first, before anything reads that.
EVERYWHERE = """
import inspect, json, sys, tempfile

import brickyard as by
from brickyard.base._errors import OptionError
from brickyard.cli._app import app
from brickyard.recipes import _schema
from brickyard.workbench._bench import Bench, Plan
from brickyard.workbench._limits import Limits
from typer.testing import CliRunner

sys.path.insert(0, TOOLS)
import options_table

def refused(call):
    try:
        call()
    except (OptionError, ValueError, TypeError) as error:
        return type(error).__name__
    return ""

found = {}
for verb, option, recipe, given, own in (
    ("disassemble", "sharpness", "ComponentRecipe", {"relevance": None, "task": [0]}, {"source": "a", "task": "0"}),
    ("assemble", "smoothness", "AssemblyRecipe", {}, {}),
):
    section = getattr(_schema, recipe)
    parameter = inspect.signature(getattr(by, verb)).parameters.get(option)
    field = section.model_fields.get(option)
    shown = CliRunner().invoke(app, [verb, "--help"]).output
    help = f"Change the {option} by this much."
    bench = Bench(tempfile.mkdtemp(), Limits())
    found[verb] = {
        "signature": None if parameter is None else parameter.default,
        "docstring": help in getattr(by, verb).__doc__,
        "help": f"--{option}" in shown and f"Change the {option}" in shown,
        "schema": None if field is None else field.default,
        "table": f"| `{option}` | {help} | `0.25` |" in options_table.options_page(),
        "recipes": f"| `{option}` |" in options_table.recipes_page((options_table.DOCS / "recipes.md").read_text()),
        "form": [item["default"] for item in bench.overview()["options"] if item["name"] == option],
        "call": refused(lambda: getattr(by, verb)(None, **given, **{option: 2})),
        "recipe": refused(lambda: section(**own, **{option: 2})),
        "plan": refused(lambda: Plan.of({"bricks": [], option: 2}, Limits())),
        "plan-value": refused(lambda: Plan.of({"bricks": [], option: 0.5}, Limits())),
    }
"""
ADDED = """
from typing import Annotated
from brickyard.base import _options
from brickyard.base._declare import Opt

for holder, option in ((_options.DisassembleOptions, "sharpness"), (_options.AssembleOptions, "smoothness")):
    declared = Opt(default=0.25, least=0, most=1, help=f"Change the {option} by this much.")
    holder.__annotations__[option] = Annotated[float, declared]
"""


def test_an_option_that_is_added_is_everywhere() -> None:
    pytest.importorskip("fastapi")
    tools = f"TOOLS = {str(ROOT / 'tools')!r}\n"
    with_it = json.loads(python(ADDED + tools + EVERYWHERE + "print(json.dumps(found))"))
    without: dict[str, Any] = {}
    exec(tools + EVERYWHERE, without)  # noqa: S102
    for verb, added in with_it.items():
        plain = without["found"][verb]
        assert added["signature"] == added["schema"] == 0.25
        assert all(added[place] for place in ("docstring", "help", "table", "recipes"))
        assert added["call"] == "OptionError"
        assert added["recipe"] == "ValidationError"
        assert plain["signature"] is plain["schema"] is None
        assert not any(plain[place] for place in ("docstring", "help", "table", "recipes", "form"))
        on_page = verb == "assemble"  # the workbench assembles
        assert added["form"] == ([0.25] if on_page else [])
        assert (added["plan"], added["plan-value"]) == ("OptionError", "" if on_page else "OptionError")
        assert plain["plan-value"] == "OptionError"


@pytest.mark.parametrize(("verb", "holder"), VERBS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_verb_has_what_is_declared(verb, holder) -> None:
    options = declared(holder)
    named = [item for item in inspect.signature(verb).parameters.values() if item.kind is item.KEYWORD_ONLY]
    assert [item.name for item in named] == list(options)
    assert [item.default for item in named] == [option.default for option in options.values()]
    for name, option in options.items():
        assert f"    {name}: {option.said}" in verb.__doc__
        assert option.help[0].isupper()


def test_what_is_not_known_or_missing_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"call\(\) got an unexpected keyword argument 'heel'; did you mean 'heal'"):
        checked(DisassembleOptions, {"task": [0], "heel": "refit"}, "call")
    with pytest.raises(TypeError, match=r"call\(\) missing 1 required keyword-only argument: 'task'"):
        checked(DisassembleOptions, {}, "call")
    found = checked(DisassembleOptions, {"task": [0], "heal_images": 7}, "call")
    assert (found["heal_images"], found["ridge"]) == (7, None)
    assert checked(AssembleOptions, {"strength": 3}, "call", more=True)["strength"] == 3


def test_values_are_taken_apart_and_put_together() -> None:
    names = list(flat(DisassembleOptions))
    assert {"alpha", "flops", "allocation", "round_to", "heal_images"} <= set(names)
    assert not {"budget", "thresholds", "images", "task"} & set(names)
    result = run("disassemble", "--help").output
    assert all(f"--{name.replace('_', '-')}" in result for name in names)
    assert "--budget" not in result


def test_a_strategy_that_is_registered_is_a_choice_everywhere() -> None:
    before = list(SCALINGS)

    @scaling("by-luck", help="Rolls dice for every part.")
    def by_luck(evidence) -> Scale:
        return Scale()

    try:
        assert list(SCALINGS) == [*before, "by-luck"]
        assert "by-luck" in " ".join(run("assemble", "--help").output.split())
        assert AssemblyRecipe(scaling="by-luck").scaling == "by-luck"
        data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        part = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        assert by.assemble([part], scaling="by-luck").manifest.scaling.name == "by-luck"
    finally:
        del STRATEGIES["by-luck"]
    assert list(SCALINGS) == before
    with pytest.raises(ValueError, match="use one of 'auto'"):
        AssemblyRecipe(scaling="by-luck")


def test_a_criterion_that_is_registered_is_a_choice_everywhere() -> None:
    before = list(CRITERIA)
    assert before[:2] == ["mda", "damage"]
    data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    model = chain()
    relevance, budget = by.locate(model, data), by.Budget(flops=0.6)

    @criterion("first", help="the number of a channel, the first ones last", images=False)
    def first(evidence) -> torch.Tensor:
        return torch.arange(evidence.graph.channels, dtype=torch.float64)

    try:
        assert list(CRITERIA) == [*before, "first"]
        assert "random or first" in " ".join(run("disassemble", "--help").output.split())
        assert ComponentRecipe(source="a", task="0", select="first").select == "first"
        part = by.disassemble(model, relevance, task=[0], budget=budget, select="first")
        assert part.manifest.selection.budget["select"] == "first"
        kept = part.manifest.axes["conv1"].kept
        size = part.manifest.axes["conv1"].size
        assert kept == tuple(range(size - len(kept), size))
        assert 0 < len(kept) < size
    finally:
        del RANKINGS["first"]
    with pytest.raises(by.BrickyardError) as error:
        by.disassemble(model, relevance, task=[0], budget=budget, select="first")
    assert error.value.code == "option-choice"


def test_names_are_the_same_before_and_after_their_modules_are_loaded() -> None:
    code = (
        "import sys\nfrom brickyard.base._options import CRITERIA, SCALINGS\n"
        "print(dict(SCALINGS) | dict(CRITERIA), 'torch' in sys.modules)"
    )
    assert python(code) == f"{dict(SCALINGS) | dict(CRITERIA)} False\n"


def test_the_pages_are_what_the_tool_writes(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import options_table

    pages = options_table.pages()
    assert len(pages) == 3
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"run python tools/options_table.py: {path.name}"
    monkeypatch.setitem(options_table.HOLDERS, "brickyard.other", LocateOptions)  # the control
    assert options_table.pages()[options_table.DOCS / "reference" / "options.md"] not in pages.values()


def test_budgets_of_earlier_files_are_read_in_the_words_of_now() -> None:
    from brickyard.base._records import SelectionRecord

    costs = {"parameters": 1, "flops": 1}
    old = {"flops": 0.5, "spread": "relevance", "select": "mda", "multiple": 4}
    found = SelectionRecord(budget=old, **costs)
    assert found.budget == {"flops": 0.5, "allocation": "global", "select": "mda", "round_to": 4}
    assert SelectionRecord(budget=found.budget, **costs) == found
    assert SelectionRecord(budget=old | {"spread": "even"}, **costs) != found
