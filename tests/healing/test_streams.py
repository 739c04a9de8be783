"""Two networks over all images at once: each step runs once, and what does not fit in memory waits on disk."""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from brickyard.axes._graph import trace
from brickyard.healing import _heal, _places, _streams
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.surgery._join import cut
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from errors import refused
from nets import SequenceFirst

IMAGES = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def setup(make):
    model = make()
    graph = trace(model, IMAGES[:2])
    keep = {axis.name: torch.arange(0, axis.size, 2) for axis in graph.free if not axis.output}
    return graph, {**graph.everything(), **keep}


def refitted(graph, keep, shown: Shown, ridge: float | None = 1e-3, per_input: int = _places.PER_INPUT):
    network = cut(graph, keep)
    report = heal_network(graph, keep, network, shown, "refit", ridge, per_input)
    return network, report


@pytest.mark.parametrize("memory", [_streams.MEMORY, 0], ids=["held", "on disk"])
@pytest.mark.parametrize("make", [chain, Residual, Branches, SqueezeExcite])
def test_a_refit_runs_each_layer_once_for_every_batch(make, memory, monkeypatch) -> None:
    monkeypatch.setattr(_streams, "MEMORY", memory)
    graph, keep = setup(make)
    counts: Counter[str] = Counter()
    for name in graph.network.layer_names:
        layer = graph.network.layer(name)
        layer.register_forward_hook(lambda *_, name=name: counts.update([name]))
    refitted(graph, keep, Shown(list(IMAGES.split(16))))
    repaired = {name for name in counts if isinstance(graph.network.layer(name), nn.Conv2d | nn.Linear)}
    assert repaired
    # once on the way, and once more where a layer's own output is the goal, with what follows it
    assert set(counts.values()) <= {3, 6}
    assert {counts[name] for name in repaired} <= {3, 6}


@pytest.mark.parametrize("make", [Residual, Branches])
def test_what_waits_on_disk_is_in_half_precision_and_is_swept_up(make, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph, keep = setup(make)
    shown = Shown(list(IMAGES.split(16)))
    held = refitted(graph, keep, shown)[0](IMAGES)
    assert list(tmp_path.iterdir()) == []  # all of it fitted
    sizes: list[int] = []
    save = _streams.save_file

    def watched(tensors: dict[str, Tensor], file: Path) -> None:
        save(tensors, file)
        assert {value.dtype for value in tensors.values()} == {torch.float16}
        sizes.append(file.stat().st_size)

    monkeypatch.setattr(_streams, "MEMORY", 0)
    monkeypatch.setattr(_streams, "save_file", watched)
    stored = refitted(graph, keep, shown)[0](IMAGES)
    assert sizes
    assert list(tmp_path.iterdir()) == []
    bare = cut(graph, keep)(IMAGES)
    assert 0 < float((stored - held).detach().abs().max()) < 0.02 * float((bare - held).detach().abs().max())


def test_the_ridge_of_a_layer_is_the_one_that_serves_unseen_images_best(monkeypatch) -> None:
    """Few images for many inputs: the usual ridge fits these images, and no others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 96, 8), nn.ReLU(), nn.Flatten(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 6))
    graph = trace(model.eval(), IMAGES[:2])
    keep = {**graph.everything(), "0": torch.arange(48)}
    shown = Shown([IMAGES[:12]], [IMAGES[12:24]])
    unseen = IMAGES[24:]
    goal = model(unseen).detach()
    found = {}
    for ridge in (None, *_heal.RIDGES):
        network, report = refitted(graph, keep, shown, ridge)
        found[ridge] = float((network(unseen) - goal).detach().square().sum())
        if ridge is None:
            assert report.ridges["3"] > 1e-2
    assert found[None] <= 1.2 * min(found.values())
    assert found[None] < 0.8 * found[1e-4]  # the control: it matters


def test_samples_are_drawn_for_each_image_alike_however_it_is_batched(monkeypatch) -> None:
    monkeypatch.setattr(_places, "FEWEST", 200)
    graph, keep = setup(chain)
    numbers = []
    for size in (16, 7):
        network, _ = refitted(graph, keep, Shown(list(IMAGES.split(size))), per_input=1)
        numbers.append(torch.cat([value.flatten() for value in network.state_dict().values() if value.ndim]))
    assert float((numbers[0] - numbers[1]).abs().max()) < 1e-3
    other, _ = refitted(graph, keep, Shown(list(IMAGES.split(16)), seed=5), per_input=1)
    drawn = torch.cat([value.flatten() for value in other.state_dict().values() if value.ndim])
    assert float((numbers[0] - drawn).abs().max()) > 1e-3  # the control: other positions


class Views(nn.Module):
    """A value that changes when a view of it is overwritten, after another layer has read both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.linear = nn.Linear(8, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        y = torch.relu(self.stem(x))
        half = y[:, :4]
        z = self.left(y)
        half.add_(2.0)
        return self.linear((self.right(z) + y).mean((2, 3)))


def scaled(factor: float) -> nn.Module:
    """A chain whose activations are so many times as large."""
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = randomised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)))
    with torch.no_grad():
        for value in (model[0].weight, model[0].bias):
            value.mul_(factor)
        model[-1].weight.div_(factor)
    return model


