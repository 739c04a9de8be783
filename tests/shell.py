"""The command line in tests, and folders of images for it."""

from __future__ import annotations

from PIL import Image
from typer.testing import CliRunner

from brickyard.cli._app import app

COMMANDS = [
    *("demo", "train", "locate", "disassemble", "assemble", "finetune", "distil"),
    *("evaluate", "show", "predict"),
    *("routes", "report", "export", "push", "yard", "build", "workbench"),
]


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def save_folder(data, path) -> None:
    """An image folder, one sub-folder a class."""
    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        place = path / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{i}.png")
