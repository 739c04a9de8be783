"""Exports: ONNX, plain PyTorch, the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.export._html import HtmlRecord as HtmlRecord
    from brickyard.export._html import export_html as export_html
    from brickyard.export._hub import from_pretrained as from_pretrained
    from brickyard.export._hub import push_to_hub as push_to_hub
    from brickyard.export._hub import save_pretrained as save_pretrained
    from brickyard.export._int8 import Int8Record as Int8Record
    from brickyard.export._module import ModuleRecord as ModuleRecord
    from brickyard.export._module import export_module as export_module
    from brickyard.export._onnx import ExportRecord as ExportRecord
    from brickyard.export._onnx import export_onnx as export_onnx
    from brickyard.export._onnx import export_state_dict as export_state_dict
    from brickyard.export._onnx import torch_program as torch_program

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "export._html": "HtmlRecord export_html",
        "export._hub": "from_pretrained push_to_hub save_pretrained",
        "export._int8": "Int8Record",
        "export._module": "ModuleRecord export_module",
        "export._onnx": "ExportRecord export_onnx export_state_dict torch_program",
    },
)