@pytest.mark.parametrize("make", [Views, lambda: scaled(1e-9), lambda: scaled(1e9)], ids=["views", "small", "large"])
def test_what_waits_on_disk_is_as_good_as_what_is_held(make, monkeypatch) -> None:
    graph, keep = setup(make)
    shown = Shown(list(IMAGES.split(16)))
    bare, held = cut(graph, keep)(IMAGES), refitted(graph, keep, shown)[0](IMAGES)
    monkeypatch.setattr(_streams, "MEMORY", 0)
    stored = refitted(graph, keep, shown)[0](IMAGES)
    assert float((stored - held).detach().abs().max()) < 0.02 * float((bare - held).detach().abs().max())


def test_copies_of_views_are_views_of_copies() -> None:
    whole = torch.arange(6.0)
    found = _streams.copied({"whole": whole, "view": [whole[2:4]]})
    found["view"][0].add_(10)
    assert found["whole"].tolist() == [0, 1, 12, 13, 4, 5]
    assert whole.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("IoError 28")])
def test_a_full_disk_is_told_of(error, monkeypatch, tmp_path) -> None:
    def full(*_) -> None:
        raise type(error)(*error.args)

    graph, keep = setup(chain)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_streams, "MEMORY", 0)
    monkeypatch.setattr(_streams, "save_file", full)
    with refused("file-not-writable", str(tmp_path), "TMPDIR"):
        refitted(graph, keep, Shown(list(IMAGES.split(16))))
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with refused("file-not-writable", "missing", "TMPDIR"):
        refitted(graph, keep, Shown(list(IMAGES.split(16))))


@pytest.mark.parametrize("size", [48, 7, 1])
def test_all_positions_of_all_images_are_fitted_to_wherever_images_lie(size, monkeypatch) -> None:
    counts: dict[str, int] = {}
    refit = _heal.refit

    def watched(job, fit, *rest) -> bool:
        counts[job.name] = fit.x.shape[2]
        return refit(job, fit, *rest)

    monkeypatch.setattr(_heal, "refit", watched)
    graph, keep = setup(lambda: SequenceFirst(patch=2))
    network, _ = refitted(graph, keep, Shown(list(IMAGES.split(size))))
    assert counts == {"embed": 48 * 16, "wide": 48 * 16, "back": 48 * 16, "linear": 48}
    whole, _ = refitted(graph, keep, Shown([IMAGES]))
    assert float((network(IMAGES) - whole(IMAGES)).detach().abs().max()) < 1e-3
