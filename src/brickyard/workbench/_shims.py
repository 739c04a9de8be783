"""Doors to the yard, the export and the report."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from brickyard.errors import FileError, OptionError

__all__ = ["export_onnx", "open_yard", "report"]


def open_yard(path: str | Path) -> Any:
    """The yard in a folder."""
    try:
        return importlib.import_module("brickyard.yard").Yard(path)
    except ModuleNotFoundError:
        return _Folder(path)


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


class _Entry:
    def __init__(self, name: str, path: Path) -> None:
        import hashlib

        from brickyard.component import Component
        from brickyard.files import load

        self.path, self.name = path, name
        found = load(path)
        if not isinstance(found, Component):
            raise FileError(f"{path} is no component")
        m = found.manifest
        content = path.read_bytes()
        accuracy = next(
            (row["accuracy"] for s in m.scores.values() for row in s.get("rows", []) if row["name"] == "component"),
            None,
        )
        self.values = {
            "name": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "classes": m.classes,
            "reject": m.reject,
            "source": m.source.name,
            "source_sha256": m.source.sha256,
            "parameters": m.selection.parameters,
            "flops": m.selection.flops,
            "accuracy": accuracy,
            "input_shape": m.input_shape,
            "architecture": m.source.name,
        }
        self.__dict__.update(self.values)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.values)


class _Folder:
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileError(f"yard {path} is no folder; give one that holds components")
        self._entries: dict[str, _Entry] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            try:
                self._entries[file.stem] = _Entry(file.stem, file)
            except FileError:
                continue

    def entries(self) -> list[_Entry]:
        return list(self._entries.values())

    def entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise FileError(f"component {name!r} is not in the yard; it has {', '.join(list(self._entries)[:8])}")
        return self._entries[name]

    def load(self, name: str) -> Any:
        from brickyard.files import load

        return load(self.entry(name).path)
