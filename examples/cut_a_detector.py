"""Cut a detector of people and dogs out of YOLOX-nano for COCO's 80 classes, and draw what it finds.

`BRICKYARD_SHARED` names a folder with `models/yolox_nano-coco80.onnx` and `data/coco128`. So few images only show the
way: give a few hundred of your own, which need no labels (`more_images=`), and leave `select=` out.
"""

import os
from pathlib import Path

from PIL import Image

import brickyard as by
from brickyard.inputs import load_box_data
from brickyard.reports import draw_boxes
from brickyard.sources import load_source

shared = Path(os.environ.get("BRICKYARD_SHARED", "../shared"))
source = load_source(shared / "models/yolox_nano-coco80.onnx", boxes="yolox")
train = load_box_data(shared / "data/coco128", split="train")
test = load_box_data(shared / "data/coco128", split="test")

task = ["person", "dog"]
wanted = [train.classes.index(name) for name in task]
few = train.subset([index for k in wanted for index in train.presence[:, k].nonzero().flatten().tolist()[:8]])
how = source.preprocessing  # what is usual for YOLOX
relevance = by.locate(
    source.model, few, outputs="yolox", preprocessing=how, classes=train.classes, task=task, per_class=4
)
budget = by.Budget(flops=0.9)
component = by.disassemble(source.model, relevance, task=task, budget=budget, select="mda", images=few)
print(component)

place = int(test.presence[:, wanted[0]].nonzero()[0])
picture = test.picture(place)
(found,) = component.detect(picture[None], score=0.3)
texts = [f"{task[k]} {score:.0%}" for k, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)]
print(f"image {place}: {', '.join(texts) or 'nothing found'}")
photograph = Image.fromarray(picture.expand(3, -1, -1).permute(1, 2, 0).numpy())
draw_boxes(photograph, found.boxes, texts, found.labels.tolist()).save("found.png")
