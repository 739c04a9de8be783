"""Supply: the lock is what runs here, the bill of materials is whole, and two builds give one wheel."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import brickyard as by

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import supply  # noqa: E402


def test_the_lock_is_what_the_tests_run_with(monkeypatch, tmp_path) -> None:
    """On another Python or another choice of versions it may differ; where the lock is kept to, it must not."""
    found = supply.drift()
    if found and os.environ.get("CI") != "true":
        pytest.skip(f"not installed from the lock: {found[:5]} ...")
    assert found == []
    text = supply.LOCK.read_text()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.!]+", line) for line in text.splitlines()[2:])
    assert re.search("^torch==.+$", text, re.M)[0] in (ROOT / "requirements.txt").read_text().splitlines()
    other = tmp_path / "constraints.txt"  # the control: one version is another, one name is not there
    other.write_text(re.sub("^typer==.+\n", "", re.sub("^numpy==.+$", "numpy==1.0", text, flags=re.M), flags=re.M))
    monkeypatch.setattr(supply, "LOCK", other)
    assert supply.drift() == [f"{name}=={metadata.version(name)}" for name in ("numpy", "typer")]


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt", "Makefile", "pyproject.toml", ".ci/run"])
def test_no_file_that_installs_names_a_package_host(name) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host", text)


def test_extras_and_markers_are_followed() -> None:
    bare, plots = supply.closure("brickyard"), supply.closure("brickyard[plots]")
    assert "matplotlib" in plots.keys() - bare.keys()
    assert {"torch", "numpy", "typer"} <= bare.keys()
    assert not plots.keys() & {"hypothesis", "pytest"}
    with pytest.raises(SystemExit, match="no-such-thing is needed"):
        supply.closure("no-such-thing")


@pytest.mark.slow
def test_the_bill_names_all_that_is_shipped_and_nothing_else() -> None:
    bill = supply.bill()
    assert bill == supply.bill()
    about = bill["metadata"]["component"]
    assert (about["name"], about["version"]) == ("brickyard", by.__version__)
    names = {one["bom-ref"]: one["name"].lower().replace("_", "-") for one in (*bill["components"], about)}
    tree = {one["ref"]: set(one["dependsOn"]) for one in bill["dependencies"]}
    declared = {re.split("[<>=!~]", r)[0] for r in metadata.requires("brickyard") or () if "extra" not in r}
    assert {names[reference] for reference in tree[about["bom-ref"]]} == declared
    assert tree.keys() == names.keys()
    reached = {about["bom-ref"]}
    while more := set().union(*(tree[reference] for reference in reached)) - reached:
        reached |= more
    assert reached == names.keys()  # nothing hangs in the air
    assert all(one.get("licenses") for one in bill["components"] if not supply.CUDA.match(one["name"]))
    validate = JsonStrictValidator(SchemaVersion.V1_5).validate_str
    assert validate(json.dumps(bill)) is None
    assert validate(json.dumps({**bill, "components": [{"name": "x"}]})) is not None  # the control: it has no type


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("Apache-2.0 WITH LLVM-exception AND (BSD-3-Clause OR GPL-2.0-only)", True),
        ("ISC License (ISCL); MIT License", True),
        ("FreeBSD", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT License; GNU General Public License v3 (GPLv3)", False),
        ("(MIT OR GPL-3.0-only) AND AGPL-3.0-only", False),
        *((text, False) for text in ("LGPL-2.1-or-later", "MIT and GPL", "MIT AND", "(MIT", "MIT)", "UNKNOWN", "")),
    ],
)
def test_licences_are_read_whole(text, free) -> None:
    assert supply.permissive(text) is free


def test_the_audit_finds_what_is_wrong(monkeypatch, capsys) -> None:
    found = supply.licences()
    assert {"torchvision", "fastapi", "onnx", "numpy"} <= found.keys()  # the extras for users too
    assert not {"pytest", "pip_audit"} & found.keys()
    assert {name: text for name, text in found.items() if not supply.permissive(text)} == {}
    right = {"licences": dict, "drift": list, "vulnerabilities": list, "run": lambda *_: "agreed"}
    wrong = {"licences": lambda: {"x": "GPL"}, "drift": lambda: ["x==1"], "vulnerabilities": lambda: ["x: CVE-1"]}
    for key in (None, *wrong):
        for name, stub in right.items():
            monkeypatch.setattr(supply, name, wrong[name] if name == key else stub)
        assert (supply.main("audit"), "x" in capsys.readouterr().out) == (int(key is not None), key is not None)
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="failed: a 1 needs b 2"):  # as `pip check` fails
        supply.run("python", "-c", "raise SystemExit('a 1 needs b 2')")


def test_an_audit_that_cannot_ask_says_so(monkeypatch, capsys) -> None:
    def answered(text: str) -> list[str]:
        monkeypatch.setattr(supply.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, text, ""))
        return supply.vulnerabilities()

    assert answered("no network") == []
    assert "does not answer" in capsys.readouterr().out
    assert answered('{"dependencies": [{"name": "x", "skip_reason": "not found"}]}') == []
    assert "skipped for 1 of 1" in capsys.readouterr().out
    bad = '{"dependencies": [{"name": "x", "vulns": [{"id": "CVE-1"}]}, {"name": "y", "vulns": []}]}'
    assert (answered(bad), capsys.readouterr().out) == (["x: CVE-1"], "")


# -- what is released ----------------------------------------------------------------------------------------


def git(root: Path, *words: str) -> str:
    return supply.run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words, cwd=root)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A repository of one commit with the project as it is here."""
    if shutil.which("git") is None and os.environ.get("CI") != "true":
        pytest.skip("git is missing")
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "-c", "commit.gpgsign=false", "commit", "-q", "-m", "all")
    return root


