"""Save a component, load it without its source's code, and export it to an ONNX file that takes raw images.

The files are written to the current folder. Needs `pip install 'brickyard[onnx]'`.
"""

import json

import numpy as np
import onnxruntime
import torch

import brickyard as by
from brickyard.export import export_onnx
from brickyard.inputs import load_data
from brickyard.training import build_seeded, train

how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
data, test = load_data("digits"), load_data("digits", split="test").of_classes(["3", "6", "9"])
source = build_seeded("cnn", 10, 0.25, channels=1)
train(source, data, preprocessing=how, epochs=4, lr=0.05)
relevance = by.locate(source, data, preprocessing=how)
component = by.disassemble(source, relevance, task=["3", "6", "9"], budget=by.Budget(flops=0.5))

print("saved:", component.save("component.safetensors", overwrite=True))
loaded = by.load("component.safetensors")
assert isinstance(loaded, by.Component)
same = torch.equal(loaded.predict_proba(test.images), component.predict_proba(test.images))
print("loaded gives the same probabilities:", same)

print("exported:", export_onnx(loaded, "component.onnx", overwrite=True, check_images=test))
session = onnxruntime.InferenceSession("component.onnx")
names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
images = test.images.numpy().astype(np.float32) / 255
logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
right = [names[best] == test.classes[label] for best, label in zip(probabilities.argmax(1), test.labels, strict=True)]
print(f"onnxruntime: {100 * np.mean(right):.1f} % right")
