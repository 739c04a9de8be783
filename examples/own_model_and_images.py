"""Take a component out of your own `nn.Module`, trained on your own folder of images.

A folder of images has a folder for each class below `train` and `test`. This one is written first, from digits.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.inputs import load_data
from brickyard.training import train


class Net(nn.Module):
    """Two convolutions that are added, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 16, 16) to (batch, 4)."""
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        logits: Tensor = self.head(nn.functional.avg_pool2d(x, 4).flatten(1))
        return logits


with tempfile.TemporaryDirectory() as folder:
    for split in ("train", "test"):
        digits = load_data("digits", split=split).of_classes(range(4))
        for number, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True)):
            place = Path(folder, split, ("zero", "one", "two", "three")[label])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{number}.png")
    data, test = load_data(folder), load_data(folder, split="test")
    _ = data.images, test.images  # pictures are decoded when they are asked for, and these files go away

how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
torch.manual_seed(0)
model = Net()
train(model, data, preprocessing=how, epochs=8, lr=0.05)
print(f"share of the channels that can be cut: {trace(model, torch.rand(2, 1, 16, 16)).free_share:.2f}")

relevance = by.locate(model, data, preprocessing=how)
component = by.disassemble(model, relevance, task=["one", "three"], budget=by.Budget(flops=0.6))
print(component)
scores = {row.name: row for row in by.evaluate(component, test, source=model, latency=False).rows}
print(f"{scores['component'].accuracy:.1f} % right; restricted source: {scores['restricted'].accuracy:.1f} %")
