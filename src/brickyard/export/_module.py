"""Export components and assemblies as a plain `torch.nn.Module` in Python that does not need Brickyard.

Names from a model's file are data. They become literals or harmless identifiers, never code.
"""

from __future__ import annotations

import hashlib
import keyword
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brickyard._version import __version__
from brickyard.assembly._assembly import Assembly, check_model
from brickyard.base._boxes import check_no_boxes
from brickyard.base._checks import EVEN, given_path
from brickyard.base._errors import FileError
from brickyard.base._messages import shown, tidy
from brickyard.base._records import ComponentManifest
from brickyard.component._component import Component
from brickyard.component._describe import merged_text, share_text
from brickyard.component._predictor import REJECT
from brickyard.export._onnx_turns import check_at_once
from brickyard.export._plain_inputs import raw_text
from brickyard.export._plain_models import Content, assembly_content, component_content
from brickyard.export._spelling import WIDTH, joined, literal, wrapped
from brickyard.network._untouched import guarded
from brickyard.outputs._detections import Detections
from brickyard.outputs._kinds import Several
from brickyard.storage._atomic import check_free, write_together
from brickyard.storage._safefile import KEY as OWN_KEY

EACH_PART = "export each component by itself"
SUFFIX = ".weights.safetensors"
MODULE_KEY = "module"  # in the metadata of the weights: whose they are
_LOAD = '''
def load(path=WEIGHTS, device="cpu"):
    """Build the model and fill in the weights of a file; all names and shapes must be the model's."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        if (file.metadata() or {}).get("module", MODULE) != MODULE:
            raise ValueError(f"{path} holds the weights of another model")
        weights = {name: file.get_tensor(name) for name in file.keys()}
    with torch.device("meta"):
        model = Model()
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()
'''.strip()


@dataclass(frozen=True)
class ModuleRecord:
    """What was written.

    Attributes:
        path: The Python file.
        weights: The file of its weights, beside it.
        bytes: Size of the Python file.
        weights_bytes: Size of the weights.
        format: "python".
    """

    path: Path
    weights: Path
    bytes: int
    weights_bytes: int
    format: str = "python"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self) | {"path": str(self.path), "weights": str(self.weights)}

    def __str__(self) -> str:
        return (
            f"{self.path}: a torch.nn.Module in Python, {self.bytes:,} bytes\n"
            f"{self.weights}: its weights, {self.weights_bytes:,} bytes"
        )


def weights_beside(path: Path) -> Path:
    """Where the weights of a Python file are written: "part.weights.safetensors" for "part.py"."""
    return path.with_name(path.stem + SUFFIX)


@guarded
def export_module(model: Component | Assembly, path: str | Path, *, overwrite: bool = False) -> ModuleRecord:
    """Export a component or an assembly as the Python code of a `torch.nn.Module`, and its weights beside it.

    The code needs torch and safetensors, and no Brickyard. `load()` builds the module and fills in its weights,
    `preprocess(images)` turns raw images into its input, and `CLASSES` names its outputs. The layers have the names
    that they have in the source: the state dict is that of `component.network`, and that of an assembly's parts begins
    with `parts.0.`, or with `joined.` where they are joined. Weights keep their type. The same model gives the same
    bytes.

    Args:
        model: The component or assembly.
        path: The Python file to write, such as "part.py"; its weights go to "part.weights.safetensors".
        overwrite: Replace existing files. A component or an assembly is never replaced by weights.

    Raises:
        FileError: A file exists and `overwrite` is false, cannot be written, cannot have that name, or the network has
            operations without a form as data.
        SurgeryError: The model cannot be written as one module.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.export._module import export_module
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = export_module(component, f"{folder}/part.py")
        ...     text = record.path.read_text()
        >>> record.weights.name, "brickyard" in [line.split()[1] for line in text.splitlines() if "import" in line]
        ('part.weights.safetensors', False)
    """
    check_model(model, "export_module")
    if isinstance(model, Assembly):
        check_no_boxes(model, "export_module of an assembly", EACH_PART)
    check_at_once(model, "a plain Python module runs all parts on every image")
    path = given_path(path, "the file to write")
    weights = weights_beside(path)
    check_targets(path, overwrite)
    content = component_content(model) if isinstance(model, Component) else assembly_content(model)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(content.state.items())}
    mark = _fingerprint(state)
    text = _text(model, content, path.stem, mark)
    writes: dict[Path, Callable[[Path], object]] = {
        path: lambda place: place.write_bytes(text.encode()),
        weights: lambda place: save_file(state, place, {MODULE_KEY: mark}),  # one key: several have no order
    }
    write_together(writes, overwrite=overwrite)
    return ModuleRecord(path, weights, path.stat().st_size, weights.stat().st_size)


def check_targets(path: Path, overwrite: bool) -> None:
    """Refuse names that Python cannot import, files that exist, and models that the weights would replace.

    Raises:
        FileError: One of these.
    """
    stem, taken = path.stem, {*sys.stdlib_module_names, "torch", "safetensors", "numpy", "brickyard"}
    if path.suffix != ".py" or not (stem.isascii() and stem.isidentifier()) or keyword.iskeyword(stem) or stem in taken:
        why = f"{path} cannot be imported as a module of its own"
        raise FileError("file-path-invalid", f"{why}; give a name of letters, digits and _, such as part.py")
    weights = weights_beside(path)
    for one in (path, weights):
        check_free(one, overwrite)
    if weights.is_file() and _is_model(weights):
        why = f"the weights would replace {weights}, which is a component or an assembly"
        raise FileError("file-path-invalid", f"{why}; give another path")


