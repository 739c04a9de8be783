"""The build command, which runs a recipe."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brickyard.cli._output import Result
from brickyard.runtime._progress import say


def build(
    recipe: Annotated[Path, Argument(help="Recipe file (YAML).")],
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would run and why, without running it.")] = False,
    force: Annotated[
        bool, Option("--force", help="Run every step, and overwrite files not written by a build.")
    ] = False,
    trust_code: Annotated[
        bool, Option("--trust-code", help="Allow running the Python files named as sources in the recipe.")
    ] = False,
    output_folder: Annotated[
        Path | None,
        Option(
            "--output-folder",
            "-o",
            help="Write to this folder instead of the recipe's, which must lie in the folder of the recipe.",
        ),
    ] = None,
) -> Result:
    """Build what a recipe describes. Runs only the steps whose results would change."""
    from brickyard.recipes._build import build as run
    from brickyard.recipes._build import plan, plan_text
    from brickyard.recipes._reader import load_recipe

    file = load_recipe(recipe)
    folder = output_folder or file.folder / file.recipe.outputs.folder
    if dry_run:
        planned = plan(file, force=force, trust=trust_code, folder=output_folder)
        value = {"recipe": str(recipe), "folder": str(folder), "steps": [item.as_dict() for item in planned]}
        return Result(value, plan_text(planned, folder))
    result = run(file, force=force, trust=trust_code, folder=output_folder, say=say)
    counts = Counter(step["status"] for step in result["steps"])
    done = [f"{counts[status]} {status}" for status in ("ran", "unchanged", "up to date") if counts[status]]
    written = [f"{folder / name}" for step in result["steps"] for name in step["outputs"]]
    return Result(result, "\n".join([", ".join(done), *written]))
