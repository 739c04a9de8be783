"""What a classifier is taken along as: files, and the command or the Python code that makes it again."""

from __future__ import annotations

import io
import json
import re
import shlex
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import OptionError
from brickyard.base._records import ComponentManifest
from brickyard.component._component import Component
from brickyard.export._html import export_html
from brickyard.export._module import export_module, weights_beside
from brickyard.export._onnx import export_onnx
from brickyard.reports._page import report
from brickyard.workbench._bench import Bench, Kept, form_options

KINDS = {
    "safetensors": ("application/octet-stream", "{}.safetensors"),
    "onnx": ("application/octet-stream", "{}.onnx"),
    "html": ("text/html", "{}.html"),
    "page": ("text/html", "{}-try.html"),
    "python": ("application/zip", "{}-python.zip"),
    "recipe": ("application/yaml", "{}-recipe.yaml"),
}
HEAD = """\
# The recipe of a classifier from the workbench. A brick does not know where its source and pictures lie:
# put them in place of the words in capital letters. Then: brickyard build recipe.yaml
"""


def file(bench: Bench, name: str, kind: str) -> tuple[bytes, str, str]:
    """A classifier as a file: its bytes, its media type and a name.

    Raises:
        OptionError: There is no such kind of file, or the classifier cannot be one.
    """
    if kind not in KINDS:
        raise OptionError("option-choice", f"the file's kind must be one of {', '.join(KINDS)}, got {kind[:40]!r}")
    media, title = KINDS[kind]
    with bench.at_work(name) as kept, tempfile.TemporaryDirectory() as folder:
        title = title.format(f"classifier-{len(kept.assembly.classes)}-classes")
        path = Path(folder) / title
        if kind == "html":
            items: list[Assembly | Component] = [kept.assembly, *kept.parts]
            names = ["classifier", *kept.bricks]
            return report(items, names=names, title="A classifier from the workbench").encode(), media, title
        if kind == "recipe":
            return recipe(kept).encode(), media, title
        if kind == "python":
            return _module(kept.assembly, Path(folder) / "classifier.py"), media, title
        if kind == "onnx":
            export_onnx(kept.assembly, path)
        elif kind == "page":
            export_html(kept.assembly, path)
        else:
            kept.assembly.save(path)
        return path.read_bytes(), media, title


def _module(assembly: Assembly, path: Path) -> bytes:
    """A plain Python module and its weights in one archive."""
    export_module(assembly, path)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in (path, weights_beside(path)):
            archive.writestr(zipfile.ZipInfo(one.name), one.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def texts(bench: Bench, name: str) -> dict[str, str]:
    """The command, and the Python code, that make the classifier again from the yard's files."""
    kept = bench.kept(name)
    yard = bench.yard.path.resolve().name
    files = [f"{yard}/{brick}.safetensors" for brick in kept.bricks]
    chosen = _chosen(kept)
    words = [word for option, value in chosen.items() for word in _words(option, value)]
    command = ["brickyard", "assemble", *(f"./{one}" if one.startswith("-") else one for one in files), *words]
    code = [f"by.load({_literal(one)})" for one in files]
    more = "".join(f", {option}={value!r}" for option, value in chosen.items())
    images, note = "", ""
    if _shown(kept):
        command += [f"--images=PICTURES_OF_{index + 1}" for index in range(len(files))]
        images = ", images=[" + ", ".join(f"pictures_of_{index + 1}" for index in range(len(files))) + "]"
        note = "\n# pictures_of_...: labelled pictures of each part, as (images, labels) or a data set"
    lines = ["import brickyard as by", "", "parts = [", *(f"    {one}," for one in code), f"]{note}"]
    lines += [f"classifier = by.assemble(parts{more}{images})", 'classifier.save("classifier.safetensors")']
    return {"command": f"{shlex.join(command)} -o classifier.safetensors", "python": "\n".join(lines) + "\n"}


def _shown(kept: Kept) -> bool:
    """Whether labelled pictures were used."""
    return bool(kept.assembly.manifest.scaling.images)


def _chosen(kept: Kept) -> dict[str, Any]:
    """The options that are not as they are by default."""
    known = form_options()
    return {name: value for name, value in kept.plan.options.items() if value != known[name].default}


def _words(option: str, value: Any) -> list[str]:
    flag = option.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}={value}"]


def _literal(text: str) -> str:
    return json.dumps(text)


def recipe(kept: Kept) -> str:
    """A recipe that cuts the same bricks out of their sources and joins them, with gaps where only its user knows.

    Budgets are the shares of FLOPs that the bricks have.
    """
    sources: dict[str, str] = {}
    components: dict[str, Any] = {}
    for brick, part in zip(kept.bricks, (part.manifest for part in kept.parts), strict=True):
        source = sources.setdefault(part.source.sha256, f"{_key(part.source.name)}-{len(sources) + 1}")
        components[_key(brick)] = {"source": source, "task": _task(part), **_limits(part), "reject": part.reject}
    names = {part.manifest.source.sha256: part.manifest.source for part in kept.parts}
    value: dict[str, Any] = {
        "brickyard": 1,
        "sources": {
            key: {
                "network": "NETWORK",
                "weights": "WEIGHTS.safetensors",
                "data": "PICTURES",
                "class-names": list(names[sha256].classes),
            }
            for sha256, key in sources.items()
        },
        "components": components,
        "assembly": {name.replace("_", "-"): option for name, option in _chosen(kept).items()},
    }
    value["assembly"].setdefault("scaling", kept.plan.options["scaling"])
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    return HEAD + text


def _task(part: ComponentManifest) -> Any:
    names = part.source.classes
    if all(len(group) == 1 and names[group[0]] == own for group, own in zip(part.groups, part.classes, strict=True)):
        return list(part.classes)
    return {own: [names[k] for k in group] for own, group in zip(part.classes, part.groups, strict=True)}


def _limits(part: ComponentManifest) -> dict[str, float]:
    if part.selection.budget is None or not part.source.flops:
        return {}
    return {"flops": min(1.0, round(part.selection.flops / part.source.flops + 5e-5, 4))}


def _key(name: str) -> str:
    """A name that a recipe can use."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:56] or "part"
