"""Training towards the source without labels: nearer on images that no step saw, or not a bit of it changed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import brickyard as by
from brickyard.healing import _distil as distil
from brickyard.healing._distil import DistilReport, distil_network
from brickyard.inputs._augment import _cutmix, _mixup, varied
from brickyard.inputs._datasets import load_data
from brickyard.outputs._kinds import ONE, Outputs
from brickyard.sources._loading import load_source
from brickyard.testing import Residual, randomised
from errors import refused

IMAGES = torch.randn(160, 3, 8, 8, generator=torch.Generator().manual_seed(1))
FIT, HELD = list(IMAGES[:96].split(32)), list(IMAGES[96:].split(40))


def small(task=(2, 0), **options):
    """A source, its cut network, and the outputs that were kept."""
    source = randomised(Residual(), 0)
    relevance = by.locate(source, (IMAGES[:48], torch.arange(48) % 4))
    component = by.disassemble(source, relevance, task=list(task), heal="none", **options)
    kept = ONE.kept(task, 4, component.reject)
    return source, component.network, kept


def bits(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network, before) -> bool:
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def kl(source, network, kept, images) -> float:
    with torch.no_grad():
        wanted, found = (z.double().log_softmax(1) for z in (source(images)[:, kept], network(images)))
    return float((wanted.exp() * (wanted - found)).sum(1).mean())


@pytest.mark.slow
def test_a_real_network_comes_nearer_to_its_source(shared) -> None:
    source = load_source("zoo:resnet20", weights=shared / "models" / "resnet20-cifar10.safetensors")
    task = list(range(3, 10))
    data = load_data(shared / "data" / "cifar10", max_images=900).of_classes(task)
    relevance = by.locate(
        source.model, data, classes=data.classes, preprocessing=source.preprocessing, per_class=5, task=task
    )
    component = by.disassemble(
        source.model,
        relevance,
        task=task,
        budget=by.Budget(flops=0.6),
        select="mda",
        heal="moments",
        images=data,
        heal_images=60,
    )
    images = component.preprocess(data.images)
    fit, held, others = images[:300].split(100), images[300:400].split(100), images[400:600]
    before = bits(component.network), kl(source.model, component.network, task, others)
    report = distil_network(source.model, component.network, task, fit, held, steps=120, batch_size=32)
    assert report.steps == 120
    assert report.seconds > 0
    assert report.agreement_after >= report.agreement_before
    assert report.kl_after < 0.8 * report.kl_before
    assert kl(source.model, component.network, task, held[0]) == pytest.approx(report.kl_after, rel=1e-3)
    assert kl(source.model, component.network, task, others) < 0.8 * before[1]  # of images that chose nothing
    norms = [name for name in before[0] if "running_" in name]
    assert norms
    after = bits(component.network)
    assert all(torch.equal(after[name], before[0][name]) for name in norms)


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_what_becomes_worse_is_undone_to_the_last_bit(lr) -> None:
    source, network, kept = small()
    before = bits(network)
    report = distil_network(source, network, kept, FIT, HELD, steps=20, lr=lr, batch_size=16)
    assert same(network, before)
    assert report.kl_after == report.kl_before
    assert report.agreement_after == report.agreement_before
    distil_network(source, network, kept, FIT, HELD, steps=20, batch_size=16)
    assert not same(network, before)  # the control


def test_agreement_never_falls_for_a_smaller_divergence(monkeypatch) -> None:
    source, network, kept = small()
    before = bits(network)
    found = iter([(0.8, 2.0), (0.7, 1.0), (0.8, 3.0), *[(0.7, 0.5)] * 20])
    monkeypatch.setattr(distil._Teacher, "judge", lambda *_: next(found))
    report = distil_network(source, network, kept, FIT, HELD, steps=6, batch_size=16)
    assert same(network, before)
    assert (report.agreement_after, report.kl_after) == (0.8, 2.0)
    found = iter([(0.8, 2.0), (0.9, 1.0), (0.8, 0.9), *[(0.7, 0.5)] * 20])
    report = distil_network(source, network, kept, FIT, HELD, steps=6, batch_size=16)
    assert not same(network, before)  # the control
    assert (report.agreement_after, report.kl_after) == (0.8, 0.9)


def test_steps_and_seed_decide_every_bit() -> None:
    results = []
    for seed in (0, 0, 1):
        source, network, kept = small()
        torch.manual_seed(len(results))  # the caller's generator does not matter, and stays
        state = torch.get_rng_state()
        distil_network(source, network, kept, FIT, HELD, steps=15, batch_size=16, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(bits(network))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    assert not all(torch.equal(value, results[2][name]) for name, value in results[0].items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["step", "judge"])
def test_a_network_is_as_it_was_after_a_stop(error, place, monkeypatch) -> None:
    source, network, kept = small()
    network.train()
    modes = [module.training for module in source.modules()]
    before, asked = bits(network), []

    def stop(inner):
        def call(*arguments):
            asked.append(1)
            if len(asked) > 3:
                raise error("stopped")
            return inner(*arguments)

        return call

    owner = distil._Run if place == "step" else distil._Teacher
    monkeypatch.setattr(owner, place, stop(getattr(owner, place)))
    with pytest.raises(error):
        distil_network(source, network, kept, FIT, HELD, steps=30, batch_size=16)
    monkeypatch.undo()
    assert same(network, before)
    assert network.training
    assert all(value.grad is None for value in network.parameters())
    assert [module.training for module in source.modules()] == modes


def test_a_write_that_stops_halfway_is_taken_back() -> None:
    _, network, _ = small()
    before, values = bits(network), list(network.parameters())
    state = [value.detach() + 1 for value in values]
    with pytest.raises(RuntimeError):
        distil._written(values, [*state[:2], torch.zeros(99), *state[3:]])
    assert same(network, before)
    distil._written(values, state)
    assert all(torch.equal(value, new) for value, new in zip(values, state, strict=True))  # the control


def test_time_ends_it_too() -> None:
    source, network, kept = small()
    report = distil_network(source, network, kept, FIT, HELD, minutes=0.02, batch_size=16)
    assert isinstance(report, DistilReport)
    assert report.steps > 1
    assert report.kl_after < report.kl_before


def test_with_reject_all_outputs_are_followed_and_kinds_decide_what_is_compared(monkeypatch) -> None:
    source, network, kept = small(reject=True)
    assert kept == [0, 1, 2, 3]
    before = kl(source, network, kept, IMAGES[96:])
    report = distil_network(source, network, kept, FIT, HELD, steps=20, batch_size=16)
    assert report.kl_before == pytest.approx(before, rel=1e-4)
    assert report.kl_after < before

    class Several(Outputs):
        def says(self, logits):
            return logits > 0

    source, network, kept = small()
    with torch.no_grad():
        wanted = [F.mse_loss(network(x).double(), source(x)[:, kept].double()) for x in (IMAGES[96:],)]
        alike = ((network(IMAGES[96:]) > 0) == (source(IMAGES[96:])[:, kept] > 0)).all(1).double().mean()
    report = distil_network(source, network, kept, FIT, HELD, outputs=Several(), steps=5, batch_size=16)
    assert report.kl_before == pytest.approx(float(wanted[0]), rel=1e-4)
    assert report.agreement_before == pytest.approx(float(alike))
    source, network, kept = small(task=(1,))
    report = distil_network(source, network, kept, FIT, HELD, steps=20, batch_size=16)
    assert 0 < report.kl_after < report.kl_before  # a single output is compared as it is


def test_what_cannot_be_asked_for() -> None:
    source, network, kept = small()
    before, same_words = bits(network), {"steps": 3}
    for arguments, options, code in (
        ((kept, FIT, HELD), {}, "option-conflict"),
        ((kept, FIT, HELD), {"steps": 3, "minutes": 1}, "option-conflict"),
        ((kept, FIT, HELD), {"steps": 0}, "option-range"),
        ((kept, FIT, HELD), {"minutes": float("nan")}, "option-range"),
        ((kept, FIT, HELD), {"steps": 3, "lr": 0}, "option-range"),
        ((kept, FIT, HELD), {"steps": 3, "batch_size": 1}, "option-range"),
        (([4, 0], FIT, HELD), same_words, "option-range"),
        (([], FIT, HELD), same_words, "option-range"),
        (([0, 1, 2], FIT, HELD), same_words, "option-count"),
        ((kept, [], HELD), same_words, "data-no-images"),
        ((kept, FIT, []), same_words, "data-no-images"),
    ):
        with refused(code):
            distil_network(source, network, *arguments, **options)
    assert same(network, before)
    distil_network(source, copy.deepcopy(source), kept, FIT, HELD, **same_words)  # one that has all outputs still


def test_images_are_mixed_as_the_formulas_say() -> None:
    images = torch.arange(1.0, 9).reshape(8, 1, 1, 1).expand(8, 3, 16, 16).contiguous()
    generator = torch.Generator().manual_seed(0)
    mixed = torch.cat([_mixup(images, generator) for _ in range(40)])
    assert mixed.flatten(1).std(1).max() < 1e-6  # one share for the whole image
    shares = (mixed[:, 0, 0, 0] - images.repeat(40, 1, 1, 1)[:, 0, 0, 0]).abs()
    assert 0 < shares.max() <= 3.5  # half of the largest difference at most
    boxes = torch.cat([_cutmix(images, generator) for _ in range(200)])
    own = images.repeat(200, 1, 1, 1)
    changed = (boxes != own)[:, 0]
    inner = changed[changed.any(2).any(1)]
    for box in inner[:100]:  # a rectangle
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns[None])
    assert 0.25 < changed.double().mean() / (7 / 8) < 0.5  # a mean area of a half, less what lies outside
    a, b = (varied(images, torch.Generator().manual_seed(seed)) for seed in (3, 3))
    assert torch.equal(a, b)
    assert not torch.equal(a, varied(images, torch.Generator().manual_seed(4)))
    assert a.shape == images.shape
