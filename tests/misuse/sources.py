"""Wrong and odd sources: names, weights, Python files, missing packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from brickyard.export._hub import from_pretrained
from brickyard.sources._loading import load_source
from brickyard.testing import chain
from misuse.rows import Marker, Place, Refused, Write, nothing, put, without


def bad(spec: str, code: str, *quoted: str, write: Write = nothing, weights: str | None = None) -> Refused:
    def call(place: Place) -> None:
        load_source(spec.replace("F/", f"{place.folder}/"), weights=weights and place.folder / weights)

    return Refused(call, code, quoted, write)


LENET = "zoo:lenet5?classes=3&channels=3"


def bad_weights(code: str, *quoted: str, write: Write, file: str = "x.pt", spec: str = LENET) -> Refused:
    return bad(spec, code, file, *quoted, write=write, weights=file)


def misfit(*quoted: str, **changes: torch.Tensor | None) -> Refused:
    """Weights of the network but for some changes."""
    return bad_weights("file-weights-mismatch", "LeNet5", *quoted, write=weights_with(**changes), file="x.safetensors")


def bad_code(content: bytes, *quoted: str) -> Refused:
    return bad("F/x.py:make", "option-source-code", "x.py:make", *quoted, write=put("x.py", content))


def evil_weights(folder: Path) -> None:
    torch.save({"conv1.weight": Marker(folder / "ran")}, folder / "x.pt")
    torch.load(folder / "x.pt", weights_only=False)
    (folder / "ran").unlink()  # the control: plain unpickling made it


def weights_with(**changes: torch.Tensor | None) -> Write:
    def write(folder: Path) -> None:
        from brickyard.training._sources import build_seeded

        state = build_seeded("lenet5", 3).state_dict()
        for key, value in changes.items():
            name = key.replace("__", ".")
            if value is None:
                del state[name]
            else:
                state[name] = value
        save_file(state, folder / "x.safetensors")

    return write


def whole_model(folder: Path) -> None:
    torch.save(chain(), folder / "x.pt")


def listed(folder: Path) -> None:
    torch.save([torch.zeros(1)], folder / "x.pt")


def embedding(folder: Path) -> None:
    save_file({"embedding": torch.zeros(2, 2)}, folder / "x.safetensors")


NOT_FINITE = weights_with(fc3__bias=torch.full((3,), float("nan")))
SOURCES: dict[str, Any] = {
    "a near miss in the zoo": bad("zoo:resnet21?classes=2", "option-source-unknown", "'resnet21'", "'resnet"),
    "an option that a network lacks": bad(f"{LENET}&colour=red", "option-unknown-name", "lenet5", "'colour'", "width"),
    "a width that is a word": bad(f"{LENET}&width=wide", "option-range", "lenet5", "width", "'wide'"),
    "a width that is no number": bad(f"{LENET}&width=nan", "option-range", "lenet5", "width", "nan"),
    "no outputs": bad("zoo:lenet5?classes=0", "option-range", "lenet5", "classes", "0"),
    "a million million outputs": bad("zoo:lenet5?classes=1000000000000", "option-range", "lenet5", "1000000000000"),
    "classes that nobody said": bad("zoo:lenet5", "option-source-undetermined", "zoo:lenet5?classes="),
    "a kind of source that is none": bad("hub:someone/pets", "option-source-unknown", "'hub:someone/pets'", "zoo:NAME"),
    "an address": bad("https://example.org/x.py", "option-source-unknown", "'https://example.org/x.py'", "zoo:NAME"),
    "nothing": bad("", "option-source-unknown", "''", "zoo:NAME"),
    "a near miss in torchvision": bad("torchvision:resnet81", "option-source-unknown", "'resnet81'", "'resnet18'"),
    "a near miss in timm": bad("timm:resnet81", "option-source-unknown", "'resnet81'", "'resnet18'"),
    "torchvision that is not installed": without(
        "torchvision.models", lambda place: load_source("torchvision:resnet18"), "'brickyard[torchvision]'"
    ),
    "timm that is not installed": without("timm", lambda place: load_source("timm:resnet18"), "'brickyard[timm]'"),
    "the Hub without its package": without(
        "huggingface_hub", lambda place: from_pretrained("someone/pets"), "someone/pets", "'brickyard[hub]'"
    ),
    "a folder for a Hub repository": Refused(
        lambda place: from_pretrained(place.folder), "file-missing", ("brickyard.safetensors",)
    ),
    ".pt with code: nothing runs": bad_weights("file-weights-unsafe", "model.state_dict()", write=evil_weights),
    ".pt that is text": bad_weights("file-weights-unsafe", "model.state_dict()", write=put("x.pt", b"hello")),
    ".pt that is a whole model": bad_weights("file-weights-unsafe", "model.state_dict()", write=whole_model),
    ".pt that is a list": bad_weights("file-weights-not-plain", "model.state_dict()", write=listed),
    "weights that are a folder": bad_weights("file-missing", write=put("x.pt/y")),
    "weights of another shape": misfit("conv1.weight (1, 2)", conv1__weight=torch.zeros(1, 2)),
    "weights with a layer missing": misfit("fc1.bias", fc1__bias=None),
    "weights with a layer more": misfit("fc9.bias", fc9__bias=torch.zeros(1)),
    "weights that are not finite": bad_weights("file-not-finite", "fc3.bias", write=NOT_FINITE, file="x.safetensors"),
    "weights of something else": bad_weights(
        "file-weights-mismatch", "conv1.weight", write=embedding, file="x.safetensors", spec=f"{LENET}&width=1"
    ),
    "a Python file that is none": bad_code(b"def (", "SyntaxError"),
    "a Python file without the function": bad_code(b"def build(): pass", "'make'", "build"),
    "a Python function that fails": bad_code(b"def make(): 1 / 0", "ZeroDivisionError"),
    "a Python function that returns no network": bad_code(b"def make(): return 3", "torch.nn.Module", "int"),
}
