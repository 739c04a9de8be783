"""The command line in tests, programs in processes of their own, and folders of images."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from PIL import Image
from typer.testing import CliRunner

from brickyard.cli._app import app

COMMANDS = [
    *("demo", "train", "locate", "disassemble", "assemble", "finetune", "distil"),
    *("evaluate", "rename", "show", "predict", "sources"),
    *("routes", "report", "export", "push", "yard", "build", "workbench"),
]


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def python(code: str, *arguments: object, **options: Any) -> str:
    """What a program prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def save_folder(data, path) -> None:
    """An image folder, one sub-folder a class."""
    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        place = path / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        array = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(array.numpy()).save(place / f"{i}.png")
