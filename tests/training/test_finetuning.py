"""Fine-tuning, teachers and distillation: the same numbers as plain torch, and the same bytes after a stop."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.base._options import Distillation, TrainingOptions
from brickyard.inputs._augment import shifted_and_mirrored
from brickyard.inputs._datasets import ImageData
from brickyard.network._identity import fingerprint
from brickyard.testing import Branches, Residual, chain, randomised
from brickyard.training import _finetune as finetuning
from brickyard.training._distillation import SourceTeacher, lesson_loss
from brickyard.training._finetune import finetune
from brickyard.training._loop import Loss, fit
from brickyard.training._sources import train, train_source
from errors import refused

IMAGES = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(80) % 4
DATA = (IMAGES, LABELS)
NAMES = ["a", "b", "c", "d"]
GREY = torch.zeros(8, 1, 12, 12), LABELS[:8]


def component(make=chain, task=(2, 0), seed=0, dtype=torch.float64, **options) -> by.Component:
    model = randomised(make(), seed).to(dtype)
    relevance = by.locate(model, DATA, classes=options.pop("names", NAMES))
    return by.disassemble(model, relevance, task=list(task), **options)


def plain_loop(model, x, y, training, forward) -> list[float]:
    """The same training with torch's own optimiser and scheduler, written down once more."""
    steps = max(6, training.epochs * max(1, len(y) // training.batch_size))
    if training.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), training.rate, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), training.rate, weight_decay=training.weight_decay)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.rate, total_steps=steps, pct_start=training.warmup, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(training.seed)
    used = []
    for _ in range(training.epochs):
        order = torch.randperm(len(y), generator=generator)
        whole = len(y) // training.batch_size * training.batch_size
        for chosen in order[:whole].split(training.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(forward(x[chosen]), y[chosen]).backward()
            optimizer.step()
            used.append(optimizer.param_groups[0]["lr"])
            if len(used) < steps:
                rates.step()
    return used


@pytest.mark.parametrize("norms", ["frozen", "trained"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_component_trains_as_plain_torch_does(norms, optimizer) -> None:
    part = component()
    training = TrainingOptions(epochs=3, batch_size=8, lr=0.02, optimizer=optimizer, norms=norms, seed=3)
    found = finetune(part, DATA, training=training, validation=0)
    own = torch.isin(LABELS, torch.tensor([0, 2]))
    other = copy.deepcopy(part)
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    other.train(norms == "trained")
    targets = torch.where(LABELS[own] == 2, 0, 1)
    plain_loop(other, IMAGES[own].double(), targets, training, other)
    for name, value in other.network.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert not torch.equal(found.network.layer("conv2").weight, part.network.layer("conv2").weight)
    moved = not torch.equal(found.network.layer("bn1").running_mean, part.network.layer("bn1").running_mean)
    assert moved == (norms == "trained")
    assert found.manifest.tuned.images == 40
    assert found.manifest.tuned.optimizer == optimizer


def test_the_reject_output_learns_from_other_classes() -> None:
    part = component(reject=True)
    training = TrainingOptions(epochs=2, batch_size=16, norms="frozen")
    found = finetune(part, DATA, training=training, validation=0)
    other = copy.deepcopy(part)
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    targets = torch.tensor([1, 2, 0, 2])[LABELS]
    plain_loop(other, IMAGES.double(), targets, training, other)
    torch.testing.assert_close(found(IMAGES.double()), other(IMAGES.double()), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", ["parallel", "grouped"])
def test_an_assembly_trains_all_parts_together(form) -> None:
    parts = [component(task=(2, 0)), component(task=(1, 3), seed=1, names=["e", "f", "g", "h"])]
    whole = by.assemble(parts, form=form)
    training = TrainingOptions(epochs=2, batch_size=16, lr=0.02, norms="frozen")
    found = finetune(whole, [DATA, DATA], training=training, validation=0)
    other = copy.deepcopy(whole)
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    first, second = (torch.isin(LABELS, torch.tensor(task)) for task in ((2, 0), (1, 3)))
    x = torch.cat([IMAGES[first], IMAGES[second]])
    y = torch.cat([torch.tensor([1, -1, 0, -1])[LABELS[first]], torch.tensor([-1, 2, -1, 3])[LABELS[second]]])
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(80, generator=generator) for _ in range(2)])
    # Within a batch the images of one part come before those of the other; the mean is over all of them.
    assert sorted(order[:80].tolist()) == list(range(80))
    plain_loop(other, x, y, training, other)
    torch.testing.assert_close(found(IMAGES), other(IMAGES), rtol=1e-8, atol=1e-10)
    assert found.classes == whole.classes
    assert found.manifest.tuned.images == 80
    with refused("data-type"):
        finetune(whole, DATA)


def test_parts_with_images_of_other_sizes_and_colours_train_together() -> None:
    grey = (torch.rand(40, 1, 12, 12), torch.arange(40) % 4)
    how = by.Preprocessing(size=(8, 8), channels=3)
    model = randomised(chain(), 1)
    other = by.disassemble(
        model, by.locate(model, grey, classes=["e", "f", "g", "h"], preprocessing=how), task=["f", "g"]
    )
    first = randomised(chain(), 0)
    part = by.disassemble(first, by.locate(first, DATA, classes=NAMES, preprocessing=how), task=["c", "a"])
    whole = by.assemble([part, other])
    training = TrainingOptions(epochs=8, batch_size=16, lr=0.05, norms="trained")
    found = by.finetune(whole, [DATA, grey], training=training)
    before, after = (
        F.cross_entropy(m(IMAGES[LABELS % 2 == 0]), LABELS[LABELS % 2 == 0].eq(0).long()) for m in (whole, found)
    )
    assert after < before
    assert found.manifest.tuned.validation == 6
    assert len(found.manifest.tuned.scores) == 9


def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path, monkeypatch) -> None:
    part = component(make=Residual, dtype=torch.float32)
    training = TrainingOptions(epochs=5, batch_size=8, lr=0.05, augment=True, norms="trained")
    whole = finetune(part, DATA, training=training).save(tmp_path / "whole.safetensors")
    for stop in (1, 6, 11, 17):
        folder = tmp_path / str(stop)
        calls = 0

        def once(x, generator):
            nonlocal calls
            calls += 1
            if calls == stop:  # noqa: B023
                raise KeyboardInterrupt
            return shifted_and_mirrored(x, generator)

        with monkeypatch.context() as patch:
            patch.setattr("brickyard.training._finetune.shifted_and_mirrored", once)
            with pytest.raises(KeyboardInterrupt):
                finetune(part, DATA, training=training, resume=folder)
        again = finetune(part, DATA, training=training, resume=folder)
        assert again.save(folder / "again.safetensors").read_bytes() == whole.read_bytes()
        assert finetune(part, DATA, training=training, resume=folder).manifest == again.manifest
        with refused("file-resume-mismatch"):
            finetune(part, DATA, training=TrainingOptions(epochs=5, seed=1), resume=folder)
        assert not list(folder.glob("*.tmp"))


def test_the_best_pass_is_kept_and_patience_ends_it() -> None:
    part = component(dtype=torch.float32)
    contrary = (IMAGES, torch.tensor([2, 1, 0, 3])[LABELS])  # what training makes better, this makes worse
    first = finetune(part, DATA, training=TrainingOptions(epochs=4, lr=0.05, batch_size=16), validation=0)
    right = first.predict_proba(IMAGES)
    training = TrainingOptions(epochs=12, lr=0.05, batch_size=16, patience=3)
    kept = finetune(first, DATA, training=training, validation=contrary)
    tuned = kept.manifest.tuned
    assert tuned.epochs == tuned.best + 3
    assert tuned.scores[tuned.best] == max(tuned.scores)
    if tuned.best == 0:
        assert torch.equal(kept.predict_proba(IMAGES), right)
    free = finetune(first, DATA, training=TrainingOptions(epochs=12, lr=0.05, batch_size=16), validation=0)
    assert free.manifest.tuned.best == free.manifest.tuned.epochs == 12
    assert not torch.equal(free.predict_proba(IMAGES), right)


def test_held_out_images_are_drawn_from_every_class_and_not_trained_on() -> None:
    part = component(dtype=torch.float32)
    found = finetune(part, DATA, training=TrainingOptions(epochs=1), validation=0.25)
    assert (found.manifest.tuned.images, found.manifest.tuned.validation) == (30, 10)
    given = finetune(part, DATA, training=TrainingOptions(epochs=1), validation=DATA)
    assert (given.manifest.tuned.images, given.manifest.tuned.validation) == (40, 40)


def test_mixed_precision_keeps_the_weights_type() -> None:
    part = component(dtype=torch.float32)
    plain, mixed = (
        finetune(part, DATA, training=TrainingOptions(epochs=2, precision=p, batch_size=16), validation=0)
        for p in ("full", "bfloat16")
    )
    assert {value.dtype for value in mixed.parameters()} == {torch.float32}
    a, b = plain(IMAGES).detach(), mixed(IMAGES).detach()
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * float(a.abs().max()))


