"""Decision thresholds by class: from what probability an answer includes a class, through every verb and file."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from test_outputs import DATA, OTHER, TASK, TEST, centred, located, one_class, part
from torch import Tensor

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.base._options import TrainingOptions
from brickyard.export import export_onnx
from brickyard.export._module import export_module
from brickyard.outputs import OUTPUTS, Several, outputs
from brickyard.recipes._schema import ComponentRecipe
from brickyard.reports._cards import model_card
from brickyard.reports._page import report
from brickyard.storage._safefile import read, write
from brickyard.workbench._bench import Bench, Plan
from brickyard.workbench._limits import Limits
from brickyard.yard import Yard
from errors import refused
from shell import run

SHARES = {"3": 0.35, "1": 0.62}
RELEVANCE = located()


def tuned(task: Sequence[int] = TASK, shares: Any = SHARES, **options: Any) -> by.Component:
    return by.disassemble(centred(), RELEVANCE, task=task, decision_thresholds=shares, **options)


def answers(model: Any, thresholds: Sequence[float]) -> list[tuple[str, ...]]:
    """The classes above their thresholds, by the definition in float64."""
    likely = 1 / (1 + torch.exp(-model.logits(TEST[0]).double()))
    return [
        tuple(name for name, p, t in zip(model.classes, row, thresholds, strict=True) if p > t)
        for row in likely.tolist()
    ]


def figures(said: Tensor, wanted: Tensor) -> tuple[float, list[float], float]:
    """Accuracy in all and by class, and the mean F1, in percent."""
    right = (said == wanted).double()
    hits, misses = (said & wanted).sum(0), (said != wanted).sum(0)
    return 100 * right.mean().item(), (100 * right.mean(0)).tolist(), (200 * hits / (2 * hits + misses)).mean().item()


def test_answers_follow_the_thresholds_and_logits_stay_bit_for_bit(tmp_path: Path) -> None:
    plain, component = part(TASK), tuned()
    assert component.manifest.decision_thresholds == (0.35, 0.62)
    assert plain.manifest.decision_thresholds == ()
    loaded = by.load(component.save(tmp_path / "part.safetensors"))
    for model in (component, loaded, component.fused(), plain.with_decision_thresholds(SHARES)):
        assert model.predict(TEST[0]) == answers(model, (0.35, 0.62)) != plain.predict(TEST[0])
    for model in (component, loaded):
        assert torch.equal(model.logits(TEST[0]), plain.logits(TEST[0]))
        assert torch.equal(model.predict_proba(TEST[0]), plain.predict_proba(TEST[0]))
    assert component.score(TEST[0], answers(component, (0.35, 0.62))) == 1


def test_one_half_is_what_no_thresholds_are() -> None:
    plain = part(TASK)
    for model in (tuned(shares=0.5), plain.with_decision_thresholds(0.5), plain.with_decision_thresholds({})):
        assert model.predict(TEST[0]) == plain.predict(TEST[0])
    edge = torch.tensor([[1e-30, -1e-30]])
    assert OUTPUTS["several"].deciding((0.5, 0.5)).says(edge).tolist() == [[True, False]]


@pytest.mark.parametrize("shares", [0.7, "0.7", {"3": 0.7, "1": 0.7}, "3=0.7, 1=.7", {"3": 0.7, "1": 0.7, "0": 0.1}])
def test_they_are_given_as_a_number_by_name_or_in_words(shares: Any) -> None:
    assert tuned(shares=shares).manifest.decision_thresholds == (0.7, 0.7)


def test_names_in_words_may_hold_commas() -> None:
    names = ["tench, Tinca tinca", "dog", "cat", "hen"]
    relevance = by.locate(centred(), DATA, outputs="several", classes=names)
    component = by.disassemble(
        centred(), relevance, task=names[:2], decision_thresholds="tench, Tinca tinca=0.2,dog=0.9"
    )
    assert component.manifest.decision_thresholds == (0.2, 0.9)


def test_evaluate_scores_what_is_answered() -> None:
    component = tuned(heal="none", budget=by.Budget(flops=0.6))
    scores = by.evaluate(component, TEST, source=centred(), latency=False)
    wanted, shares = TEST[1][:, TASK] == 1, torch.tensor([0.35, 0.62], dtype=torch.float64)
    whole = centred()(TEST[0]).double()[:, TASK]
    for name, logits in (("base", whole), ("restricted", whole), ("component", component.logits(TEST[0]).double())):
        accuracy, each, f1 = figures(logits.sigmoid() > shares, wanted)
        row = scores.row(name)
        assert (row.accuracy, row.f1) == (pytest.approx(accuracy), pytest.approx(f1))
    assert [scores.per_class[name] for name in "31"] == pytest.approx(each)
    half = by.evaluate(component.with_decision_thresholds(0.5), TEST, source=centred(), latency=False)
    assert half.row("component").f1 != pytest.approx(f1)
    assert half.row("component").mean_ap == scores.row("component").mean_ap  # of the order alone


@pytest.mark.parametrize("form", ["parallel", "padded", "grouped"])
def test_each_part_of_an_assembly_keeps_its_own(form: Any, tmp_path: Path) -> None:
    whole = by.assemble([tuned(), part(OTHER)], form=form)
    whole = by.load(whole.save(tmp_path / "whole.safetensors"))
    shares = (0.35, 0.62, 0.5, 0.5)
    assert whole.manifest.decision_thresholds == shares
    assert whole.predict(TEST[0]) == answers(whole, shares) != answers(whole, (0.5,) * 4)
    scores = by.evaluate(whole, [TEST, TEST], source=centred(), latency=False)
    order = [*TASK, *OTHER]
    above = torch.tensor(shares, dtype=torch.float64)
    accuracy, each, f1 = figures(whole(TEST[0]).double().sigmoid() > above, TEST[1][:, order] == 1)
    assert (scores.row("assembled").accuracy, scores.row("assembled").f1) == (
        pytest.approx(accuracy),
        pytest.approx(f1),
    )
    assert scores.row("oracle").accuracy == pytest.approx(accuracy)
    base = figures(centred()(TEST[0]).double()[:, order].sigmoid() > above, TEST[1][:, order] == 1)[0]
    assert scores.row("base").accuracy == scores.row("restricted").accuracy == pytest.approx(base)
    assert [scores.per_class[name] for name in "3102"] == pytest.approx(each)


def test_classes_left_out_and_shared_keep_theirs() -> None:
    first, second = tuned(), tuned([1, 0], {"1": 0.62, "0": 0.2})
    left = by.assemble([first, second], without=["3"], on_duplicate="average")
    assert dict(zip(left.classes, left.manifest.decision_thresholds, strict=True)) == {"1": 0.62, "0": 0.2}
    with refused("option-conflict", "'1'", "0.62", "0.3", "with_decision_thresholds"):
        by.assemble([first, tuned([1, 0], {"1": 0.3})], on_duplicate="max")
    other = left.with_decision_thresholds({"1": 0.9})
    assert other.manifest.decision_thresholds == (0.9, 0.2)
    assert other.manifest.parts[0].decision_thresholds == (0.35, 0.9)  # a class that is left out keeps its own
    assert torch.equal(other(TEST[0]), left(TEST[0]))
    again = by.assemble([other], on_duplicate="average")
    assert again.manifest.decision_thresholds == (0.9, 0.2)


def test_agreement_with_the_source_is_that_of_answers_with_thresholds() -> None:
    options: dict[str, Any] = {"heal": "refit", "budget": by.Budget(flops=0.5), "images": DATA, "heal_images": 20}
    never, half = tuned(shares=1 - 1e-9, **options), part(TASK, **options)
    assert never.manifest.agreement[0] == never.manifest.agreement[1] > 0  # both never say a class
    assert half.manifest.agreement[0] < half.manifest.agreement[1]


def test_what_is_no_threshold_is_refused() -> None:
    component = tuned()
    for wrong in (0, 1, 1.5, -0.1, float("nan"), True, "half", {"3": "0.5"}, {"3": None}, {3: 0.5}, None, [0.3, 0.7]):
        with pytest.raises(BrickyardError) as caught:
            component.with_decision_thresholds(wrong)  # type: ignore[arg-type]
        assert caught.value.code in ("option-range", "option-syntax"), wrong
    with refused("task-unknown-class", "'dog'", "3, 1"):
        component.with_decision_thresholds({"dog": 0.3})
    with refused("option-syntax", "3=0.1,0.2"):
        tuned(shares="3=0.1,0.2")
    with refused("option-conflict", "outputs='several'"):
        one_class().with_decision_thresholds({"3": 0.4})
    with refused("option-conflict", "outputs='several'"):
        by.disassemble(
            centred(), by.locate(centred(), (DATA[0], DATA[1].argmax(1))), task=TASK, decision_thresholds=0.3
        )


def test_a_kind_that_decides_in_another_way_refuses_them() -> None:
    class Careful(Several):
        """Yes only from two on."""

        def says(self, logits: Tensor) -> Tensor:
            return logits > 2

    outputs("careful")(Careful)
    try:
        relevance = by.locate(centred(), DATA, outputs="careful", per_class=12)
        component = by.disassemble(centred(), relevance, task=TASK, heal="none")
        named = [tuple(n for n, z in zip("31", row, strict=True) if z > 2) for row in component(TEST[0]).tolist()]
        assert component.predict(TEST[0]) == named
        with refused("option-conflict", "Careful"):
            component.with_decision_thresholds(0.3)
    finally:
        del OUTPUTS["careful"]


# -- files -------------------------------------------------------------------------------------------------


def test_a_file_from_before_answers_at_one_half(tmp_path: Path) -> None:
    manifest = tuned().manifest
    text = manifest.model_dump(mode="json")
    assert text.pop("decision_thresholds") == [0.35, 0.62]
    assert type(manifest).model_validate(text).decision_thresholds == ()


SPOILT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "too few": lambda m: m.update(decision_thresholds=[0.3]),
    "beyond": lambda m: m.update(decision_thresholds=[0.3, 1.0]),
    "another kind": lambda m: m.update(outputs="one"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_contradicts_itself_is_refused(how: str, tmp_path: Path) -> None:
    text, tensors = read(tuned().save(tmp_path / "part.safetensors"))
    SPOILT[how](text["manifest"])
    text.pop("format", None)
    path = write(tmp_path / "spoilt.safetensors", tensors, text, False)
    code = "file-inconsistent" if how == "another kind" else "file-manifest-invalid"
    with refused(code, "threshold" if how != "beyond" else "decision_thresholds"):
        by.load(path)


def test_exports_tell_the_thresholds(tmp_path: Path) -> None:
    component = tuned()
    export_onnx(component, tmp_path / "part.onnx")
    told = {item.key: item.value for item in onnx.load(tmp_path / "part.onnx").metadata_props}
    about = json.loads(told["brickyard"])
    assert (about["answers"], about["decision_thresholds"]) == ("several", [0.35, 0.62])
    for name, model, shares in (
        ("part", component, (0.35, 0.62)),
        ("plain", part(TASK), (0.5, 0.5)),
        ("whole", by.assemble([component, part(OTHER)]), (0.35, 0.62, 0.5, 0.5)),
    ):
        path = export_module(model, tmp_path / f"{name}.py").path
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert shares == module.THRESHOLDS
        assert "zip(CLASSES, row, THRESHOLDS) if p > t]" in module.__doc__
        likely = module.load()(module.preprocess(TEST[0])).double().sigmoid().tolist()
        found = [
            tuple(n for n, p, t in zip(module.CLASSES, row, module.THRESHOLDS, strict=True) if p > t) for row in likely
        ]
        assert found == model.predict(TEST[0])
    assert "THRESHOLDS" not in export_module(one_class(), tmp_path / "one.py").path.read_text()


def test_texts_and_pages_tell_the_thresholds() -> None:
    component, whole = tuned(), by.assemble([tuned(), part(OTHER)])
    for text in (str(component), str(whole), model_card(component), model_card(whole)):
        assert "3 above 0.35, 1 above 0.62" in text
    assert "answers above" in report([component])
    for text in (str(part(TASK)), model_card(part(TASK)), report([part(TASK)])):
        assert "above 0.5" not in text
        assert "answers above" not in text
    assert "names none, one or several" in model_card(part(TASK))
    assert "names none, one or several" not in model_card(one_class())


def test_the_workbench_answers_with_them(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "yard", create=True)
    yard.add(tuned(shares={"3": 1 - 1e-9, "1": 1e-9}), "first")
    yard.add(part(OTHER), "second")
    bench = Bench(yard, Limits())
    made = bench.build(Plan.of({"bricks": ["first", "second"]}, Limits()), {})
    picture = io.BytesIO()
    Image.fromarray((TEST[0][0] * 255).byte().permute(1, 2, 0).numpy()).save(picture, "PNG")
    (answer,) = bench.classify(made["id"], [("a.png", picture.getvalue())])
    assert answer["several"]
    assert "1" in answer["answer"]
    assert "3" not in answer["answer"]
    assert 0 in answer["answered"]


def test_scalings_come_before_thresholds() -> None:
    fitted = by.assemble([tuned(), part(OTHER)], scaling="affine", images=[DATA, DATA])
    assert fitted.predict(TEST[0]) == answers(fitted, (0.35, 0.62, 0.5, 0.5))
    assert not torch.equal(fitted(TEST[0]), by.assemble([tuned(), part(OTHER)])(TEST[0]))
    better = by.finetune(tuned(), DATA, training=TrainingOptions(epochs=1))
    assert better.manifest.decision_thresholds == (0.35, 0.62)


def test_the_shell_and_recipes_take_them() -> None:
    assert "--decision-thresholds" in run("disassemble", "--help").output
    said = ComponentRecipe(**{"source": "a", "task": "0-2", "decision-thresholds": "1=0.3"})
    assert said.decision_thresholds == "1=0.3"
    refused_at_once = run(
        *("disassemble", "zoo:cnn", "--task", "0", "-o", "x.safetensors", "--decision-thresholds", "0=1.5"), code=2
    )
    assert "between 0 and 1" in " ".join(refused_at_once.output.split())
