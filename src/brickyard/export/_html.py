"""Export components and assemblies as one HTML file that answers pictures in a browser, without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brickyard._version import __version__
from brickyard.assembly._assembly import Assembly, check_model
from brickyard.base._boxes import check_no_boxes
from brickyard.base._checks import given_path
from brickyard.base._errors import OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import tidy
from brickyard.base._records import ComponentManifest
from brickyard.base._sides import NAMES, is_picture
from brickyard.component._component import Component
from brickyard.component._predictor import REJECT
from brickyard.component._strangers import SURE
from brickyard.export._onnx import onnx_bytes
from brickyard.export._onnx_turns import check_at_once
from brickyard.inputs._preprocessing import check_raw
from brickyard.network._untouched import guarded
from brickyard.storage._atomic import check_free, write_content

INSTEAD = "use a file name that ends in .onnx or .py"
IN_TITLE = 6  # names
KINDS = ("one", "several")  # of outputs, whose answers the page's script can read


@dataclass(frozen=True)
class HtmlRecord:
    """What was written.

    Attributes:
        path: The file.
        bytes: Its size.
        model_bytes: How much of that is the model.
        runtime_bytes: How much of it is ONNX Runtime, which runs the model.
        error: Maximum difference between the logits of onnxruntime and torch on random images, relative to the largest
            logit of the batch.
        strangers: Whether the page turns strangers away, and says which answers are sure.
        resized: Whether the page brings pictures to the size and colours of the source, which the model by itself
            does not.
    """

    path: Path
    bytes: int
    model_bytes: int
    runtime_bytes: int
    error: float
    strangers: bool
    resized: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        parts = f"model {self.model_bytes / 1e6:.1f} MB, ONNX Runtime {self.runtime_bytes / 1e6:.1f} MB"
        lines = [f"{self.path}: one HTML page for any browser, {self.bytes / 1e6:.1f} MB ({parts})"]
        lines.append(f"  it needs no network; logits {self.error:.1e} from torch on random images")
        if not self.strangers:
            lines.append("  it turns no stranger away: how unlike its classes a picture is, is not known")
        if self.resized:
            lines.append("  pictures are brought to the size and colours of the source, which predict leaves to you")
        return "\n".join(lines)


@guarded
def export_html(
    model: Component | Assembly, path: str | Path, *, overwrite: bool = False, title: str | None = None
) -> HtmlRecord:
    """Export a component or an assembly as one HTML file that answers pictures in any browser.

    The page holds the model as ONNX and ONNX Runtime Web (WebAssembly, MIT licence), and loads nothing: it works
    without a network, on a phone too. It takes pictures that are chosen, dropped, pasted or taken with the camera, and
    answers them as `judge` does: with a class, "none of these", and sure or not sure. All preprocessing is inside the
    model. Where its own preprocessing sets no size or channels, the page brings pictures to those of its source.

    Args:
        model: The component or assembly.
        path: The file to write.
        overwrite: Replace an existing file.
        title: The heading; default: the names of the classes.

    Raises:
        FileError: The file exists and `overwrite` is false, or cannot be written.
        OptionError: The model takes no pictures, its parts run in turn, its outputs are of a registered kind, or onnx,
            onnxscript or onnxruntime is missing.
        DataError: How pictures are to be prepared is not known.
        SurgeryError: The model cannot be exported, or its outputs differ from the model's. No file is left.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.export import export_html
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = export_html(component, f"{folder}/try.html")
        >>> record.resized, 4_000_000 < record.runtime_bytes < record.bytes < 7_000_000
        (True, True)
    """
    check_model(model, "export_html")
    check_no_boxes(model, "export_html", INSTEAD)
    path = given_path(path, "the file to write")
    check_free(path, overwrite)
    for needed in ("onnx", "onnxruntime", "onnxscript"):
        package(needed, "onnx", "writing a page that runs a model")
    _check(model)
    fitted = _fitted(model)
    found = onnx_bytes(fitted, path, strangers=bool(model.stranger_limits))
    packed = _packed(gzip.compress(found.content, 9, mtime=0))
    names = ", ".join(tidy(name, 32) for name in model.classes[:IN_TITLE])
    names += " …" if len(model.classes) > IN_TITLE else ""
    style, script = _text("page/style.css"), _script()
    content = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=tidy(title or names, 200),
            about=_about(model, named=title is not None),
            notes=_notes(found.strangers),
            meta=Markup(_json(_meta(fitted, found.strangers))),
            style=Markup(style),
            style_sha256=_digest(style),
            script=Markup(script),
            script_sha256=_digest(script),
            model=Markup(packed),
            runtime=Markup(_packed(_bytes("runtime/ort-wasm-simd-threaded.wasm.gz"))),
            third=Markup(_packed(_bytes("runtime/ThirdPartyNotices.txt.gz"))),
            license=_text("runtime/LICENSE.txt"),
            version=__version__,
            runtime_version=runtime_version(),
        )
    )
    write_content(path, content, overwrite=overwrite)
    size, resized = len(content.encode()), fitted is not model
    runtime = len(_packed(_bytes("runtime/ort-wasm-simd-threaded.wasm.gz"))) + len(_runtime())
    return HtmlRecord(path, size, len(packed), runtime, found.error, found.strangers, resized)


def _check(model: Component | Assembly) -> None:
    shape = model.input_shape
    if not is_picture(shape):
        why = f"a page takes pictures, and this model takes {NAMES[len(shape) - 1]}"
        raise OptionError("option-wrong-object", f"{why}; export it as .onnx or .py")
    if any(part.input_shape[0] not in (1, 3) for part in model.manifest.parts):
        why = f"a page takes grey or coloured pictures, and this model takes {shape[0]} channels"
        raise OptionError("option-wrong-object", f"{why}; export it as .onnx or .py")
    if model.manifest.outputs not in KINDS:
        why = f"a page cannot read outputs of the kind {tidy(model.manifest.outputs)!r}, which was registered"
        raise OptionError("option-wrong-object", f"{why}; export it as .onnx or .py")
    check_at_once(model, "a page says how sure an answer is by all parts")
    for how in model.preprocessings:
        check_raw(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), how, "pictures for a page")


def _fitted(model: Component | Assembly) -> Component | Assembly:
    """The model, or a copy that brings pictures to the size and channels of its source where it leaves that open."""
    changed = {index: how for index, part in enumerate(model.manifest.parts) if (how := _missing(part))}
    if not changed:
        return model
    parts = [
        part.model_copy(update={"preprocessing": part.preprocessing.model_copy(update=changed.get(index, {}))})
        for index, part in enumerate(model.manifest.parts)
    ]
    if isinstance(model, Component):
        return model.with_preprocessing(parts[0].preprocessing)
    return model.with_manifest(parts=tuple(parts))


def _missing(part: ComponentManifest) -> dict[str, Any]:
    channels, *size = part.input_shape
    how: dict[str, Any] = {} if part.preprocessing.size is not None else {"size": tuple(size)}
    return how | ({} if part.preprocessing.channels is not None else {"channels": channels})


def _meta(model: Component | Assembly, strangers: bool) -> dict[str, Any]:
    """What the script has to know of the model."""
    several = model.manifest.outputs == "several"
    return {
        "outputs": [*model.classes, *([REJECT] if model.reject else [])],
        "classes": len(model.classes),
        "reject": model.reject,
        "several": several,
        "thresholds": list(model.manifest.decision_thresholds or [0.5] * len(model.classes)) if several else [],
        "owners": [list(owners) for owners in model.owners],
        "near": [one.sure / one.limit for one in model.stranger_limits] if strangers else [],
        "sure_share": SURE,
    }


def _about(model: Component | Assembly, *, named: bool) -> str:
    """The line below the title; where the title has all names, it does not repeat them."""
    count = len(model.classes)
    said = f"It knows {count:,} class{'es' if count > 1 else ''}"
    return f"{said}: {_classes(model)}" if named or count > IN_TITLE else f"{said}, and runs on this device."


def _classes(model: Component | Assembly) -> str:
    shown = ", ".join(tidy(name, 32) for name in model.classes[:40])
    return shown + (f" and {len(model.classes) - 40:,} more" if len(model.classes) > 40 else "")


def _notes(strangers: bool) -> str:
    if strangers:
        return "Pictures that look like none of the classes are turned away, as far as that can be told."
    return "It names one of its classes for pictures of anything else too: how unlike them a picture is, is not known."


# -- the files that a page is made of ------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    loader = PackageLoader("brickyard.export", "page")
    return Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)


def _bytes(name: str) -> bytes:
    return (files("brickyard.export") / name).read_bytes()


def _text(name: str) -> str:
    return _bytes(name).decode()


def _packed(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no character in it begins a tag or a comment."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return _packed(hashlib.sha256(text.encode()).digest())


def _script() -> str:
    """ONNX Runtime and the page's own script as one module, so that nothing has to be loaded."""
    return f"{_runtime()}\n{_text('page/page.js')}"


@cache
def _runtime() -> str:
    """ONNX Runtime Web, its exports as one constant called ort."""
    text = _text("runtime/ort.wasm.bundle.min.mjs").rstrip()
    start = text.rindex("export{")
    pairs = (pair.split(" as ") for pair in text[start + 7 :].rstrip(";}").split(","))
    names = {exported: own for own, exported in pairs}
    wanted = ", ".join(f"{name}: {names[name]}" for name in ("InferenceSession", "Tensor", "env"))
    return f"{text[:start]}\nconst ort = {{ {wanted} }};"


def runtime_version() -> str:
    """The version of ONNX Runtime Web that pages contain."""
    found = re.search(r"ONNX Runtime Web v([\d.]+)", _text("runtime/ort.wasm.bundle.min.mjs"))
    assert found is not None  # as the file is ours
    return found[1]
