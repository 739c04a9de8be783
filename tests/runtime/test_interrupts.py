"""Ctrl-C leaves nothing behind: models, what torch and the process share, and the answers of the next call."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import brickyard as by
import brickyard.axes
from brickyard.base import _interrupts
from brickyard.base._interrupts import Held
from brickyard.network import _untouched
from brickyard.network._untouched import guarded
from brickyard.storage import _safefile
from brickyard.testing import chain
from interrupts.points import After, Points, count_points, drawn, interrupt
from misuse.calls import CALLS, Models, digest, make_models
from misuse.untouched import untouched
from misuse.world import DATA, X

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUICK = ["locate", "disassemble", "assemble, lda", "evaluate", "Component.predict", "load", "axes.trace"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    found = make_models(tmp_path_factory.mktemp("interrupts"))
    for model in found.modules:
        model.train()
    return found


def send() -> None:
    signal.raise_signal(signal.SIGINT)


# -- the campaign in small --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_an_interrupt_at_drawn_points_leaves_nothing_behind(name: str, models: Models) -> None:
    expected = digest(CALLS[name](models))
    points = count_points(name, models)
    generator = random.Random(0)
    found = [drawn(name, models, points, 0.05, expected, generator) for _ in range(4)]
    assert [one for one in found if one.problems] == []
    assert points > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_in_every_call_leaves_nothing_behind(name: str, models: Models) -> None:
    expected = digest(CALLS[name](models))
    points = count_points(name, models)
    found = [drawn(name, models, points, 0.1, expected, random.Random(seed)) for seed in range(6)]
    assert [one for one in found if one.problems] == []


def test_the_first_calls_of_a_prediction_one_by_one(models: Models) -> None:
    """Where the guard itself is entered and left."""
    expected = digest(CALLS["Component.predict"](models))
    points = count_points("Component.predict", models)
    stops = [*range(1, 40, 2), *range(points - 40, points + 1, 2)]
    found = [interrupt("Component.predict", models, str(n), Points(n), expected) for n in stops]
    assert [one for one in found if one.problems] == []
    assert sum(one.came == "interrupted" for one in found) > 30


def test_what_the_campaign_looks_for_would_be_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where restoring does not wait for interrupts, and only undoes what is left at the end."""
    monkeypatch.setattr(_untouched.Guard, "leave", lambda self, error: error is None and self._restored(None))
    monkeypatch.setattr(_untouched, "listen", lambda owner, place: None)
    expected = digest(CALLS["Component.predict"](models))
    points = count_points("Component.predict", models)
    try:
        found = interrupt("Component.predict", models, "", Points(points // 2), expected)
    finally:
        _untouched._mine.guards.clear()
        _untouched._held.clear()
        for model in models.modules:
            model.train()
    assert found.problems


# -- one by one ---------------------------------------------------------------------------------------------------


def test_an_interrupt_waits_and_is_raised_at_the_end() -> None:
    done = []

    @guarded
    def call() -> None:
        with Held():
            send()
            send()
            done.append("held")
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert done == ["held"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_ends_what_takes_long() -> None:
    done = []

    @guarded
    def call() -> None:
        with Held(long=True):
            send()
            done.append("first")
            send()
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert done == ["first"]


def test_an_interrupt_that_code_below_takes_for_something_else_is_raised() -> None:
    @guarded
    def swallows() -> int:
        try:
            send()
        except KeyboardInterrupt:
            return 1
        return 0

    @guarded
    def turns() -> None:
        try:
            send()
        except BaseException as error:
            raise by.BrickyardError("file-damaged", "this file is damaged") from error

    for call in (swallows, turns):
        with pytest.raises(KeyboardInterrupt):
            call()
    assert guarded(lambda: 3)() == 3  # and no later call is blamed for it


def test_a_handler_that_raises_nothing_is_called_once() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        assert guarded(lambda: send() or 5)() == 5
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_an_interrupt_inside_safetensors_is_no_damaged_file(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.folder / "component.safetensors"
    own = _safefile.safe_open

    class Opened:
        """As the library behaves: what is raised inside it becomes an error of its own."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.file = own(*args, **kwargs)

        def __enter__(self) -> Opened:
            self.file.__enter__()
            return self

        def __exit__(self, *given: object) -> None:
            self.file.__exit__(*given)

        def metadata(self) -> Any:
            return self.file.metadata()

        def keys(self) -> Any:
            return self.file.keys()

        def get_tensor(self, name: str) -> Any:
            try:
                send()
            except BaseException as error:
                raise ValueError(f"could not read {error!r}") from None
            return self.file.get_tensor(name)

    monkeypatch.setattr(_safefile, "safe_open", Opened)
    with pytest.raises(KeyboardInterrupt):
        by.load(path)
    monkeypatch.undo()
    again = by.load(path)
    assert isinstance(again, by.Component)
    assert torch.equal(again.predict_proba(X), models.loaded.predict_proba(X))


def test_patches_of_a_tracer_and_modes_that_are_left_are_undone() -> None:
    model = chain().train()
    calls = nn.Module.__call__, nn.Module.__getattr__

    def patched(*args: Any) -> None:
        raise AssertionError("a proxy was given")

    patched.__fx_already_patched = True  # type: ignore[attr-defined]

    @guarded
    def torn(model: nn.Module) -> None:
        torch.device("meta").__enter__()
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        nn.Module.__call__ = patched  # type: ignore[method-assign]
        model.bn1.running_mean.add_(1)
        torch.rand(1, device="cpu")
        send()

    with untouched(model), pytest.raises(KeyboardInterrupt):
        torn(model)
    assert (nn.Module.__call__, nn.Module.__getattr__) == calls
    assert torch.zeros(1).device.type == "cpu"


def test_context_managers_that_were_being_entered_are_closed_at_once() -> None:
    closed = []

    class Slow:
        def __enter__(self) -> None:
            self.inside = torch.random.fork_rng()
            self.inside.__enter__()
            send()

        def __exit__(self, *_: object) -> None:
            closed.append("never")

        def __del__(self) -> None:
            closed.append("closed")

    @guarded
    def call() -> None:
        with Slow():
            pass

    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) as caught:
        call()
    assert closed == ["closed"]
    assert caught.value is not None
    torch.manual_seed(7)
    state = torch.get_rng_state()
    del caught
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(before, state)


def test_a_guard_that_was_torn_out_of_its_call_is_put_back_by_the_next() -> None:
    model = chain().train()
    guard = _untouched.Guard(sys._getframe())
    guard.enter([model])
    guard.frame = None  # as if its call were gone
    assert not model.training
    assert by.locate(chain(), DATA, per_class=2) is not None
    assert model.training
    assert model.bn1.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert _interrupts.desk().owner is None


def test_other_threads_neither_wait_nor_listen() -> None:
    found: list[Any] = []
    model = chain().train()

    def work() -> None:
        with Held():
            found.append(by.locate(model, DATA, per_class=2).classes)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [("0", "1", "2", "3")]
    assert model.training
    with pytest.raises(KeyboardInterrupt):
        send()


def test_an_interrupt_from_another_thread_arrives(models: Models) -> None:
    expected = digest(CALLS["locate"](models))
    found = interrupt("locate", models, "", After(0.005), expected)
    assert found.problems == []


# -- models that change -------------------------------------------------------------------------------------------


class Trained(nn.Module):
    """Its forward stands for a thread that takes a step meanwhile."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.inner, self.change = chain(), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change(self)
        result: torch.Tensor = self.inner(x)
        return result


def step(model: Any) -> None:
    def work() -> None:
        with torch.no_grad():
            model.inner.linear.weight.mul_(1.0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def replaced(model: Any) -> None:
    model.inner.linear.weight.data = model.inner.linear.weight.data.clone()


@pytest.mark.parametrize("change", [step, replaced])
def test_a_model_that_changes_while_it_is_read_is_refused(change: Any) -> None:
    model = Trained(change).train()
    for call in (lambda: by.axes.trace(model, X[:2]), lambda: by.locate(model, DATA, per_class=2)):
        with pytest.raises(by.BrickyardError) as caught:
            call()
        assert caught.value.code == "process-model-changed"
        assert "changed while it was read" in str(caught.value)
    assert model.training
    assert by.locate(Trained(lambda model: None), DATA, per_class=2) is not None


def test_a_component_that_is_trained_while_it_answers_is_refused() -> None:
    component = by.disassemble(chain(), by.locate(chain(), DATA, per_class=2), task=["1", "3"])
    weight = next(component.network.parameters())
    component.network.register_forward_hook(lambda module, args, out: weight.data.numel() and bump(weight))
    for call in (
        lambda: component.predict(X),
        lambda: by.evaluate(component, DATA, latency=False, including_calibration=True),
    ):
        with pytest.raises(by.BrickyardError, match="changed while it was read"):
            call()


def bump(weight: torch.Tensor) -> None:
    with torch.inference_mode(False), torch.no_grad():
        weight.mul_(1.0)


def test_training_its_own_model_is_no_change_from_outside(tmp_path: Path) -> None:
    from brickyard.training import TrainingOptions

    component = by.disassemble(chain(), by.locate(chain(), DATA, per_class=2), task=["1", "3"])
    assert by.finetune(component, DATA, validation=0, training=TrainingOptions(epochs=1)) is not component


def test_threads_that_only_read_do_not_disturb_each_other() -> None:
    model = chain().train()
    expected = digest(by.locate(model, DATA, per_class=2))
    found: list[Any] = []
    begun = threading.Barrier(4)

    def work() -> None:
        begun.wait()
        found.extend(digest(by.locate(model, DATA, per_class=2)) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    with untouched(model):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0)
    assert found == [expected] * 12
