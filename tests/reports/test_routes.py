"""Decision routes: what is drawn is what was located, and what is measured is what zeroing gives."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.base._messages import tidy
from brickyard.evaluation._faithfulness import faithfulness, masked
from brickyard.reports._route_picture import draw, placed
from brickyard.reports._routes import routes
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, zeroed_output
from errors import refused

DATA = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4)
NETS = [chain, Residual, Branches, SqueezeExcite]


@pytest.mark.parametrize("make", NETS)
def test_bundles_are_the_sets_of_what_was_located(make) -> None:
    model = make()
    relevance = by.locate(model, DATA)
    graph = relevance.graph(model)
    found = routes(relevance, ["1", "3"])
    assert found.classes == ("1", "3")
    assert {s.axis for s in found.stations} == {axis.name for axis in graph.axes if axis.writers}
    for station in found.stations:
        axis = graph.axis(station.axis)
        masks = relevance.relevant(axis.name)[[1, 3]]
        if axis.output:
            masks = torch.arange(axis.size) == torch.tensor([[1], [3]])
        sets = {
            (0,): masks[0] & ~masks[1],
            (1,): masks[1] & ~masks[0],
            (0, 1): masks[0] & masks[1],
            (): ~masks[0] & ~masks[1],
        }
        expected = {owners: tuple(mask.nonzero().flatten().tolist()) for owners, mask in sets.items() if mask.any()}
        assert {bundle.owners: bundle.channels for bundle in station.bundles} == expected
        assert [station.relevant(0), station.relevant(1)] == masks.sum(1).tolist()


@pytest.mark.parametrize("make", NETS)
def test_links_hold_every_contribution_between_relevant_channels(make) -> None:
    model = make()
    relevance = by.locate(model, DATA)
    graph = relevance.graph(model)
    found = routes(relevance, ["1", "3"], most_links=10**6)
    assert found.left_out == 0
    for owner, k in enumerate((1, 3)):
        relevant = np.zeros(graph.channels, dtype=bool)
        for axis in graph.axes:
            mask = torch.arange(axis.size) == k if axis.output else relevance.relevant(axis.name)[k]
            relevant[axis.channels] = mask.numpy()
        for mixer in graph.mixers():
            r = relevance.contribution(mixer.name)[k].numpy()
            total = sum(link.weight for link in found.links if link.layer == mixer.name and link.owner == owner)
            part = float(r[np.ix_(relevant[mixer.writes], relevant[mixer.reads])].sum())
            assert total == pytest.approx(part, rel=1e-4, abs=1e-6)
    for link in found.links:
        start, end = (found.stations[place] for place, _ in (link.start, link.end))
        assert start.column < end.column  # left to right, through additions and concatenations
        assert link.owner in start.bundles[link.start[1]].owners
        assert link.owner in end.bundles[link.end[1]].owners
        if link.layer is None:
            assert start.axis == end.axis
            assert start.bundles == end.bundles
        else:
            assert start.axis in {a.name for a in graph.axes if link.layer in a.readers}
            assert end.axis in {a.name for a in graph.axes if link.layer in a.writers}


def test_one_link_is_the_sum_over_its_two_bundles() -> None:
    model = chain(widths=(40, 30))
    relevance = by.locate(model, DATA)
    found = routes(relevance, ["2", "0"], most_links=10**6)
    r = {0: relevance.contribution("conv2")[2], 1: relevance.contribution("conv2")[0]}
    links = [link for link in found.links if link.layer == "conv2"]
    assert len(links) > 3
    for link in links:
        rows, columns = (
            torch.tensor(found.stations[place].bundles[bundle].channels) for place, bundle in (link.end, link.start)
        )
        assert link.weight == pytest.approx(float(r[link.owner][rows][:, columns].sum()), rel=1e-4)
    assert any(link.weight != pytest.approx(float(r[1 - link.owner].sum())) for link in links)
    fewer = routes(relevance, ["2", "0"], most_links=8)
    assert len(fewer.links) + fewer.left_out == len(found.links)
    assert fewer.left_out > 0
    for owner in (0, 1):
        weights = [
            [link.weight for link in f.links if (link.layer, link.owner) == ("conv2", owner)] for f in (found, fewer)
        ]
        assert sorted(weights[1]) == sorted(weights[0])[-len(weights[1]) :]


def test_an_axis_that_is_added_to_is_met_again_and_parts_of_a_concatenation_stand_together() -> None:
    relevance = by.locate(Residual(), DATA)
    found = routes(relevance, ["1"])
    assert [(s.label, s.column) for s in found.stations if s.axis == "stem"] == [
        ("stem", 1),
        ("conv2", 3),
        ("conv4", 5),
    ]
    shortcuts = {(link.start[0], link.end[0]) for link in found.links if link.layer is None}
    again = [place for place, s in enumerate(found.stations) if s.axis == "stem"]
    assert shortcuts == set(pairwise(again))
    relevance = by.locate(Branches(), DATA)
    columns = {s.label: s.column for s in routes(relevance, ["1"]).stations}
    assert columns["left"] == columns["right"] == columns["stem"] + 1 == columns["linear"] - 1


def test_places_stay_in_the_picture_and_show_sizes() -> None:
    relevance = by.locate(Residual(), DATA)
    found = routes(relevance, ["0", "1", "2"])
    picture = placed(found)
    assert len(picture.curves) == len(found.links)
    assert len(picture.boxes) == sum(len(s.bundles) for s in found.stations)
    for box in picture.boxes:
        assert 0 <= box.x < box.x + box.width <= picture.width
        assert 0 <= box.y < box.y + box.height <= picture.foot
    widths = [curve.width for curve in picture.curves]
    assert widths == sorted(widths)  # strong ones are painted last
    for heading in picture.headings:
        assert 0 < heading.x < picture.width
    by_column: dict[int, list] = {}
    for box in picture.boxes:
        by_column.setdefault(round(box.x + box.width / 2), []).append(box)
    for boxes in by_column.values():
        boxes.sort(key=lambda box: box.y)
        assert all(a.y + a.height <= b.y for a, b in pairwise(boxes))


@pytest.mark.parametrize("make", NETS)
def test_masks_are_zeros_where_layers_read(make) -> None:
    model = make().double()
    images = (DATA[0].double(), DATA[1])
    relevance = by.locate(model, images)
    graph = relevance.graph(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    differ = 0
    for _ in range(3):
        keep = {axis.name: torch.rand(axis.size, generator=generator) > 0.4 for axis in graph.free}
        with torch.no_grad():
            ours = masked(graph, keep)(images[0])
            theirs = zeroed_output(graph, {name: mask.nonzero().flatten() for name, mask in keep.items()}, images[0])
            differ += not torch.allclose(ours, model(images[0]))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert differ == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Summed(torch.nn.Module):
    """Channels that no layer reads but a mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.head = torch.nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.head(x).mean((2, 3)) + x.mean(1, keepdim=True).mean((2, 3))


