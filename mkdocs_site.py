"""What the site takes from elsewhere in the project, the links that lead there, and how docstrings are read."""

from __future__ import annotations

import html
import importlib
import inspect
import json
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

from griffe import Extension, Function, Object, Parameter, ParameterKind, Parameters
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
PAGES = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "birds-and-things.md": "examples/birds_and_things/README.md",
}
COMMANDS = "reference/commands.md"
ERRORS = "reference/errors.md"


class Examples(Extension):
    """Takes sections called "Example" for examples, which are shown as code; else they would be quotations.

    Verbs have their options from a declaration, so signature and docstring are those that Python has of them.
    """

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Read the docstring of an object."""
        if isinstance(obj, Function) and any(str(item.value).startswith("verb(") for item in obj.decorators):
            sys.path.insert(0, str(ROOT / "src"))
            call = attrgetter(obj.path.removeprefix(f"{obj.module.path}."))(importlib.import_module(obj.module.path))
            sys.path.pop(0)
            obj.parameters = Parameters(*map(_parameter, inspect.signature(call).parameters.values()))
            if obj.docstring is not None:
                obj.docstring.value = call.__doc__
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)


def _parameter(item: inspect.Parameter) -> Parameter:
    default = None if item.default is item.empty else repr(item.default)
    annotation = item.annotation if isinstance(item.annotation, str) else inspect.formatannotation(item.annotation)
    return Parameter(item.name, annotation=annotation, kind=ParameterKind(item.kind.description), default=default)


def on_config(config: Any) -> Any:
    """Name the version at the foot of pages, and let blocks of mathematics become MathML: browsers need no script."""
    config.copyright = f"Brickyard {version()}, Apache-2.0"
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: mathml(source, "block")}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_page_content(text: str, **_: Any) -> str:
    """Let mathematics within lines become MathML too."""
    pattern = r'<span class="arithmatex">\\\((.*?)\\\)</span>'
    return re.sub(pattern, lambda match: mathml(html.unescape(match[1]), "inline"), text, flags=re.S)


def version() -> str:
    """The version of what is described."""
    found = re.search(r'__version__ = "(.+)"', (ROOT / "src/brickyard/_version.py").read_text())
    if found is None:
        raise ValueError("src/brickyard/_version.py names no version")
    return found[1]


def mathml(source: str, display: str) -> str:
    """A formula of LaTeX as an element of MathML.

    Raises:
        ValueError: It has a command that is not understood, which would be shown as it is written.
    """
    found: str = convert(source, display=display)
    if "\\" in re.sub(r"<[^>]*>", "", html.unescape(found)):
        raise ValueError(f"a formula has a command that is not understood: {source!r}")
    return f'<div class="math">{found}</div>' if display == "block" else found


def on_files(files: Files, config: Any) -> Files:
    """Add the README, the changes, the results, the codes of errors, and the help of every command."""
    for name, origin in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / origin).read_text()))
    for path in sorted((ROOT / "benchmarks/results").iterdir()):
        if path.suffix in (".md", ".png"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, COMMANDS, content=commands()))
    files.append(File.generated(config, ERRORS, content=errors()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links between places of the project to places of the site."""
    up = "../" * page.file.src_uri.count("/")
    moved = {origin: name for name, origin in PAGES.items()}

    home = Path("docs") / page.file.src_uri
    if page.file.src_uri in PAGES:
        home = Path(PAGES[page.file.src_uri])
    elif page.file.src_uri.startswith("results/"):
        home = Path("benchmarks") / page.file.src_uri

    def place(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or not target:
            return match[0]
        found = Path(*_resolved(home.parent / target))
        name = moved.get(found.as_posix())
        if name is None and (found.parts[:1] == ("docs",) or found.parts[:2] == ("benchmarks", "results")):
            name = "/".join(found.parts[1:])
        return text.strip("[]") if name is None else f"{text}({up}{name}{anchor})"  # other files are not on the site

    return re.sub(r"(\[[^\]]*\])\(([^)#\s]*)(#[^)\s]*)?\)", place, markdown)


def _resolved(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return parts


def errors() -> str:
    """The page of error codes, from the table in the code."""
    run = [sys.executable, "-c", "import json; from brickyard.base import CODES; print(json.dumps(CODES))"]
    found = subprocess.run(run, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})
    rows = [f"| `{code}` | {meaning} |" for code, meaning in sorted(json.loads(found.stdout).items())]
    intro = (
        "Every error that Brickyard raises on purpose is a `brickyard.BrickyardError` with a `code`. Messages may "
        "change from version to version; codes stay. The first word of a code is the kind of error."
    )
    return "\n".join(["# Errors", "", intro, "", "| code | what is wrong |", "| --- | --- |", *rows, ""])


def commands() -> str:
    """The page of the command line: the help of every command."""
    program = [sys.executable, "-m", "brickyard"]

    def told(*words: str) -> str:
        run = subprocess.run(
            [*program, *words, "--help"],
            check=True,
            capture_output=True,
            text=True,
            env={"COLUMNS": "100", "PATH": "", "PYTHONPATH": str(ROOT / "src")},
        )
        return run.stdout.replace("python -m brickyard", "brickyard").rstrip()

    def names(text: str) -> list[str]:
        _, _, listed = text.partition("Commands:")
        return re.findall(r"^  (\S+)", listed, re.M)

    whole = told()
    lines = ["# The command line", "", "```text", whole, "```", ""]
    lines += ["`brickyard --install-completion` adds completion to your shell (bash, zsh, fish, PowerShell).", ""]
    for name in names(whole):
        text = told(name)
        lines += [f"## {name}", "", "```text", text, "```", ""]
        for inner in names(text):
            lines += [f"### {name} {inner}", "", "```text", told(name, inner), "```", ""]
    return "\n".join(lines)
