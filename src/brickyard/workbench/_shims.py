"""Doors to the export and the report."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from brickyard.errors import OptionError

__all__ = ["export_onnx", "report"]


def export_onnx(model: Any, path: Path) -> None:
    """Write a model as ONNX."""
    try:
        export = importlib.import_module("brickyard.exports").export_onnx
    except ModuleNotFoundError:
        raise OptionError("this version of Brickyard cannot write ONNX; take the .safetensors file") from None
    export(model, path, overwrite=True)


def report(items: list[Any]) -> str:
    """A report as HTML."""
    try:
        made = importlib.import_module("brickyard.reporting").report
    except ModuleNotFoundError:
        raise OptionError("this version of Brickyard cannot write reports; take the .safetensors file") from None
    return str(made(items))