def test_masks_are_zeros_where_steps_sum_channels_up() -> None:
    model = Summed().double().eval()
    graph = by.locate(model, (DATA[0].double(), DATA[1])).graph(model)
    assert graph.sums
    keep = torch.tensor([True, False, True, True, False, False])
    x = DATA[0].double()
    ours, theirs = masked(graph, {"conv": keep})(x), zeroed_output(graph, {"conv": keep.nonzero().flatten()}, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(ours, model(x))


def test_faithfulness_counts_what_zeroing_answers() -> None:
    model = Residual()
    relevance = by.locate(model, DATA)
    graph = relevance.graph(model)
    labels = DATA[1]
    rows = faithfulness(model, relevance, ["1", "2"], DATA, seeds=3, batch_size=16, including_calibration=True)
    assert [row.name for row in rows] == ["1", "2"]

    def answers(keep, k):
        channels = {name: mask.nonzero().flatten() for name, mask in keep.items()}
        logits = zeroed_output(graph, channels, DATA[0])
        said, own, others = logits.argmax(1) == k, logits[labels == k, k], logits[labels != k, k]
        beaten = (own[:, None] > others).double() + 0.5 * (own[:, None] == others)
        figures = said[labels == k].double().mean(), said[labels != k].double().mean(), beaten.mean()
        return tuple(100 * value.item() for value in figures)

    def seen(found):
        return found.hits, found.others, found.auroc

    for row, k in zip(rows, (1, 2), strict=True):
        route = {axis.name: relevance.relevant(axis.name)[k] for axis in graph.free}
        rest = {name: ~mask for name, mask in route.items()}
        assert seen(row.whole) == pytest.approx(answers({}, k))
        assert seen(row.only) == pytest.approx(answers(route, k))
        assert seen(row.without) == pytest.approx(answers(rest, k))
        assert row.kept == sum(int(mask.sum()) for mask in route.values())
        drawn = []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            other = {name: mask[torch.randperm(len(mask), generator=generator)] for name, mask in route.items()}
            assert [int(m.sum()) for m in other.values()] == [int(m.sum()) for m in route.values()]
            drawn.append((answers(other, k), answers({name: ~mask for name, mask in other.items()}, k)))
        mean = np.array(drawn).mean(0)
        assert seen(row.random_only) == pytest.approx(tuple(mean[0]))
        assert seen(row.random_without) == pytest.approx(tuple(mean[1]))
    assert len({(a.hits, a.others) for row in rows for _, a in row.cases()}) > 3  # the masks make a difference
    assert faithfulness(model, relevance, ["1", "2"], DATA, seeds=3, including_calibration=True) == rows


def test_what_cannot_be_measured_or_drawn_is_refused(tmp_path) -> None:
    model = chain(classes=8)
    data = (DATA[0], torch.arange(40) % 8)
    relevance = by.locate(model, data, task=range(7))
    some = (DATA[0][:2], torch.tensor([0, 0]))
    for call, code, *quoted in [
        (lambda: routes(relevance, range(7)), "option-range", "7"),
        (lambda: routes(relevance, ["7"]), "option-not-located"),
        (lambda: routes(relevance, ["9"]), "task-unknown-class", "'9'"),
        (
            lambda: faithfulness(model, relevance, ["3"], some, including_calibration=True),
            "data-class-without-images",
            "'3'",
        ),
        (lambda: faithfulness(chain(), relevance, ["3"], data), "data-wrong-source"),
        (lambda: faithfulness(model, relevance, ["3"], data, seeds=0), "option-range"),
        (lambda: draw(routes(relevance, ["0"]), tmp_path / "x.bmp"), "option-suffix"),
        (lambda: routes(by.locate(model, data, keep_sums=False), ["0"]), "option-sums-not-kept"),
    ]:
        with refused(code, *quoted):
            call()
    (row,) = faithfulness(model, relevance, ["0"], some, including_calibration=True)
    assert row.whole.others is None
    assert row.whole.auroc is None


def test_pictures_are_files_with_the_same_bytes_every_time(tmp_path) -> None:
    model = Residual()
    relevance = by.locate(model, DATA)
    rows = faithfulness(model, relevance, ["0", "2"], DATA, seeds=1, including_calibration=True)
    for kind in ("png", "svg"):
        found = routes(relevance, ["0", "2"])
        first, again = (draw(found, tmp_path / f"{name}.{kind}", rows) for name in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()
        other = draw(routes(relevance, ["1", "2"]), tmp_path / f"other.{kind}", rows)
        assert other.read_bytes() != first.read_bytes()
        with refused("file-exists"):
            draw(found, first)
    assert Image.open(tmp_path / "first.png").format == "PNG"
    text = (tmp_path / "first.svg").read_text()
    shown = re.findall(r">([^<>]+)</text>", text)
    assert any("Residual: 0, 2" in line for line in shown)
    (row, _) = rows
    assert any(f"{row.kept:,} of {row.channels:,} channels" in line for line in shown)
    assert any(line.startswith(f"{row.only.hits:.1f}%") for line in shown)


def test_names_from_outside_are_shown_as_they_are(tmp_path) -> None:
    relevance = by.locate(chain(), DATA)
    relevance.classes = ("<b>&\"'", "$\\frac{1}{0}$", "line\nbreak\x1b\u202e", "very " * 90)
    path = draw(routes(relevance, [0, 1, 2, 3]), tmp_path / "routes.svg")
    text = path.read_text()
    assert "$\\frac{1}{0}$" in text
    assert "<b>" not in text
    assert "\u202e" not in text
    assert len(max(re.findall(r">([^<>]+)</text>", text), key=len)) < 250
    assert tidy("a\nb\x00\ud800") == "a\N{REPLACEMENT CHARACTER}b" + 2 * "\N{REPLACEMENT CHARACTER}"
    assert len(tidy("x" * 2000)) == 60
