"""The demo, and the picture of routes that it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.datasets import load_data
from brickyard.demo import run_demo
from brickyard.routes import layout, plot_routes
from brickyard.testing import Branches, Residual, chain

DATA = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4)


def test_the_demo_does_the_main_job(tmp_path) -> None:
    said: list[object] = []
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
    right = [name == test.classes[k] for name, k in zip(whole.predict(test.images), test.labels.tolist(), strict=True)]
    assert 100 * np.mean(right) == pytest.approx(assembled["none"])
    assert set(result["files"]) == {p.name for p in tmp_path.iterdir()} - {"scores.json"}
    assert Image.open(tmp_path / "routes.png").size[0] > 800
    assert any("assembled" in str(text) for text in said)


@pytest.mark.parametrize("make", [chain, Residual, Branches])
def test_what_is_drawn_is_what_was_located(make) -> None:
    model = make()
    relevance = by.locate(model, DATA)
    graph = relevance.graph(model)
    plan = layout(relevance, graph, ["1", "3"], most_bands=10**6)
    assert plan.classes == ("1", "3")
    assert plan.left_out == 0
    assert {column.axis for column in plan.columns} == set(graph.names)
    columns = {column.axis: column for column in plan.columns}
    for axis in graph.free:
        for index, k in enumerate((1, 3)):
            mask = relevance.relevant(axis.name)[k]
            assert columns[axis.name].relevant[index] == int(mask.sum())
            drawn = [brick for brick, owners in enumerate(columns[axis.name].bricks) if index in owners]
            assert drawn == mask.nonzero().flatten().tolist()  # few channels: one brick each
    mixer = graph.mixers()[1]
    r = relevance.contribution(mixer.name)[3].numpy()
    total = sum(band.weight for band in plan.bands if band.layer == mixer.name and band.owner == 1)
    relevant = np.zeros(graph.channels, dtype=bool)
    for axis in graph.axes:
        mask = torch.arange(axis.size) == 3 if axis.output else relevance.relevant(axis.name)[3]
        relevant[axis.channels] = mask.numpy()
    assert total == pytest.approx(float(r[np.ix_(relevant[mixer.writes], relevant[mixer.reads])].sum()), rel=1e-5)
    fewer = layout(relevance, graph, ["1", "3"], most_bands=4)
    assert len(fewer.bands) + fewer.left_out == len(plan.bands)
    assert fewer.left_out > 0


def test_pictures_are_files_that_can_be_read(tmp_path) -> None:
    model = chain()
    relevance = by.locate(model, DATA)
    graph = relevance.graph(model)
    paths = [plot_routes(relevance, graph, ["0", "2"], tmp_path / f"routes.{kind}") for kind in ("png", "svg")]
    assert Image.open(paths[0]).format == "PNG"
    assert "Decision routes" in paths[1].read_text() or "<svg" in paths[1].read_text()
    again = plot_routes(relevance, graph, ["0", "2"], tmp_path / "again.png")
    assert again.read_bytes() == paths[0].read_bytes()
    other = plot_routes(relevance, graph, ["1", "2"], tmp_path / "other.png")
    assert other.read_bytes() != paths[0].read_bytes()
    for options, message in [
        ((["0"], tmp_path / "routes.png"), "exists"),
        ((["0"], tmp_path / "routes.bmp"), "ends in .png or .svg"),
        ((["9"], tmp_path / "x.png"), "class '9' was asked for"),
    ]:
        with pytest.raises(by.BrickyardError, match=message):
            plot_routes(relevance, graph, *options)
