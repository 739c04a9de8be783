"""Supply: the lock is what runs here, the bill of materials is whole, and two builds give one wheel."""

from __future__ import annotations

import doctest
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest

import brickyard as by

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import supply  # noqa: E402


def test_the_lock_is_what_the_tests_run_with(monkeypatch, tmp_path) -> None:
    """On another Python or another choice of versions it may differ; where the lock is kept to, it must not."""
    wanted = supply.pins()
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"[\w.!]+", v) for name, v in wanted.items())
    found = supply.drift()
    if found and os.environ.get("CI") != "true":
        pytest.skip(f"not installed from the lock: {list(found.items())[:5]} ...")
    assert found == {}
    assert f"torch=={wanted['torch']}\n" in (ROOT / "requirements.txt").read_text()
    other = tmp_path / "constraints.txt"  # the control: one version is another, one name is not there
    lines = supply.LOCK.read_text().replace(f"numpy=={wanted['numpy']}", "numpy==1.0").splitlines()
    other.write_text("\n".join(line for line in lines if not line.startswith("typer==")))
    monkeypatch.setattr(supply, "LOCK", other)
    assert supply.drift() == {
        "numpy": f"{wanted['numpy']}, locked: 1.0",
        "typer": f"{wanted['typer']}, locked: no",
    }


