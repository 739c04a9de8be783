"""Several classes of a source as one, and classes under other names, through every verb and file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_outputs import DATA as SEVERAL
from test_outputs import TEST as SEVERAL_TEST
from test_outputs import centred
from torch import Tensor, nn

import brickyard as by
from brickyard.base._classes import resolve_merged
from brickyard.base._options import TrainingOptions
from brickyard.base._records import ComponentManifest
from brickyard.outputs import OUTPUTS, OneOfMany, Outputs, outputs
from brickyard.testing import Residual, chain, randomised
from errors import refused

NAMES = ["cat", "dog", "truck", "hen", "owl", "car"]
TASK = {"pet": ["cat", "dog"], "truck": "truck", "bird": ["owl", "hen"]}
GROUPS = [[0, 1], [2], [4, 3]]
FLAT = ["cat", "dog", "truck", "owl", "hen"]


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def source(make: Any = chain, seed: int = 0) -> nn.Module:
    """A source in float64 of which every class is answered to some images."""
    model = randomised(make(classes=6), seed).double()
    with torch.no_grad():
        model.linear.bias -= model(images(64, 9)).mean(0)
    return model


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose labels are mostly what the source answers."""
    x = images(count, seed)
    with torch.no_grad():
        labels = source()(x).argmax(1)
    labels[::7] = torch.arange(len(labels[::7])) % 6
    return x, labels


DATA, TEST = labelled(120, 1), labelled(90, 2)
RELEVANCE = by.locate(source(), DATA, classes=NAMES, per_class=12)


def part(task: Any = None, **options: Any) -> by.Component:
    chosen = {"heal": "none", **options}
    return by.disassemble(source(), RELEVANCE, task=TASK if task is None else task, images=DATA, **chosen)


def summed(likely: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Probabilities of all the source's classes -> those of groups of them, restricted to these."""
    found = torch.stack([likely[:, list(group)].sum(1) for group in groups], 1)
    return found / found.sum(1, keepdim=True)


def lasting(make: Any, path: Path) -> list[Any]:
    """A model, and what becomes of it in a file and fused."""
    return [make, by.load(make.save(path)), make.fused()]


# -- components --------------------------------------------------------------------------------------------


def test_probabilities_are_the_sums_of_the_sources(tmp_path: Path) -> None:
    component = part(budget=by.Budget(flops=1.0))
    assert component.classes == ("pet", "truck", "bird")
    assert component.manifest.task == (0, 1, 2, 4, 3)
    assert component.manifest.members == ((0, 1), (2,), (4, 3))
    likely = source()(TEST[0]).softmax(1)
    for model in lasting(component, tmp_path / "part.safetensors"):
        assert model.classes == component.classes
        assert (model.predict_proba(TEST[0]) - summed(likely, GROUPS)).abs().max() < 1e-12
        assert model.predict(TEST[0], strangers="answer") == [
            component.classes[k] for k in summed(likely, GROUPS).argmax(1).tolist()
        ]
    highest = torch.stack([likely[:, group].amax(1) for group in GROUPS], 1)  # the control
    assert (component.predict_proba(TEST[0]) - highest / highest.sum(1, keepdim=True)).abs().max() > 0.01


def test_a_cut_is_that_of_its_members() -> None:
    options: dict[str, Any] = {"budget": by.Budget(flops=0.5), "heal": "refit"}
    merged, plain = part(**options), part(FLAT, **options)
    assert {name: axis.kept for name, axis in merged.manifest.axes.items()} == {
        name: axis.kept for name, axis in plain.manifest.axes.items()
    }
    found = summed(plain(TEST[0]).softmax(1), [[0, 1], [2], [3, 4]])
    assert (merged.predict_proba(TEST[0]) - found).abs().max() < 1e-12
    assert merged.manifest.selection == plain.manifest.selection


def test_reject_stands_beside_them(tmp_path: Path) -> None:
    component = part(budget=by.Budget(flops=1.0), reject=True)
    likely = source()(TEST[0]).softmax(1)
    for model in lasting(component, tmp_path / "part.safetensors"):
        assert list(model.classes_) == ["pet", "truck", "bird", "(none of these)"]
        assert (model.predict_proba(TEST[0]) - summed(likely, [*GROUPS, [5]])).abs().max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.lists(st.booleans(), min_size=5, max_size=5), st.integers(1, 6), st.booleans())
