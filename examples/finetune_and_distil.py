"""Train a small component further, with labels and with its source as a teacher; then distil it into a new network."""

import brickyard as by
from brickyard.inputs import load_data
from brickyard.training import Distillation, TrainingOptions, accuracy, build_seeded, train

how = by.Preprocessing(size=(16, 16), mean=(0.3,), std=(0.4,))
data, test = load_data("digits"), load_data("digits", split="test")
source = build_seeded("cnn", 10, 0.25, channels=1)
train(source, data, preprocessing=how, epochs=4, lr=0.05)

relevance = by.locate(source, data, preprocessing=how)
task = ["2", "3", "5", "8"]
component = by.disassemble(source, relevance, task=task, budget=by.Budget(flops=0.15))
training = TrainingOptions(epochs=8, lr=0.05)
tuned = by.finetune(component, data, training=training)
taught = by.finetune(component, data, training=training, teacher=source, distillation=Distillation(features=1.0))
for name, model in (("cut", component), ("fine-tuned", tuned), ("with a teacher", taught)):
    score = {row.name: row.accuracy for row in by.evaluate(model, test, latency=False).rows}
    print(f"{name}: {score['component']:.1f} % right")

student = build_seeded("cnn", 4, 0.25, channels=1)
train(student, data.renumbered(task), preprocessing=how, epochs=10, lr=0.1, teacher=taught)
print(f"student: {100 * accuracy(student, test.renumbered(task), how):.1f} % right")