# -- teachers ------------------------------------------------------------------------------------------------


def test_the_lesson_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    z, t = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    f, g = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    how = Distillation(temperature=3.0, weight=0.7, features=0.5)
    p, q = (torch.exp(v / 3) / torch.exp(v / 3).sum(1, keepdim=True) for v in (t, z))
    divergence = (p * (p / q).log()).sum(1).mean()
    entropy = -torch.log(torch.exp(z) / torch.exp(z).sum(1, keepdim=True))[torch.arange(6), y].mean()
    wanted = 0.7 * 9 * divergence + 0.3 * entropy + 0.5 * (f - g).square().mean() / g.var()
    torch.testing.assert_close(lesson_loss((z, f), (t, g), y, how), wanted, rtol=1e-12, atol=0)
    assert not torch.isclose(lesson_loss((z, f), (t, g), y, Distillation()), wanted)


@pytest.mark.parametrize("make", [chain, Residual, Branches])
@pytest.mark.parametrize("reject", [False, True])
def test_a_source_has_nothing_to_teach_its_whole_component(make, reject) -> None:
    model = randomised(make(), 0).double()
    relevance = by.locate(model, DATA, classes=NAMES)
    whole = by.disassemble(model, relevance, task=["c", "a", "b"], budget=by.Budget(flops=1.0), reject=reject)
    training = TrainingOptions(epochs=2, batch_size=16, norms="frozen", weight_decay=0.0)
    how = Distillation(weight=1.0, features=1.0)
    same = finetune(whole, DATA, training=training, validation=0, teacher=model, distillation=how)
    torch.testing.assert_close(same(IMAGES.double()), whole(IMAGES.double()), rtol=1e-6, atol=1e-7)
    half = by.disassemble(model, relevance, task=["c", "a", "b"], budget=by.Budget(flops=0.5), reject=reject)
    moved = finetune(half, DATA, training=training, validation=0, teacher=model, distillation=how)
    assert not torch.allclose(moved(IMAGES.double()), half(IMAGES.double()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [chain, Residual, Branches])
def test_features_of_the_source_are_those_of_the_kept_channels(make) -> None:
    model = randomised(make(), 0).double()
    relevance = by.locate(model, DATA, classes=NAMES)
    half = by.disassemble(model, relevance, task=["c", "a"], budget=by.Budget(parameters=0.3))
    _, found = SourceTeacher(model, half, features=True)(IMAGES)
    read: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model.eval()(IMAGES.double())
    handle.remove()
    kept = {tuple(column.tolist()) for column in read[0].T}
    assert found.shape[1] == half.network.layer(half.network.nodes[half.reads_at].target).in_features
    assert 0 < found.shape[1] < read[0].shape[1]
    places = [[i for i in range(read[0].shape[1]) if torch.allclose(read[0][:, i], c)] for c in found.T]
    assert all(places), kept
    assert [p[0] for p in places] == sorted(p[0] for p in places)


def test_a_source_as_teacher_mends_its_component() -> None:
    model = randomised(chain(), 0)
    relevance = by.locate(model, DATA, classes=NAMES)
    half = by.disassemble(model, relevance, task=["c", "a"], budget=by.Budget(flops=0.4), heal="none")
    goal = model(IMAGES)[:, [2, 0]].softmax(1).detach()
    training = TrainingOptions(epochs=10, batch_size=16, lr=0.02, norms="frozen")
    taught = by.finetune(
        half,
        DATA,
        training=training,
        validation=0,
        teacher=model,
        distillation=Distillation(weight=1.0, temperature=1.0),
    )
    before, after = ((m(IMAGES).softmax(1) - goal)[LABELS % 2 == 0].abs().mean().item() for m in (half, taught))
    assert after < 0.5 * before
    assert taught.manifest.tuned.teacher == half.manifest.source.name


def test_teachers_are_heard_by_class_name() -> None:
    training = TrainingOptions(epochs=1, batch_size=16)
    how = Distillation(weight=1.0)
    a, b = component(task=(2, 0), dtype=torch.float32), component(task=(0, 1, 2), seed=4, dtype=torch.float32)
    found = finetune(a, DATA, training=training, teacher=b, distillation=how, validation=0)
    x = IMAGES[LABELS % 2 == 0]
    goal = b(x)[:, [2, 0]].softmax(1)

    def far(model: by.Component) -> float:
        return float((model(x).softmax(1) - goal).abs().mean().detach())

    assert far(found) < far(a)
    assert found.manifest.tuned.teacher == "component of Sequential"


WRONG = {
    "no class": (lambda p: {"teacher": component(task=(2, 1))}, "option-teacher-classes", "'a'"),
    "no reject": (lambda p: {"teacher": component(), "model": component(reject=True)}, "option-teacher-classes"),
    "other source": (lambda p: {"teacher": randomised(chain(), 9)}, "option-teacher-source"),
    "features": (
        lambda p: {"teacher": component(), "distillation": Distillation(features=1.0)},
        "option-teacher-source",
        "features=0",
    ),
    "no teacher": (lambda p: {"distillation": Distillation()}, "option-requires-option"),
    "labels": (lambda p: {"images": (IMAGES, LABELS + 1)}, "data-label-out-of-range"),
    "one image": (lambda p: {"images": (IMAGES[:1], LABELS[:1])}, "data-too-few"),
    "mixed": (
        lambda p: {"model": by.assemble([component(), component(names=list("efgh"))]), "images": [DATA, GREY]},
        "data-not-batchable",
    ),
    "sizes": (lambda p: {"images": (torch.rand(8, 1, 8, 8), LABELS[:8])}, "data-wrong-size"),
    "diverges": (lambda p: {"training": TrainingOptions(lr=1e30)}, "option-training-diverged"),
    "folder": (lambda p: {"resume": _file(p)}, "file-not-writable", "resume="),
}


def _file(folder):
    (folder / "taken").write_text("")
    return folder / "taken" / "below"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_uses_are_named_and_change_nothing(name, tmp_path) -> None:
    make, code, *quoted = WRONG[name]
    part = component()
    given = {"images": DATA, "model": part, **make(tmp_path)}
    before = fingerprint(part), part.training, [p.requires_grad for p in part.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with refused(code, *quoted):
        finetune(given.pop("model"), given.pop("images"), **given)
    assert before == (fingerprint(part), part.training, [p.requires_grad for p in part.parameters()])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    np.testing.assert_array_equal(states[2], np.random.get_state()[1])


def test_a_success_changes_neither_model_nor_random_state() -> None:
    part = component(dtype=torch.float32)
    before, state = fingerprint(part), torch.get_rng_state()
    found = finetune(part, DATA, training=TrainingOptions(epochs=1))
    assert fingerprint(part) == before != fingerprint(found)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in [*part.parameters(), *found.parameters()])
    assert found.manifest.statistics != part.manifest.statistics
    with pytest.raises(BrickyardError):
        finetune(part, None)


# -- students of any architecture ----------------------------------------------------------------------------


def test_a_student_of_another_architecture_follows_its_teacher() -> None:
    teacher = component(task=(0, 1, 2, 3), dtype=torch.float32, budget=by.Budget(flops=1.0))
    data = ImageData((IMAGES * 255).to(torch.uint8), LABELS, tuple(NAMES), "drawn")
    order = [2, 0, 3, 1]
    other = ImageData(data.images, torch.tensor(order).argsort()[LABELS], tuple(NAMES[k] for k in order), "drawn")
    how = by.Preprocessing(size=(8, 8))
    how_much = Distillation(weight=1.0, temperature=1.0)
    for given, columns in ((data, [0, 1, 2, 3]), (other, order)):
        student = randomised(Branches(), 3)
        train(
            student, given, preprocessing=how, epochs=60, lr=0.02, teacher=teacher, distillation=how_much, batch_size=40
        )
        wanted = teacher.logits(given.images)[:, columns].softmax(1).detach()
        taught = float((student(given.images / 255).softmax(1) - wanted).abs().mean().detach())
        alone = randomised(Branches(), 3)
        train(alone, given, preprocessing=how, epochs=60, lr=0.02, batch_size=40)
        assert taught < 0.5 * float((alone(given.images / 255).softmax(1) - wanted).abs().mean().detach())


def test_distilled_sources_are_sources() -> None:
    teacher = component(task=(0, 1, 2, 3), dtype=torch.float32)
    data = ImageData((IMAGES * 255).to(torch.uint8), LABELS, tuple(NAMES), "drawn")
    made = train_source("lenet5?width=0.5", data, epochs=1, teacher=teacher)
    plain = train_source("lenet5?width=0.5", data, epochs=1)
    assert made.source.classes == tuple(NAMES)
    assert fingerprint(made.source.model) != fingerprint(plain.source.model)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("taught", [False, True])
def test_training_brings_images_and_labels_to_the_device_of_the_model(augment, taught, monkeypatch) -> None:
    """With tensors that know where they are and hold no numbers, which need no GPU."""
    data = ImageData((IMAGES * 255).to(torch.uint8), LABELS, tuple(NAMES), "drawn")
    teacher = component(task=(0, 1, 2, 3), dtype=torch.float32) if taught else None
    losses = []

    def one_step(_model: torch.nn.Module, loss: Loss, *_rest: object) -> None:
        losses.append(loss([5, 0, 2], torch.Generator()))

    monkeypatch.setattr("brickyard.training._sources.fit", one_step)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, device="cuda"), torch.nn.Flatten())
        with pytest.raises(DataDependentOutputException):  # how many of the answers are right
            train(model, data, preprocessing=by.Preprocessing(size=(8, 8)), augment=augment, teacher=teacher)
    assert [loss.device.type for loss in losses] == ["cuda"]


