"""Cut a component for three digits out of a trained network, at half of its FLOPs, and score it.

The score to compare with is that of the source *restricted* to the same three classes.
"""

import brickyard as by
from brickyard.inputs import load_data
from brickyard.training import build_seeded, train

how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
data, test = load_data("digits"), load_data("digits", split="test")
source = build_seeded("cnn", 10, 0.25, channels=1)
train(source, data, preprocessing=how, epochs=4, lr=0.05)

relevance = by.locate(source, data, preprocessing=how)
for share in (0.5, 0.3):
    component = by.disassemble(source, relevance, task=["1", "4", "7"], budget=by.Budget(flops=share))
    scores = {row.name: row for row in by.evaluate(component, test, source=source, latency=False).rows}
    chosen = component.manifest.selection
    print(f"at most {share:.0%} of the FLOPs: {chosen.flops / component.manifest.source.flops:.1%} used")
    print(f"  source restricted to the task: {scores['restricted'].accuracy:.1f} % right")
    print(f"  component:                     {scores['component'].accuracy:.1f} % right")
