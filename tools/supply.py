"""The supply chain of Brickyard: lock, bill of materials, audit and release.

    python tools/supply.py lock       # writes constraints.txt from what is installed here
    python tools/supply.py sbom       # dist/sbom.json: CycloneDX 1.5 of what `pip install brickyard` brings
    python tools/supply.py audit      # licences, versions, known vulnerabilities where the service answers
    python tools/supply.py release    # dist: source archive and wheel of the last commit

The work is done by cyclonedx-py, pip-licenses, license-expression, pip check, pip-audit and hatchling. What is written
by hand says which tool was tried and where it falls short.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from license_expression import AND, OR, ExpressionError, Licensing
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints.txt"
TESTED = ("brickyard[test]", "torch", "torchvision")
EXTRAS = set(metadata.metadata("brickyard").get_all("Provides-Extra", ())) - {"audit", "docs", "test"}  # for users
# Licences that may stand beside Apache-2.0 in what a user installs, by SPDX, and as classifiers and authors name them.
FREE = {"0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC"}
FREE |= {"MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"}
NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "FreeBSD": "BSD-2-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
CUDA = re.compile(
    r"^(nvidia-|cuda-|triton$)"
)  # CUDA builds of torch bring NVIDIA's own libraries; the CPU builds do not


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; `python` is this one.

    Raises:
        SystemExit: It fails.
    """
    words = [sys.executable if word == "python" else word for word in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def closure(*wanted: str) -> dict[str, set[str]]:
    """Installed distributions that requirements lead to, and for each the names of those that it needs.

    By hand: `pip freeze` lists whatever else is installed, pipdeptree 4.2 follows an extra that any distribution asks
    for, and cyclonedx-py 7.5 follows all extras whose distributions are there.
    """
    needs: dict[str, set[str]] = {}
    extras: dict[str, set[str]] = {}
    todo = [Requirement(text) for text in wanted]
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        if name in needs and asked.extras <= extras[name]:
            continue
        extras[name] = extras.get(name, set()) | asked.extras
        try:
            found = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{name} is needed and not installed; run make install-test") from None
        contexts = [{"extra": extra} for extra in ("", *extras[name])]
        found = [need for need in found if need.marker is None or any(need.marker.evaluate(c) for c in contexts)]
        needs[name] = {canonicalize_name(need.name) for need in found}
        todo += found
    return dict(sorted(needs.items()))


def lock() -> str:
    """The text of the lock, without the local part of the versions of torch's builds."""
    lines = [f"{n}=={metadata.version(n).split('+')[0]}" for n in closure(*TESTED) if n not in ("brickyard", "pip")]
    about = "# Versions that the tests were run with, on Python 3.11. Written by `python tools/supply.py lock`."
    return "\n".join([about, "# The library itself accepts others: see pyproject.toml.", *lines, ""])


def drift() -> list[str]:
    """What the tests need and is installed otherwise than the lock says."""
    return sorted(set(lock().splitlines()) - set(LOCK.read_text().splitlines()))


def bill() -> dict[str, Any]:
    """A CycloneDX 1.5 document; the same for the same installation.

    cyclonedx-py describes all that is installed, and leaves out a dynamic version: what is not shipped is taken out
    again and the version put in, so that validation is left to the tests.
    """
    options = ("--sv", "1.5", "--output-reproducible", "--no-validate", "--pyproject", "pyproject.toml", sys.executable)
    found: dict[str, Any] = json.loads(run("python", "-m", "cyclonedx_py", "environment", *options))
    needs, about = closure("brickyard"), found["metadata"]["component"]
    about["version"] = metadata.version("brickyard")
    kept = [one for one in found["components"] if canonicalize_name(one["name"]) in needs.keys() - {"brickyard"}]
    names: dict[str, str] = {canonicalize_name(one["name"]): one["bom-ref"] for one in (*kept, about)}
    tree = [{"ref": names[name], "dependsOn": sorted(names[need] for need in needs[name])} for name in names]
    return {**found, "components": kept, "dependencies": tree}


def licences() -> dict[str, str]:
    """What distributions that a user may install say of their licences, by name; NVIDIA's own libraries aside."""
    names = [
        metadata.metadata(name)["Name"] for name in closure(f"brickyard[{','.join(EXTRAS)}]") if not CUDA.match(name)
    ]
    options = ("--from=mixed", "--format=json", "--with-system", "--packages", *names)
    return {row["Name"]: row["License"] for row in json.loads(run("python", "-m", "piplicenses", *options))}


def permissive(text: str) -> bool:
    """Whether licences allow what Apache-2.0 allows: an SPDX expression, or names with semicolons, which all must.

    By hand: for `pip-licenses --allow-only` one good name of several is enough, and an expression is one name.
    """

    def free(node: Any) -> bool:
        if isinstance(node, AND | OR):
            return (all if isinstance(node, AND) else any)(free(one) for one in node.args)
        return getattr(node, "license_symbol", node).key in FREE  # an exception (WITH) only allows more

    try:
        parsed = [Licensing().parse(NAMES.get(part, part)) for part in text.split("; ")]
    except ExpressionError:
        return False
    return all(one is not None and free(one) for one in parsed)


def vulnerabilities() -> list[str]:
    """What pip-audit knows of the lock; says why where it knows nothing, for which pip-audit has no exit status."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "-f", "json"]
    try:
        asked = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=300).stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        print("vulnerabilities: skipped, the service does not answer from here")
        return []
    if skipped := sum("skip_reason" in one for one in asked):
        print(f"vulnerabilities: skipped for {skipped} of {len(asked)} distributions, the service does not know them")
    return [f"{one['name']}: {hole['id']}" for one in asked for hole in one.get("vulns", ())]


def audit() -> int:
    """Print what is wrong with licences, versions and the lock; 1 if anything is. What was skipped is not wrong."""
    wrong = [f"licence of {name}: {text}" for name, text in licences().items() if not permissive(text)]
    wrong += [f"not as locked: {line}" for line in drift()] + vulnerabilities()
    print(*wrong, run("python", "-m", "pip", "check").strip(), sep="\n")
    return int(bool(wrong))


def release(place: Path, root: Path = ROOT) -> list[Path]:
    """Build the source archive and the wheel of the last commit: nothing else that lies in the folder is in them.

    By hand: `python -m build` and hatchling build what lies in the folder, stray files and changes included.
    """
    if left_out := run("git", "status", "--porcelain", cwd=root).splitlines():
        print(f"not committed, so not in it: {', '.join(line[3:] for line in left_out[:5])} ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        run("git", "archive", "--output", f"{folder}/all.tar", "HEAD", cwd=root)
        shutil.unpack_archive(f"{folder}/all.tar", f"{folder}/all", filter="data")
        epoch = run("git", "log", "-1", "--format=%ct", cwd=root).strip()
        run(
            "python",
            "-m",
            "hatchling",
            "build",
            "-d",
            f"{folder}/built",
            cwd=Path(folder, "all"),
            SOURCE_DATE_EPOCH=epoch,
        )
        place.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, place)) for path in sorted(Path(folder, "built").iterdir())]


def main(what: str = "") -> int:
    """Run one of the four."""
    dist = ROOT / "dist"
    if what == "lock":
        LOCK.write_text(lock())
    elif what == "sbom":
        dist.mkdir(exist_ok=True)
        (dist / "sbom.json").write_text(json.dumps(bill(), indent=1) + "\n")
    elif what == "release":
        print(*release(dist), sep="\n")
    elif what == "audit":
        return audit()
    else:
        raise SystemExit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
