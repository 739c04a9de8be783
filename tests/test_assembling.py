"""Assemblies: every block equals its part; forms agree; scalings do what their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.preprocessing import preprocess
from brickyard.scaling import SCALINGS, Evidence, scale
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised

DATA = (torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(48) % 4)
NETS = [chain, Residual, Branches, SqueezeExcite]
NAMES = (["a", "b", "c", "d"], ["e", "f", "g", "h"])


def parts(make=chain, tasks=((2, 0), (1, 3, 2)), preprocessing=(None, None), **options) -> list[by.Component]:
    found = []
    for seed, (task, names, how) in enumerate(zip(tasks, NAMES, preprocessing, strict=True)):
        model = randomised(make(), seed)
        relevance = by.locate(model, DATA, classes=names, preprocessing=how)
        found.append(by.disassemble(model, relevance, task=list(task), **options))
    return found


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        (None, None),
        (
            by.Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3),
            by.Preprocessing(mean=(0.1,) * 3, std=(0.3,) * 3),
        ),
    ],
)
def test_each_block_is_its_part_in_every_form(make, reject, how) -> None:
    pair = parts(make, preprocessing=how, reject=reject)
    x = DATA[0]
    with torch.no_grad():
        alone = [part(part.preprocess(x))[:, : len(part.classes)] for part in pair]
        for form in ("parallel", "padded", "auto"):
            whole = by.assemble(pair, form=form)
            assert whole.classes == ("c", "a", "f", "h", "g")
            torch.testing.assert_close(whole(x), torch.cat(alone, 1), rtol=1e-4, atol=1e-4)
            swapped = by.assemble(pair[::-1], form=form)
            torch.testing.assert_close(swapped(x), torch.cat(alone[::-1], 1), rtol=1e-4, atol=1e-4)
            assert not torch.allclose(swapped(x)[:, :2], whole(x)[:, :2])
        assert torch.equal(by.assemble(pair)(x), torch.cat(alone, 1))


def test_one_part_assembled_is_the_part() -> None:
    part = parts()[0]
    with torch.no_grad():
        for form in ("parallel", "padded", "union"):
            assert torch.allclose(by.assemble([part], form=form)(DATA[0]), part(DATA[0]), atol=1e-6)


def test_raw_bytes_and_fractions_are_the_same_images() -> None:
    pair = parts(preprocessing=(by.Preprocessing(mean=(0.5,), std=(0.2,)), None))
    raw = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        whole = by.assemble(pair)
        assert torch.equal(whole(raw), whole(raw.float() / 255))
        assert torch.allclose(whole(raw)[:, :2], pair[0]((raw.float() / 255 - 0.5) / 0.2), atol=1e-5)


def test_parts_of_different_architectures_and_sizes() -> None:
    a = parts(chain, preprocessing=(by.Preprocessing(size=(8, 8)), None))[0]
    b = parts(Residual, preprocessing=(None, by.Preprocessing(size=(8, 8), fit="pad")))[1]
    image = torch.rand(3, 3, 6, 6)
    whole = by.assemble([a, b])
    with torch.no_grad():
        expected = [p(preprocess(image, p.manifest.preprocessing)) for p in (a, b)]
        assert torch.equal(whole(image), torch.cat(expected, 1))
    with pytest.raises(by.BrickyardError, match=r"one architecture.*use form='parallel'"):
        by.assemble([a, b], form="padded")


@pytest.mark.parametrize("make", NETS)
def test_union_of_parts_of_one_source(make) -> None:
    model = make()
    relevance = by.locate(model, DATA, classes=NAMES[0])
    tasks = ["c"], ["a", "d"]
    pair = [by.disassemble(model, relevance, task=list(task), heal="none") for task in tasks]
    whole = by.assemble(pair, form="union", source=model)
    together = by.disassemble(model, relevance, task=["c", "a", "d"], heal="none")
    with torch.no_grad():
        assert torch.equal(whole(DATA[0]), together(DATA[0]))
        assert whole.classes == together.classes
    count = sum(p.numel() for p in whole.parameters())
    assert count == sum(p.numel() for p in together.parameters())
    assert count <= sum(p.numel() for part in pair for p in part.parameters())
    alone = by.assemble(pair, form="union")
    shared = {name: axis.kept for name, axis in pair[0].manifest.axes.items()}
    if all(pair[1].manifest.axes[name].kept == kept for name, kept in shared.items() if name != "linear"):
        assert torch.equal(alone(DATA[0]), whole(DATA[0]))
    else:
        assert alone.manifest.notes == () or "not known" in alone.manifest.notes[0]


def test_union_needs_one_source_and_equal_numbers() -> None:
    with pytest.raises(by.BrickyardError, match=r"parts of one source"):
        by.assemble(parts(tasks=((0,), (1,))), form="union")
    model = chain(widths=(16, 24))
    relevance = by.locate(model, DATA)
    healed = [by.disassemble(model, relevance, task=[k], heal="refit") for k in (0, 1)]
    with pytest.raises(by.BrickyardError, match=r"different numbers.*source="):
        by.assemble(healed, form="union")
    assert "dropped" in by.assemble(healed, form="union", source=model).manifest.notes[0]
    pair = [by.disassemble(model, relevance, task=[k], heal="none") for k in (0, 1)]
    with pytest.raises(by.BrickyardError, match=r"give its own source"):
        by.assemble(pair, form="union", source=randomised(chain(), 5))


def test_duplicate_class_names() -> None:
    model, other = chain(), randomised(chain(), 1)
    data = DATA
    a = by.disassemble(model, by.locate(model, data, classes=["cat", "dog", "x", "y"]), task=["cat", "dog"])
    b = by.disassemble(other, by.locate(other, data, classes=["u", "cat", "v", "w"], name="Other"), task=["v", "cat"])
    with pytest.raises(by.BrickyardError, match=r"class 'cat' is in part 0 \(Sequential\) and in part 1 \(Other\)"):
        by.assemble([a, b])
    with torch.no_grad():
        x, y = a(data[0]), b(data[0])
        average = by.assemble([a, b], on_duplicate="average")
        assert average.classes == ("cat", "dog", "v")
        assert torch.allclose(average(data[0]), torch.stack([(x[:, 0] + y[:, 1]) / 2, x[:, 1], y[:, 0]], 1))
        highest = by.assemble([a, b], on_duplicate="max")
        assert torch.equal(highest(data[0]), torch.stack([torch.maximum(x[:, 0], y[:, 1]), x[:, 1], y[:, 0]], 1))
        renamed = by.assemble([a, b], on_duplicate="rename")
        assert renamed.classes == ("cat", "dog", "v", "cat (Other)")
        assert torch.equal(renamed(data[0]), torch.cat([x, y], 1))


# -- scaling -------------------------------------------------------------------------------------------------


def test_logit_mean_divides_by_the_mean_winning_logit() -> None:
    pair = parts()
    whole = by.assemble(pair, scaling="logit-mean")
    factors = []
    for part in pair:
        relevant = part.manifest.statistics.winning_logit
        usable = [v for v in relevant if v is not None and v > 0]
        fallback = sum(usable) / len(usable) if usable else 1.0
        factors += [1 / (v if v is not None and v > 0 else fallback) for v in relevant]
    with torch.no_grad():
        expected = by.assemble(pair)(DATA[0]) * torch.tensor(factors)
        torch.testing.assert_close(whole(DATA[0]), expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_measured_on_the_component() -> None:
    part = parts()[0]
    with torch.no_grad():
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
    whole = by.assemble([part, pair[1]], scaling="logit-mean")
    assert torch.isfinite(whole.matrix).all()
    assert whole.matrix[0, 0] == whole.matrix[1, 1] == 0.5
    assert any("'c' has no correct image" in note for note in whole.manifest.scaling.notes)


def test_log_probability_uses_the_reject_output() -> None:
    pair = parts(reject=True)
    whole = by.assemble(pair, scaling="log-probability")
    with torch.no_grad():
        expected = torch.cat([p(DATA[0]).log_softmax(1)[:, :-1] for p in pair], 1)
        torch.testing.assert_close(whole(DATA[0]), expected, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(expected, by.assemble(pair)(DATA[0]))


def test_magnitude_is_relative_to_the_mean() -> None:
    pair = parts()
    found = [p.manifest.statistics.magnitude for p in pair]
    whole = by.assemble(pair, scaling="magnitude")
    expected = [sum(found) / 2 / m for m, p in zip(found, pair, strict=True) for _ in p.classes]
    torch.testing.assert_close(whole.matrix.diagonal(), torch.tensor(expected, dtype=torch.float64))


def few_shot_case(count=400):
    """Two parts whose logits differ by a factor and a shift: side by side is wrong, a small map is right."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 5, (count,), generator=generator)
    z = 3 * nn.functional.one_hot(targets, 5).double() + torch.randn(count, 5, generator=generator, dtype=torch.float64)
    z[:, 2:] = z[:, 2:] * 0.3 - 4
    return Evidence(by.assemble(parts()).manifest, z[:200], targets[:200]), z[200:], targets[200:]


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


