"""The demo."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.cli._demo import run_demo
from brickyard.inputs._datasets import load_data


def test_the_demo_does_the_main_job(tmp_path) -> None:
    said: list[object] = []
    (tmp_path / "mine.safetensors").write_bytes(b"not the demo's")
    threads = torch.get_num_threads()
    result = run_demo(tmp_path, say=said.append)
    assembled = {
        name: next(row["accuracy"] for row in scores["rows"] if row["name"] == "assembled")
        for name, scores in result["assembled"].items()
    }
    assert min(assembled.values()) > 85
    for scores in result["components"]:
        base, restricted, component = scores["rows"]
        assert component["flops"] <= 0.5 * base["flops"]
        assert restricted["accuracy"] - component["accuracy"] < 5
    whole = by.load(tmp_path / "digits-012789.safetensors")
    test = load_data("digits", split="test").of_classes(whole.classes)
    right = [
        name == test.classes[k]
        for name, k in zip(whole.predict(test.images, strangers="answer"), test.labels.tolist(), strict=True)
    ]
    assert 100 * np.mean(right) == pytest.approx(assembled["none"])
    assert set(result["files"]) == {p.name for p in tmp_path.iterdir()} - {"scores.json", "mine.safetensors"}
    assert torch.get_num_threads() == threads
    assert (tmp_path / "mine.safetensors").read_bytes() == b"not the demo's"
    assert any("pinned because" in str(text) for text in said)
    assert json.loads((tmp_path / "scores.json").read_text()) == result
    assert Image.open(tmp_path / "routes.png").size[0] > 800
    assert any("assembled" in str(text) for text in said)
