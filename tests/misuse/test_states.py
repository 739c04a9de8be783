"""Every public call that takes a model, with the model in every state that users have theirs in.

The answer is that of the model in evaluation mode, and the model comes back as it was, to the bit.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import brickyard as by
from misuse.calls import CALLS, WITHOUT, Models, digest, make_models, takers
from misuse.untouched import untouched
from misuse.world import DATA

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


ALL = "all of it"


def training(model: nn.Module) -> None:
    """As a training loop with one frozen part leaves it."""
    model.train()
    next(m for m in reversed(list(model.modules()))).eval()


def with_gradients(model: nn.Module) -> None:
    model.train()
    for value in model.parameters():
        value.requires_grad_(True)
        value.grad = torch.full_like(value, 0.5)


def with_hooks(model: nn.Module) -> None:
    for module in model.modules():
        module.register_forward_hook(lambda module, args, out: None)
        module.register_forward_pre_hook(lambda module, args: None)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in last:
        module.register_full_backward_hook(lambda module, before, after: None)


def half(kind: torch.dtype, mode: bool) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.to(kind).train(mode)

    return change


def everything(model: nn.Module) -> None:
    with_gradients(model)
    with_hooks(model)
    training(model)


STATES: dict[str, tuple[Callable[[nn.Module], Any], Callable[[], Any]]] = {
    ALL: (everything, torch.inference_mode),
    "training mode": (training, contextlib.nullcontext),
    "gradients": (with_gradients, contextlib.nullcontext),
    "hooks": (with_hooks, contextlib.nullcontext),
    "no_grad, training": (training, torch.no_grad),
    "inference mode, training": (training, torch.inference_mode),
}
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SLOW = ("onnx", "distil", "budget", "latency")


def changed(models: Models, change: Callable[[nn.Module], Any]) -> Models:
    found = copy.deepcopy(models)
    for model in found.modules:
        change(model)
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("states"))


_expected: dict[str, Any] = {}


def wanted(name: str, models: Models) -> Any:
    if name not in _expected:
        _expected[name] = result(name, copy.deepcopy(models))
    return _expected[name]


def result(name: str, models: Models) -> Any:
    """What a call gives, or its error."""
    try:
        return digest(CALLS[name](models))
    except by.BrickyardError as error:
        return error.code, str(error)


def slow(name: str, state: str) -> bool:
    """Whether a case runs in CI alone: the single states, and calls that take long."""
    return state not in (ALL, "bfloat16") or any(word in name for word in SLOW)


def rows(states: Any) -> list[Any]:
    return [
        pytest.param(name, state, id=f"{name}-{state}", marks=[pytest.mark.slow] * slow(name, state))
        for name in CALLS
        for state in states
    ]


@pytest.mark.parametrize(("name", "state"), rows(STATES))
def test_the_answer_is_that_of_evaluation_mode(name: str, state: str, models: Models) -> None:
    expected = wanted(name, models)
    change, setting = STATES[state]
    given = changed(models, change)
    with setting(), untouched(*given.modules):
        found = result(name, given)
    assert found == expected
    assert not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str)), found


@pytest.mark.parametrize(("name", "state"), rows(HALVES))
def test_half_precision_in_training_mode(name: str, state: str, models: Models) -> None:
    expected = result(name, changed(models, half(HALVES[state], False)))
    given = changed(models, half(HALVES[state], True))
    with untouched(*given.modules):
        found = result(name, given)
    assert found == expected


def test_training_mode_would_matter(models: Models) -> None:
    """The control: what the calls are protected from does change answers and models."""
    given = changed(models, training)
    x = DATA[0]
    assert not torch.equal(given.component(x), models.component(x))
    assert digest(given.component)[2] != digest(models.component)[2]


def test_every_public_call_that_takes_a_model_is_in_the_table() -> None:
    known = {name.partition(",")[0].partition(" of ")[0] for name in CALLS} | set(WITHOUT)
    found = set(takers())
    assert sorted(found - known) == []
    assert {name for name in WITHOUT if name not in found} == set()
    assert len(found) > 100


def test_the_folder_of_the_models_is_their_own(models: Models) -> None:
    assert isinstance(models.folder, Path)
