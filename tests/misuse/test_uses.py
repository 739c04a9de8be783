"""Wrong and odd uses of the library, one a case: what comes of each, and that the user's model comes back untouched.

`python -m pytest -q tests/misuse/test_uses.py --co` counts them.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import os
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn  # noqa: F401 - sets environment variables when it is imported for the first time
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.testing import chain
from errors import refused
from misuse import assembly, component, detectors, evaluation, files, networks, options, relevance
from misuse.networks import in_inference
from misuse.untouched import untouched
from misuse.world import DATA, Case, World, X, Y, make_world, plain, same, used_source

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules.*:UserWarning"),
]
ROOT = Path(__file__).parent.parent.parent
CASES = [
    case
    for rows in (networks, relevance, component, options, assembly, evaluation, files, detectors)
    for case in rows.CASES
]


# -- the check that nothing is touched ---------------------------------------------------------------------------


def _set(model: nn.Module, name: str, value: Any) -> None:
    setattr(model, name, value)


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "one bit of a weight": lambda m: m.conv2.weight.data.view(torch.int32)[0, 0, 0, 0].bitwise_xor_(1),
    "another tensor of the same numbers": lambda m: _set(m.conv2, "weight", nn.Parameter(m.conv2.weight.detach())),
    "a buffer": lambda m: m.bn1.running_mean.add_(1e-6),
    "the mode of one module": lambda m: m.relu1.eval(),
    "a forward hook": lambda m: m.conv2.register_forward_hook(lambda *a: None),
    "a hook less": lambda m: m.conv1._forward_hooks.clear(),
    "a backward hook": lambda m: m.conv2.register_full_backward_hook(lambda *a: None),
    "an attribute more": lambda m: _set(m.conv2, "seen", 1),
    "an attribute less": lambda m: delattr(m, "note"),
    "another number in an attribute": lambda m: _set(m.bn1, "momentum", 0.2),
    "what an attribute holds": lambda m: m.note.update(epochs=4),
    "a module replaced": lambda m: _set(m, "relu1", nn.ReLU().train()),
    "a module more": lambda m: m.add_module("extra", nn.Identity()),
    "requires_grad": lambda m: m.conv1.weight.requires_grad_(True),
    "a gradient": lambda m: m.conv2.weight.grad.mul_(2),
    "a gradient less": lambda m: _set(m.conv2.weight, "grad", None),
    "the type": lambda m: m.linear.double(),
    "the device": lambda m: m.linear.to("meta"),
    "the class": lambda m: _set(m.relu1, "__class__", nn.ReLU6),
    "torch's random state": lambda m: torch.rand(1),
    "numpy's random state": lambda m: np.random.rand(),
    "Python's random state": lambda m: random.random(),
    "the default type": lambda m: torch.set_default_dtype(torch.float64),
    "the number of threads": lambda m: torch.set_num_threads(2),
    "the mode of gradients": lambda m: torch.set_grad_enabled(False),
    "the environment": lambda m: os.environ.update(BRICKYARD_MISUSE="1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_check_notices_every_kind_of_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    model = used_source()
    with untouched(model):
        pass
    try:
        with pytest.raises(AssertionError), untouched(model):
            CHANGES[name](model)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        torch.set_grad_enabled(True)


# -- the cases -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.manual_seed(0)
    return make_world(tmp_path_factory.mktemp("misuse"))


@pytest.mark.parametrize("case", CASES, ids=[ascii(case.name)[1:-1] for case in CASES])
def test_wrong_and_odd_uses(case: Case, world: World) -> None:
    w = world if case.model is None else dataclasses.replace(world, model=case.model())
    models = [w.source, w.component, w.other, w.assembly]
    models += [w.model] if isinstance(w.model, nn.Module) and w.model is not w.source else []
    if isinstance(case.expect, str):
        with untouched(*models), refused(case.expect, *case.quoted):
            case.call(w)
    elif isinstance(case.expect, type):
        with untouched(*models), pytest.raises(case.expect) as caught:
            case.call(w)
        assert type(caught.value) is case.expect
        assert all(word in str(caught.value) for word in case.quoted), str(caught.value)
    else:
        with untouched(*models):
            found = case.call(w)
        same(found, case.expect(w) if callable(case.expect) else case.expect)


def test_names_of_cases_differ_and_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 80
    for case in CASES:
        assert case.quoted or not isinstance(case.expect, str | type), f"{case.name} quotes nothing"


def test_other_results_are_not_the_same(world: World) -> None:
    """The control of all comparisons."""
    other = by.locate(world.source, (X, Y.flip(0)), thresholds=by.Thresholds(alpha=0.9, linear_alpha=0.9))
    uneven = copy.deepcopy(world.component)
    next(iter(uneven.parameters())).data.view(-1)[0] += 1
    pairs = [(world.component, world.other), (world.component, uneven), (world.relevance, other), (X, X + 0.01)]
    for found, wanted in [*pairs, ((1, X), (1, X + 1)), ([1], [1, 2]), ((1,), [1]), (0.5, 0.51), ({"a": 1}, {"a": 2})]:
        same(found, found)
        with pytest.raises(AssertionError):
            same(found, wanted)


def test_everything_in_the_reference_is_used() -> None:
    """Every function, class and method that the reference lists is called, or read, in some case."""
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    text = text.partition("## Graph networks")[0]  # these have a page and tests of their own
    names = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.M)}
    names |= {name for members in re.findall(r"members: \[(.*)\]", text) for name in members.split(", ")}
    used: set[object] = set()
    for path in [*Path(__file__).parent.glob("*.py"), ROOT / "tests" / "errors.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            used |= {getattr(node, key) for key in ("attr", "id", "value") if isinstance(getattr(node, key, None), str)}
    assert len(names) > 25
    assert names <= used, names - used


# -- settings of the caller ------------------------------------------------------------------------------------------


def everything(source: nn.Module) -> dict[str, Tensor]:
    """What the verbs give, as numbers."""
    relevance = by.locate(source, DATA, per_class=2)
    parts = [by.disassemble(source, relevance, task=["1", "3"]), by.disassemble(source, relevance, task=["0"])]
    damage = by.disassemble(source, relevance, task=["1"], budget=by.Budget(flops=0.6), select="damage")
    taylor = by.disassemble(source, relevance, task=["1"], budget=by.Budget(flops=0.6), select="taylor")
    found = {"sums": relevance.sum("conv2"), "scores": relevance.scores, "damage": damage.network.linear.weight}
    found["taylor"] = taylor.network.linear.weight
    for form in ("parallel", "padded", "grouped"):
        whole_one = by.assemble(parts, form=form)
        assert not any(value.is_inference() for value in whole_one.parameters())
        found[form] = torch.cat([value.flatten() for value in whole_one.parameters()])
    for scaling in ("affine", "lda"):
        matrix = by.assemble(parts, scaling=scaling, images=[DATA, DATA]).matrix
        assert matrix is not None
        found[scaling] = matrix
    rows = by.evaluate(parts[0], DATA, source=source, latency=False, including_calibration=True).rows
    found["scored"] = torch.tensor([[row.accuracy, row.error] for row in rows], dtype=torch.float64, device="cpu")
    return found


@contextlib.contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default type": lambda: default_type(torch.float64),
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_caller_change_nothing(name: str) -> None:
    source = used_source()
    expected = everything(source)
    with SETTINGS[name](), untouched(source):
        found = everything(source)
    for what, value in expected.items():
        assert found[what].dtype == value.dtype, what
        assert found[what].device == value.device, what
        torch.testing.assert_close(found[what], value, msg=what)


def test_a_component_made_in_inference_mode_trains() -> None:
    source = chain()
    with torch.inference_mode():
        component = by.disassemble(source, by.locate(source, DATA, per_class=2), task=["1", "3"])
    loss = nn.functional.cross_entropy(component(X), Y % 2)
    other = in_inference()
    with pytest.raises(RuntimeError):  # the control: what inference mode makes does not train
        nn.functional.cross_entropy(other(X), Y).backward()
    for value in component.parameters():
        value.requires_grad_(True)
    nn.functional.cross_entropy(component(X), Y % 2).backward()
    assert torch.isfinite(loss)
    assert all(value.grad is not None for value in component.parameters())


@pytest.mark.slow
def test_threads_give_what_one_gives() -> None:
    """Several threads locate and cut one model at once, while another one runs a model of its own."""
    source = used_source()
    expected = everything(source)
    found: list[dict[str, Tensor]] = []
    problems: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            found.extend(everything(source) for _ in range(2))
        except BaseException as error:
            problems.append(error)

    model = chain()
    wanted = model(X)

    def bystander() -> None:
        try:
            while not stop.is_set():
                assert torch.equal(model(X), wanted)
        except BaseException as error:
            problems.append(error)

    with untouched(source):
        other = threading.Thread(target=bystander)
        threads = [threading.Thread(target=work) for _ in range(4)]
        other.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        other.join()
    assert not problems, problems
    assert len(found) == 8
    for one in found:
        for what, value in expected.items():
            torch.testing.assert_close(one[what], value, msg=what)


def test_a_distributed_wrapper_is_seen_through(tmp_path: Path) -> None:
    if torch.distributed.is_initialized():
        pytest.skip("another test has a process group")
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(chain())
        with untouched(model):
            made = by.disassemble(model, by.locate(model, DATA, per_class=2), task=["1", "3"])
    finally:
        torch.distributed.destroy_process_group()
    same(made(X), plain(world)(X))


def test_a_gpu_that_is_not_there_is_torchs_own_error(world: World) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    component = copy.deepcopy(world.component)
    with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA"):
        component.to("cuda")
    with torch.no_grad():
        same(component(X), world.component(X))  # and it still works where it was
