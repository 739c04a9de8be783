"""Commands that export models: export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from brickyard.base._errors import OptionError
from brickyard.cli._options import DATA_HELP, Force, Json, Output
from brickyard.cli._output import emit, loaded
from brickyard.sources._resolve import check_free, data_of

File = Annotated[Path, typer.Argument(help="Component or assembly file.", show_default=False)]


def export(
    file: File,
    output: Output,
    data: Annotated[
        str | None,
        typer.Option("--data", help=f"ONNX: also check the export on these images: {DATA_HELP}", show_default=False),
    ] = None,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="ONNX: take uint8 images in 0..255 instead of floats in [0, 1].")
    ] = False,
    channels: Annotated[
        int | None,
        typer.Option(help="ONNX: take raw images with this many channels, 1 or 3, and convert them."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export to ONNX (.onnx) or a state dict (.safetensors)."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component
    from brickyard.export._onnx import MOST_CHECKED, export_onnx, export_state_dict

    if output.suffix not in (".onnx", ".safetensors"):
        found = "a program of torch.export holds pickled parts, which Brickyard does not write" * (
            output.suffix in (".pt2", ".pt", ".pth")
        )
        raise OptionError(
            "option-suffix",
            f"the suffix of {output} is not a supported format{': ' * bool(found)}{found}; use "
            ".onnx, or .safetensors for the state dict",
        )
    if output.suffix == ".safetensors" and (data is not None or uint8 or channels is not None):
        raise OptionError(
            "option-without-effect",
            "--data, --uint8 and --channels apply to ONNX only, and would have no effect on a "
            "state dict; leave them out",
        )
    check_free(output, force, file)
    model = loaded(file, Component, Assembly)
    if output.suffix == ".safetensors":
        record = export_state_dict(model, output, overwrite=force)
    else:
        how = model.manifest.parts[0].preprocessing
        images: Any = None if data is None else data_of(data, how, "test", MOST_CHECKED)
        record = export_onnx(
            model,
            output,
            overwrite=force,
            check_images=images,
            dtype="uint8" if uint8 else "float32",
            channels=channels,
        )
    emit(record.as_dict(), as_json, record)


def push(
    file: File,
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub.", metavar="OWNER/NAME")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility of a newly created repository.")
    ] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload a Brickyard model",
    license: Annotated[str | None, typer.Option(help="License named in the card, such as apache-2.0.")] = None,
    as_json: Json = False,
) -> None:
    """Upload a component or an assembly to the Hugging Face Hub.

    Writes a model card too. Log in first with `hf auth login`, or set HF_TOKEN.
    """
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component
    from brickyard.export._hub import push_to_hub

    model = loaded(file, Component, Assembly)
    name = push_to_hub(model, repo, private=private, commit_message=message, license=license)
    emit({"repo": name}, as_json, f"{file} is in {name}")
