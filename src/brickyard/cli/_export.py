"""Commands that export models: export, push."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from typer import Argument, Option

from brickyard.base._errors import OptionError
from brickyard.base._options import BoxOptions
from brickyard.cli._options import DATA_HELP, File, Force, Output, check_companion, check_effect, with_options
from brickyard.cli._output import Result, model
from brickyard.runtime._progress import say
from brickyard.sources._resolve import check_free, data_of, seen_by


@with_options(unset=(BoxOptions,))
def export(
    file: File,
    output: Output,
    data: Annotated[str | None, Option(help=f"ONNX: also check the export on these images: {DATA_HELP}")] = None,
    uint8: Annotated[
        bool, Option("--uint8", help="ONNX: take uint8 images in 0..255 instead of floats in [0, 1].")
    ] = False,
    channels: Annotated[
        int | None, Option(help="ONNX: take raw images with this many channels, 1 or 3, and convert them.")
    ] = None,
    int8: Annotated[
        bool, Option("--int8", help="ONNX: quantise to int8; needs --calibration-data, and measures what it changes.")
    ] = False,
    calibration_data: Annotated[
        list[str] | None,
        Option(help=f"ONNX: calibrate --int8 on these images, a fifth held back; may be repeated: {DATA_HELP}"),
    ] = None,
    no_decode: Annotated[
        bool, Option("--no-decode", help="ONNX, of a detector: return what the network does, and find no boxes.")
    ] = False,
    force: Force = False,
    **boxes: Any,
) -> Result:
    """Export to ONNX (.onnx), plain Python (.py), a page for any browser (.html) or a state dict (.safetensors).

    An HTML page classifies pictures offline, on phones too. Plain Python comes with a file of its weights.
    """
    from brickyard.export._onnx import MOST_CHECKED, export_onnx, export_state_dict
    from brickyard.export._onnx_boxes import check_boxes

    if output.suffix not in (".onnx", ".py", ".html", ".safetensors"):
        pickled = output.suffix in (".pt2", ".pt", ".pth")
        why = ": a program of torch.export holds pickled parts, which Brickyard does not write" if pickled else ""
        raise OptionError(
            "option-suffix",
            f"{output} has no supported suffix{why}; use .onnx, .py for a plain Python module, .html for a page that "
            "answers pictures, or .safetensors for the state dict",
        )
    boxes = {name: value for name, value in boxes.items() if value is not None}
    if output.suffix != ".onnx":
        words = {"data": data, "uint8": uint8, "channels": channels, "int8": int8, "calibration_data": calibration_data}
        words |= {"no_decode": no_decode, **boxes}
        what = {".py": "a Python module", ".html": "a page"}.get(output.suffix, "a state dict")
        check_effect(f"it applies to ONNX only, not to {what}", **words)
    check_companion("--int8", int8, calibration_data=calibration_data)
    if int8 and not calibration_data:
        raise OptionError(
            "option-requires-option", "--int8 needs images to calibrate on; add --calibration-data, or leave it out"
        )
    check_free(output, force, file)
    if output.suffix == ".py":
        from brickyard.export._module import export_module, weights_beside

        check_free(weights_beside(output), force, file)
    exported = model(file)
    record: Any
    if output.suffix == ".py":
        record = export_module(exported, output, overwrite=force)
    elif output.suffix == ".html":
        from brickyard.export._html import export_html

        record = export_html(exported, output, overwrite=force)
    elif output.suffix == ".safetensors":
        record = export_state_dict(exported, output, overwrite=force)
    else:
        check_boxes(exported, boxes, decode=not no_decode, int8=int8)
        part = exported.manifest.parts[0]
        images: Any = None
        if data is not None:
            how = seen_by(part, exported.manifest.parts)
            images = data_of(data, how, "test", MOST_CHECKED, shape=part.input_shape)
        options: Any = {"dtype": "uint8" if uint8 else "float32", "channels": channels, "int8": int8}
        options |= {"decode": not no_decode, **boxes}
        if calibration_data:
            options["images"] = _calibration(calibration_data, exported)
        record = export_onnx(exported, output, overwrite=force, check_images=images, **options)
    return Result(record.as_dict(), record)


def _calibration(specs: Sequence[str], exported: Any) -> list[Any]:
    """Calibration images, the same number of each data set.

    Where data name classes of the model, images of other classes are left out, unless a reject output is for them.
    """
    from brickyard.export._int8 import MOST_IMAGES, check_int8

    check_int8()  # before images are read
    found: list[Any] = []
    part = exported.manifest.parts[0]
    for spec in specs:
        data = data_of(spec, seen_by(part, exported.manifest.parts), shape=part.input_shape)
        named = [name for name in data.classes if name in exported.classes]
        if named and not exported.reject:
            known = data.of_classes(named)
            if len(known) < len(data):
                say(f"{data.name}: {len(data) - len(known):,} images are of classes that the model lacks; left out")
            data = known
        found += data.shuffled(0).subset(range(min(len(data), MOST_IMAGES // len(specs)))).images
    return found


def push(
    file: File,
    repo: Annotated[str, Argument(help="Repository on the Hugging Face Hub.", metavar="OWNER/NAME")],
    private: Annotated[
        bool | None, Option("--private/--public", help="Visibility of a newly created repository.")
    ] = None,
    message: Annotated[str, Option(help="Commit message.")] = "Upload a Brickyard model",
    license: Annotated[str | None, Option(help="License named in the card, such as apache-2.0.")] = None,
) -> Result:
    """Upload a component or an assembly to the Hugging Face Hub.

    Writes a model card too. Log in first with `hf auth login`, or set HF_TOKEN.
    """
    from brickyard.export._hub import push_to_hub

    name = push_to_hub(model(file), repo, private=private, commit_message=message, license=license)
    return Result({"repo": name}, f"{file} is in {name}")