def test_any_grouping_sums(order: list[int], cuts: list[bool], count: int, reject: bool) -> None:
    groups: list[list[int]] = [[order[0]]]
    for k, new in zip(order[1:count], cuts, strict=False):
        groups = [*groups, [k]] if new else [*groups[:-1], [*groups[-1], k]]
    reject = reject and count < 6
    task = {f"group {place}": group for place, group in enumerate(groups)}
    component = part(task, budget=by.Budget(flops=1.0), reject=reject)
    rest = [[k for k in range(6) if k not in order[:count]]] if reject else []
    found = summed(source()(TEST[0]).softmax(1), [*groups, *rest])
    assert (component.predict_proba(TEST[0]) - found).abs().max() < 1e-12


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-60, 60), min_size=1, max_size=5))
def test_any_of_several_is_one_minus_none_of_them(logits: list[float]) -> None:
    z = torch.tensor([logits], dtype=torch.float64)
    found = OUTPUTS["several"].any_of(z)
    none = torch.nn.functional.logsigmoid(-z).sum()
    assert float(torch.nn.functional.logsigmoid(-found)) == pytest.approx(float(none), rel=1e-9)
    assert float(found) >= max(logits) - 1e-9


# -- judging -----------------------------------------------------------------------------------------------


def test_agreement_counts_merged_answers() -> None:
    options: dict[str, Any] = {"budget": by.Budget(flops=0.3, factors=False, rotate=False), "heal": "refit"}
    merged, plain = part(**options), part(FLAT, **options)
    assert merged.manifest.agreement != plain.manifest.agreement
    assert merged.manifest.agreement[0] > plain.manifest.agreement[0]
    assert merged.manifest.agreement[1] == plain.manifest.agreement[1]


def test_it_is_compared_with_its_source_merged_alike() -> None:
    component = part(budget=by.Budget(flops=0.5), heal="refit")
    scores = by.evaluate(component, TEST, source=source(), latency=False)
    place = {k: index for index, group in enumerate(GROUPS) for k in group}
    mine = [index for index, label in enumerate(TEST[1].tolist()) if label in place]
    wanted = torch.tensor([place[int(TEST[1][index])] for index in mine])
    likely = source()(TEST[0][mine]).softmax(1)
    rows = {
        "base": torch.stack([likely[:, group].sum(1) for group in [*GROUPS, [5]]], 1),
        "restricted": summed(likely, GROUPS),
        "component": component.predict_proba(TEST[0][mine]),
    }
    for name, found in rows.items():
        assert scores.row(name).accuracy == pytest.approx(100 * (found.argmax(1) == wanted).double().mean().item())
        assert scores.row(name).images == len(mine)
    apart = likely[:, [0, 1, 2, 4, 3]].argmax(1)  # the control: the source's classes one by one
    assert scores.row("restricted").accuracy != pytest.approx(
        100 * (torch.tensor([0, 0, 1, 2, 2])[apart] == wanted).double().mean().item()
    )
    assert list(scores.per_class) == ["pet", "truck", "bird"]


def test_one_merged_class_is_told_from_the_others() -> None:
    component = part({"pet": ["cat", "dog"]}, budget=by.Budget(flops=1.0))
    scores = by.evaluate(component, TEST, source=source(), latency=False)
    inside = TEST[1] < 2
    z = source()(TEST[0])
    for name, found in (("restricted", z[:, :2].logsumexp(1)), ("base", z.softmax(1)[:, :2].sum(1))):
        pairs = found[inside].unsqueeze(1) - found[~inside]
        expected = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean().item()
        assert scores.row(name).auroc == pytest.approx(100 * expected)


def test_statistics_are_those_of_merged_classes() -> None:
    component = part(budget=by.Budget(flops=1.0), heal="refit")
    statistics = component.manifest.statistics
    own = [DATA[1].unsqueeze(1).eq(torch.tensor(group)).any(1) for group in GROUPS]
    assert statistics.images == tuple(int(mine.sum()) for mine in own)
    z = torch.stack([source()(DATA[0])[:, group].logsumexp(1) for group in GROUPS], 1)
    for place, mine in enumerate(own):
        assert statistics.mean_logit[place] == pytest.approx(z[mine, place].mean().item(), rel=1e-5)
        assert statistics.correct[place] == int((z[mine].argmax(1) == place).sum())
    assert statistics.familiarity.classes == 5  # one centre for each member


def test_training_towards_the_source_and_by_labels() -> None:
    options: dict[str, Any] = {"budget": by.Budget(flops=0.4, factors=False, rotate=False)}
    component = part(heal="distil", minutes=0.02, **options)
    assert component.manifest.heal.steps > 0
    assert component.manifest.agreement[0] > 0
    for teacher in (None, source()):
        tuned = by.finetune(component, DATA, training=TrainingOptions(epochs=1), teacher=teacher)
        assert tuned.manifest.members == component.manifest.members
        assert sum(tuned.manifest.statistics.images) == tuned.manifest.tuned.images
    rejecting = part(heal="distil", minutes=0.02, reject=True, **options)
    assert rejecting.manifest.heal.steps > 0


