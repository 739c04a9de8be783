"""Assemblies: every block equals its part; forms agree; scalings do what their formulas say."""

from __future__ import annotations

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.component._familiarity import Familiarity
from brickyard.component._features import observe, reader
from brickyard.evaluation._roc import Roc
from brickyard.inputs._preprocessing import preprocess
from brickyard.runtime._profiling import Latency, measure_latency
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import SCALINGS, _discriminant, scale
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from errors import refused

DATA = (torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(48) % 4)
NETS = [chain, Residual, Branches, SqueezeExcite]
NAMES = (["a", "b", "c", "d"], ["e", "f", "g", "h"])


def assemble(components, *, scaling="none", **options) -> by.Assembly:
    """Join parts with their logits as they are, unless a scaling is named."""
    return by.assemble(components, scaling=scaling, **options)


def parts(make=chain, tasks=((2, 0), (1, 3, 2)), preprocessing=(None, None), **options) -> list[by.Component]:
    found = []
    for seed, (task, names, how) in enumerate(zip(tasks, NAMES, preprocessing, strict=True)):
        model = randomised(make(), seed)
        relevance = by.locate(model, DATA, classes=names, preprocessing=how)
        found.append(by.disassemble(model, relevance, task=list(task), **options))
    return found


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize("how", [(None, None), [by.Preprocessing(mean=(m,) * 3, std=(0.2,) * 3) for m in (0.5, 0.1)]])
def test_each_block_is_its_part_in_every_form(make, reject, how, monkeypatch) -> None:
    monkeypatch.setattr("brickyard.assembly._forms.measure_latency", partial(measure_latency, runs=1))
    pair = parts(make, preprocessing=how, reject=reject)
    x, own = DATA[0], len(pair[0].classes) + len(pair[1].classes)
    alone = [part(part.preprocess(x))[:, : len(part.classes)] for part in pair]
    for form in ("parallel", "padded", "grouped", "auto"):
        whole = assemble(pair, form=form)
        assert whole.classes == ("c", "a", "f", "h", "g")
        torch.testing.assert_close(whole(x)[:, :own], torch.cat(alone, 1), rtol=1e-4, atol=1e-4)
        swapped = assemble(pair[::-1], form=form)
        torch.testing.assert_close(swapped(x)[:, :own], torch.cat(alone[::-1], 1), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(swapped(x)[:, :2], whole(x)[:, :2])
    assert torch.equal(assemble(pair)(x)[:, :own], torch.cat(alone, 1))


def test_one_part_assembled_is_the_part() -> None:
    part = parts()[0]
    for form in ("parallel", "padded", "grouped", "union"):
        assert torch.allclose(assemble([part], form=form)(DATA[0]), part(DATA[0]), atol=1e-6)


def test_raw_bytes_and_fractions_are_the_same_images() -> None:
    pair = parts(preprocessing=(by.Preprocessing(mean=(0.5,), std=(0.2,)), None))
    raw = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    whole = assemble(pair)
    assert torch.equal(whole(raw), whole(raw.float() / 255))
    assert torch.allclose(whole(raw)[:, :2], pair[0]((raw.float() / 255 - 0.5) / 0.2), atol=1e-5)


def test_parts_of_different_architectures_and_sizes() -> None:
    a = parts(chain, preprocessing=(by.Preprocessing(size=(8, 8)), None))[0]
    b = parts(Residual, preprocessing=(None, by.Preprocessing(size=(8, 8), fit="pad")))[1]
    image = torch.rand(3, 3, 6, 6)
    whole = assemble([a, b])
    expected = [p(preprocess(image, p.manifest.preprocessing)) for p in (a, b)]
    assert torch.equal(whole(image), torch.cat(expected, 1))
    with refused("surgery-not-paddable", "form='parallel'"):
        assemble([a, b], form="padded")


def test_auto_takes_the_form_that_is_fastest_here(monkeypatch) -> None:
    pair = parts()
    times: dict[str, float] = {}

    def measured(calls, *, batch):
        assert all(call().shape == (batch, 5) for call in calls.values())
        return {form: Latency(times[form], 0, 0, batch, 1, 1) for form in calls}

    monkeypatch.setattr("brickyard.assembly._forms.measure_latency", measured)
    for given, expected in (
        ({"parallel": 4.0, "padded": 3.0, "grouped": 2.0}, "grouped"),
        ({"parallel": 4.0, "padded": 1.0, "grouped": 2.0}, "padded"),
        ({"parallel": 4.0, "padded": 3.9, "grouped": 5.0}, "parallel"),  # not clearly
    ):
        times.update(given)
        whole = assemble(pair, form="auto")
        assert whole.manifest.form == expected
        assert f" {expected} " in whole.manifest.notes[-1]
    times.update({"parallel": 4.0, "padded": 1.0, "grouped": 1.0})
    assert assemble(pair, form="auto", scaling="mahalanobis").manifest.form == "parallel"  # it needs the parts
    other = parts(Residual)[1]
    assert assemble([pair[0], other], form="auto").manifest.form == "parallel"  # there is no other


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("form", ["parallel", "padded", "grouped", "union"])
def test_fused_assemblies_and_parts_give_the_same_and_come_back_from_files(make, form, tmp_path) -> None:
    if form == "union":
        model = make()
        relevance = by.locate(model, DATA, classes=NAMES[0])
        pair = [by.disassemble(model, relevance, task=[task], heal="none") for task in ("a", "c")]
    else:
        pair = parts(make)
    whole = assemble(pair, form=form, scaling="logit-mean")
    fast = whole.fused()
    again = by.load(fast.save(tmp_path / "fast.safetensors"))
    for model in (fast, again, again.fused()):
        torch.testing.assert_close(model(DATA[0]), whole(DATA[0]), rtol=1e-4, atol=1e-4)
    part = pair[0].fused()
    torch.testing.assert_close(part(DATA[0]), pair[0](DATA[0]), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in whole.modules())
    for found in (whole, pair[0]):
        norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.weight is not None for m in norms)  # the original has its own still
    with refused("surgery-no-structure", "Sequential" if make is chain else make.__name__):
        assemble([part, pair[1]], form="padded")


