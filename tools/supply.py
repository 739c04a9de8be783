"""What Brickyard is made of: the lock that its tests run with, a bill of materials, and an audit.

    python tools/supply.py lock                 # writes constraints.txt from what is installed here
    python tools/supply.py sbom -o sbom.json    # CycloneDX 1.5 of what `pip install brickyard` brings
    python tools/supply.py audit                # licences, agreement, known holes where the service answers

Everything is read from the metadata of what is installed; only the last part of the audit asks a service.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints.txt"
# Licences that may stand beside Apache-2.0 in what a user installs.
FREE = re.compile(r"\b(MIT|MIT-CMU|BSD|Apache|ISC|PSF|Python-2\.0|HPND|MPL|Unlicense|0BSD|Zlib|CNRI-Python)\b", re.I)
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


def bill() -> dict[str, Any]:
    """A CycloneDX 1.5 document; the same for the same installation."""
    installed = shipped()
    found = installed.found

    def reference(name: str) -> str:
        return f"pkg:pypi/{name}@{found[name].version}"

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
    """Licences of what is shipped, whether versions agree, and known holes."""
    found = shipped().found
    odd = {name: text for name, one in found.items() if not FREE.search(text := licence(one)) and not CUDA.match(name)}
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    return {
        "distributions": len(found),
        "licences to look at": odd,
        "versions agree": check.returncode == 0 or check.stdout.strip(),
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
    return (
        not found["licences to look at"] and found["versions agree"] is True and (isinstance(known, str) or not known)
    )


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description="What Brickyard is made of.")
    parser.add_argument("what", choices=("lock", "sbom", "audit"))
    parser.add_argument("-o", "--output", type=Path, help="a file to write; default: the lock, or standard output")
    options = parser.parse_args()
    if options.what == "lock":
        (options.output or LOCK).write_text(lock())
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
