"""A page that classifies pictures with a component or an assembly: `python app.py`, here or in a Hugging Face Space.

It uses `model.safetensors` beside this file. Without one, it makes a component for three digits first (some seconds).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brickyard as by

MODEL = Path(__file__).with_name("model.safetensors")


def model() -> Any:
    """The component or assembly beside this file, or one for the digits 3, 6 and 9."""
    if MODEL.exists():
        return by.load(MODEL)
    from brickyard.inputs import load_data
    from brickyard.training import build_seeded, train

    how = by.Preprocessing(size=(16, 16), channels=1, mean=(0.3,), std=(0.4,))
    source, data = build_seeded("cnn", 10, 0.25, channels=1), load_data("digits")
    train(source, data, preprocessing=how, epochs=4, lr=0.05)
    relevance = by.locate(source, data, preprocessing=how)
    return by.disassemble(source, relevance, task=["3", "6", "9"], budget=by.Budget(flops=0.5))


def classify(classifier: Any, picture: Any) -> tuple[dict[str, float], str]:
    """The probability of every class, and the answer in words."""
    if picture is None:
        return {}, "Choose a picture first."
    found = classifier.judge([picture])
    (verdict,) = found.verdicts()
    answer = verdict.answer if isinstance(verdict.answer, str) else ", ".join(verdict.answer) or "none of the classes"
    words = f"{answer} ({verdict.words})" if verdict.words else answer
    return dict(zip(classifier.classes_.tolist(), found.probabilities[0].tolist(), strict=True)), words


def page(classifier: Any) -> Any:
    """The page: a picture in, probabilities and an answer out."""
    import gradio

    return gradio.Interface(
        lambda picture: classify(classifier, picture),
        gradio.Image(type="pil", label="Picture"),
        [gradio.Label(label="Probabilities"), gradio.Textbox(label="Answer")],
        title="Brickyard",
        description=f"Classes: {', '.join(classifier.classes)}. Pictures are not stored.",
        flagging_mode="never",
    )


if __name__ == "__main__":
    page(model()).launch()
