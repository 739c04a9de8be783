"""Files that are legal to look at: what they say fits together, or they are refused; and a slice of their fuzzer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.base import _limits as limits
from brickyard.base._errors import FileError
from brickyard.inputs import load_data
from brickyard.network._cost_limit import Bounds
from brickyard.network._network import Network, Node, Ref
from brickyard.runtime._remembering import Remembering
from brickyard.testing import chain
from errors import refused
from fuzzing.drawing import change
from fuzzing.seeding import built, parse
from fuzzing.using import Legal, partner

DATA = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A component that knows what is usual inside it."""
    model = chain()
    part = by.disassemble(model, by.locate(model, DATA), task=["1", "3"], images=DATA)
    familiarity = part.manifest.statistics and part.manifest.statistics.familiarity
    assert familiarity is not None
    assert len(familiarity.depths) > 1  # else there is nothing to change
    return part.save(tmp_path_factory.mktemp("honest") / "part.safetensors").read_bytes()


def changed(content: bytes, tmp_path: Path, how: Callable[[Any], Any]) -> Path:
    """The file with its text changed."""
    header, body = parse(content)
    text = json.loads(header["__metadata__"]["brickyard"])
    how(text)
    header["__metadata__"]["brickyard"] = json.dumps(text)
    path = tmp_path / "changed.safetensors"
    path.write_bytes(built(header, body))
    return path


def _statistics(text: Any) -> Any:
    return text["manifest"]["statistics"]


def _depth(**values: Any) -> Callable[[Any], Any]:
    return lambda text: _statistics(text)["familiarity"]["depths"][0].update(values)


def _before_linear(text: Any) -> None:
    """Let the first depth stand before the linear layer, with as many numbers as before: two a feature."""
    first = _statistics(text)["familiarity"]["depths"][0]
    assert first["size"] == 2 * text["network"]["layers"]["linear"]["config"]["in_features"]
    first.update(layer="linear", dims=[1])


INCONSISTENT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "positions before a convolution": (_depth(dims=[2]), "file-inconsistent"),
    "positions before a linear layer": (_before_linear, "file-inconsistent"),
    "a layer that is not there": (_depth(layer="conv9"), "file-inconsistent"),
    "statistics of other classes": (lambda t: [v.append(v[0]) for v in _lists(t)], "file-manifest-invalid"),
    "lists of two lengths": (lambda t: _statistics(t)["images"].append(3), "file-manifest-invalid"),
    "features of more classes": (lambda t: _statistics(t)["familiarity"].update(classes=9), "file-manifest-invalid"),
    "a crop of next to nothing": (
        lambda t: t["manifest"]["preprocessing"].update(size=[8, 8], fit="crop", crop=1e-9),
        "file-too-costly",
    ),
    "a filling of nothing": (
        lambda t: t["manifest"]["preprocessing"].update(size=[8, 8], fit="resize", fill=0.5),
        "file-manifest-invalid",
    ),
    "a letterbox that is cropped": (
        lambda t: t["manifest"]["preprocessing"].update(size=[8, 8], fit="letterbox", crop=0.5),
        "file-manifest-invalid",
    ),
    "signals that are resized": (
        lambda t: t["manifest"].update(input_shape=[3, 64], preprocessing={"channels": 3}),
        "file-network-invalid",
    ),
}


def _lists(text: Any) -> list[list[Any]]:
    return [_statistics(text)[name] for name in ("images", "correct", "winning_logit", "mean_logit")]


@pytest.mark.parametrize("case", INCONSISTENT)
def test_what_a_manifest_says_fits_its_network(case: str, honest: bytes, tmp_path: Path) -> None:
    how, code = INCONSISTENT[case]
    with refused(code):
        by.load(changed(honest, tmp_path, how))
    assert isinstance(by.load(changed(honest, tmp_path, lambda text: None)), by.Component)  # the control


def test_a_slice_of_the_legal_fuzzer(tmp_path: Path) -> None:
    """`python tests/fuzzing --legal --count 200000` draws many more."""
    legal = Legal(tmp_path, 2, partner(tmp_path))
    found = [legal.case(index) for index in range(1, 9)]
    assert [(one.kind, one.problem) for one in found if one.problem] == []
    outcomes = [one.outcome for one in found]
    assert outcomes.count("loaded") > 1
    assert outcomes.count("refused") > 0


