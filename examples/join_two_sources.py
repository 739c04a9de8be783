"""Join three digits of one network with three digits of another, of another architecture, without training.

Neither source ever saw an image of the other's digits. What the parts remember of their own features makes their logits
comparable (`scaling="mahalanobis"`); the oracle, which sends every image to the right part, is the upper bound.
"""

import brickyard as by
from brickyard.inputs import load_data
from brickyard.training import build_seeded, train

how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
parts, tests = [], []
for name, digits, task in (("cnn", range(0, 5), ["0", "1", "2"]), ("resnet20", range(5, 10), ["7", "8", "9"])):
    data = load_data("digits").renumbered(digits)
    source = build_seeded(name, 5, 0.25, channels=1)
    train(source, data, preprocessing=how, epochs=4, lr=0.05)
    relevance = by.locate(source, data, preprocessing=how)
    parts.append(by.disassemble(source, relevance, task=task, budget=by.Budget(flops=0.6)))
    tests.append(load_data("digits", split="test").renumbered(digits))

for scaling in ("none", "mahalanobis"):
    six = by.assemble(parts, scaling=scaling)
    scores = {row.name: row for row in by.evaluate(six, tests, latency=False).rows}
    print(f"{scaling}: {scores['assembled'].accuracy:.1f} % right, oracle {scores['oracle'].accuracy:.1f} %")
print("classes:", *six.classes)
images = load_data("digits", split="test").of_classes(six.classes)
print("images:   ", *(images.classes[label] for label in images.labels[:12]))
print("predicted:", *six.predict(images.images[:12]))
