"""Build an ONNX classifier from two trained torchvision networks, starting in an empty folder as a new user would.

    python benchmarks/transcript.py    # writes docs/howto/first-classifier.md

First, two sources are trained, standing in for networks from elsewhere: plain torchvision networks on RGB images of
digits, with weights in .pt files and images in folders. Then the page's commands run, and their output goes into it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import nn

from brickyard.base._records import Preprocessing
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.training._sources import train

PAGE = Path(__file__).parents[1] / "docs/howto/first-classifier.md"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOW = Preprocessing(size=(32, 32), channels=3, mean=(0.5,), std=(0.5,))
OPTIONS = "--size 32 --mean 0.5 --std 0.5"
INSTALL = "pip install './brickyard[torchvision,onnx]'"
PROGRESS = re.compile(r"^\w+ [^\n]*: \d+ of \d+(, about [^\n]* left)?\n", re.M)  # a terminal shows a bar
COMMANDS = (
    f"brickyard disassemble torchvision:resnet18 --weights lower.pt --data lower/ {OPTIONS} --task zero,two,three "
    "--flops 0.5 -o lower.safetensors",
    f"brickyard disassemble torchvision:mobilenet_v3_small --weights upper.pt --data upper/ {OPTIONS} --task six,nine "
    "--flops 0.7 -o upper.safetensors",
    "brickyard assemble lower.safetensors upper.safetensors --scaling mahalanobis -o five.safetensors",
    "brickyard evaluate five.safetensors --data lower/ --data upper/ --no-latency",
    "brickyard export five.safetensors -o five.onnx --data upper/",
)


def prepare(folder: Path) -> None:
    """Create what the user starts with: two trained networks and their images."""
    torch.manual_seed(0)
    for name, make, classes, epochs in (
        ("lower", torchvision.models.resnet18, range(5), 6),
        ("upper", torchvision.models.mobilenet_v3_small, range(5, 10), 40),
    ):
        for split in ("train", "test"):
            in_order = sorted(classes, key=lambda k: NAMES[k])  # as folders are read
            data = load_data("digits", split=split).renumbered(in_order)
            save(data, folder / name / split)
            if split == "train":
                model: nn.Module = make(weights=None, num_classes=5)
                train(model, data, preprocessing=HOW, epochs=epochs, lr=0.1, batch_size=32)
                torch.save(model.state_dict(), folder / f"{name}.pt")


def save(data: ImageData, folder: Path) -> None:
    for index, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        place = folder / NAMES[int(data.classes[label])]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).convert("RGB").save(place / f"{index}.png")


def transcript(folder: Path) -> str:
    """Run the commands, and return what a terminal would show."""
    shown = [f"$ {INSTALL}"]
    for command in COMMANDS:
        words = [sys.executable, "-m", *command.split()]
        run = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode:
            raise SystemExit(f"{command}\n{run.stdout}")
        shown += ["", f"$ {command}", PROGRESS.sub("", run.stdout).rstrip()]
    return "\n".join(shown)


def page(shown: str) -> str:
    return f"""# First classifier, from the shell

You have two trained torchvision networks, `lower.pt` and `upper.pt`, and the images they were trained on, in folders
with `train` and `test` subfolders that contain one folder per class. Six commands build one ONNX classifier from three
classes of the first network and two of the second. The first [installs Brickyard](../install.md) from its checkout in
`brickyard/`. `python benchmarks/transcript.py` ran the others and wrote this page.

```console
{shown}
```

How to read the output: `FLOPs` and `parameters` show how much of each source remains. `oracle` is the accuracy when
every image is sent to the right part; `assembled` is the accuracy of the classifier with all five classes competing.
The ONNX file takes unprocessed images of any size, (batch, 3, height, width) in [0, 1]. It was compared with PyTorch
before it was written. [Export](../export.md) shows how to run it.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        PAGE.write_text(page(transcript(Path(place))))


if __name__ == "__main__":
    main()
