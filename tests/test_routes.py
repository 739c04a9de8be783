"""Pictures of decision routes: what is drawn is what was located."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.routes import BINS, SHARED, _curves, layout, plot_routes
from brickyard.testing import Branches, Residual, chain

DATA = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4)


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


def test_a_run_of_channels_counts_only_the_relevant_ones() -> None:
    model = chain(widths=(2 * BINS, BINS + 20))
    relevance = by.locate(model, DATA)
    graph = relevance.graph(model)
    plan = layout(relevance, graph, ["2"], most_bands=10**6)
    wide = next(column for column in plan.columns if column.axis == "conv1")
    assert len(wide.bricks) == BINS
    inputs, outputs = relevance.relevant("conv1")[2], relevance.relevant("conv2")[2]
    assert 0 < int(inputs.sum()) < len(inputs)
    r = relevance.contribution("conv2")[2]
    expected: dict[tuple[int, int], float] = {}
    for p in inputs.nonzero().flatten().tolist():
        for q in outputs.nonzero().flatten().tolist():
            place = (p * BINS // len(inputs), q * BINS // len(outputs))
            expected[place] = expected.get(place, 0.0) + float(r[q, p])
    drawn = {(band.start[1], band.end[1]): band.weight for band in plan.bands if band.layer == "conv2"}
    assert drawn == pytest.approx(expected, rel=1e-4, abs=1e-6)
    unmasked = sum(drawn.values()) / float(r.sum())
    assert unmasked < 0.99  # the control: without the masks more would be drawn


def test_what_two_classes_share_is_one_curve() -> None:
    model = chain()
    relevance = by.locate(model, DATA)
    plan = layout(relevance, relevance.graph(model), ["0", "2"], most_bands=10**6)
    places = [{(b.layer, b.start, b.end) for b in plan.bands if b.owner == owner} for owner in (0, 1)]
    curves = _curves(plan)
    assert len(curves) == len(places[0] | places[1])
    assert sum(curve.colour == SHARED for curve in curves) == len(places[0] & places[1]) > 0
    assert [curve.strength for curve in curves] == sorted(curve.strength for curve in curves)
