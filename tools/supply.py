"""What Brickyard is made of: the lock that its tests run with, a bill of materials, an audit, and what is released.

    python tools/supply.py lock                 # writes constraints.txt from what is installed here
    python tools/supply.py sbom -o sbom.json    # CycloneDX 1.5 of what `pip install brickyard` brings
    python tools/supply.py audit                # licences, agreement, known holes where the service answers
    python tools/supply.py release -o dist      # source archive and wheel of the last commit

The first three read the metadata of what is installed; only the last part of the audit asks a service.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints.txt"
# Licences that may stand beside Apache-2.0 in what a user installs, by SPDX names and as classifiers and authors write.
FREE = re.compile(
    r"MIT|MIT-CMU|MIT License|BSD|0BSD|BSD License|BSD-[23]-Clause|3-Clause BSD License|Apache[- ]2\.0|"
    r"Apache Software License|ISC|ISC License|PSF-2\.0|Python-2\.0|CNRI-Python|Python Software Foundation License|"
    r"HPND|MPL-2\.0|Mozilla Public License 2\.0|Unlicense|Zlib|BSL-1\.0|CC0-1\.0",
    re.I,
)
# Extras for users; the others are for work on Brickyard itself.
EXTRAS = {"plots", "parquet", "torchvision", "timm", "onnx", "workbench", "hub", "graphs"}
# CUDA builds of torch bring NVIDIA's own libraries; the CPU builds do not.
CUDA = re.compile(r"^(nvidia-|cuda-|triton$)")


@dataclass(frozen=True)
class Installed:
    """Installed distributions.

    Attributes:
        found: By name.
        needs: For each, the names of those that it needs here.
    """

    found: dict[str, metadata.Distribution]
    needs: dict[str, set[str]]


def closure(names: Iterable[str], extras: dict[str, set[str]] | None = None) -> Installed:
    """Installed distributions that some need, themselves included.

    Raises:
        SystemExit: One is missing.
    """
    found: dict[str, metadata.Distribution] = {}
    needs: dict[str, set[str]] = {}
    asked: dict[str, set[str]] = {}
    todo = [(canonicalize_name(name), (extras or {}).get(name, set())) for name in names]
    while todo:
        name, wanted = todo.pop()
        if name in found and wanted <= asked[name]:
            continue
        asked[name] = asked.get(name, set()) | wanted
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{name} is needed and not installed; run make install-test") from None
        for text in found[name].requires or ():
            need = Requirement(text)
            choices = [{"extra": extra} for extra in ("", *sorted(asked[name]))]
            if need.marker is None or any(need.marker.evaluate(choice) for choice in choices):
                needs.setdefault(name, set()).add(canonicalize_name(need.name))
                todo.append((canonicalize_name(need.name), set(need.extras)))
    return Installed(dict(sorted(found.items())), needs)


def tested() -> dict[str, metadata.Distribution]:
    """All that the tests are run with, Brickyard aside."""
    found = closure(["brickyard", "torch", "torchvision"], {"brickyard": {"test"}}).found
    return {name: one for name, one in found.items() if name != "brickyard"}


def shipped() -> Installed:
    """What `pip install brickyard` brings, itself included."""
    return closure(["brickyard"])


def offered() -> Installed:
    """The same with every extra that is for users."""
    return closure(["brickyard"], {"brickyard": EXTRAS})


def pins() -> dict[str, str]:
    """What the lock says: versions by name."""
    return dict(line.split("==") for line in LOCK.read_text().splitlines() if not line.startswith("#"))


def drift() -> dict[str, str]:
    """What the tests need and is installed otherwise than the lock says, each with both versions."""
    wanted = pins()
    found = {name: one.version.split("+")[0] for name, one in tested().items()}
    return {
        name: f"{version}, locked: {wanted.get(name, 'no')}"
        for name, version in found.items()
        if version != wanted.get(name)
    }


def lock() -> str:
    """The text of the lock."""
    lines = [
        "# Versions that the tests were run with, on Python 3.11. Written by `python tools/supply.py lock`.",
        "# The library itself accepts others: see pyproject.toml.",
        *(f"{name}=={found.version.split('+')[0]}" for name, found in tested().items()),
    ]
    return "\n".join(lines) + "\n"


def licence(found: metadata.Distribution) -> str:
    """What a distribution says of its licence, in one line."""
    about = found.metadata.json
    classifiers = [c.rpartition(" :: ")[2] for c in about.get("classifier", []) if c.startswith("License ::")]
    text = about.get("license_expression") or ", ".join(classifiers) or str(about.get("license", "")).split("\n")[0]
    return str(text).strip() or "unknown"


def permissive(text: str) -> bool:
    """Whether licences allow what Apache-2.0 allows: an SPDX expression, or names with commas, which all must.

    >>> permissive("MIT OR GPL-3.0-only"), permissive("MIT AND GPL-3.0-only")
    (True, False)
    """
    text = re.sub(r" \((ISCL|MPL 2\.0)\)", "", text)
    tokens = re.findall(r"[(),]|\bAND\b|\bOR\b|(?:(?!\bAND\b|\bOR\b)[^(),])+", text)
    tokens = [token.strip() for token in tokens if token.strip()]

    def one() -> bool:
        token = tokens.pop(0)
        if token != "(":
            return FREE.fullmatch(token.split(" WITH ")[0]) is not None  # an exception only allows more
        found = any_of()
        return tokens.pop(0) == ")" and found

    def all_of() -> bool:
        found = one()
        while tokens and tokens[0] in ("AND", ","):
            tokens.pop(0)
            found = one() and found
        return found

    def any_of() -> bool:
        found = all_of()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = all_of() or found
        return found

    try:
        return any_of() and not tokens
    except IndexError:  # it ends too early
        return False


def purl(name: str, version: str) -> str:
    """The address of a version of a package, as a bill of materials writes it.

    >>> purl("torch", "2.14.1+cpu")
    'pkg:pypi/torch@2.14.1%2Bcpu'
    """
    return f"pkg:pypi/{name}@{quote(version, safe='')}"


def bill() -> dict[str, Any]:
    """A CycloneDX 1.5 document; the same for the same installation."""
    installed = shipped()
    found = installed.found

    def reference(name: str) -> str:
        return purl(name, found[name].version)

    def component(name: str) -> dict[str, Any]:
        return {
            "type": "library",
            "bom-ref": reference(name),
            "name": name,
            "version": found[name].version,
            "purl": reference(name),
            "licenses": [{"license": {"name": licence(found[name])}}],
        }

    needs = {name: sorted(installed.needs.get(name, ())) for name in found}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**component("brickyard"), "type": "application"}},
        "components": [component(name) for name in found if name != "brickyard"],
        "dependencies": [{"ref": reference(name), "dependsOn": [reference(n) for n in needs[name]]} for name in found],
    }


def audit() -> dict[str, Any]:
    """Licences of what is offered, whether versions agree and are the locked ones, and known holes."""
    found = offered().found
    odd = {name: text for name, one in found.items() if not permissive(text := licence(one)) and not CUDA.match(name)}
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    return {
        "distributions": len(found),
        "licences to look at": odd,
        "versions agree": check.returncode == 0 or check.stdout.strip(),
        "not as locked": drift(),
        "known holes": holes(),
    }


def holes() -> Any:
    """What `pip-audit` says of the lock, or why it says nothing."""
    if importlib.util.find_spec("pip_audit") is None:
        return "skipped: pip-audit is not installed; pip install 'brickyard[audit]'"
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "-f", "json"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        asked = json.loads(run.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        return "skipped: the service of known holes does not answer from here"
    if all("skip_reason" in one for one in asked):
        return f"skipped: the service of known holes knows none of the {len(asked)} distributions from here"
    return [{"name": one["name"], "ids": [v["id"] for v in one["vulns"]]} for one in asked if one.get("vulns")]


def fine(found: dict[str, Any]) -> bool:
    """Whether an audit found nothing; what was skipped is not found."""
    known = found["known holes"]
    odd = found["licences to look at"] or found["not as locked"]
    return not odd and found["versions agree"] is True and (isinstance(known, str) or not known)


def release(place: Path, root: Path = ROOT) -> list[Path]:
    """Build the source archive and the wheel of the last commit: nothing else that lies in the folder is in them.

    Args:
        place: The folder for both.
        root: A checkout.

    Raises:
        SystemExit: It is no checkout, or the build fails.
    """

    def git(*words: str) -> bytes:
        run = subprocess.run(["git", *words], cwd=root, capture_output=True)
        if run.returncode:
            raise SystemExit(f"a release is built from a commit: {run.stderr.decode(errors='replace').strip()}")
        return run.stdout

    left_out = git("status", "--porcelain").decode().splitlines()
    if left_out:
        print(f"not committed, so not in it: {', '.join(line[3:] for line in left_out[:5])} ...", file=sys.stderr)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct").decode().strip()}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as built:
        with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", "HEAD"))) as archive:
            archive.extractall(folder, filter="data")
        command = [sys.executable, "-m", "hatchling", "build", "-d", built]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"the build failed: {run.stderr.strip()}")
        place.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, place)) for path in sorted(Path(built).iterdir())]


def main() -> int:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description="What Brickyard is made of.")
    parser.add_argument("what", choices=("lock", "sbom", "audit", "release"))
    parser.add_argument(
        "-o", "--output", type=Path, help="where to write; default: the lock, standard output, or the folder dist"
    )
    options = parser.parse_args()
    if options.what == "lock":
        (options.output or LOCK).write_text(lock())
        return 0
    if options.what == "release":
        for path in release(options.output or ROOT / "dist"):
            print(path)
        return 0
    found = bill() if options.what == "sbom" else audit()
    text = json.dumps(found, indent=1, sort_keys=options.what == "sbom") + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    return int(options.what == "audit" and not fine(found))


if __name__ == "__main__":
    sys.exit(main())