# -- several at once ---------------------------------------------------------------------------------------

PAIRS = {"low": [0, 1], "top": [3]}


def several(task: Any = PAIRS, **options: Any) -> by.Component:
    relevance = by.locate(centred(), SEVERAL, outputs="several", per_class=12)
    return by.disassemble(
        centred(), relevance, task=task, **{"budget": by.Budget(flops=1.0), "heal": "none", **options}
    )


def test_of_several_at_once_any_is_one_minus_none(tmp_path: Path) -> None:
    component = several()
    likely = centred()(SEVERAL_TEST[0]).double().sigmoid()
    found = torch.stack([1 - (1 - likely[:, 0]) * (1 - likely[:, 1]), likely[:, 3]], 1)
    for model in lasting(component, tmp_path / "part.safetensors"):
        assert (model.predict_proba(SEVERAL_TEST[0]) - found).abs().max() < 1e-6
        said = [tuple(name for name, p in zip(("low", "top"), row, strict=True) if p > 0.5) for row in found.tolist()]
        assert model.predict(SEVERAL_TEST[0]) == said
    assert (found[:, 0] - likely[:, :2].amax(1)).abs().max() > 0.05  # the control
    wanted = torch.stack([SEVERAL_TEST[1][:, :2].amax(1), SEVERAL_TEST[1][:, 3]], 1) == 1
    scores = by.evaluate(component, SEVERAL_TEST, source=centred(), latency=False)
    accuracy = 100 * ((found > 0.5) == wanted).double().mean().item()
    for name in ("base", "restricted", "component"):
        assert scores.row(name).accuracy == pytest.approx(accuracy)


def test_decision_thresholds_are_those_of_the_merged_classes() -> None:
    component = several(decision_thresholds={"low": 0.8}, heal="distil", minutes=0.02, budget=by.Budget(flops=0.5))
    assert component.manifest.decision_thresholds == (0.8, 0.5)
    said = component.predict_proba(SEVERAL_TEST[0]) > torch.tensor([0.8, 0.5])
    assert component.predict(SEVERAL_TEST[0]) == [
        tuple(name for name, yes in zip(("low", "top"), row, strict=True) if yes) for row in said.tolist()
    ]
    with refused("task-unknown-class", "'0'"):
        several(decision_thresholds={"0": 0.8})


def test_a_kind_that_does_not_say_how_refuses_before_any_work() -> None:
    class Plain(OneOfMany):
        any_of = Outputs.any_of

    outputs("plain")(Plain)
    try:
        relevance = by.locate(source(), DATA, classes=NAMES, per_class=12, outputs="plain")
        with refused("option-conflict", "Plain", "any_of"):
            by.disassemble(source(), relevance, task=TASK)
        renamed = by.disassemble(source(), relevance, task={"kitten": "cat", "dog": "dog"})
        assert renamed.classes == ("kitten", "dog")
    finally:
        del OUTPUTS["plain"]


# -- assemblies --------------------------------------------------------------------------------------------


def pair(make: Any = chain, **options: Any) -> list[by.Component]:
    found = []
    for seed, task in enumerate(({"pet": ["cat", "dog"], "truck": "truck"}, {"bird": ["owl", "hen"], "car": ["car"]})):
        model = source(make, seed)
        relevance = by.locate(model, DATA, classes=NAMES, per_class=12)
        found.append(by.disassemble(model, relevance, task=task, budget=by.Budget(flops=1.0), heal="none", **options))
    return found


@pytest.mark.parametrize("form", ["parallel", "padded", "grouped"])
@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize("make", [chain, Residual])
def test_each_part_of_an_assembly_merges_its_own(form: Any, reject: bool, make: Any, tmp_path: Path) -> None:
    whole = by.assemble(pair(make, reject=reject), form=form, scaling="none")
    z = [source(make, seed)(TEST[0]) for seed in (0, 1)]
    logits = torch.stack([z[0][:, :2].logsumexp(1), z[0][:, 2], z[1][:, [4, 3]].logsumexp(1), z[1][:, 5]], 1)
    for model in lasting(whole, tmp_path / "whole.safetensors"):
        assert model.classes == ("pet", "truck", "bird", "car")
        assert (model(TEST[0])[:, :4] - logits).abs().max() < 1e-9
        assert model(TEST[0]).shape[1] == 4 + reject
        if reject:
            rest = [one.softmax(1)[:, known].sum(1) for one, known in zip(z, ([3, 4, 5], [0, 1, 2]), strict=True)]
            assert (model(TEST[0]).softmax(1)[:, 4] - rest[0] * rest[1]).abs().max() < 1e-9
    highest = torch.stack([z[0][:, :2].amax(1), z[0][:, 2], z[1][:, [4, 3]].amax(1), z[1][:, 5]], 1)
    assert (whole(TEST[0])[:, :4] - highest).abs().max() > 0.1  # the control