@pytest.fixture(scope="module")
def released(checkout, tmp_path_factory) -> dict[str, Path]:
    """The wheel and the source archive of it, by their endings."""
    return {path.suffix: path for path in supply.release(tmp_path_factory.mktemp("released"), checkout)}


def wheel_of(root: Path, place: Path, **environment: str) -> Path:
    """A wheel of what lies in a folder, by pip."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(place), str(root))
    supply.run("python", "-m", "pip", "wheel", *options, **environment)
    return next(place.glob("*.whl"))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_two_builds_of_a_commit_are_the_same_bytes(checkout, released, tmp_path, capsys, monkeypatch) -> None:
    """In another folder, at another time, with other permissions, beside files that are not of the commit."""
    other = tmp_path / "elsewhere" / "b"
    git(tmp_path, "clone", "-q", str(checkout), str(other))
    for path in sorted((other / "src").rglob("*"), reverse=True):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600)
    stray = other / "src" / "brickyard" / "stray.pkl"
    stray.write_bytes(b"stray")
    with (other / "src" / "brickyard" / "testing.py").open("a") as file:
        file.write("\n")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    before = os.umask(0o077)
    try:
        again = {path.suffix: path for path in supply.release(tmp_path / "again", other)}
    finally:
        os.umask(before)
    assert {ending: (path.name, sha(path)) for ending, path in released.items()} == {
        ending: (path.name, sha(path)) for ending, path in again.items()
    }
    assert released.keys() == {".whl", ".gz"}
    assert "stray.pkl" in capsys.readouterr().err
    plain = wheel_of(other, tmp_path / "plain")  # the controls: of the folder, and of another commit
    assert "brickyard/stray.pkl" in zipfile.ZipFile(plain).namelist()
    stray.unlink()
    git(other, "-c", "commit.gpgsign=false", "commit", "-q", "-a", "-m", "more")
    for path in supply.release(tmp_path / "more", other):
        assert sha(path) != sha(released[path.suffix])
    with pytest.raises(SystemExit, match="not a git repository"):
        supply.release(tmp_path, tmp_path)


def test_a_release_holds_what_is_in_the_commit_and_nothing_else(checkout, released, tmp_path) -> None:
    tracked = set(git(checkout, "ls-files").split())
    ours = {name for name in zipfile.ZipFile(released[".whl"]).namelist() if ".dist-info/" not in name}
    assert ours == {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    assert {"brickyard/py.typed", "brickyard/workbench/static/index.html"} <= ours
    kinds = {".py", ".typed", ".js", ".css", ".html", ".svg", ".jinja"}
    others = {"ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm.gz", "LICENSE.txt", "ThirdPartyNotices.txt.gz"}
    assert {Path(name).name for name in ours if Path(name).suffix not in kinds} == others  # ONNX Runtime Web
    with tarfile.open(released[".gz"]) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
        archive.extractall(tmp_path, filter="data")
    assert files == tracked | {"PKG-INFO"}
    epoch = git(checkout, "log", "-1", "--format=%ct").strip()
    again = wheel_of(next(tmp_path.iterdir()), tmp_path / "again", SOURCE_DATE_EPOCH=epoch)
    assert sha(again) == sha(released[".whl"])


def test_an_installed_wheel_works(released, tmp_path) -> None:
    options = ("--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "installed"))
    supply.run("python", "-m", "pip", "install", *options, str(released[".whl"]))
    where = {"cwd": tmp_path, "PYTHONPATH": str(tmp_path / "installed")}
    file, version = supply.run(
        "python", "-c", "import brickyard as b; print(b.__file__, b.__version__)", **where
    ).split()
    assert (file, version) == (str(tmp_path / "installed" / "brickyard" / "__init__.py"), by.__version__)
    assert supply.run("python", "-m", "brickyard", "--version", **where).split()[-1] == by.__version__
    assert (tmp_path / "installed" / "brickyard" / "workbench" / "static" / "app.js").is_file()
    code = "from brickyard.reports._templates import page_environment as e; print(*e().list_templates())"
    found = set(supply.run("python", "-c", code, **where).split())
    assert {"page.html.jinja", "card.md.jinja", "script.js", "sections/overview.html.jinja"} <= found
