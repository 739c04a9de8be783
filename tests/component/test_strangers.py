"""Strangers: images that look like none of the classes are told from own ones, in every form, file and export."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import brickyard as by
from brickyard.component._depths import Depths
from brickyard.component._familiarity import SHORTNESS, Familiarity
from brickyard.component._predictor import REJECT
from brickyard.export._onnx import export_onnx
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.testing import chain
from brickyard.training._loop import TrainingOptions
from conftest import needed_package, rewritten
from errors import refused
from shell import run

UNKNOWN = "not known, so none is turned away"


@pytest.fixture(scope="module")
def low(digits_yard: Any) -> by.Component:
    """A component for the digits 0, 1 and 2."""
    return digits_yard.load("digits-012")


@pytest.fixture(scope="module")
def high(digits_yard: Any) -> by.Component:
    """A component for the digits 7, 8 and 9, of another source."""
    return digits_yard.load("digits-789")


@pytest.fixture(scope="module")
def cascade(low: by.Component, high: by.Component) -> by.Assembly:
    return by.assemble([low, high], form="cascade", calibration=digits("train", "012789").images, agreement=0.9)


def digits(split: str, classes: str) -> ImageData:
    return load_data("digits", split=split).of_classes(list(classes))


def noise(count: int) -> Tensor:
    """Bytes that are no picture at all."""
    drawn = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    return (drawn * 255).to(torch.uint8)


def mixed() -> Tensor:
    """Digits of both components, of none, and noise."""
    rows = [digits("test", names).images[:6] for names in ("012", "789", "456")]
    sides = {tuple(one.shape[1:]) for one in rows}
    assert len(sides) == 1
    small = torch.nn.functional.interpolate(noise(6).float(), sides.pop()[1:]).to(torch.uint8)
    return torch.cat([*rows, small])


def entered(component: by.Component, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """By hooks on its layers: logits, features, and what is compared of the input of each layer; in float64."""
    network, seen = component.network, {}
    hooks = [
        network.layer(name).register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, given[0]))
        for name in network.layer_names
    ]
    try:
        with torch.no_grad():
            logits = component(component.preprocess(images).double())
    finally:
        for hook in hooks:
            hook.remove()
    features = seen[network.nodes[component.reads_at].target]
    numbers = []
    for record in component.manifest.statistics.familiarity.depths:
        value = seen[record.layer]
        if record.dims:
            deviation = value.var(record.dims, correction=0).sqrt()
            value = torch.cat([value.mean(record.dims), deviation], 1)
        numbers.append(value)
    return logits, features if features.ndim == 2 else features.flatten(2).mean(2), numbers


def distance(one: Familiarity, features: Tensor) -> Tensor:
    """The Mahalanobis distance to the nearest class, and the shortfall in length."""
    directions = one.directions.double()
    rest = features[:, None] - one.mean.double()  # (images, classes, size)
    along = torch.einsum("nki,di->nkd", rest, directions)
    across = rest - torch.einsum("nkd,di->nki", along, directions)
    squares = (along.square() * (1 - one.gains.double())).sum(2) + across.square().sum(2)
    usual, spread = one.length.double()
    short = (usual - features.square().sum(1).sqrt()).clamp_min(0) / spread
    return squares.amin(1) / one.unit.double() + SHORTNESS * short * short


def unusual(one: Depths, numbers: list[Tensor]) -> Tensor:
    total, start = torch.zeros(len(numbers[0]), dtype=torch.float64), 0
    for layer, found in enumerate(numbers):
        stop = start + found.shape[1]
        scaled = (found - one.mean[start:stop].double()) * one.gain[start:stop].double()
        excess = (scaled.square().mean(1).sqrt() - one.usual[layer].double()) / one.spread[layer].double()
        total += torch.log(1 + excess.clamp_min(0)) * one.weights[layer].double()
        start = stop
    return total / len(numbers)


def by_hand(energy: tuple[float, float], known: Familiarity, told: Any) -> Tensor:
    """The three scores of images, (images, 3)."""
    logits, features, numbers = told
    shortfall = (energy[0] - logits.exp().sum(1).log()) / energy[1]
    return torch.stack([shortfall, distance(known, features), unusual(known.depths, numbers)], 1)


def summed(scores: Tensor, usual: Tensor) -> Tensor:
    return torch.log(1 + ((scores - usual[0]) / usual[1]).clamp_min(0)).sum(1)


# -- components --------------------------------------------------------------------------------------------


def test_strangeness_is_what_hooks_and_formulas_give(low: by.Component) -> None:
    exact, statistics = copy.deepcopy(low).double(), low.manifest.statistics
    record, images = statistics.strangers, mixed()
    usual = torch.tensor(record.scores, dtype=torch.float64).T
    scores = by_hand(statistics.energy, exact.familiarity, entered(exact, images))
    wanted = summed(scores, usual) / record.limit
    assert torch.allclose(exact.strangeness(images), wanted, rtol=1e-9, atol=1e-12)
    assert torch.allclose(exact.strangeness(images, batch_size=5), wanted, rtol=1e-9, atol=1e-12)
    assert torch.allclose(low.strangeness(images), wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(wanted, summed(scores[:, :2], usual[:, :2]) / record.limit, rtol=1e-3)  # all count


def test_the_limits_are_those_of_two_halves_by_hand() -> None:
    """Statistics of one half, scores of the other, and the tail beyond the largest tenth."""
    images = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(80) % 4
    source = chain().double()
    component = by.disassemble(source, by.locate(source, (images, labels)), task=["1", "3"])
    order = torch.cat([torch.nonzero(labels == k).flatten() for k in (1, 3)])  # class by class
    logits, features, numbers = entered(component, images[order])
    members, found = torch.arange(40) // 20, torch.zeros(40, 3, dtype=torch.float64)
    layers = component.manifest.statistics.familiarity.depths
    for held in (0, 1):
        own = torch.arange(40) % 2 != held
        energies = np.log(np.exp(logits[own].numpy()).sum(1))
        energy = np.median(energies), np.median(energies) - np.quantile(energies, 0.1)
        depths = Depths.fit(layers, [one[own] for one in numbers])
        known = Familiarity.fit(features[own], members[own], depths)
        rest = logits[~own], features[~own], [one[~own] for one in numbers]
        found[~own] = by_hand(energy, known, rest)
    median, high = np.quantile(found.numpy(), [0.5, 0.9], axis=0)
    usual = torch.tensor(np.stack([median, high - median]))
    total = summed(found, usual).numpy()
    tenth = np.quantile(total, 0.9)
    limit = tenth + (total[total > tenth] - tenth).mean() * math.log(10)
    record = component.manifest.statistics.strangers
    assert np.allclose(np.array(record.scores).T, usual, rtol=1e-6)
    sure = np.quantile(total, 2 / 3)
    assert (record.sure, record.limit) == (pytest.approx(sure, rel=1e-6), pytest.approx(limit, rel=1e-6))
    assert sure < tenth
    assert record.images == 40
    assert record.limit > record.sure > 0


def test_own_images_are_answered_and_others_turned_away(low: by.Component) -> None:
    own, others = digits("test", "012"), digits("test", "3456789").images
    assert float((low.strangeness(own.images) > 1).double().mean()) < 0.06
    assert float((low.strangeness(noise(100)) > 1).double().mean()) > 0.95
    turned = [name == REJECT for name in low.predict(others)]
    assert sum(turned) / len(turned) > 0.5
    judged, strange = low.judge(others), low.strangeness(others)
    assert turned == (strange > 1).tolist()
    assert torch.equal(judged.strangeness, strange)
    assert torch.equal(judged.probabilities, low.predict_proba(others))  # looking changes no bit
    assert low.predict(others, strangers="answer") == [low.classes[k] for k in judged.probabilities.argmax(1).tolist()]
    confident = judged.probabilities.amax(1) >= 0.9
    record = low.stranger_limits[0]
    assert torch.equal(judged.sure, confident & (strange * record.limit <= record.sure))
    assert float(judged.sure.double().mean()) < 0.1 * float(confident.double().mean())
    assert float(low.judge(own.images).sure.double().mean()) > 0.55


def test_scores_and_outputs_know_no_strangers(low: by.Component) -> None:
    images = torch.cat([digits("test", "012").images[:9], digits("test", "789").images[:9]])
    best = [low.classes[k] for k in low.predict_proba(images).argmax(1).tolist()]
    assert low.predict(images) != best
    assert low.score(images, best) == 1
    assert low.classes_.tolist() == list(low.classes)
    assert low.strangeness([]).shape == (0,)
    with refused("option-choice", "'reject'", "'answer'", "'ignore'"):
        low.predict(images, strangers="ignore")


def test_few_images_and_several_classes_leave_it_unknown() -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    known = []
    for count in (36, 40):
        labels = torch.arange(60) % 4
        labels[count:] = 3
        relevance = by.locate(chain(), (images, labels))
        part = by.disassemble(chain(), relevance, task=["0", "1"])
        known.append(not part.strangeness(images).isnan().any())
        assert known[-1] == (UNKNOWN not in str(part))
        assert known[-1] or part.predict(images) == part.predict(images, strangers="answer")
    assert known == [False, True]  # of 18 and 20 images
    rows = torch.nn.functional.one_hot(torch.arange(60) % 4, 4)
    several = by.disassemble(chain(), by.locate(chain(), (images, rows), outputs="several"), task=["0", "1"])
    assert several.strangeness(images).isnan().all()
    assert all(isinstance(answer, tuple) for answer in several.predict(images))


def test_reject_and_strangers_are_one_answer() -> None:
    images, labels = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 4
    part = by.disassemble(chain(), by.locate(chain(), (images, labels)), task=["0", "2"], reject=True)
    strange, won = part.strangeness(images) > 1, part.predict_proba(images).argmax(1) == 2
    assert [name == REJECT for name in part.predict(images)] == (strange | won).tolist()
    assert [name == REJECT for name in part.predict(images, strangers="answer")] == won.tolist()
    assert won.any()
    assert not won.all()


# -- files -------------------------------------------------------------------------------------------------


def test_files_keep_the_limits_and_old_ones_have_none(low: by.Component, high: by.Component, tmp_path: Any) -> None:
    images, whole = mixed(), by.assemble([low, high])
    for name, model in (("part", low), ("whole", whole)):
        path = model.save(tmp_path / f"{name}.safetensors")
        assert torch.equal(by.load(path).strangeness(images), model.strangeness(images))

        def forgotten(text: Any, _: Any) -> None:
            for part in text["manifest"].get("parts", [text["manifest"]]):
                del part["statistics"]["strangers"]

        old = by.load(rewritten(path, tmp_path / f"old-{name}.safetensors", forgotten))
        assert old.strangeness(images).isnan().all()
        assert old.predict(images) == model.predict(images, strangers="answer") != model.predict(images)
        assert (UNKNOWN in str(old), UNKNOWN in str(model)) == (True, False)
        assert not old.judge(images).sure.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(energy=None), "energy"),
        (lambda s: s["familiarity"].update(depths=[]), "inside"),
        (lambda s: s["strangers"].update(sure=9.0), "above"),
        (lambda s: s["strangers"].update(limit=0.0), "limit"),
        (lambda s: s["strangers"].update(features=[1.0, 0.0]), "features"),
        (lambda s: s["strangers"].update(energy=None, features=None, inside=None), "score"),
    ],
)
def test_limits_that_do_not_fit_are_refused(low: by.Component, tmp_path: Any, change: Any, words: str) -> None:
    path = low.save(tmp_path / "a.safetensors")
    with refused("file-manifest-invalid", words):
        by.load(rewritten(path, tmp_path / "b.safetensors", lambda text, _: change(text["manifest"]["statistics"])))


# -- assemblies --------------------------------------------------------------------------------------------


def test_an_assembly_turns_away_what_all_of_its_parts_do(low: by.Component, high: by.Component) -> None:
    images, whole = mixed(), by.assemble([low, high])
    each = torch.stack([low.strangeness(images), high.strangeness(images)], 1)
    assert torch.allclose(whole.strangeness(images), each.amin(1), rtol=1e-5)
    assert [name == REJECT for name in whole.predict(images)] == (each > 1).all(1).tolist()
    assert (each > 1).all(1).any()
    assert (each > 1).any(1)[:12].any()
    judged = whole.judge(images)
    assert torch.equal(judged.probabilities, whole.predict_proba(images))
    best = judged.probabilities.max(1)
    owner = best.indices // 3
    ratios = torch.tensor([part.stranger_limits[0].sure / part.stranger_limits[0].limit for part in (low, high)])
    near = each[torch.arange(len(images)), owner] <= ratios[owner]
    assert torch.equal(judged.sure, near & (best.values >= 0.9))
    assert judged.sure.any()
    for form in ("padded", "grouped"):
        joined = by.assemble([low, high], form=form)
        assert joined.strangeness(images).isnan().all()
        assert joined.predict(images) == joined.predict(images, strangers="answer")
        assert UNKNOWN in str(joined)
        assert "cannot be looked into" in str(joined)


def test_gated_scalings_and_fused_parts_tell_the_same(low: by.Component, high: by.Component) -> None:
    images, wanted = mixed(), by.assemble([low, high]).strangeness(mixed())
    for scaling in ("none", "mahalanobis"):
        whole = by.assemble([low, high], scaling=scaling)
        assert torch.allclose(whole.strangeness(images), wanted, rtol=1e-5)
        assert torch.equal(whole.judge(images).probabilities, whole.predict_proba(images))
    assert torch.allclose(low.fused().strangeness(images), low.strangeness(images), rtol=1e-3, atol=1e-4)
    assert torch.allclose(by.assemble([low, high]).fused().strangeness(images), wanted, rtol=1e-3, atol=1e-4)


def test_a_cascade_asks_the_parts_that_ran(low: by.Component, high: by.Component, cascade: by.Assembly) -> None:
    images = mixed()
    each = torch.stack([low.strangeness(images), high.strangeness(images)], 1)
    with torch.inference_mode():
        logits, strange = cascade.judged(images)
        assert torch.equal(logits, cascade(images))
        order = cascade.order(images)
    ran = strange.isfinite()
    assert ran.gather(1, order[:, :1]).all()
    assert not ran.all()  # else nothing ran in turn
    assert torch.allclose(strange[ran], each[ran], rtol=1e-5)
    expected = torch.tensor(cascade.manifest.cascade.expected)
    skipped = torch.isclose(logits, expected).reshape(len(images), 2, 3).all(2)
    assert torch.equal(skipped, ~ran)
    assert torch.equal(cascade.strangeness(images), strange.amin(1))


def test_common_steps_run_once(digits_yard: Any) -> None:
    parts = [digits_yard.load("digits-012"), digits_yard.load("digits-012").renamed({"0": "a", "1": "b", "2": "c"})]
    whole = by.assemble(parts)
    images, first, calls = digits("test", "012").images[:4], whole.parts[0].network.layer_names[0], []
    before = whole.judge(images)
    for layer in {part.network.layer(first) for part in whole.parts}:
        layer.register_forward_hook(lambda *_: calls.append(1))
    after = whole.judge(images)
    assert torch.equal(before.strangeness, after.strangeness)
    assert len(calls) == 1


def test_parts_that_were_trained_together_no_longer_know(low: by.Component, high: by.Component) -> None:
    data = [load_data("digits").renumbered(list(names)) for names in ("01234", "56789")]
    trained = by.finetune(by.assemble([low, high], scaling="none"), data, training=TrainingOptions(epochs=1))
    assert trained.strangeness(mixed()).isnan().all()
    assert "trained since" in str(trained)


# -- exports, command line, page ---------------------------------------------------------------------------


def test_onnx_says_how_strange_images_are(tmp_path: Any) -> None:
    runtime = needed_package("onnxruntime")
    needed_package("onnxscript")
    images, labels = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 4
    part = by.disassemble(chain(), by.locate(chain(), (images, labels)), task=["0", "2"])
    export_onnx(part, tmp_path / "part.onnx")
    session = runtime.InferenceSession(tmp_path / "part.onnx")
    assert [one.name for one in session.get_outputs()] == ["logits", "probabilities", "strangeness"]
    found = torch.from_numpy(session.run(["strangeness"], {"images": images.numpy()})[0])
    assert torch.allclose(found.double(), part.strangeness(images), rtol=1e-3, atol=1e-3)
    assert float(found.std()) > 0.1
    export_onnx(part, tmp_path / "int8.onnx", int8=True, images=images)
    assert len(runtime.InferenceSession(tmp_path / "int8.onnx").get_outputs()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parallel", "padded", "cascade"])
def test_onnx_of_every_form(
    low: by.Component, high: by.Component, cascade: by.Assembly, form: Any, tmp_path: Any
) -> None:
    runtime = needed_package("onnxruntime")
    needed_package("onnxscript")
    images, model = mixed(), cascade if form == "cascade" else by.assemble([low, high], form=form)
    export_onnx(model, tmp_path / "whole.onnx", dtype="uint8", check_images=images)
    session = runtime.InferenceSession(tmp_path / "whole.onnx")
    logits, _, *found = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    assert torch.allclose(logits.softmax(1).double(), model.predict_proba(images), atol=1e-4)
    assert len(found) == (form != "padded")
    for strange in found:
        assert torch.allclose(strange.double(), model.strangeness(images), rtol=1e-3, atol=1e-3)
        assert torch.equal(strange > 1, model.strangeness(images) > 1)


def test_the_command_line_says_what_the_library_does(low: by.Component, tmp_path: Any) -> None:
    path = low.save(tmp_path / "low.safetensors")
    pictures = {"own": digits("test", "0").images[0], "noise": noise(1)[0]}
    for name, image in pictures.items():
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in pictures]
    found = json.loads(run("predict", path, *files, "--json").stdout)["predictions"]
    judged = low.judge(files)
    for entry, verdict, chances in zip(found, judged.verdicts(), judged.probabilities, strict=True):
        assert entry["strangeness"] == pytest.approx(verdict.strangeness, rel=1e-6)
        assert (entry["none"], entry["sure"]) == (verdict.none, verdict.sure)
        assert entry["classes"][0]["name"] == low.classes[int(chances.argmax())]
    assert [entry["none"] for entry in found] == [False, True]
    _, own, other = run("predict", path, *files).stdout.splitlines()
    assert ("not sure" in own) == (not found[0]["sure"])
    best = found[1]["classes"][0]["name"]
    assert "none of these" in other
    assert f"unlike all of its classes  {best} " in other
    joined = by.assemble([low], form="union").save(tmp_path / "joined.safetensors")
    (unknown,) = json.loads(run("predict", joined, files[1], "--json").stdout)["predictions"]
    assert (unknown["strangeness"], unknown["none"], unknown["sure"]) == (None, False, None)
    assert "sure" not in run("predict", joined, files[1]).stdout
    assert f"strangers    {UNKNOWN}" in run("show", joined).stdout