def test_a_union_merges_too() -> None:
    tasks = ({"pet": ["cat", "dog"], "truck": "truck"}, {"bird": ["owl", "hen"], "car": "car"})
    parts = [part(task, budget=by.Budget(flops=0.6, factors=False, rotate=False)) for task in tasks]
    whole = by.assemble(parts, form="union", source=source(), scaling="none")
    plain = [
        part(task, budget=by.Budget(flops=0.6, factors=False, rotate=False)) for task in (FLAT[:3], [*FLAT[3:], "car"])
    ]
    z = by.assemble(plain, form="union", source=source(), scaling="none")(TEST[0])
    expected = torch.stack([z[:, :2].logsumexp(1), z[:, 2], z[:, 3:5].logsumexp(1), z[:, 5]], 1)
    assert (whole(TEST[0]) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("form", ["parallel", "padded"])
def test_a_merged_class_can_be_left_out(form: Any) -> None:
    parts = pair()
    whole = by.assemble(parts, form=form, scaling="none")
    less = by.assemble([by.assemble(parts)], without=["pet"], form=form, scaling="none")
    assert less.classes == ("truck", "bird", "car")
    assert (less(TEST[0]) - whole(TEST[0])[:, 1:]).abs().max() < 1e-12
    assert "left out     pet" in str(less)


def test_log_probabilities_are_those_of_the_union() -> None:
    whole = by.assemble(pair(reject=True), scaling="log-probability")
    likely = [source(seed=seed)(TEST[0]).softmax(1) for seed in (0, 1)]
    columns = [likely[0][:, :2].sum(1), likely[0][:, 2], likely[1][:, 3:5].sum(1), likely[1][:, 5]]
    assert (whole(TEST[0])[:, :4].exp() - torch.stack(columns, 1)).abs().max() < 1e-9


@pytest.mark.parametrize("scaling", ["logit-mean", "magnitude", "mahalanobis", "affine", "joint-head", "lda"])
def test_every_scaling_takes_merged_classes(scaling: str, tmp_path: Path) -> None:
    parts = [part(task, heal="refit") for task in ({"pet": ["cat", "dog"], "truck": 2}, {"bird": ["owl", "hen"]})]
    few = scaling in ("affine", "joint-head", "lda")
    whole = by.assemble(parts, scaling=scaling, images=[DATA, DATA] if few else None, **({"shots": 5} if few else {}))
    assert torch.equal(by.load(whole.save(tmp_path / "whole.safetensors"))(TEST[0]), whole(TEST[0]))
    scores = by.evaluate(whole, [TEST, TEST], source=source(), latency=False)
    place = torch.tensor([0, 0, 1, 2, 2, -1])[TEST[1]]
    twice = torch.cat([place[(place == 0) | (place == 1)], place[place == 2]])
    said = whole(TEST[0]).argmax(1)
    right = torch.cat([said[(place == 0) | (place == 1)], said[place == 2]]) == twice
    assert scores.row("assembled").accuracy == pytest.approx(100 * right.double().mean().item())
    if few:
        assert whole.manifest.scaling.images == 15


def test_a_class_that_two_parts_know_is_shared_by_its_new_name() -> None:
    parts = pair()
    other = by.disassemble(source(), RELEVANCE, task={"bird": ["hen", "owl"]}, heal="none", budget=by.Budget(flops=1.0))
    with refused("task-class-in-two-parts", "bird"):
        by.assemble([*parts, other])
    whole = by.assemble([*parts, other], on_duplicate="average", scaling="none")
    z = [source(seed=seed)(TEST[0])[:, 3:5].logsumexp(1) for seed in (1, 0)]
    assert (whole(TEST[0])[:, 2] - (z[0] + z[1]) / 2).abs().max() < 1e-9


def test_a_part_does_not_vote_on_its_own_members() -> None:
    first = part({"pet": ["cat", "dog"]}, reject=True, budget=by.Budget(flops=1.0))
    second = part(["cat", "car"], budget=by.Budget(flops=1.0), heal="refit")
    third = part(["owl"], budget=by.Budget(flops=1.0))
    whole = by.assemble([first, third, second], votes=True, scaling="none")
    assert whole.manifest.votes == ((4, 5), (), ())
    z = source()(TEST[0])
    expected = torch.stack([z[:, :2].logsumexp(1), z[:, 4], z[:, 0], z[:, 5]], 1)
    assert (whole(TEST[0]) - expected).abs().max() < 1e-5


# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        ["pet=cat+dog", "truck", "bird=owl+hen"],
        ["pet = cat + dog", 2, "bird=4+3"],
        ("pet=0-1", "truck=truck", "bird=owl+3"),
        {"pet": [0, 1], "truck": 2, "bird": "owl+hen"},
        resolve_merged(TASK, NAMES),
    ],
)
def test_it_is_said_in_a_dictionary_or_in_words(task: Any) -> None:
    assert resolve_merged(task, NAMES) == {"pet": [0, 1], "truck": [2], "bird": [4, 3]}


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        ({"pet": ["cat", "fish"]}, "task-unknown-class", "'fish'"),
        (["pet=cat+fish"], "task-unknown-class", "'fish'"),
        (["pet=cat,dog"], "task-unknown-class", "'cat,dog'"),
        ({"pet": ["cat"], "other": ["dog", "cat"]}, "task-duplicate-class", "'cat'"),
        ({"pet": ["cat", "cat"]}, "task-duplicate-class", "'cat'"),
        (["pet=cat", "pet=dog"], "task-duplicate-class", "'pet'"),
        (["cat", "cat=dog+cat"], "task-duplicate-class", "'cat'"),
        ({"pet": []}, "task-empty", "'pet'"),
        (["pet="], "task-empty", "'pet'"),
        (["pet=cat+"], "task-empty", "'pet'"),
        ({}, "task-empty", "at least one"),
        ({"hen": ["cat", "dog"]}, "task-class-name", "'hen'"),
        (["=cat"], "task-class-name", "''"),
        ({"": ["cat"]}, "task-class-name", "''"),
        ({3: ["cat"]}, "task-class-name", "3"),
        ({"x" * 2000: ["cat"]}, "task-class-name", "2,000"),
        ({"pet": 7}, "task-unknown-class", "7"),
        ({"pet": None}, "task-type", "None"),
        ({"pet": {"cat"}}, "task-type", "set"),
    ],
)
def test_what_cannot_be_meant_is_refused(task: Any, code: str, said: str) -> None:
    with refused(code, said):
        by.disassemble(source(), RELEVANCE, task=task)