@pytest.mark.parametrize("device", ["meta", "abacus", "", 0, None])
def test_devices_that_cannot_be_used_are_named(device) -> None:
    data = ImageData((IMAGES * 255).to(torch.uint8), LABELS, tuple(NAMES), "drawn")
    with refused("option-device", repr(device), "cpu", "cuda"):
        train_source("lenet5?width=0.5", data, epochs=1, device=device)


def test_the_loop_needs_no_images() -> None:
    """It knows losses only: a least-squares problem goes to its solution."""
    model = torch.nn.Linear(3, 1).double()
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.3
    training = TrainingOptions(epochs=200, lr=0.1, batch_size=16, weight_decay=0.0)
    found = fit(model, lambda chosen, _: F.mse_loss(model(x[chosen]), y[chosen]), 64, training)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64))
    assert found.epochs == found.best == 200
    assert found.losses[-1] < 1e-6 < found.losses[0]


# -- what is warned of -------------------------------------------------------------------------------------


def warned(model, images=DATA, **options) -> list[str]:
    """The warnings of a training, and that they point at its caller."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        finetune(model, images, training=TrainingOptions(epochs=1), **options)
    found = [one for one in caught if issubclass(one.category, by.BrickyardWarning)]
    assert all(one.filename == __file__ for one in found)
    return [str(one.message) for one in found]


def test_agreement_with_the_source_is_that_of_the_weights_it_was_measured_with() -> None:
    part = component()
    assert part.manifest.agreement is not None
    assert finetune(part, DATA, training=TrainingOptions(epochs=1), validation=0).manifest.agreement is None
    spoiled = TrainingOptions(epochs=1, lr=20.0)
    kept = finetune(part, DATA, training=spoiled, validation=0.5)
    assert kept.manifest.tuned.best == 0  # the control: the weights are those before
    assert kept.manifest.agreement == part.manifest.agreement


def test_labels_alone_on_few_images_are_warned_of_where_a_refit_would_be_lost(monkeypatch) -> None:
    refitted = component(heal="refit")
    (told,) = warned(refitted, validation=0)
    for word in ("only 40 images", "teacher=", "--source"):
        assert word in told
    assert not warned(refitted, teacher=randomised(chain(), 0).double())  # the controls
    assert warned(component(heal="distil", minutes=1e-3), validation=0)
    assert not warned(component(heal="none"))
    assert not warned(component(heal="moments"))
    assert not warned(by.assemble([refitted]), [DATA])
    monkeypatch.setattr(finetuning, "FEW", 40)
    assert not warned(refitted, validation=0)
    assert warned(refitted, validation=0.1)  # those held out train nothing