@pytest.mark.parametrize("what", ["answers", "memory", "raw"])
def test_the_legal_judge_sees_what_is_wrong(what: str, tmp_path: Path, monkeypatch) -> None:
    legal = Legal(tmp_path, 2, partner(tmp_path))
    index = next(k for k in range(1, 99) if legal.case(k).outcome == "loaded")
    if what == "answers":
        monkeypatch.setattr(by.Component, "predict", lambda self, images: ["one"])
        monkeypatch.setattr(by.Assembly, "predict", lambda self, images: ["one"])
    if what == "memory":
        monkeypatch.setattr("fuzzing.using.MEMORY", -(1 << 40))
    if what == "raw":
        monkeypatch.setattr("fuzzing.using.model_card", lambda model: 1 / 0)
    wanted = {"answers": "1 answers", "memory": "MiB", "raw": "ZeroDivisionError"}[what]
    assert wanted in legal.case(index).problem


def test_a_parquet_column_of_one_large_value_is_unpacked_in_pieces(tmp_path: Path, monkeypatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = pa.array([bytes(1 << 20)] * 96)
    table, path = pa.table({"image": values, "label": [0, 1] * 48}), tmp_path / "train.parquet"
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 28, data_page_size=1 << 28)
    del values, table
    assert path.stat().st_size < 2000

    def taken() -> int:
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        pa.set_memory_pool(pool)
        try:
            with refused("data-unreadable-image"):
                load_data(str(path)).images[:1]
        finally:
            pa.set_memory_pool(before)
        return int(pool.max_memory())

    monkeypatch.setattr("brickyard.inputs._columns._UNPACKED", 8 << 20)
    monkeypatch.setattr("brickyard.inputs._columns._FETCHED", (8, 8))
    few = taken()
    monkeypatch.setattr("brickyard.inputs._columns._UNPACKED", 1 << 40)  # the control
    assert few < 64 << 20 < taken()


def test_what_is_remembered_is_what_would_be_computed() -> None:
    x, y = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(1, 4, 1, 8, device="meta", dtype=torch.float64)
    calls: list[Callable[[], Any]] = [
        lambda: x + y,
        lambda: torch.nn.functional.hardswish(x.permute(0, 2, 3, 1)),
        lambda: torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda: x.sort(1),
        lambda: x.split([1, 3], 1),
        lambda: x.argmax(1),
    ]

    def said(value: Any) -> Any:
        many = value if isinstance(value, tuple | list) else [value]
        return [(one.shape, one.stride(), one.dtype) for one in many]

    for call in calls:
        plain = said(call())
        with Remembering():
            assert said(call()) == said(call()) == plain
    with Remembering():
        assert x.exp().shape != torch.empty(3, device="meta").exp().shape
        assert torch.equal(torch.ones(2).exp(), torch.ones(2).exp())  # what has numbers is computed
        assert not torch.equal(torch.ones(2).exp(), torch.zeros(2).exp())


def test_values_that_are_needed_at_one_time_are_counted(monkeypatch) -> None:
    def network(kept: bool) -> Network:
        steps = [Node("x", "input")]
        steps += [Node(f"s{k}", "function", "exp", (Ref(f"s{k - 1}" if k else "x"),)) for k in range(8)]
        several = Node("all", "function", "stack", ([Ref(f"s{k}") for k in range(8)] if kept else [Ref("s7")], 0))
        return Network([*steps, several, Node("output", "output", "", (Ref("all"),))], {})

    monkeypatch.setattr(limits, "MEMORY", 4 * 192 * 10)
    assert len(Bounds(0).run(network(kept=False), (3, 8, 8))) == 1
    with pytest.raises(FileError, match="at one time"):
        Bounds(0).run(network(kept=True), (3, 8, 8))


def test_a_change_changes_something() -> None:
    import random

    text = {"a": [1, 2], "b": {"c": 0.5}, "d": "x", "e": True}
    before = json.dumps(text)
    made = set()
    for seed in range(40):
        other = json.loads(before)
        change(random.Random(seed), other)
        made.add(json.dumps(other))
    assert len(made) > 10