def test_the_lock_is_written_the_same_again() -> None:
    text = supply.lock()
    assert text == supply.lock()
    assert text.count("==") == len(supply.tested()) > 50
    assert "brickyard==" not in text
    for name in ("constraints.txt", "requirements.txt", "Makefile", "pyproject.toml", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host", text), name


def test_extras_and_markers_are_followed() -> None:
    bare, plots = (supply.closure(["brickyard"], {"brickyard": extras}).found for extras in (set(), {"plots"}))
    assert "matplotlib" in plots.keys() - bare.keys()
    assert {"torch", "numpy", "typer"} <= bare.keys()
    assert "hypothesis" not in plots
    with pytest.raises(SystemExit, match="no-such-thing is needed"):
        supply.closure(["no-such-thing"])


def test_the_bill_names_all_that_is_shipped_and_nothing_else() -> None:
    bill = supply.bill()
    assert bill == supply.bill()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    about = bill["metadata"]["component"]
    assert (about["name"], about["version"]) == ("brickyard", by.__version__)
    names = {component["name"] for component in bill["components"]}
    declared = {re.split("[<>=!~]", r)[0] for r in metadata.requires("brickyard") or () if "extra" not in r}
    assert declared <= names
    assert "pytest" not in names
    references = [component["bom-ref"] for component in bill["components"]] + [about["bom-ref"]]
    assert len(set(references)) == len(references)
    tree = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert tree.keys() == set(references)
    assert {name.split("/")[1].split("@")[0] for name in tree[about["bom-ref"]]} == declared
    reached, todo = set(), [about["bom-ref"]]
    while todo:
        reference = todo.pop()
        if reference not in reached:
            reached.add(reference)
            todo += tree[reference]
    assert reached == set(references)  # nothing hangs in the air
    said = {c["name"]: c["licenses"][0]["license"]["name"] for c in bill["components"]}
    assert all(text != "unknown" for name, text in said.items() if not supply.CUDA.match(name))


# What CycloneDX 1.5 asks of the parts that are used here; nothing else may be in the document.
TEXT = {"type": "string", "minLength": 1}


def part(required: str, **properties) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


LICENCES = {"type": "array", "items": part("license", license=part("name", name=TEXT))}
COMPONENT = part(
    "type name",
    **{"type": {"enum": ["application", "library"]}, "name": TEXT, "version": TEXT, "bom-ref": TEXT},
    purl={"type": "string", "pattern": r"^pkg:pypi/[a-z0-9-]+@([\w.~-]|%[0-9A-F]{2})+$"},
    licenses=LICENCES,
)
CYCLONEDX = part(
    "bomFormat specVersion",
    bomFormat={"const": "CycloneDX"},
    specVersion={"const": "1.5"},
    version={"type": "integer", "minimum": 1},
    metadata=part("", component=COMPONENT),
    components={"type": "array", "items": COMPONENT, "uniqueItems": True},
    dependencies={
        "type": "array",
        "items": part("ref", ref=TEXT, dependsOn={"type": "array", "items": TEXT, "uniqueItems": True}),
        "uniqueItems": True,
    },
)


def test_the_bill_is_what_cyclonedx_asks_for(monkeypatch) -> None:
    jsonschema.validate(supply.bill(), CYCLONEDX)
    monkeypatch.setattr(supply, "purl", lambda name, version: f"pkg:pypi/{name}@{version}+cpu")  # the control
    with pytest.raises(jsonschema.ValidationError, match="cpu"):
        jsonschema.validate(supply.bill(), CYCLONEDX)


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND (BSD-3-Clause OR GPL-2.0-only)", True),
        ("ISC License (ISCL), MIT License", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT License, GNU General Public License v3 (GPLv3)", False),
        ("(MIT OR GPL-3.0-only) AND AGPL-3.0-only", False),
        ("GPL-3.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("MIT and GPL", False),
        ("MIT AND", False),
        ("(MIT", False),
        ("MIT)", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_licences_are_read_whole(text, free) -> None:
    assert supply.permissive(text) is free


def test_examples_of_the_tool() -> None:
    assert doctest.testmod(supply) == (0, 2)


def test_extras_for_users_are_audited() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.keys() - supply.EXTRAS == {"audit", "docs", "test"}
    assert extras.keys() >= supply.EXTRAS
    assert {"torchvision", "fastapi", "onnx"} <= supply.offered().found.keys() - supply.shipped().found.keys()


def test_the_audit_finds_what_is_wrong() -> None:
    found = {
        "licences to look at": {},
        "versions agree": True,
        "not as locked": {},
        "known holes": "skipped: no service",
    }
    assert supply.fine(found)
    assert supply.fine({**found, "known holes": []})
    for key, value in (
        ("licences to look at", {"x": "GPL-3.0-only"}),
        ("versions agree", "a 1 needs b 2"),
        ("not as locked", {"x": "1, locked: 2"}),
        ("known holes", [{"name": "x", "ids": ["CVE-1"]}]),
    ):
        assert not supply.fine({**found, key: value})
    odd = {name: supply.licence(one) for name, one in supply.offered().found.items() if not supply.CUDA.match(name)}
    assert all(supply.permissive(text) for text in odd.values()), odd


def test_an_audit_that_cannot_ask_says_so(monkeypatch) -> None:
    monkeypatch.setattr(supply.importlib.util, "find_spec", lambda name: None)
    assert "pip-audit is not installed" in supply.holes()
    monkeypatch.setattr(supply.importlib.util, "find_spec", lambda name: True)

    def answered(text: str):
        done = subprocess.CompletedProcess([], 0, text, "")
        monkeypatch.setattr(supply.subprocess, "run", lambda *_, **__: done)
        return supply.holes()

    assert "does not answer" in answered("no network")
    assert "knows none of the 1" in answered('{"dependencies": [{"name": "x", "skip_reason": "not found"}]}')
    bad = '{"dependencies": [{"name": "x", "vulns": [{"id": "CVE-1"}]}, {"name": "y", "vulns": []}]}'
    assert answered(bad) == [{"name": "x", "ids": ["CVE-1"]}]


# -- what is released ----------------------------------------------------------------------------------------


def git(root: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *names, *words], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A repository of one commit with the project as it is here."""
    if shutil.which("git") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("git is missing")
        pytest.skip("git is missing")
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "all")
    return root


@pytest.fixture(scope="module")
def released(checkout, tmp_path_factory) -> dict[str, Path]:
    """The wheel and the source archive of it, by their endings."""
    return {path.suffix: path for path in supply.release(tmp_path_factory.mktemp("released"), checkout)}


def wheel_of(root: Path, place: Path) -> Path:
    """A wheel of what lies in a folder, by pip."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(place), str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_builds_of_a_commit_are_the_same_bytes(checkout, released, tmp_path, capsys, monkeypatch) -> None:
    """In another folder, at another time, with other permissions, beside files that are not of the commit."""
    other = tmp_path / "elsewhere" / "b"
    other.parent.mkdir()
    git(tmp_path, "clone", "-q", str(checkout), str(other))
    before = os.umask(0o077)
    try:
        for path in sorted((other / "src").rglob("*"), reverse=True):
            os.utime(path, (1_000_000_000, 1_000_000_000))
            path.chmod(0o700 if path.is_dir() else 0o600)
        (other / "src" / "brickyard" / "stray.pkl").write_bytes(b"stray")
        with (other / "src" / "brickyard" / "errors.py").open("a") as file:
            file.write("\n")
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        again = {path.suffix: path for path in supply.release(tmp_path / "again", other)}
    finally:
        os.umask(before)
    assert released.keys() == again.keys() == {".whl", ".gz"}
    for ending, path in released.items():
        assert (path.name, sha(path)) == (again[ending].name, sha(again[ending]))
    assert "stray.pkl" in capsys.readouterr().err
    plain = wheel_of(other, tmp_path / "plain")  # the controls: of the folder, and of another commit
    assert "brickyard/stray.pkl" in zipfile.ZipFile(plain).namelist()
    (other / "src" / "brickyard" / "stray.pkl").unlink()
    git(other, "commit", "-q", "-a", "-m", "more")
    for path in supply.release(tmp_path / "more", other):
        assert sha(path) != sha(released[path.suffix])


def test_a_release_needs_a_commit(tmp_path) -> None:
    with pytest.raises(SystemExit, match="built from a commit"):
        supply.release(tmp_path, tmp_path)


def test_a_release_holds_what_is_in_the_commit_and_nothing_else(checkout, released, tmp_path, monkeypatch) -> None:
    tracked = set(git(checkout, "ls-files").split())
    names = zipfile.ZipFile(released[".whl"]).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    assert all(name.startswith("brickyard/") for name in ours)
    page = "brickyard/reports/templates/page.html.jinja"
    assert {"brickyard/py.typed", "brickyard/workbench/static/index.html", page} <= ours
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {Path(name).suffix for name in ours} <= {".py", ".typed", ".js", ".css", ".html", ".svg", ".jinja"}
    with tarfile.open(released[".gz"]) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        assert all(member.isfile() or member.isdir() for member in archive.getmembers())
        archive.extractall(tmp_path, filter="data")
    assert files == tracked | {"PKG-INFO"}
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", git(checkout, "log", "-1", "--format=%ct").strip())
    assert sha(wheel_of(source, tmp_path / "again")) == sha(released[".whl"])


def test_an_installed_wheel_works(released, tmp_path) -> None:
    place = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    done = subprocess.run([*command, str(released[".whl"])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(place)}

    def run(*words: str) -> list[str]:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    code = "import brickyard; print(brickyard.__file__, brickyard.__version__)"
    assert run("-c", code) == [str(place / "brickyard" / "__init__.py"), by.__version__]
    assert run("-m", "brickyard", "--version")[-1] == by.__version__
    assert (place / "brickyard" / "workbench" / "static" / "app.js").is_file()
    code = "from brickyard.reports._templates import page_environment as e; print(*e().list_templates())"
    assert {"page.html.jinja", "card.md.jinja", "sections/overview.html.jinja"} <= set(run("-c", code))
