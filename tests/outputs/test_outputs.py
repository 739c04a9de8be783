"""What outputs mean is said in one place: every kind of answer goes through every verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import brickyard as by
from brickyard.base._errors import DataError, FileError, OptionError
from brickyard.base._options import TrainingOptions
from brickyard.evaluation._faithfulness import faithfulness
from brickyard.outputs import OUTPUTS, Several, outputs
from brickyard.testing import chain
from errors import refused

TASK, OTHER = [3, 1], [0, 2]


def centred() -> torch.nn.Module:
    """A source of which every class is answered to some images and not to others."""
    source = chain()
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        last = [m for m in source.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.bias -= source(x).median(0).values
    return source


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose labels are mostly what the source answers: none, some or all classes at once."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    labels = centred()(images) > 0
    return images, (labels ^ (torch.rand(labels.shape, generator=generator) < 0.1)).long()


DATA, TEST = labelled(60, 1), labelled(90, 2)


def located(**options: Any) -> by.Relevance:
    return by.locate(centred(), DATA, outputs="several", per_class=12, **options)


def part(task: Sequence[int], **options: Any) -> by.Component:
    return by.disassemble(centred(), located(), task=task, **options)


def share_of_classes(logits: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """Accuracy of yes and no, in percent: in all, and of each class."""
    right = ((logits > 0) == (labels == 1)).double()
    return 100 * right.mean().item(), (100 * right.mean(0)).tolist()


def test_labels_choose_the_images() -> None:
    assert set(DATA[1].sum(1).tolist()) >= {1, 2, 3}  # several classes at once
    relevance = located()
    _, chosen = relevance.images()
    shares = torch.sigmoid(centred()(DATA[0]))
    expected: list[int] = []
    for k in range(4):
        pool = DATA[1][:, k].nonzero().flatten().tolist()
        expected += sorted(pool, key=lambda i: (-shares[i, k].item(), i))[:12]
    assert chosen == expected
    assert len(set(chosen)) < len(chosen)  # an image may serve several classes
    one = by.locate(centred(), (DATA[0], DATA[1].argmax(1)), per_class=12)
    assert one.images()[1] != chosen
    assert not torch.equal(one.scores, relevance.scores)


def test_a_component_answers_by_sigmoid_also_from_its_file(tmp_path: Path) -> None:
    component = part(TASK)
    assert component.manifest.heal.images > 0
    path = component.save(tmp_path / "part.safetensors")
    for model in (component, by.load(path)):
        logits = model.logits(TEST[0]).double()
        assert torch.equal(model.predict_proba(TEST[0]), logits.sigmoid())
        assert not torch.allclose(model.predict_proba(TEST[0]), logits.softmax(1))  # the control
        answers = model.predict(TEST[0], strangers="answer")
        assert answers == [tuple(name for name, z in zip("31", row, strict=True) if z > 0) for row in logits.tolist()]
        assert {len(answer) for answer in answers} == {1, 2}
        assert model.score(TEST[0], answers) == 1
        assert model.score(TEST[0], [("3",)] * len(answers)) == answers.count(("3",)) / len(answers) < 1
    saved = by.load(located().save(tmp_path / "relevance.safetensors"))
    again = by.disassemble(centred(), saved, task=TASK, images=DATA)
    assert again.manifest.outputs == "several"


def test_scores_of_a_component_are_those_of_its_answers() -> None:
    component = part(TASK, heal="none", budget=by.Budget(flops=0.6))
    scores = by.evaluate(component, TEST, source=centred(), latency=False)
    labels = TEST[1][:, TASK]
    own, whole = component.logits(TEST[0]).double(), centred()(TEST[0])[:, TASK].double()
    for name, logits in (("base", whole), ("restricted", whole), ("component", own)):
        accuracy, each = share_of_classes(logits, labels)
        assert scores.row(name).accuracy == pytest.approx(accuracy)
        assert scores.row(name).images == 90
    assert list(scores.per_class.items()) == [("3", pytest.approx(each[0])), ("1", pytest.approx(each[1]))]
    assert scores.row("component").drop == pytest.approx(share_of_classes(whole, labels)[0] - accuracy)
    assert scores.row("component").accuracy < scores.row("restricted").accuracy  # the cut is not without effect
    best = 100 * (own.argmax(1) == labels.argmax(1)).double().mean().item()
    assert abs(best - accuracy) > 1  # the control: one of many classes says something else
    single = by.evaluate(part([3]), TEST, source=centred(), latency=False)
    assert single.notes == ()
    assert 50 < single.row("base").auroc < 100
    assert single.row("component").accuracy < 100


@pytest.mark.parametrize("form", ["parallel", "padded"])
def test_an_assembly_of_several(form: by.base._options.Form, tmp_path: Path) -> None:
    whole = by.assemble([part(TASK), part(OTHER)], form=form)
    whole = by.load(whole.save(tmp_path / "whole.safetensors"))
    order = [*TASK, *OTHER]
    logits = whole(TEST[0]).double()
    answers = [tuple(name for name, z in zip("3102", row, strict=True) if z > 0) for row in logits.tolist()]
    assert whole.predict(TEST[0], strangers="answer") == answers
    assert max(map(len, answers)) > 1
    scores = by.evaluate(whole, [TEST, TEST], source=centred(), latency=False)
    accuracy, each = share_of_classes(logits, TEST[1][:, order])
    assert scores.row("assembled").accuracy == pytest.approx(accuracy)
    assert scores.row("oracle").accuracy == pytest.approx(accuracy)  # classes do not compete
    assert [scores.per_class[name] for name in "3102"] == pytest.approx(each)
    base = share_of_classes(centred()(TEST[0])[:, order], TEST[1][:, order])[0]
    assert scores.row("base").accuracy == scores.row("restricted").accuracy == pytest.approx(base) != accuracy


def test_parts_are_calibrated_with_the_kinds_own_loss() -> None:
    plain = by.assemble([part(TASK), part(OTHER)])
    fitted = by.assemble([part(TASK), part(OTHER)], scaling="affine", images=[DATA, DATA], strength=1e-6)
    logits = [model(DATA[0]).double() for model in (plain, fitted)]
    wanted = DATA[1][:, [*TASK, *OTHER]].double()
    before, after = (F.binary_cross_entropy_with_logits(z, wanted).item() for z in logits)
    assert after < before
    kept = by.assemble([part(TASK), part(OTHER)], scaling="log-probability")
    assert torch.equal(kept(DATA[0]), plain(DATA[0]))
    joined = by.assemble([part([3, 1]), part([1, 2])], on_duplicate="average")
    assert joined.classes == ("3", "1", "2")
    assert by.evaluate(joined, [TEST, None], latency=False).row("assembled").images == 90


def test_training_lowers_the_kinds_own_loss() -> None:
    component = part(TASK, heal="none", budget=by.Budget(flops=0.4))
    training = TrainingOptions(epochs=3, optimizer="adamw", lr=0.003)
    trained = by.finetune(component, DATA, training=training, validation=0)
    wanted = DATA[1][:, TASK].double()
    before, after = (
        F.binary_cross_entropy_with_logits(m.logits(DATA[0]).double(), wanted) for m in (component, trained)
    )
    assert after < before
    assert trained.manifest.outputs == "several"
    taught = by.finetune(component, DATA, training=training, teacher=centred())
    assert not torch.equal(taught(DATA[0]), trained(DATA[0]))
    assert taught.manifest.tuned.validation > 0


def test_routes_are_measured_class_by_class() -> None:
    (row,) = faithfulness(centred(), located(), [3], TEST, seeds=1)
    inside = TEST[1][:, 3] == 1
    said = centred()(TEST[0])[:, 3] > 0
    assert (row.images, row.other_images) == (int(inside.sum()), int((~inside).sum()))
    assert row.whole.hits == pytest.approx(100 * said[inside].double().mean().item())
    assert row.whole.others == pytest.approx(100 * said[~inside].double().mean().item())


@pytest.mark.parametrize("count", [1, 3, 5])
def test_rows_with_other_classes_than_the_source_are_refused_and_not_misread(count: int) -> None:
    rows = (TEST[0], torch.cat([TEST[1], TEST[1]], 1)[:, :count])
    wanted = str(TEST[1].shape[1])
    for call in (
        lambda: by.evaluate(part([0, 2]), rows),
        lambda: by.evaluate(part([0, 2]), rows, source=centred()),
        lambda: by.evaluate(by.assemble([part([0]), part([2])]), [rows, TEST]),
    ):
        with refused("data-label-out-of-range", f"{wanted} classes", f"got {count} per image"):
            call()


def test_what_does_not_fit_is_refused() -> None:
    one = by.disassemble(centred(), by.locate(centred(), (DATA[0], DATA[1].argmax(1))), task=[0])
    cases = {
        "option-choice": lambda: by.locate(centred(), DATA, outputs="severel"),
        "data-label-mismatch": lambda: by.locate(centred(), (DATA[0], DATA[1][:, 0]), outputs="several"),
        "data-label-out-of-range": lambda: by.locate(centred(), (DATA[0], DATA[1] + 1), outputs="several"),
        "option-conflict": lambda: part(TASK, reject=True),
    }
    for code, call in cases.items():
        with pytest.raises((DataError, OptionError)) as caught:
            call()
        assert caught.value.code == code
    with pytest.raises(OptionError, match="'several', 'one'") as caught:
        by.assemble([part(TASK), one])
    assert caught.value.code == "option-conflict"
    with pytest.raises(DataError, match="one integer per image"):
        by.locate(centred(), DATA)  # without outputs= they are no labels


def test_files_without_a_kind_are_of_one_class(tmp_path: Path) -> None:
    manifest = by.disassemble(chain(), by.locate(chain(), (DATA[0], DATA[1].argmax(1))), task=TASK).manifest
    text = manifest.model_dump(mode="json")
    assert text.pop("outputs") == "one"
    assert type(manifest).model_validate(text) == manifest
    assert type(manifest).model_validate({**text, "outputs": "several"}) != manifest


def test_average_precision_and_f1_are_those_of_their_definitions() -> None:
    scores = by.evaluate(part(TASK, heal="none", budget=by.Budget(flops=0.6)), TEST, source=centred(), latency=False)
    labels, whole = TEST[1][:, TASK], centred()(TEST[0])[:, TASK].double()
    precisions, f1 = [], []
    for k in range(2):
        order = whole[:, k].argsort(descending=True)
        hits = labels[order, k].double()
        precisions.append((hits.cumsum(0) / torch.arange(1, 91) * hits).sum().item() / hits.sum().item())
        said, wanted = whole[:, k] > 0, labels[:, k] == 1
        precision, recall = (said & wanted).sum() / said.sum(), (said & wanted).sum() / wanted.sum()
        f1.append((2 * precision * recall / (precision + recall)).item())
    for name in ("base", "restricted"):
        row = scores.row(name)
        assert row.mean_ap == pytest.approx(50 * sum(precisions))
        assert row.f1 == pytest.approx(50 * sum(f1))
    assert scores.row("component").mean_ap < scores.row("restricted").mean_ap
    assert "mAP" in str(scores)
    assert "mAP" not in str(by.evaluate(one_class(), (TEST[0], TEST[1].argmax(1)), latency=False))  # the control
    whole = by.evaluate(by.assemble([part(TASK), part(OTHER)]), [TEST, TEST], latency=False)
    assert 0 < whole.row("assembled").f1 < 100


def one_class() -> by.Component:
    return by.disassemble(centred(), by.locate(centred(), (DATA[0], DATA[1].argmax(1))), task=TASK)


# -- a kind of the user's ------------------------------------------------------------------------------------


def test_a_kind_of_the_users_goes_through_files_and_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    class Careful(Several):
        """Yes only from two on."""

        def says(self, logits: Tensor) -> Tensor:
            return logits > 2

    outputs("careful")(Careful)
    try:
        relevance = by.locate(centred(), DATA, outputs="careful", per_class=12)
        component = by.disassemble(centred(), relevance, task=TASK, heal="none", budget=by.Budget(flops=0.999))
        path = component.save(tmp_path / "part.safetensors")
        scores = by.evaluate(by.load(path), TEST, latency=False)
        right = ((component.logits(TEST[0]) > 2) == (TEST[1][:, TASK] == 1)).double().mean()
        assert scores.row("component").accuracy == pytest.approx(100 * right.item())
        assert (
            scores.row("component").accuracy != by.evaluate(part(TASK), TEST, latency=False).row("component").accuracy
        )
    finally:
        del OUTPUTS["careful"]
    with pytest.raises(FileError, match=r"'careful'.*register") as caught:
        by.load(path)
    assert caught.value.code == "file-unknown-operation"


def test_a_name_of_its_own_kinds_is_taken() -> None:
    with refused("option-conflict", "'several'"):
        outputs("several")(type("Mine", (Several,), {"__module__": __name__}))
    assert type(OUTPUTS["several"]) is Several