def test_a_gated_assembly_is_fused_with_its_gate() -> None:
    whole = assemble(parts(), scaling="mahalanobis")
    fast = whole.fused()
    torch.testing.assert_close(fast(DATA[0]), whole(DATA[0]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(assemble(parts())(DATA[0]), whole(DATA[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", NETS)
def test_union_of_parts_of_one_source(make) -> None:
    model = make()
    relevance = by.locate(model, DATA, classes=NAMES[0])
    tasks = ["c"], ["a", "d"]
    pair = [by.disassemble(model, relevance, task=list(task), heal="none") for task in tasks]
    whole = assemble(pair, form="union", source=model)
    together = by.disassemble(model, relevance, task=["c", "a", "d"], heal="none")
    assert torch.equal(whole(DATA[0]), together(DATA[0]))
    assert whole.classes == together.classes
    count = sum(p.numel() for p in whole.parameters())
    assert count == sum(p.numel() for p in together.parameters())
    assert count <= sum(p.numel() for part in pair for p in part.parameters())
    alone = assemble(pair, form="union")
    shared = {name: axis.kept for name, axis in pair[0].manifest.axes.items()}
    if all(pair[1].manifest.axes[name].kept == kept for name, kept in shared.items() if name != "linear"):
        assert torch.equal(alone(DATA[0]), whole(DATA[0]))
    else:
        assert len(alone.manifest.notes) <= 1


def test_union_needs_one_source_and_equal_numbers() -> None:
    with refused("surgery-union-sources", "form='union'"):
        assemble(parts(tasks=((0,), (1,))), form="union")
    model = chain(widths=(16, 24))
    relevance = by.locate(model, DATA)
    healed = [by.disassemble(model, relevance, task=[k], heal="refit") for k in (0, 1)]
    with refused("surgery-weights-differ", "conv2", "source="):
        assemble(healed, form="union")
    assert len(assemble(healed, form="union", source=model).manifest.notes) == 1  # what healing did is lost
    pair = [by.disassemble(model, relevance, task=[k], heal="none") for k in (0, 1)]
    with refused("surgery-wrong-source", "form='union'"):
        assemble(pair, form="union", source=randomised(chain(), 5))


def test_duplicate_class_names() -> None:
    model, other = chain(), randomised(chain(), 1)
    data = DATA
    a = by.disassemble(model, by.locate(model, data, classes=["cat", "dog", "x", "y"]), task=["cat", "dog"])
    b = by.disassemble(other, by.locate(other, data, classes=["u", "cat", "v", "w"], name="Other"), task=["v", "cat"])
    with refused("task-class-in-two-parts", "'cat'", "part 0 (Sequential)", "part 1 (Other)"):
        assemble([a, b])
    x, y = a(data[0]), b(data[0])
    average = assemble([a, b], on_duplicate="average")
    assert average.classes == ("cat", "dog", "v")
    assert torch.allclose(average(data[0]), torch.stack([(x[:, 0] + y[:, 1]) / 2, x[:, 1], y[:, 0]], 1))
    highest = assemble([a, b], on_duplicate="max")
    assert torch.equal(highest(data[0]), torch.stack([torch.maximum(x[:, 0], y[:, 1]), x[:, 1], y[:, 0]], 1))
    renamed = assemble([a, b], on_duplicate="rename")
    assert renamed.classes == ("cat", "dog", "v", "cat (Other)")
    assert torch.equal(renamed(data[0]), torch.cat([x, y], 1))


# -- scaling -------------------------------------------------------------------------------------------------


def test_logit_mean_divides_by_the_mean_winning_logit() -> None:
    pair = parts()
    whole = assemble(pair, scaling="logit-mean")
    factors = []
    for part in pair:
        relevant = part.manifest.statistics.winning_logit
        usable = [v for v in relevant if v is not None and v > 0]
        fallback = sum(usable) / len(usable) if usable else 1.0
        factors += [1 / (v if v is not None and v > 0 else fallback) for v in relevant]
    expected = assemble(pair)(DATA[0]) * torch.tensor(factors)
    torch.testing.assert_close(whole(DATA[0]), expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_measured_on_the_component() -> None:
    part = parts()[0]
    logits = part(DATA[0]).double()
    for output, k in enumerate(part.manifest.task):
        own = logits[k == DATA[1]]
        right = own[own.argmax(1) == output][:, output]
        s = part.manifest.statistics
        assert s.images[output] == 12
        assert s.correct[output] == len(right)
        assert s.mean_logit[output] == pytest.approx(float(own[:, output].mean()), rel=1e-5)
        assert s.winning_logit[output] == (pytest.approx(float(right.mean()), rel=1e-5) if len(right) else None)


def test_a_class_that_is_never_right_does_not_break_the_scale() -> None:
    pair = parts()
    statistics = pair[0].manifest.statistics.model_copy(update={"winning_logit": (None, 2.0), "correct": (0, 12)})
    part = by.Component(pair[0].network, pair[0].manifest.model_copy(update={"statistics": statistics}), None)
    whole = assemble([part, pair[1]], scaling="logit-mean")
    assert torch.isfinite(whole.matrix).all()
    assert whole.matrix[0, 0] == whole.matrix[1, 1] == 0.5
    assert any("'c'" in note for note in whole.manifest.scaling.notes)


def test_log_probability_uses_the_reject_output() -> None:
    pair = parts(reject=True)
    whole = assemble(pair, scaling="log-probability")
    expected = torch.cat([p(DATA[0]).log_softmax(1)[:, :-1] for p in pair], 1)
    torch.testing.assert_close(whole(DATA[0])[:, :-1], expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(expected, assemble(pair)(DATA[0])[:, :-1])


def test_magnitude_is_relative_to_the_mean() -> None:
    pair = parts()
    found = [p.manifest.statistics.magnitude for p in pair]
    whole = assemble(pair, scaling="magnitude")
    expected = [sum(found) / 2 / m for m, p in zip(found, pair, strict=True) for _ in p.classes]
    torch.testing.assert_close(whole.matrix.diagonal(), torch.tensor(expected, dtype=torch.float64))


def few_shot_case(count=400):
    """Two parts whose logits differ by a factor and a shift: side by side is wrong, a small map is right."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 5, (count,), generator=generator)
    z = 3 * nn.functional.one_hot(targets, 5).double() + torch.randn(count, 5, generator=generator, dtype=torch.float64)
    z[:, 2:] = z[:, 2:] * 0.3 - 4
    return Evidence(assemble(parts()).manifest, z[:200], targets[:200]), z[200:], targets[200:]


@pytest.mark.parametrize("name", [name for name, s in SCALINGS.items() if s.few_shot and not s.gated])
def test_few_shot_scalings_learn_from_labels(name) -> None:
    evidence, z, targets = few_shot_case()
    fitted, record = scale(name, evidence, {})
    before = (z.argmax(1) == targets).double().mean()
    after = ((z @ fitted.matrix.T + fitted.shift).argmax(1) == targets).double().mean()
    assert after > before + 0.1
    assert record.images == 200
    again, _ = scale(name, evidence, {})
    assert torch.equal(again.matrix, fitted.matrix)
    held, _ = scale(name, evidence, {"strength": 1e9})  # an endless prior is side by side
    torch.testing.assert_close(held.matrix, torch.eye(5, dtype=torch.float64), atol=1e-4, rtol=0)


def test_joint_head_is_at_the_minimum_of_its_loss() -> None:
    evidence, _, _ = few_shot_case()
    fitted, _ = scale("joint-head", evidence, {"strength": 0.01})
    z, targets = evidence.logits, evidence.targets
    m = fitted.matrix.clone().requires_grad_()
    b = fitted.shift.clone().requires_grad_()
    unit = float(z.std())
    penalty = ((m - torch.eye(5)) * unit).square().sum() + b.square().sum()
    loss = nn.functional.cross_entropy(z @ m.T + b, targets) + 0.005 * penalty
    gradients = torch.autograd.grad(loss, (m, b))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    off = nn.functional.cross_entropy(z @ m.detach().T * 1.2, targets)
    assert off != loss


# -- familiarity, the gate, votes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 40])  # fewer and more features than images
def test_familiarity_is_mahalanobis_distance_in_usual_units(size) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    features = torch.randn(30, size, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 2, size)
    features += 3 * torch.randn(3, size, generator=generator, dtype=torch.float64)[labels]
    found = Familiarity.fit(features, labels)

    def measured(own, own_labels, others):
        means = np.stack([own[own_labels == k].mean(0) for k in range(3)])
        rest = own - means[own_labels]
        covariance = rest.T @ rest / len(rest) + 0.1 * np.square(rest).mean() * np.eye(size)
        offsets = others[:, None] - means[None]
        return np.einsum("ncd,de,nce->nc", offsets, np.linalg.inv(covariance), offsets).min(1)

    f, y = features.numpy(), labels.numpy()
    even = np.arange(30) % 2 == 0
    usual = np.concatenate([measured(f[~even], y[~even], f[even]), measured(f[even], y[even], f[~even])]).mean()
    lengths = np.linalg.norm(f, axis=1)
    for x in (f, 0.1 * f, -f):
        short = np.maximum(0, lengths.mean() - np.linalg.norm(x, axis=1)) / lengths.std(ddof=1)
        expected = measured(f, y, x) / usual + 0.3 * short**2
        np.testing.assert_allclose(found(torch.from_numpy(x)).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert found(-features).mean() > 2 * found(features).mean()
    assert Familiarity.fit(features[:3], labels[:3]) is None  # one image a class does not vary


@pytest.mark.parametrize("make", NETS)
def test_features_are_what_the_classifier_reads(make) -> None:
    model = randomised(make())
    graph = trace(model, DATA[0][:2])
    with torch.no_grad():
        features, _, output = observe(graph.network, reader(graph.network, 3)[0], DATA[0])
        assert torch.equal(output, graph.network(DATA[0]))
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
        seen: list[torch.Tensor] = []
        handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(DATA[0])
        handle.remove()
    read = seen[-1]
    torch.testing.assert_close(features, read if read.ndim == 2 else read.mean((2, 3)))
    deep = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 2))
    network = trace(deep, DATA[0][:2]).network
    features, _, _ = observe(network, reader(network, 3)[0], DATA[0])
    torch.testing.assert_close(features, deep[0](DATA[0]).mean((2, 3)))


def test_mahalanobis_lowers_what_is_far() -> None:
    pair = parts()
    x = DATA[0]
    plain, whole = assemble(pair), assemble(pair, scaling="mahalanobis")
    margins, far = [], []
    for part in pair:
        features, _, logits = part.observe(x)
        inside = torch.isin(DATA[1], torch.tensor(part.manifest.task))
        best = logits[inside].topk(2, 1).values
        margins.append((best[:, 0] - best[:, 1]).mean().item())
        assert part.manifest.statistics.margin == pytest.approx(margins[-1], rel=1e-4)
        far.append(part.familiarity(features))
    lost = 0.3 * min(margins) * torch.stack([far[0]] * 2 + [far[1]] * 3, 1)
    torch.testing.assert_close(whole(x), plain(x) - lost, rtol=1e-4, atol=1e-5)
    assert lost.min() > 0
    assert torch.equal(assemble(pair, scaling="mahalanobis", weight=0.0)(x), plain(x))


def test_classes_that_a_source_knows_are_not_foreign_to_it() -> None:
    known = ["a", "b", "f", "d"]  # the first source knows one of the three classes of the other part
    pair = parts()
    model = randomised(chain(), 0)
    knowing = by.disassemble(model, by.locate(model, DATA, classes=known), task=["a", "d"])
    slopes = [assemble([first, pair[1]], scaling="mahalanobis").gate.slopes for first in (pair[0], knowing)]
    assert slopes[0][0] == slopes[0][1] == slopes[1][1] > 0
    assert slopes[1][0] / slopes[1][1] == pytest.approx(2 / 3)


def coloured_parts() -> tuple[list[by.Component], list]:
    """Two sources and their images, which are not to blame: those of the one are red, those of the other green."""
    images = torch.rand(2, 48, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    images[0, :, 0] += 1
    images[1, :, 1] += 1
    sets = [(x / 2, torch.arange(48) % 4) for x in images]
    pair = []
    for seed, (data, names) in enumerate(zip(sets, NAMES, strict=True)):
        model = randomised(chain(widths=(8, 12)), seed)
        pair.append(by.disassemble(model, by.locate(model, data, classes=names), task=[0, 1, 2]))
    return pair, sets


def test_lda_learns_to_tell_parts_apart_from_few_images() -> None:
    pair, sets = coloured_parts()
    share = {}
    for scaling in ("none", "affine", "lda"):
        images = None if scaling == "none" else sets
        whole = assemble(pair, scaling=scaling, images=images, shots=None if images is None else 2)
        with torch.no_grad():
            share[scaling] = sum(
                int((whole(x[y < 3]).argmax(1) // 3 == index).sum()) for index, (x, y) in enumerate(sets)
            )
    assert share["lda"] > 1.1 * max(share["none"], share["affine"])
    assert share["lda"] >= 0.95 * 72


def test_lda_with_an_endless_prior_is_what_is_done_without_labels() -> None:
    pair, sets = coloured_parts()
    held = assemble(pair, scaling="lda", images=sets, strength=1e12)
    free = assemble(pair, scaling="lda", images=sets)
    expected = assemble(pair, scaling="auto")
    torch.testing.assert_close(held(sets[0][0]), expected(sets[0][0]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(free(sets[0][0]), expected(sets[0][0]), atol=1e-2)


def test_the_discriminant_is_scored_without_the_image_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    owners = torch.arange(20) % 2
    f[owners == 1] += 0.5
    scores, weights, bias = _discriminant(f, owners, [10, 20], 0.5)
    x, y = (f - f.mean(0)).numpy(), owners.numpy()
    means = np.stack([x[y == k].mean(0) for k in (0, 1)])
    rest = x - means[y]
    inverse = np.linalg.inv(rest.T @ rest / 20 + 0.5 * np.square(rest).mean() * np.eye(30))
    expected = np.zeros((20, 2))
    for index in range(20):
        for k in (0, 1):
            without = (y == k) & (np.arange(20) != index)
            m = x[without].mean(0)
            expected[index, k] = x[index] @ inverse @ m - 0.5 * m @ inverse @ m
    spread = expected.std(ddof=1)
    np.testing.assert_allclose(scores.numpy(), expected / spread, rtol=1e-9, atol=1e-9)
    rule = (f @ weights.T + bias).numpy() * spread
    np.testing.assert_allclose(rule, x @ inverse @ means.T - 0.5 * np.einsum("kd,de,ke->k", means, inverse, means))
    assert _discriminant(f, torch.tensor([0, *[1] * 19]), [10, 20], 0.5) is None  # one image cannot be left out


def voters() -> list[by.Component]:
    names = (["a", "b", "c", "d"], ["d", "c", "x", "a"])
    models = [randomised(chain(), seed) for seed in (0, 1)]
    return [
        by.disassemble(model, by.locate(model, DATA, classes=own), task=task, reject=True)
        for model, own, task in zip(models, names, (["a", "b"], ["c", "x"]), strict=True)
    ]


def test_a_part_votes_on_classes_that_its_source_knows() -> None:
    pair = voters()
    x = DATA[0]
    first, second = (part.network(x) for part in pair)  # all classes of their sources
    whole = assemble(pair, votes=True)
    assert whole.classes == ("a", "b", "c", "x")
    expected = [(first[:, 0] + second[:, 3]) / 2, first[:, 1], (second[:, 1] + first[:, 2]) / 2, second[:, 2]]
    torch.testing.assert_close(whole(x)[:, :4], torch.stack(expected, 1))
    assert not torch.allclose(whole(x)[:, :4], assemble(pair)(x)[:, :4], atol=1e-3)
    torch.testing.assert_close(assemble(pair, votes=True, form="padded")(x), whole(x), rtol=1e-4, atol=1e-4)
    swapped = assemble(pair[::-1], votes=True)
    torch.testing.assert_close(swapped(x)[:, [2, 3, 0, 1, 4]], whole(x))
    for reject in (True, False):
        with refused("task-no-votes", "votes=True"):
            assemble(parts(reject=reject), votes=True)


@pytest.mark.parametrize("scaling", ["affine", "joint-head", "lda", "mahalanobis", "logit-mean"])
def test_scalings_know_of_votes(scaling) -> None:
    pair = voters()
    few = SCALINGS[scaling].few_shot
    images = [DATA, DATA] if few else None
    whole = assemble(pair, votes=True, scaling=scaling, images=images)
    assert whole(DATA[0]).shape == (48, 5)  # one for what is none of them
    if few:
        held = assemble(pair, votes=True, scaling=scaling, images=images, strength=1e12)
        plain = assemble(pair, votes=True, scaling="mahalanobis" if scaling == "lda" else "none")
        torch.testing.assert_close(held(DATA[0]), plain(DATA[0]), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(whole(DATA[0]), plain(DATA[0]), atol=1e-3)


def test_scores_of_an_assembly_with_votes() -> None:
    pair = voters()
    scores = by.evaluate(whole := assemble(pair, votes=True), [DATA, DATA], latency=False, including_calibration=True)
    right = {"oracle": 0, "assembled": 0}
    with torch.no_grad():
        for index, part in enumerate(pair):
            inside = torch.isin(DATA[1], torch.tensor(part.manifest.task))
            target = torch.tensor([part.manifest.task.index(int(k)) for k in DATA[1][inside]])
            right["oracle"] += int((part(DATA[0][inside])[:, :2].argmax(1) == target).sum())
            right["assembled"] += int((whole(DATA[0][inside])[:, :4].argmax(1) == target + 2 * index).sum())
    for name, count in right.items():
        assert scores.row(name).accuracy == pytest.approx(100 * count / 48)


def test_scalings_refuse_what_they_cannot_use() -> None:
    pair = parts()
    for options, code, quoted in [
        ({"scaling": "none", "power": 2}, "option-unknown-name", "power"),
        ({"scaling": "lda", "images": [DATA, DATA], "shrink": 0}, "option-range", "shrink"),
        ({"scaling": "mahalanobis", "form": "padded"}, "option-needs-parallel-form", "form='parallel'"),
    ]:
        with refused(code, quoted):
            assemble(pair, **options)
    model = chain()
    bare = by.disassemble(model, by.locate(model, DATA), task=[0, 1], images=DATA[0])
    for scaling in ("logit-mean", "mahalanobis"):
        with refused("option-needs-statistics", scaling):
            assemble([bare], scaling=scaling)
    few = by.disassemble(model, by.locate(model, (DATA[0][:4], DATA[1][:4])), task=[0, 1])
    with refused("option-needs-statistics", "mahalanobis"):
        assemble([few], scaling="mahalanobis")


def test_few_shot_images_and_shots() -> None:
    pair = parts()
    one = assemble(pair, scaling="joint-head", images=[DATA, DATA], shots=1)
    assert one.manifest.scaling.images == 5
    many = assemble(pair, scaling="joint-head", images=[DATA, DATA])
    assert many.manifest.scaling.images == 24 + 36
    assert not torch.equal(one.matrix, many.matrix)


# -- evaluation ----------------------------------------------------------------------------------------------


def test_scores_of_a_component() -> None:
    model = chain()
    part = by.disassemble(model, by.locate(model, DATA), task=[2, 0])
    scores = by.evaluate(part, DATA, source=model, latency=False, including_calibration=True)
    whole, own = model(DATA[0]), part(DATA[0])
    inside = (DATA[1] == 2) | (DATA[1] == 0)
    target = torch.where(DATA[1] == 2, 0, 1)[inside]
    expected = {
        "base": (whole.argmax(1) == DATA[1])[inside],
        "restricted": whole[:, [2, 0]].argmax(1)[inside] == target,
        "component": own.argmax(1)[inside] == target,
    }
    for name, right in expected.items():
        row = scores.row(name)
        assert row.images == 24
        assert row.accuracy == pytest.approx(100 * right.double().mean().item())
        means = [right[target == k].double().mean() for k in (0, 1)]
        assert row.class_accuracy == pytest.approx(100 * float(sum(means) / 2))
    row = scores.row("component")
    assert row.drop == pytest.approx(scores.row("restricted").accuracy - row.accuracy)
    assert row.parameters == part.manifest.selection.parameters == sum(p.numel() for p in part.parameters())
    assert row.flops == part.manifest.selection.flops
    assert scores.row("base").flops == part.manifest.source.flops


def test_auroc_of_a_single_class() -> None:
    model = chain()
    part = by.disassemble(model, by.locate(model, DATA), task=[1], heal="none")
    scores = by.evaluate(part, DATA, source=model, latency=False, including_calibration=True)
    whole = model(DATA[0]).double()
    score = {
        "component": part(DATA[0])[:, 0].double(),
        "restricted": whole[:, 1],
        "base": whole[:, 1] - whole.logsumexp(1),
    }
    for name, value in score.items():
        pairs = value[DATA[1] == 1].unsqueeze(1) - value[DATA[1] != 1].unsqueeze(0)
        area = 100 * float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean())
        row = scores.row(name)
        assert row.auroc == pytest.approx(area)
        assert row.auroc_error == pytest.approx(Roc.of(value, DATA[1] == 1).error)
    row, other = scores.row("component"), scores.row("restricted")
    assert row.accuracy == 100
    assert row.auroc_drop == pytest.approx(other.auroc - row.auroc)
    assert 0 < row.auroc_drop_error < math.hypot(row.auroc_error, other.auroc_error)  # paired
    assert [scores.row(name).auroc_drop for name in ("base", "restricted")] == [None, None]
    assert f"{row.auroc:.1f}±{row.auroc_error:.1f}" in str(scores)
    assert f"{row.auroc_drop:+.1f}±{row.auroc_drop_error:.1f}" in str(scores)


def test_scores_of_an_assembly() -> None:
    sources = [chain(), randomised(chain(), 1)]
    pair = [
        by.disassemble(model, by.locate(model, DATA, classes=names), task=task)
        for model, names, task in zip(sources, NAMES, ([0, 1], [2, 3, 0]), strict=True)
    ]
    whole = assemble(pair)
    scores = by.evaluate(whole, [DATA, DATA], source=sources, latency=False, including_calibration=True)
    right = {"base": [], "oracle": [], "assembled": []}
    for image, label in zip(*DATA, strict=True):
        for index, part in enumerate(pair):
            if int(label) not in part.manifest.task:
                continue
            place = part.manifest.task.index(int(label))
            right["base"].append(int(sources[index](image[None]).argmax()) == int(label))
            right["oracle"].append(int(part(image[None]).argmax()) == place)
            right["assembled"].append(int(whole(image[None]).argmax()) == place + 2 * index)
    for name, found in right.items():
        assert scores.row(name).images == len(found) == 60
        assert scores.row(name).accuracy == pytest.approx(100 * sum(found) / len(found))
    assert scores.row("oracle").accuracy >= scores.row("assembled").accuracy


def test_scores_print_and_are_written(tmp_path) -> None:
    import csv
    import json

    model = chain()
    part = by.disassemble(model, by.locate(model, DATA), task=[2, 0])
    scores = by.evaluate(part, DATA, source=model, including_calibration=True)
    text = str(scores)
    assert f"batch 1, {torch.get_num_threads()} threads" in text
    assert f"{scores.row('component').accuracy:.1f}±" in text
    read = json.loads(scores.to_json(tmp_path / "s.json").read_text())
    assert read["rows"][2]["accuracy"] == scores.row("component").accuracy
    rows = list(csv.DictReader(scores.to_csv(tmp_path / "s.csv").open()))
    assert [row["name"] for row in rows] == ["base", "restricted", "component"]
    assert float(rows[2]["latency_ms"]) == scores.row("component").latency["median_ms"]


def test_images_of_the_wrong_size_are_one_clear_error() -> None:
    model = Branches()  # its classifier is behind a flatten: only one size fits
    part = by.disassemble(model, by.locate(model, DATA), task=[2, 0])
    wrong = torch.rand(6, 3, 12, 12)
    labels = torch.tensor([0, 2, 0, 2, 0, 2])
    for call, code in (
        (lambda: part.predict(wrong), "data-wrong-size"),
        (lambda: assemble([part]).predict(wrong), "data-wrong-size"),
        (lambda: by.evaluate(part, (wrong, labels), latency=False, including_calibration=True), "data-wrong-size"),
        (
            lambda: by.evaluate(assemble([part]), [(wrong, labels)], latency=False, including_calibration=True),
            "data-wrong-size",
        ),
        (lambda: by.locate(model, (wrong, labels)), "trace-run-failed"),
        (lambda: by.disassemble(model, by.locate(model, DATA), task=[2], images=(wrong, labels)), "data-wrong-size"),
    ):
        with refused(code, "12, 12"):
            call()
    nan = DATA[0].clone()
    nan[2, 0, 0, 0] = float("nan")
    for call in (
        lambda: part.predict(nan),
        lambda: by.evaluate(part, (nan, DATA[1]), latency=False, including_calibration=True),
        lambda: by.locate(model, (nan, DATA[1]), choose="all"),
        lambda: by.disassemble(model, by.locate(model, DATA), task=[2, 3], images=(nan, DATA[1])),
    ):
        with refused("data-not-finite"):
            call()
    assert len(part.predict(DATA[0])) == 48


# -- ordinary modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
def test_components_and_assemblies_export_with_a_dynamic_batch(make) -> None:
    pair = parts(make, preprocessing=(by.Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3), None), reject=True)
    for model in (
        pair[0],
        pair[0].fused(),
        assemble(pair),
        assemble(pair, form="padded", scaling="logit-mean"),
        assemble(pair, form="grouped"),
        assemble(pair, form="padded").fused(),
        assemble(pair, scaling="lda", images=[DATA, DATA]),
    ):
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(model, (DATA[0][:2],), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(DATA[0]), model(DATA[0]), rtol=1e-5, atol=1e-5)
        assert not torch.equal(program.module()(DATA[0] + 1), model(DATA[0]))


@pytest.mark.parametrize("form", ["parallel", "padded", "grouped", "union"])
def test_every_form_compiles_as_one_graph(form) -> None:
    """The whole of it is captured, without a break; the compiler behind it is torch's own affair."""
    model = Residual()
    relevance = by.locate(model, DATA)
    tasks = ([0], [2]) if form == "union" else ([0, 1], [2, 3])
    heal = "none" if form == "union" else "refit"
    whole = assemble([by.disassemble(model, relevance, task=task, heal=heal) for task in tasks], form=form)
    for made in (whole, whole.fused()):
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(DATA[0]), made(DATA[0]), rtol=1e-5, atol=1e-5)


# -- classes that come and go --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("scaling", ["none", "logit-mean", "mahalanobis"])
def test_a_class_that_is_added_leaves_all_others_as_they_are(make, scaling) -> None:
    first, second = parts(make)
    new = parts(make, tasks=((0, 1), (0,)), preprocessing=(None, None))[1]
    deployed = assemble([first], scaling=scaling)
    more = assemble([deployed, second], scaling=scaling)
    assert more.classes == ("c", "a", "f", "h", "g")
    assert torch.equal(more.side_by_side(DATA[0])[:, :2], deployed.side_by_side(DATA[0]))
    most = assemble([more, new])
    assert most.classes == (*more.classes, "e")
    assert torch.equal(most.side_by_side(DATA[0])[:, :5], more.side_by_side(DATA[0]))
    assert torch.equal(most(DATA[0])[:, 5:], new(new.preprocess(DATA[0])))
    assert not torch.equal(assemble([new, more])(DATA[0])[:, :5], more.side_by_side(DATA[0]))  # control


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("form", ["parallel", "grouped"])
@pytest.mark.parametrize("reject", [False, True])
def test_a_class_that_is_removed_leaves_all_others_as_they_are(make, form, reject, tmp_path) -> None:
    pair = parts(make, reject=reject)
    whole = assemble(pair, form=form)
    less = assemble(pair, form=form, without=["a", "g"])
    assert less.classes == ("c", "f", "h")
    assert torch.equal(less(DATA[0])[:, :3], whole(DATA[0])[:, [0, 2, 3]])
    if reject:  # what was left out is among the rest now
        assert bool((less(DATA[0]).softmax(1)[:, 3] > whole(DATA[0]).softmax(1)[:, 5]).all())
    again = by.load(less.save(tmp_path / "less.safetensors"))
    assert torch.equal(again(DATA[0]), less(DATA[0]))
    assert again.manifest == less.manifest
    assert re.search(r"  a, g$", str(again), re.M)
    if form == "parallel":
        least = assemble([again], without=["h"])
        assert least.classes == ("c", "f")
        assert torch.equal(least(DATA[0])[:, :2], whole(DATA[0])[:, [0, 2]])
        alone = assemble([again], without=["f", "h"])
        assert len(alone.manifest.parts) == 1
        back = assemble(list(alone.components()))
        assert back.classes == ("c", "a")


def test_scalings_do_without_a_class_that_was_removed() -> None:
    pair = parts()
    kept = [0, 2, 3]
    for name in ("logit-mean", "magnitude"):
        whole, less = (assemble(pair, scaling=name, without=gone) for gone in ([], ["a", "g"]))
        torch.testing.assert_close(less(DATA[0]), whole(DATA[0])[:, kept], rtol=1e-6, atol=1e-6)
    for name in ("affine", "joint-head", "lda", "mahalanobis", "log-probability"):
        few = {"images": [DATA, DATA], "shots": 4} if SCALINGS[name].few_shot else {}
        less = assemble(pair, scaling=name, without=["a", "g"], **few)
        assert less(DATA[0]).shape == (48, 3)


def test_scores_leave_out_images_of_a_class_that_was_removed() -> None:
    pair = parts()
    less = assemble(pair, without=["a", "g"])
    sources = [randomised(chain(), seed) for seed in (0, 1)]
    scores = by.evaluate(less, [DATA, DATA], source=sources, latency=False, including_calibration=True)
    images, labels = DATA
    first, second = images[labels == 2], [images[labels == k] for k in (1, 3)]
    right = [*(less(first).argmax(1) == 0), *(less(second[0]).argmax(1) == 1), *(less(second[1]).argmax(1) == 2)]
    row = scores.row("assembled")
    assert row.images == len(right) == 36
    assert row.accuracy == pytest.approx(100 * float(torch.stack(right).double().mean()))
    found = [
        torch.ones(12, dtype=torch.bool),
        *(sources[1].eval()(second[i])[:, [1, 3]].argmax(1) == i for i in (0, 1)),
    ]
    assert scores.row("restricted").accuracy == pytest.approx(100 * float(torch.cat(found).double().mean()))


def test_one_of_two_classes_of_one_name_can_be_removed() -> None:
    model = randomised(chain(), 0)
    relevance = by.locate(model, DATA, classes=NAMES[0])
    pair = [by.disassemble(model, relevance, task=task) for task in (["a", "b"], ["b", "c"])]
    whole = assemble(pair, on_duplicate="rename")
    assert whole.classes == ("a", "b", "b (Sequential)", "c")
    less = assemble(pair, on_duplicate="rename", without=["b (Sequential)"])
    assert less.classes == ("a", "b", "c")
    assert torch.equal(less(DATA[0]), whole(DATA[0])[:, [0, 1, 3]])
    mean = assemble(pair, on_duplicate="average", without=["b"])
    assert torch.equal(mean(DATA[0]), whole(DATA[0])[:, [0, 3]])
