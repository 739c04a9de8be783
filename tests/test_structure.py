"""The shape of the package: imports point one way, and what is promised about it holds."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import brickyard as by
from brickyard import base
from brickyard.base import CODES
from conftest import run_blocks

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "brickyard"
FLOORS = re.findall(r"(?m)^\| `([a-z_]+)(?:/|\.py)` \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text())
RANK = {name: rank for rank, (name, _) in enumerate(FLOORS)}
FILES = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
MODULES = {".".join(part for part in parts if part != "__init__") for parts in FILES.values()}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports: on top, in functions, and for type checks."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if (node.module or "").split(".")[0] == "brickyard":
                home = (node.module or "").removeprefix("brickyard").lstrip(".")
                inner = {f"{home}.{alias.name}".lstrip(".") for alias in node.names}
                found |= {name if name in MODULES else home for name in inner}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("brickyard.") for a in node.names if a.name.startswith("brickyard.")}
    return found


def test_the_map_of_the_house_names_every_floor_once_as_it_says_of_itself() -> None:
    beside = {parts[0] for parts in FILES.values() if len(parts) == 1} - {"__init__", "__main__"}
    folders = {parts[0] for parts in FILES.values() if len(parts) > 1}
    assert sorted(name for name, _ in FLOORS) == sorted(beside | folders)
    assert len(folders) <= 25
    assert len(beside) <= 4  # and __init__, __main__
    for name, sentence in FLOORS:
        path = PACKAGE / name / "__init__.py" if name in folders else PACKAGE / f"{name}.py"
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
        assert said == sentence, name


def test_imports_point_down() -> None:
    for path, parts in FILES.items():
        if parts in (("__init__",), ("__main__",)):
            continue
        for other in imports(path):
            if (below := other.split(".")[0]) != parts[0]:
                assert RANK.get(below, 99) < RANK[parts[0]], f"{'.'.join(parts)} imports {other}, which is not below it"


def test_no_two_files_import_each_other_however_far_around() -> None:
    ahead = {".".join(p for p in parts if p != "__init__"): imports(path) for path, parts in FILES.items()}
    lazy = {name for name in ahead if name in {parts[0] for parts in FILES.values() if len(parts) > 1}} | {""}
    left = {name: {other for other in others if other in ahead} for name, others in ahead.items() if name not in lazy}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, sorted(left)


def test_files_and_functions_are_short() -> None:
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                assert not body or (body[-1].end_lineno or 0) - body[0].lineno < 50, f"{path.name}: {node.name}"


def test_what_is_private_is_named_so() -> None:
    for path, parts in FILES.items():
        assert parts[-1].startswith("_") or parts == ("testing",), path
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    for document in [*documents, *(ROOT / "examples").glob("*.py")]:
        assert not re.search(r"brickyard(\.\w+)*\._[a-z]", document.read_text()), document


def test_documented_packages_give_what_they_say() -> None:
    packages = {parts[0] for parts in FILES.values() if len(parts) > 1}
    for name in sorted(packages):
        package = importlib.import_module(f"brickyard.{name}")
        for public in getattr(package, "__all__", ()):
            value = getattr(package, public)
            assert value.__doc__ or (not inspect.isclass(value) and not inspect.isfunction(value)), f"{name}.{public}"


def test_the_ground_does_not_know_torch() -> None:
    for path in [*(PACKAGE / "base").glob("*.py"), PACKAGE / "evaluation/_scores.py", PACKAGE / "yard/_index.py"]:
        assert not re.search(r"^(import|from) torch", path.read_text(), re.M), path


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


def test_every_error_has_a_code_that_is_listed_and_of_its_kind() -> None:
    kinds = {"workbench": ("BusyError", "GoneError"), "option": ("OptionError", "UnusableError")}
    used: set[str] = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func)
                first = node.exc.args[0] if node.exc.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value in CODES:
                    kind = first.value.split("-")[0]
                    assert name in kinds.get(kind, (f"{kind.capitalize()}Error",)), f"{path}: {name} {first.value}"
                elif name in vars(base):
                    assert not isinstance(first, ast.Constant), f"{path}: {name} has no code"
        used |= set(re.findall(r'"([a-z]+-[a-z-]+)"', path.read_text())) if path.name != "_codes.py" else set()
    assert set(CODES) <= used, set(CODES) - used


def test_public_names() -> None:
    assert len([name for name in by.__all__ if name != "__version__"]) <= 15
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


def test_modules_of_tests_outside_packages_have_names_of_their_own() -> None:
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    names = [path.name for path in found]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert len(names) > 50