def test_scaling_is_asked_for_rightly() -> None:
    pair = parts()
    for options, message in [
        ({"scaling": "best"}, "scaling='best' is not known; choose one of none"),
        ({"scaling": "joint-head"}, "needs a few labelled images"),
        ({"scaling": "joint-head", "images": [DATA]}, "for each of the 2 parts"),
        ({"scaling": "joint-head", "images": [None, None]}, "none of the images belongs"),
        ({"scaling": "none", "power": 2}, "cannot take the options"),
        ({"form": "round"}, "use one of 'auto'"),
        ({"on_duplicate": "ignore"}, "use one of 'error'"),
    ]:
        with pytest.raises(by.BrickyardError, match=message):
            by.assemble(pair, **options)
    with pytest.raises(by.BrickyardError, match=r"nothing was given"):
        by.assemble([])
    with pytest.raises(by.BrickyardError, match=r"Sequential was given"):
        by.assemble([chain()])
    model = chain()
    bare = by.disassemble(model, by.locate(model, DATA), task=[0, 1], images=DATA[0])
    with pytest.raises(by.BrickyardError, match=r"needs statistics"):
        by.assemble([bare], scaling="logit-mean")


def test_few_shot_images_and_shots() -> None:
    pair = parts()
    one = by.assemble(pair, scaling="joint-head", images=[DATA, DATA], shots=1)
    assert one.manifest.scaling.images == 5
    many = by.assemble(pair, scaling="joint-head", images=[DATA, DATA])
    assert many.manifest.scaling.images == 24 + 36
    assert not torch.equal(one.matrix, many.matrix)