def _is_model(path: Path) -> bool:
    """Whether a file is one of Brickyard's own."""
    try:
        with safe_open(path, framework="pt") as file:
            return OWN_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


# -- the text ----------------------------------------------------------------------------------------------


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    """What tells these weights from others: SHA-256 of their names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _text(model: Component | Assembly, content: Content, stem: str, mark: str) -> str:
    """The Python code of a model.

    Args:
        model: The model.
        content: What the code consists of.
        stem: The name that the file will have, without suffix.
        mark: What tells its weights from those of others.
    """
    names = (*model.classes, *([REJECT] if model.reject else []))
    constants = [
        *wrapped(f"CLASSES = ({joined(map(literal, names))}{',' * (len(names) == 1)})"),
        *_thresholds(model),
        f'WEIGHTS = __file__.rpartition(".")[0] + "{SUFFIX}"',
        f"MODULE = {literal(mark)}  # its weights say so too",
        *content.constants,
    ]
    body = "\n\n\n".join(["\n".join(constants), *(one.strip() for one in (content.functions, *content.classes, _LOAD))])
    functional = ["import torch.nn.functional as F"] if re.search(r"\bF\.", body) else []
    imports = ["import torch", *functional, "from safetensors import safe_open", "from torch import nn"]
    imports = [*(["import math\n"] if re.search(r"\bmath\.", body) else []), *imports]
    imports += ["from torchvision.ops import batched_nms"] if "batched_nms(" in body else []
    return "\n\n".join([_docstring(_about(model, stem)), "\n".join(imports), body]) + "\n"


def _by_sigmoid(model: Component | Assembly) -> bool:
    """Whether its answer is each class with a probability above a threshold."""
    return type(model.outputs) is Several


def _thresholds(model: Component | Assembly) -> list[str]:
    """The constant of the thresholds, where a model answers by them."""
    if not _by_sigmoid(model):
        return []
    found = model.manifest.decision_thresholds or (EVEN,) * len(model.classes)
    return wrapped(f"THRESHOLDS = ({joined(map(repr, found))}{',' * (len(found) == 1)})")


# -- what it says of itself --------------------------------------------------------------------------------


def _docstring(lines: Sequence[str]) -> str:
    """Lines as a docstring that ends where they end, whatever they hold."""
    short = [one for line in lines for one in ([line] if line[:1] in ("", " ") else textwrap.wrap(line, WIDTH))]
    safe = [shown(line, keep="").replace("\\", "\\\\").replace('"', '\\"') for line in short]
    return '"""' + "\n".join(safe) + '\n"""'


def _about(model: Component | Assembly, stem: str) -> list[str]:
    manifest = model.manifest
    finds = isinstance(model.outputs, Detections)
    what, used = ("detector", "find, load") if finds else ("classifier", "load, preprocess")
    lines = [
        f"A {what} as a plain PyTorch module, written by Brickyard {__version__}, which it does not need.",
        "",
        f"    from {stem} import CLASSES, {used}",
        "    model = load()",
    ]
    if finds:
        lines += [
            "    for boxes, scores, classes in find(model, images):",
            "        print([CLASSES[k] for k in classes], boxes)",
        ]
    elif _by_sigmoid(model):
        rows = "model(preprocess(images)).double().sigmoid().tolist()"
        lines += [
            f"    for row in {rows}:",
            "        print([name for name, p, t in zip(CLASSES, row, THRESHOLDS) if p > t])",
        ]
    elif manifest.outputs == "one":
        lines.append("    print([CLASSES[k] for k in model(preprocess(images)).argmax(1)])")
    else:
        lines.append("    logits = model(preprocess(images))  # one for each of CLASSES")
    lines += [
        "",
        f"images is a tensor of {raw_text(len(model.input_shape) - 1)}.",
        f"The weights are in {stem}{SUFFIX}, beside this file: move and rename both together.",
        "",
    ]
    if isinstance(model, Assembly):
        lines.append(f"Assembled from {len(manifest.parts)} parts in {model.manifest.form} form:")
    for index, part in enumerate(manifest.parts):
        lines += _origin(part, f"Part {index}: cut" if isinstance(model, Assembly) else "Cut")
    if model.reject:
        sources = "sources" if isinstance(model, Assembly) else "source"
        lines.append(f"The last output, {REJECT}, stands for all other classes of the {sources}.")
    if _by_sigmoid(model):
        lines.append("An image may belong to several classes: those with a probability above their threshold.")
    elif manifest.outputs != "one" and not isinstance(model.outputs, Detections):
        lines.append(f"What its outputs mean was registered under the name {tidy(manifest.outputs)}.")
    return lines


def _origin(part: ComponentManifest, start: str) -> list[str]:
    """What a component was cut from."""
    source, chosen = part.source, part.selection
    task = ", ".join(tidy(name, 24) for name in part.classes[:8])
    more = f" and {len(part.classes) - 8} more" if len(part.classes) > 8 else ""
    flops, numbers = share_text(chosen.flops, source.flops), share_text(chosen.parameters, source.parameters)
    return [
        f"{start} from {tidy(source.name)}, which knows {len(source.classes)} classes, for {task}{more}.",
        *([f"Its classes stand for those of its source: {tidy(merged_text(part), 400)}."] if part.members else []),
        f"It has {flops} of the FLOPs and {numbers} of the parameters of its source.",
    ]