def test_names_of_the_source_may_have_the_signs() -> None:
    names = ["a=b", "c++", "d, e", "f+g", "h", "i"]
    assert resolve_merged(["a=b", "c++", "d, e"], names) == {"a=b": [0], "c++": [1], "d, e": [2]}
    assert resolve_merged({"x": ["c++", "d, e"], "y": "f+g"}, names) == {"x": [1, 2], "y": [3]}
    assert resolve_merged(["x=f+g", "y=a=b"], names) == {"x": [3], "y": [0]}
    with refused("task-empty", "'x'"):
        resolve_merged(["x=c+++h"], names)


def test_a_class_may_keep_the_name_of_a_member() -> None:
    assert resolve_merged(["cat=cat+dog"], NAMES) == {"cat": [0, 1]}
    component = part(["cat=dog+cat", "truck"])
    assert component.classes == ("cat", "truck")
    assert component.manifest.places[0] == (0, 0, 1, -1, -1, -1)


def test_located_and_rejected_as_its_members() -> None:
    relevance = by.locate(source(), DATA, classes=NAMES, per_class=12, task=["pet=cat+dog", "truck"])
    assert relevance.task == (0, 1, 2)
    with refused("task-not-located", "'owl'"):
        by.disassemble(source(), relevance, task=TASK)
    with refused("task-nothing-to-reject"):
        part({"all": NAMES}, reject=True)


@pytest.mark.parametrize(
    "change",
    [
        {"members": [[0, 1], [2]]},
        {"members": [[0], [1, 2], [4, 3, 5]]},
        {"members": [[0, 1], [2], [3, 4]]},
        {"members": [[0, 1], [], [2, 4, 3]]},
        {"classes": ["pet", "pet", "bird"]},
        {"classes": ["pet", "car", "bird"]},
        {"members": []},
        {"task": [0, 1, 2, 4, 9], "members": [[0, 1], [2], [4, 9]]},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    text = part().manifest.model_dump(mode="json")
    assert ComponentManifest.model_validate(text) == part().manifest
    with pytest.raises(ValueError, match=r"members|name|class|task|at least"):
        ComponentManifest.model_validate({**text, **change})
