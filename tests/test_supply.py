"""Supply: the lock is what runs here, the bill of materials is whole, and two builds give one wheel."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import brickyard as by

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import supply  # noqa: E402


def locked() -> dict[str, str]:
    lines = supply.LOCK.read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_lock_is_what_the_tests_run_with() -> None:
    """On another Python or another choice of versions it may differ; where the lock is kept to, it must not."""
    wanted = locked()
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"[\w.!]+", v) for name, v in wanted.items())
    found = supply.tested()
    missing = found.keys() - wanted.keys()
    other = {name: one.version for name, one in found.items() if wanted.get(name) != one.version.split("+")[0]}
    if (missing or other) and os.environ.get("CI") != "true":
        pytest.skip(f"not installed from the lock: {sorted(missing | other.keys())[:5]} ...")
    assert not missing
    assert not other
    assert wanted["torch"] in (ROOT / "requirements.txt").read_text()


def test_the_lock_is_written_the_same_again() -> None:
    text = supply.lock()
    assert text == supply.lock()
    assert text.count("==") == len(supply.tested()) > 50
    assert "brickyard==" not in text
    assert "://" not in text


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
    declared = {r.split(">")[0] for r in metadata.requires("brickyard") or () if "extra" not in r}
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
    assert all(c["purl"] == f"pkg:pypi/{c['name']}@{c['version']}" for c in bill["components"])
    said = {c["name"]: c["licenses"][0]["license"]["name"] for c in bill["components"]}
    assert all(text != "unknown" for name, text in said.items() if not supply.CUDA.match(name))


def test_the_audit_finds_what_is_wrong() -> None:
    found = {"licences to look at": {}, "versions agree": True, "known holes": "skipped: no service"}
    assert supply.fine(found)
    assert supply.fine({**found, "known holes": []})
    for key, value in (
        ("licences to look at", {"x": "GPL-3.0-only"}),
        ("versions agree", "a 1 needs b 2"),
        ("known holes", [{"name": "x", "ids": ["CVE-1"]}]),
    ):
        assert not supply.fine({**found, key: value})
    assert not supply.FREE.search("GPL-3.0-only")
    assert not supply.FREE.search("AGPLv3")
    odd = {name: supply.licence(one) for name, one in supply.shipped().found.items() if not supply.CUDA.match(name)}
    assert all(supply.FREE.search(text) for text in odd.values()), odd


def build(root: Path, place: Path) -> Path:
    """A wheel of a copy of the project."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(place), "."], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def copied(place: Path) -> Path:
    place.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def test_two_builds_give_the_same_wheel(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    first, second = copied(tmp_path / "a"), copied(tmp_path / "elsewhere" / "b")
    for path in sorted(second.rglob("*"), reverse=True):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600)
    one, two = build(first, tmp_path / "1"), build(second, tmp_path / "2")
    assert one.name == two.name
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    (second / "src" / "brickyard" / "errors.py").open("a").write("\n")
    assert build(second, tmp_path / "3").read_bytes() != one.read_bytes()
    names = zipfile.ZipFile(one).namelist()
    ours = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("brickyard/") for name in ours)
    tracked = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*") if p.is_file()}
    assert set(ours) == {name for name in tracked if "__pycache__" not in name}
    assert "brickyard/py.typed" in ours
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {Path(name).suffix for name in ours} <= {".py", ".typed", ".js", ".css", ".html", ".svg"}
    place = tmp_path / "installed"
    zipfile.ZipFile(one).extractall(place)
    code = "import brickyard; print(brickyard.__file__, brickyard.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(place / "brickyard" / "__init__.py"), by.__version__]
