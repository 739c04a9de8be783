"""Write what the documentation says of options, strategies and criteria, from their one declaration.

python tools/options_table.py            # writes docs/reference/options.md and parts of docs/guide.md and recipes.md
python tools/options_table.py --check    # exits with 1 if a page is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brickyard.base import _options as options
from brickyard.base._declare import REQUIRED, Opt, declared, flat
from brickyard.recipes import _schema as recipes
from brickyard.scaling._strategies import SCALINGS
from brickyard.selection._importance import CRITERIA

DOCS = Path(__file__).parent.parent / "docs"
HOLDERS = {
    "brickyard.locate": options.LocateOptions,
    "brickyard.disassemble": options.DisassembleOptions,
    "brickyard.Component.detect": options.DetectOptions,
    "brickyard.assemble": options.AssembleOptions,
    "brickyard.assembly.refine": options.RefineOptions,
    "brickyard.evaluate": options.EvaluateOptions,
    "brickyard.finetune": options.FinetuneOptions,
    "brickyard.training.distil": options.DistilOptions,
    "brickyard.Thresholds": options.Thresholds,
    "brickyard.Budget": options.Budget,
    "brickyard.training.TrainingOptions": options.TrainingOptions,
    "brickyard.training.Distillation": options.Distillation,
    "Commands that compute": options.PlaceOptions,
}
SECTIONS: dict[str, tuple[type[recipes.Section], Any]] = {
    "train": (recipes.TrainRecipe, options.TrainingOptions),
    "locate": (recipes.LocateRecipe, options.LocateOptions),
    "A component": (recipes.ComponentRecipe, options.DisassembleOptions),
    "assembly": (recipes.AssemblyRecipe, options.AssembleOptions),
    "evaluate": (recipes.EvaluateRecipe, options.EvaluateOptions),
}
HEAD = """# Options

Every option of the verbs is declared once; this page is written from that declaration by `tools/options_table.py`. On
the command line and in recipes, the names are written with dashes, and the options of `Thresholds`, `Budget`,
`TrainingOptions` and `Distillation` stand for themselves.
"""


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def default(value: Any, unset: str) -> str:
    """A default as the tables show it, or what stands for it."""
    if value is REQUIRED:
        return "required"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return unset or "-" if value in (None, ()) else f"`{text}`"


def said(option: Opt) -> str:
    """What an option does, with its choices as code."""
    return re.sub(r'"([\w-]+)"', r"`\1`", option.sentence) if option.names else option.sentence


def options_page() -> str:
    """The page of all options."""
    parts = [HEAD]
    for title, holder in HOLDERS.items():
        rows = ((f"`{name}`", said(one), default(one.default, one.unset)) for name, one in declared(holder).items())
        parts.append(f"## {title}\n\n{table('| option | does | default |', rows)}\n")
    return "\n".join(parts)


def recipes_page(text: str) -> str:
    """The page of recipes, with the rows of declared options written again; other rows stay as they are."""
    for title, (section, holder) in SECTIONS.items():
        before, rest = text.split(f"### {title}\n", 1)
        old, *after = re.split(r"(?=^##)", rest, maxsplit=1, flags=re.M)
        kept = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", old, re.M))
        known, rows = flat(holder), []
        for name, field in section.model_fields.items():
            key = name.replace("_", "-")
            one = known.get(name)
            rows.append(
                (f"`{key}`", *((kept[key],) if one is None else (said(one), default(field.default, one.unset))))
            )
        text = f"{before}### {title}\n\n{table('| key | is | default |', rows)}\n\n{''.join(after)}"
    return text


def guide_page(text: str) -> str:
    """The guide with the tables of strategies and criteria written again."""
    needs = [(f"`{one.name}`", one.help, "a few labelled images" if one.few_shot else "-") for one in SCALINGS.values()]
    ranks = [(f"`{one.name}`", one.help, "images" if one.images else "-") for one in CRITERIA.values()]
    parts = {
        "scalings": table("| scaling | does | needs |", needs),
        "criteria": table("| criterion | ranks channels by | needs |", ranks),
    }
    for name, part in parts.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(\n<!-- end of {name} -->)"
        text, found = re.subn(pattern, lambda match, part=part: f"{match[1]}\n{part}\n{match[2]}", text, flags=re.S)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"docs/guide.md must have the part '{name}' once, got {found}; restore its two comments")
    return text


def pages() -> dict[Path, str]:
    """Every page that is written, with its text."""
    recipe, guide = DOCS / "recipes.md", DOCS / "guide.md"
    return {
        DOCS / "reference" / "options.md": options_page(),
        recipe: recipes_page(recipe.read_text(encoding="utf-8")),
        guide: guide_page(guide.read_text(encoding="utf-8")),
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    for path, text in pages().items():
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                return 1
        else:
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