def test_training_one_part_leaves_the_others_blocks_alone() -> None:
    pair = parts()
    whole = by.assemble(pair)
    with torch.no_grad():
        before = whole(DATA[0])
        for p in pair[0].parameters():
            p.mul_(1.5)
        after = whole(DATA[0])
    assert torch.equal(before[:, 2:], after[:, 2:])


# -- evaluation ----------------------------------------------------------------------------------------------


def test_scores_of_a_component() -> None:
    model = chain()
    part = by.disassemble(model, by.locate(model, DATA), task=[2, 0])
    scores = by.evaluate(part, DATA, source=model, latency=False)
    with torch.no_grad():
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
    row = by.evaluate(part, DATA, source=model, latency=False).row("component")
    with torch.no_grad():
        score = part(DATA[0])[:, 0].double()
    positive, negative = score[DATA[1] == 1], score[DATA[1] != 1]
    pairs = positive.unsqueeze(1) - negative.unsqueeze(0)
    assert row.accuracy == 100
    assert row.auroc == pytest.approx(100 * float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()))


def test_scores_of_an_assembly() -> None:
    sources = [chain(), randomised(chain(), 1)]
    pair = [
        by.disassemble(model, by.locate(model, DATA, classes=names), task=task)
        for model, names, task in zip(sources, NAMES, ([0, 1], [2, 3, 0]), strict=True)
    ]
    whole = by.assemble(pair)
    scores = by.evaluate(whole, [DATA, DATA], source=sources, latency=False)
    right = {"base": [], "oracle": [], "assembled": []}
    with torch.no_grad():
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
    scores = by.evaluate(part, DATA, source=model)
    text = str(scores)
    assert f"median of 15, batch 1, {torch.get_num_threads()} threads" in text
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
    for call in (
        lambda: part.predict(wrong),
        lambda: by.assemble([part]).predict(wrong),
        lambda: by.evaluate(part, (wrong, labels), latency=False),
        lambda: by.evaluate(by.assemble([part]), [(wrong, labels)], latency=False),
        lambda: by.locate(model, (wrong, labels)),
        lambda: by.disassemble(model, by.locate(model, DATA), task=[2], images=(wrong, labels)),
    ):
        with pytest.raises(by.BrickyardError, match=r"12, 12|12x12"):
            call()
    nan = DATA[0].clone()
    nan[2, 0, 0, 0] = float("nan")
    for call in (
        lambda: part.predict(nan),
        lambda: by.evaluate(part, (nan, DATA[1]), latency=False),
        lambda: by.locate(model, (nan, DATA[1]), choose="all"),
        lambda: by.disassemble(model, by.locate(model, DATA), task=[2, 3], images=(nan, DATA[1])),
    ):
        with pytest.raises(by.BrickyardError, match="NaN"):
            call()
    assert len(part.predict(DATA[0])) == 48


