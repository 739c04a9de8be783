"""Calibrate an assembly with five labelled images of each class.

The images that scale are training images; the images that score are test images. Never use one for the other.
"""

import brickyard as by
from brickyard.inputs import load_data
from brickyard.training import build_seeded, train

how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
parts, images, tests = [], [], []
for seed, digits in enumerate((range(0, 5), range(5, 10))):
    data = load_data("digits").renumbered(digits)
    source = build_seeded("cnn", 5, 0.25, seed=seed, channels=1)
    train(source, data, preprocessing=how, epochs=4, lr=0.05)
    relevance = by.locate(source, data, preprocessing=how)
    parts.append(by.disassemble(source, relevance, task=list(range(5)), budget=by.Budget(flops=0.6)))
    images.append(data)
    tests.append(load_data("digits", split="test").renumbered(digits))

for scaling in ("none", "affine", "joint-head", "lda"):
    few = None if scaling == "none" else images
    ten = by.assemble(parts, scaling=scaling, images=few, shots=5 if few else None)
    scores = {row.name: row for row in by.evaluate(ten, tests, latency=False).rows}
    print(f"{scaling}: {scores['assembled'].accuracy:.1f} % right")
