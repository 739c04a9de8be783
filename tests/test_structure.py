"""The shape of the package: imports point one way, and what is promised about it holds."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import brickyard as by
from conftest import run_blocks

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "brickyard"
# From the bottom up: a module imports at load time only from levels below its own, or from its own.
LEVELS = [
    {"_version", "errors"},
    {"manifest", "options", "progress", "steady", "stopping"},
    {"layers", "preprocessing", "container", "ranks"},
    {"network"},
    {"graph", "bounding"},
    {"images", "contribution", "surgery", "testing", "measuring", "familiarity", "roc"},
    {"relevance", "healing"},
    {"notebook", "locating", "eliminating", "criteria", "shifting"},
    {"fitting"},
    {"selecting", "predicting"},
    {"component", "scaling"},
    {"observing"},
    {"disassembling", "assembly"},
    {"forming", "teaching"},
    {"assembling", "finetuning"},
    {"files", "scores", "routes", "faithful"},
    {"yard", "shelf", "choosing", "covering"},
    {"transfer"},
    {"evaluation", "picturing"},
    {"graphnets"},
    {"exports"},
    {"reporting"},
    {"datasets", "sources"},
    {"training"},
    {"cards", "fingerprints", "recipes", "hub"},
    {"workbench"},
    {"demo", "commands", "building"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: height for height, names in enumerate(LEVELS) for name in names}


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports when it is loaded."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brickyard"):
            parts = (node.module or "").split(".")
            names = [alias.name for alias in node.names]
            found |= {parts[1]} if len(parts) > 1 else {n for n in names if n in LEVEL}
    return found


def test_imports_point_one_way() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        assert top(path) in LEVEL, f"{path.name} has no level"
        for other in imports(path):
            assert LEVEL[other] <= LEVEL[top(path)], f"{top(path)} imports {other}, which is above it"


def test_errors_manifest_and_options_do_not_know_torch() -> None:
    for name in ("errors", "manifest", "options", "progress", "scores"):
        text = (PACKAGE / f"{name}.py").read_text()
        assert not re.search(r"^\s*(import|from) torch", text, re.M), name


def test_nothing_unpickles_and_nothing_evaluates() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "dill", "joblib", "marshal", "shelve"} & set(names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__"), path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path


def test_public_names() -> None:
    assert len([name for name in by.__all__ if name != "__version__"]) <= 13
    for name in by.__all__:
        value = getattr(by, name)
        if name != "__version__":
            assert "Example:" in (value.__doc__ or ""), f"{name} has no example"


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[]", entry)[0] for entry in project["dependencies"]}
    extras = {re.split(r"[<>=\[]", e)[0] for group in project["optional-dependencies"].values() for e in group}
    own = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
    known = {own.get(name, name) for name in declared | extras}
    import sys

    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                used.add((node.module or "").split(".")[0])
    foreign = used - set(sys.stdlib_module_names) - {"brickyard", "__future__"}
    assert foreign <= known, foreign - known
    assert {own.get(name, name) for name in declared} <= foreign


def test_readme_examples_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "README.md")
    assert any(tmp_path.iterdir())


def test_documents_have_no_broken_links_and_no_machine_paths() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(documents) >= 7
    for document in documents:
        text = document.read_text()
        for link in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"
        assert not re.search(r"/(work|root|tmp)/", text), document.name