def test_scoring_is_asked_for_rightly() -> None:
    model = chain()
    part = by.disassemble(model, by.locate(model, DATA), task=[2, 0])
    with pytest.raises(by.BrickyardError, match=r"a Sequential was given"):
        by.evaluate(model, DATA)
    with pytest.raises(by.BrickyardError, match=r"give the source that it came from"):
        by.evaluate(part, DATA, source=randomised(chain(), 3))
    with pytest.raises(by.BrickyardError, match=r"none of the 48 images belongs"):
        by.evaluate(part, (DATA[0], torch.ones(48, dtype=torch.long)))
    with pytest.raises(by.BrickyardError, match=r"2 parts need as many sources"):
        by.evaluate(by.assemble(parts()), [DATA, DATA], source=[model])


# -- ordinary modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
def test_components_and_assemblies_export_with_a_dynamic_batch(make) -> None:
    pair = parts(make, preprocessing=(by.Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3), None), reject=True)
    for model in (pair[0], by.assemble(pair), by.assemble(pair, form="padded", scaling="logit-mean")):
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(model, (DATA[0][:2],), dynamic_shapes=({0: batch},))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(DATA[0]), model(DATA[0]), rtol=1e-5, atol=1e-5)
            assert not torch.equal(program.module()(DATA[0] + 1), model(DATA[0]))


def test_copies_types_and_modes() -> None:
    import copy

    part = parts(reject=True)[0]
    twin = copy.deepcopy(part)
    with torch.no_grad():
        assert torch.equal(twin(DATA[0]), part(DATA[0]))
        for p in twin.parameters():
            p.add_(0.1)
        assert not torch.equal(twin(DATA[0]), part(DATA[0]))
        wide = copy.deepcopy(part).double()
        torch.testing.assert_close(wide(DATA[0].double()).float(), part(DATA[0]), rtol=1e-4, atol=1e-4)
    part.train()
    part.predict(DATA[0][:3])
    assert all(module.training for module in part.modules())
