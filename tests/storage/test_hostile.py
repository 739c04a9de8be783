"""Files are hostile: each is an object that equals what it says, or one clear error, in bounded time and memory.

Cases by hand, with the code of the error that each must give; then a slice of the fuzzer (`python tests/fuzzing`).
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import brickyard as by
from brickyard.base import _limits as limits
from brickyard.base._errors import BrickyardError
from brickyard.reports import report
from brickyard.sources._loading import load_source
from brickyard.sources._names import class_names
from brickyard.sources._weights import read_weights
from errors import refused
from fuzzing.judging import FLOOR, Judge, Watch, answers, differs, limited, peak, reset_peak
from fuzzing.mutating import _fitting, places, tensor_names
from fuzzing.seeding import Seed, built, parse, seeds

Header = dict[str, Any]
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORK, MANIFEST, TENSOR = "file-network-invalid", "file-manifest-invalid", "file-tensor-mismatch"
CONTAINER, COSTLY, INCONSISTENT = "file-not-safetensors", "file-too-costly", "file-inconsistent"
LARGE, UNKNOWN = "file-too-large", "file-unknown-operation"
WEIGHT, BIAS, COUNT = "network.conv1.weight", "network.conv1.bias", "network.bn1.num_batches_tracked"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seed]:
    """Small valid files by name."""
    return {seed.name: seed for items in seeds(tmp_path_factory.mktemp("seeds")).values() for seed in items}


def loaded(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "case.safetensors"
    path.write_bytes(content)
    return by.load(path)


def unreadable(tmp_path: Path, content: bytes, code: str, *quoted: str) -> None:
    """Reading must be one error of this code that quotes these, in one printable line."""
    with limited(), refused(code, *quoted) as caught:
        loaded(tmp_path, content)
    assert str(caught.value).isprintable()


def with_text(seed: Seed, change: Callable[[Any], Any]) -> bytes:
    """The file with its text changed in place, or replaced by what `change` returns."""
    header, text = seed.header, seed.text
    new = change(text)
    header["__metadata__"][seed.key] = new if isinstance(new, str) else json.dumps(text)
    return built(header, seed.body)


# -- headers -------------------------------------------------------------------------------------------------


def swap_offsets(header: Header) -> None:
    a, b = tensor_names(header)[:2]
    header[a]["data_offsets"] = header[b]["data_offsets"]


def shape(*size: int) -> Callable[[Header], None]:
    return lambda header: header[WEIGHT].update(shape=list(size))


HEADERS: dict[str, tuple[Any, ...]] = {
    "overlapping": (swap_offsets, CONTAINER),
    "huge shape": (shape(1 << 40, 1 << 40), CONTAINER),
    "shape of another size": (shape(1, 1, 1, 1), CONTAINER),
    "negative shape": (shape(-1, 3), CONTAINER),
    "reversed offsets": (lambda h: h[WEIGHT]["data_offsets"].reverse(), CONTAINER),
    "offsets beyond the end": (lambda h: h[WEIGHT].update(data_offsets=[0, 1 << 40]), CONTAINER),
    "unknown type": (lambda h: h[WEIGHT].update(dtype="X9"), CONTAINER),
    "no text": (lambda h: h.pop("__metadata__") and None, "file-wrong-kind", "'brickyard'"),
    "text is a number": (lambda h: h["__metadata__"].update(brickyard=1), CONTAINER),
    "renamed tensor": (lambda h: h.update({"../../x\n\x1b[2J": h.pop(WEIGHT)}), TENSOR, "'network.conv1.weight'"),
    "two names in one": (lambda h: json.dumps(h).encode()[:-1] + b', "network.conv1.bias": {}}', CONTAINER),
    "deep": (lambda h: b'{"a":' * 100_000, CONTAINER),
    "not UTF-8": (lambda h: b'{"\xff\xfe":1}', CONTAINER),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    change, code, *quoted = HEADERS[case]
    header = known["uncut"].header
    made = change(header)
    unreadable(tmp_path, built(made if isinstance(made, bytes) else header, known["uncut"].body), code, *quoted)


@pytest.mark.parametrize("size", [0, 7, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_with_a_wrong_length(size: int, known: dict[str, Seed], tmp_path: Path) -> None:
    unreadable(tmp_path, struct.pack("<Q", size) + known["uncut"].content[8:], CONTAINER)


@pytest.mark.timeout(600)  # who waits for a pipe, waits for ever
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    places = {tmp_path: "file-unreadable", Path("a\0b"): "file-path-invalid"}
    for place, code in {tmp_path / "pipe": "file-missing", Path("/dev/zero"): "file-missing", **places}.items():
        with refused(code):
            by.load(place)


# -- numbers, and what is said of them -----------------------------------------------------------------------


def said(name: str, piece: Callable[[bytes], bytes] | None, **entry: Any) -> Callable[[Seed], bytes]:
    """The file with other bytes of a tensor (None: without it), of which the header says this."""

    def change(seed: Seed) -> bytes:
        header = seed.header
        start, end = header.setdefault(name, {"data_offsets": [0, 0]})["data_offsets"]
        if piece is None:
            del header[name]
            return _fitting(header, seed.body, {})
        header[name] |= entry
        return _fitting(header, seed.body, {name: piece(seed.body[start:end])})

    return change


def filled(name: str, number: bytes) -> Callable[[Seed], bytes]:
    return said(name, lambda old: number * (len(old) // len(number)))


def told(change: Callable[[Any], Any]) -> Callable[[Seed], bytes]:
    return lambda seed: with_text(seed, change)


def set_(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(text: Any) -> None:
        for key in keys[:-1]:
            text = text[key]
        text[keys[-1]] = value

    return change


FAMILIAR = ("manifest", "parts", 0, "statistics", "familiarity")
NUMBERS: dict[str, tuple[Any, ...]] = {
    "NaN": ("uncut", filled(BIAS, struct.pack("<f", float("nan"))), "file-not-finite"),
    "Inf": ("uncut", filled(BIAS, struct.pack("<f", float("-inf"))), "file-not-finite"),
    "float8": ("uncut", said(BIAS, lambda old: old[::4], dtype="F8_E4M3"), TENSOR, "float8_e4m3fn"),
    "complex": ("uncut", said(COUNT, lambda old: old, dtype="C64"), TENSOR),
    "mixed types": ("uncut", said(BIAS, lambda old: old * 2, dtype="F64"), NETWORK),
    "numbers as counts": ("uncut", said(BIAS, lambda old: old * 2, dtype="I64"), TENSOR, "torch.int64"),
    "counts as bytes": ("uncut", said(COUNT, lambda old: old[::8], dtype="U8"), TENSOR, "int64"),
    "another shape": ("uncut", said(WEIGHT, lambda old: bytes(4), shape=[1, 1]), TENSOR, "(1, 1)"),
    "more": ("uncut", said("evil", lambda old: bytes(4), dtype="F32", shape=[1]), TENSOR, "'evil'"),
    "missing": ("uncut", said(BIAS, None), TENSOR, "'network.conv1.bias'"),
    "half of a scaling": ("grouped", said("scaling.shift", None), INCONSISTENT, "scaling.matrix"),
    "half of a gate": ("gated", said("scaling.gate.slopes", None), TENSOR, "'scaling.gate.slopes'"),
    "another gate": ("gated", said("scaling.gate.bias", lambda old: old * 2, shape=[4]), TENSOR, "gate.bias'"),
    "a gate that is not told": ("gated", told(set_(False, "manifest", "scaling", "gate")), TENSOR),
    "no familiarity": ("gated", said("familiarity.1.mean", None), TENSOR, "'familiarity.1.mean'"),
    "no length": ("gated", filled("familiarity.0.length", b"\0"), TENSOR, "0"),
    "another familiarity": ("gated", told(set_(7, *FAMILIAR, "size")), INCONSISTENT, "7"),
    "votes of no class": ("gated", told(set_([[0], [9]], "manifest", "votes")), MANIFEST),
    "votes of one part": ("gated", told(set_([[0]], "manifest", "votes")), MANIFEST, "1"),
    "neither true nor false": ("relevance", filled("hard.conv2", b"\x02"), TENSOR),
    "reads what is not there": ("relevance", filled("reads.conv2", struct.pack("<q", 999)), INCONSISTENT, "'conv2'"),
    "no scores": ("relevance", said("scores", None), TENSOR, "'scores'"),
    "another task": ("relevance", told(set_([9], "task")), INCONSISTENT, "4"),
    "another threshold": ("relevance", told(set_(2.0, "thresholds", "alpha")), INCONSISTENT, "alpha"),
    "a threshold more": ("relevance", told(set_({"gamma": 0.1}, "thresholds")), INCONSISTENT, "gamma"),
    "axes with a gap": ("relevance", told(lambda text: text["axes"].update(input_1=[1, 3])), INCONSISTENT, "'input_1'"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_hostile_numbers(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    name, change, code, *quoted = NUMBERS[case]
    unreadable(tmp_path, change(known[name]), code, *quoted)


# -- texts ---------------------------------------------------------------------------------------------------


def renamed(new: str) -> Callable[[Any], Any]:
    """The layer conv1 under another name, wherever the text has it."""
    return lambda text: json.dumps(text).replace('"conv1"', json.dumps(new))


def raw(old: str, new: str) -> Callable[[Any], str]:
    return lambda text: json.dumps(text).replace(old, new, 1)


NODES = ("network", "nodes")
LAYER = ("network", "layers", "conv1")
CONV = (*LAYER, "config")
TEXTS: dict[str, tuple[Any, ...]] = {
    "future version": (set_(2, "format"), "file-newer-version", "2"),
    "huge version": (set_(10**400, "format"), "file-newer-version", "10000000000000000000"),
    "true as version": (set_(True, "format"), "file-wrong-kind"),
    "deep list": (lambda t: raw('"heal":', '"heal":' + "[" * 900 + "]" * 900 + ', "x":')(t), MANIFEST, "64"),
    "deep scores": (set_(json.loads("[" * 70 + "]" * 70), "manifest", "scores"), MANIFEST, "64"),
    "key twice": (lambda t: json.dumps(t)[:-1] + ', "format": 1}', MANIFEST, "'format'"),
    "1e999": (raw('"scores": {}', '"scores": {"a": 1e999}'), MANIFEST, "1e999"),
    "NaN": (raw('"scores": {}', '"scores": {"a": NaN}'), MANIFEST, "NaN"),
    "half a character": (set_({"\ud800": 1}, "manifest", "scores"), MANIFEST),
    "many digits": (raw('"scores": {}', '"scores": {"a": ' + "9" * 5000 + "}"), MANIFEST, "JSON"),
    "unknown operation": (set_("eval", *NODES, 2, "target"), NETWORK, "'eval'"),
    "unknown function": (lambda t: t["network"]["nodes"][2].update(op="function", target="exec"), UNKNOWN),
    "cyclic graph": (set_([{"node": "relu2"}], *NODES, 1, "args"), NETWORK, "'relu2'"),
    "step of itself": (set_([{"node": "conv1"}], *NODES, 1, "args"), NETWORK, "'conv1'"),
    "stride 0": (set_([0, 0], *CONV, "stride"), NETWORK),
    "huge kernel": (set_([10**6, 10**6], *CONV, "kernel_size"), NETWORK),
    "huge padding": (set_([10**6, 10**6], *CONV, "padding"), COSTLY),
    "groups": (set_(2, *CONV, "groups"), NETWORK),
    "negative size": (set_([3, -8, 8], "manifest", "input_shape"), MANIFEST, "input_shape.1"),
    "huge image": (set_([3, 1 << 20, 1 << 20], "manifest", "input_shape"), COSTLY, "268,435,456"),
    "another size": (set_({"size": [9000, 9000]}, "manifest", "preprocessing"), INCONSISTENT, "(9000, 9000)"),
    "a format": (set_("%1000000000d", *CONV, "out_channels"), NETWORK, "out_channels='%1000000000d'"),
    "lists to repeat": (
        lambda t: t["network"]["layers"]["conv1"]["config"].update(
            dilation=[[1], [1]], kernel_size=[10**10, 10**10], padding="same"
        ),
        NETWORK,
    ),
    "a count of many digits": (set_(10**400, "manifest", "selection", "flops"), MANIFEST, "selection.flops"),
    "class twice": (lambda t: t["manifest"].update(task=[0, 0], classes=["0", "0"]), MANIFEST),
    "channel twice": (set_([0, 0, 1], "manifest", "axes", "conv1", "kept"), MANIFEST),
    "channel that is not there": (set_([99], "manifest", "axes", "conv1", "kept"), MANIFEST),
    "name of an attribute": (renamed("forward"), TENSOR, "network.forward.weight"),
    "name of a flag": (renamed("training"), NETWORK, "training"),
    "name of dots": (renamed("..."), NETWORK),
    "name that is deep": (renamed(".".join("a" * 200)), LARGE, "32"),
    "name with a newline": (renamed("a\nb\x1b[2J"), TENSOR),
    "name with NUL": (renamed("a\0b"), TENSOR),
    "name of a path": (renamed("../../etc/passwd"), NETWORK),
    "many steps": (lambda t: t["network"]["nodes"].extend(t["network"]["nodes"][1:2] * 9000), LARGE, "9,011"),
    "another kind": (set_("yacht", "manifest", "kind"), "file-wrong-kind", "'yacht'"),
    "a list": (lambda t: "[1]", "file-wrong-kind"),
    "extra key": (set_(1, "manifest", "evil"), MANIFEST, "manifest.evil"),
    "unknown op": (set_("exec", *NODES, 1, "op"), MANIFEST, "network.nodes.1.op"),
    "layer type": (set_("Popen", *LAYER, "type"), UNKNOWN, "'Popen'"),
    "layer argument": (set_(1, *CONV, "evil"), NETWORK, "'evil'"),
    "layer size": (set_(10**9, *CONV, "in_channels"), NETWORK),
    "negative": (set_(-1, *CONV, "out_channels"), NETWORK),
    "argument": (set_([{"import": "os"}], *NODES, 1, "args"), UNKNOWN),
    "forward reference": (set_([{"node": "output"}], *NODES, 1, "args"), NETWORK),
    "two inputs": (set_("input", *NODES, 1, "op"), NETWORK),
    "no steps": (set_([], *NODES), NETWORK),
    "no output": (set_([], *NODES, -1, "args"), NETWORK, "output"),
    "missing layer": (lambda t: t["network"]["layers"].pop("conv1") and None, NETWORK, "'conv1'"),
    "another class": (set_(["1", "2"], "manifest", "classes"), MANIFEST),
    "hash": (set_("x", "manifest", "source", "sha256"), MANIFEST, "manifest.source.sha256"),
    "width": (set_(True, "manifest", "reject"), NETWORK),
    "input": (set_([3], "manifest", "input_shape"), INCONSISTENT),
    "long message": (set_("x" * 100_000, *LAYER, "type"), MANIFEST),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_hostile_text(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    change, code, *quoted = TEXTS[case]
    unreadable(tmp_path, with_text(known["uncut"], change), code, *quoted)


# -- networks that cost too much ------------------------------------------------------------------------------


def stepped(
    seed: Seed, *steps: tuple[Any, ...], image: tuple[int, ...] = (3, 8, 8), axes: Sequence[int] = (1, 2, 3)
) -> bytes:
    """A component without layers: these steps in a row ("$" is the last value, "@" the image), then a mean."""
    text = seed.text
    nodes: list[dict[str, Any]] = [{"name": "x", "op": "input"}]
    last = "x"
    tail = (("mean", "$", list(axes)), ("unsqueeze", "$", 1), ("expand", "$", -1, 1))
    for index, (target, *args) in enumerate((*steps, *tail)):
        put = json.loads(json.dumps(args).replace('"$"', json.dumps({"node": last})).replace('"@"', '{"node": "x"}'))
        last = f"s{index}"
        nodes.append({"name": last, "op": "function", "target": target, "args": put})
    nodes.append({"name": "out", "op": "output", "args": [{"node": last}]})
    text["network"] = {"nodes": nodes, "layers": {}}
    text["manifest"]["statistics"] = None
    text["manifest"]["input_shape"] = list(image)
    return built({"__metadata__": {"brickyard": json.dumps(text)}}, b"")


def views(times: int) -> tuple[Any, ...]:
    """A value that is cut into 15,360 pieces so often."""
    return ("flatten", "$", 1), ("repeat", "$", 1, 80), *[("split", "$", 1, 1), ("cat", "$", 1)] * times


BOMBS: dict[str, tuple[Any, ...]] = {
    "a huge step": ((("repeat", "$", 1, 1, 10**5, 10**5),), COSTLY, "1,920,000,000,000"),
    "many steps at the limit": ((("repeat", "$", 1, 1, 300, 300), *[("relu", "$")] * 200), COSTLY, "4.3e+09"),
    "a view of what is not there": (
        (("unsqueeze", "$", 0), ("expand", "$", 1 << 40, -1, -1, -1, -1), ("sum", "$", 0)),
        COSTLY,
    ),
    "pooling windows": ((("repeat", "$", 1, 1, 200, 200), ("max_pool2d", "$", 101, 1, 50)), COSTLY),
    "products": ((("repeat", "$", 1, 1, 400, 400), ("matmul", "$", "$")), COSTLY),
    "a product of four": (
        (("repeat", "$", 1, 1, 13, 13), ("einsum", "abij,abkl,abij,abkl->ab", "$", "$", "$", "$")),
        COSTLY,
    ),
    "pieces": ((("repeat", "$", 1, 1, 99, 99), ("flatten", "$", 1), ("unbind", "$", 1)), COSTLY, "16,384"),
    "pieces of one": ((("repeat", "$", 1, 1, 99, 99), ("flatten", "$", 1), ("split", "$", 1, 1)), COSTLY, "16,384"),
    "towers of powers": ((("size", "$", 2), *[("pow", "$", "$")] * 9, ("add", "@", "$")), NETWORK),
    "long numbers": ((("size", "$", 2), *[("mul", "$", "$")] * 40, ("add", "@", "$")), NETWORK),
    "long shapes": ((("shape", "$"), *[("add", "$", "$")] * 40, ("reshape", "@", "$")), NETWORK, "128"),
    "views": (views(9), COSTLY, "131,072"),
    "many shapes": ((*[("pad", "$", [k % 2, 1, 0, 0]) for k in range(600)],), COSTLY, "different"),
    "many settings": ((*[("softshrink", "$", 0.01 * k) for k in range(600)],), COSTLY, "different"),
    "much memory": ((("repeat", "$", 1, 1, 600, 600),), COSTLY, "bytes"),
    "a format": ((("mod", "%1000000000d", 1), ("add", "@", "$")), UNKNOWN),
    "a long text": ((("mul", "abc", 10**10), ("add", "@", "$")), NETWORK),
    "a long list": ((("mul", [1], 10**10), ("add", "@", "$")), NETWORK),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_that_would_cost_much(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    steps, code, *quoted = BOMBS[case]
    content = stepped(known["uncut"], *steps)
    assert len(content) < 80_000
    unreadable(tmp_path, content, code, *quoted)


def test_without_the_bound_such_a_file_is_read(known: dict[str, Seed], tmp_path: Path, monkeypatch) -> None:
    content = stepped(known["uncut"], ("repeat", "$", 1, 1, 300, 300), *[("relu", "$")] * 200)
    unreadable(tmp_path, content, COSTLY)
    monkeypatch.setattr(limits, "WORK", 1 << 60)
    assert isinstance(by.load(tmp_path / "case.safetensors"), by.Component)


def test_what_is_just_below_the_bound_runs_in_time(known: dict[str, Seed], tmp_path: Path) -> None:
    for steps in ([("repeat", "$", 1, 1, 100, 100), *[("relu", "$")] * 30], [("repeat", "$", 1, 1, 250, 250)]):
        part = loaded(tmp_path, stepped(known["uncut"], *steps))
        with limited():
            assert answers(part, IMAGES).shape == (2, 1)


def test_some_pieces_are_not_many(known: dict[str, Seed], tmp_path: Path) -> None:
    part = loaded(tmp_path, stepped(known["uncut"], *views(2), axes=[1]))
    assert len(part.predict(IMAGES)) == 2


WIDE = 1 << 24  # channels that a structure tells of


def widened(count: int) -> Callable[[Any], None]:
    """A structure of the source that has so many channels in its second layer, and the axis that goes with it."""

    def change(text: Any) -> None:
        layers = text["skeleton"]["layers"]
        layers["conv2"]["config"]["out_channels"] = layers["bn2"]["config"]["num_features"] = count
        layers["linear"]["config"]["in_features"] = text["manifest"]["axes"]["conv2"]["size"] = count

    return change


@pytest.mark.parametrize("form", ["padded", "grouped", "union"])
def test_a_structure_that_tells_of_many_channels_is_not_followed(form, known: dict[str, Seed], tmp_path: Path) -> None:
    unreadable(tmp_path, with_text(known["chain"], widened(WIDE)), MANIFEST, "16,777,")
    part = loaded(tmp_path, with_text(known["chain"], widened(limits.CHANNELS - 20)))
    before = reset_peak()
    with limited(), refused("surgery-too-costly"):
        by.assemble([part, part], form=form, on_duplicate="rename")
    assert peak() - before < 64 << 20
    few = loaded(tmp_path, with_text(known["chain"], widened(2000)))  # the control
    if form != "union":
        assert by.assemble([few, few], form=form, on_duplicate="rename").predict_proba(IMAGES).shape == (2, 4)


def test_a_structure_whose_values_are_large_is_not_followed(known: dict[str, Seed], tmp_path: Path) -> None:
    def change(side: int) -> Callable[[Any], None]:
        steps = ("repeat", [1, 1, side, side]), ("flatten", 1), ("reshape", [-1, 3, 8 * side, 8 * side])

        def made(text: Any) -> None:
            nodes, last = text["skeleton"]["nodes"], text["skeleton"]["nodes"][0]["name"]
            for place, (target, *args) in enumerate(steps):
                step = {"name": f"n{place}", "op": "function", "target": target, "args": [{"node": last}, *args]}
                nodes.insert(1 + place, step)
                last = step["name"]
            nodes[4]["args"] = [{"node": last}]

        return made

    for side, code in ((300, "surgery-too-costly"), (4, "surgery-check-failed")):
        part = loaded(tmp_path, with_text(known["chain"], change(side)))
        before = reset_peak()
        with limited(), refused(code):  # the small one is followed, and is not the structure of the part
            by.assemble([part, part], form="padded", on_duplicate="rename")
        assert peak() - before < 64 << 20


def test_many_axes_are_not_read(known: dict[str, Seed], tmp_path: Path) -> None:
    more = {f"a{k}": {"size": 1, "kept": [0]} for k in range(limits.AXES)}
    unreadable(tmp_path, with_text(known["uncut"], lambda t: t["manifest"]["axes"].update(more)), MANIFEST, "4,096")
    few = dict(list(more.items())[:1000])
    part = loaded(tmp_path, with_text(known["uncut"], lambda t: t["manifest"]["axes"].update(few)))
    assert "a100" in report([part])


def test_routes_of_many_axes_take_what_they_draw(known: dict[str, Seed], tmp_path: Path) -> None:
    def file(count: int) -> bytes:
        header, text = known["relevance"].header, known["relevance"].text
        start = max(sum(pair) for pair in text["axes"].values())
        text["axes"].update({f"a{k}": [start + k, 1] for k in range(count)})
        text["layers"]["more"] = False
        classes, every = len(text["classes"]), range(start, start + count)
        made = {
            "scores": ("F64", [3, classes, start + count], b"\0\0\0\0\0\0\xf0?" * (3 * classes * (start + count))),
            "reads.more": ("I64", [count], struct.pack(f"<{count}q", *every)),
            "writes.more": ("I64", [1], bytes(8)),
            "hard.more": ("BOOL", [classes, count], b"\1" * (classes * count)),
            "sums.more": ("F32", [classes, 1, count], b"\0\0\x80?" * (classes * count)),
        }
        for name, (kind, size, _) in made.items():
            header[name] = {"dtype": kind, "shape": size, "data_offsets": [0, 0]}
        header["__metadata__"]["brickyard"] = json.dumps(text)
        return _fitting(header, known["relevance"].body, {name: content for name, (*_, content) in made.items()})

    unreadable(tmp_path, file(limits.AXES), LARGE, "4,096")
    found = loaded(tmp_path, file(3000))
    before = reset_peak()
    assert "Decision routes" in report([found])
    assert peak() - before < 64 << 20  # a table of bundles and channels would take 72 MB and its copies


HOLLOW = "[" + "[]," * limits.HOLDERS + "[]]"


def test_lists_of_nothing_are_not_read(known: dict[str, Seed], tmp_path: Path) -> None:
    content = with_text(known["uncut"], lambda t: json.dumps(t).replace('"scores": {}', f'"scores": {{"a": {HOLLOW}}}'))
    unreadable(tmp_path, content, MANIFEST, "524,")
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{}}, "more": {HOLLOW}}}')
    before = reset_peak()
    with refused("file-damaged", "524,"):
        read_weights(index)
    (tmp_path / "names.json").write_text(HOLLOW)
    with refused("file-manifest-invalid", "524,"):
        class_names(str(tmp_path / "names.json"))
    assert peak() - before < 32 << 20
    index.write_text('{"weight_map": {}, "more": [[], []]}')  # the control
    assert read_weights(index)[0] == {}


def test_the_parts_of_an_assembly_share_one_bound(known: dict[str, Seed], tmp_path: Path) -> None:
    seed = known["parallel"]
    content = stepped(known["uncut"], ("repeat", "$", 1, 1, 300, 300), *[("relu", "$")] * 4)
    nodes = json.loads(parse(content)[0]["__metadata__"]["brickyard"])["network"]["nodes"]
    nodes[-2]["args"][-1] = 4

    def file(count: int) -> bytes:
        text, header = seed.text, seed.header
        for part in text["manifest"]["parts"]:
            part["statistics"] = None
        text["networks"][:count] = [{"nodes": nodes, "layers": {}}] * count
        header["__metadata__"]["brickyard"] = json.dumps(text)
        for name in tensor_names(header):
            if name.startswith(("familiarity", *(f"networks.{i}." for i in range(count)))):
                del header[name]
        return _fitting(header, seed.body, {})

    assert isinstance(loaded(tmp_path, file(1)), by.Assembly)
    unreadable(tmp_path, file(2), COSTLY)


@pytest.mark.parametrize(
    "steps", [[("relu_", "$")], [("iadd", "$", 1)], [("flatten", "$", 1), ("mul_", "$", 0), ("add", "@", 0)]]
)
def test_a_file_does_not_change_the_images_of_its_caller(steps, known: dict[str, Seed], tmp_path: Path) -> None:
    part = loaded(tmp_path, stepped(known["uncut"], *steps))
    images = -IMAGES
    part(images)
    assert torch.equal(images, -IMAGES)
    part.network.keeps_input = True  # the control: the same network without the copy
    part(images)
    assert not torch.equal(images, -IMAGES)


def test_a_file_does_not_change_its_own_numbers(known: dict[str, Seed], tmp_path: Path) -> None:
    header, text = known["uncut"].header, known["uncut"].text
    text["network"]["tensors"] = {"own": {"kind": "buffer", "shape": [1]}}
    text["network"]["nodes"][1:1] = [
        {"name": "own", "op": "tensor", "target": "own"},
        {"name": "more", "op": "function", "target": "iadd", "args": [{"node": "own"}, 1]},
    ]
    header["__metadata__"]["brickyard"] = json.dumps(text)
    header["network.own"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    unreadable(tmp_path, _fitting(header, known["uncut"].body, {"network.own": bytes(4)}), NETWORK, "'own'")


def test_meta_shapes_take_no_memory_and_a_long_text_takes_its_share(known: dict[str, Seed], tmp_path: Path) -> None:
    huge = {"type": "Linear", "config": {"in_features": 1 << 20, "out_features": 1 << 20, "bias": False}}
    content = with_text(known["uncut"], set_(huge, "network", "layers", "more"))
    unreadable(tmp_path, content, TENSOR, "'network.more.weight'")  # 4 TiB, had they been taken
    many = [[] for _ in range(100_000)]
    content = with_text(known["uncut"], set_({"a": many}, "manifest", "scores"))
    with limited():
        assert isinstance(loaded(tmp_path, content), by.Component)


def test_memory_for_a_long_text_is_that_of_the_text(known: dict[str, Seed], tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "case.safetensors"
    path.write_bytes(with_text(known["uncut"], set_({"a": "x" * 2_000_000}, "manifest", "scores")))

    def taken() -> int:
        """The most that Python held at one time: unlike what the process has, it tells memory that was used before."""
        tracemalloc.start()
        assert isinstance(by.load(path), by.Component)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert taken() < FLOOR + 2 * path.stat().st_size
    back = re.compile(r'"(?:[^"\\]|\\.)*"')  # the control: an expression that goes back
    monkeypatch.setattr(limits, "STRING", back)
    assert taken() > FLOOR + 2 * path.stat().st_size


def test_time_does_not_grow_with_the_square_of_the_classes(known: dict[str, Seed], tmp_path: Path) -> None:
    """A square of so many would take far more than any limit; what grows with them takes a second or two."""
    names = [str(k) for k in range(300_000)]

    def change(text: Any) -> None:
        text["manifest"]["source"]["classes"] = names
        text["manifest"].update(classes=names[:-1], task=list(range(299_999)), statistics=None)

    unreadable(tmp_path, with_text(known["uncut"], change), NETWORK, "299999")


def test_a_network_without_parameters_runs(known: dict[str, Seed], tmp_path: Path) -> None:
    part = loaded(tmp_path, stepped(known["uncut"], ("tanh", "$")))
    torch.testing.assert_close(part.predict_proba(IMAGES), torch.ones(2, 1, dtype=torch.float64))
    torch.testing.assert_close(part(IMAGES)[:, 0], IMAGES.tanh().mean((1, 2, 3)))


ROWS = ("size", "$", 0), ("mod", "$", 4), ("reshape", "@", [{"node": "s1"}, -1]), ("cumsum", "$", 1)
FIXED = ("squeeze", "$"), ("flatten", "$", 1), ("reshape", "$", [2, 3, 8, 8])


def test_a_file_that_loads_gives_one_answer_for_each_image(known: dict[str, Seed], tmp_path: Path) -> None:
    unreadable(tmp_path, stepped(known["uncut"], *FIXED), NETWORK, "(3, 8, 8)")  # it fits two images
    content = stepped(known["uncut"], *ROWS, axes=[1])  # as many rows as images, up to three
    part = loaded(tmp_path, content)
    images = torch.rand(7, 3, 8, 8)
    for count in (1, 2, 3):
        assert len(part.predict(images[:count])) == count
    for count in (4, 5, 7):
        with refused("data-wrong-size", f"({count}, 3, 8, 8)"):
            part.predict(images[:count])


def test_a_file_that_runs_on_paper_only_is_refused(known: dict[str, Seed], tmp_path: Path, monkeypatch) -> None:
    steps = ("argmax", "$", 1), ("float", "$"), ("bitwise_not", "$"), ("unsqueeze", "$", 1)
    unreadable(tmp_path, stepped(known["uncut"], *steps), NETWORK, "bitwise_not")
    monkeypatch.setattr("brickyard.component._predictor.CHEAP", 0)  # one that costs more runs once
    unreadable(tmp_path, stepped(known["uncut"], *steps), NETWORK, "on 1 images")
    monkeypatch.setattr("brickyard.component._predictor.AFFORDABLE", 0)  # the control: without a run, nobody sees it
    part = loaded(tmp_path, stepped(known["uncut"], *steps))
    with refused("data-wrong-size", "bitwise_not"):
        part.predict(IMAGES)


# -- sources -------------------------------------------------------------------------------------------------


def test_weights_that_tell_of_more_than_they_hold(known: dict[str, Seed], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = torch.load(io.BytesIO(known["plain"].content), weights_only=True)
    first = next(iter(state))
    huge = 1 << 20, 1 << 20
    for value in (torch.zeros(1).expand(huge), torch.empty(huge, device="meta"), torch.eye(3).to_sparse()):
        torch.save({**state, first: value}, path)
        with refused("file-weights-not-plain"):
            read_weights(path)
    torch.save({0: torch.zeros(1)}, path)
    with refused("file-weights-not-plain"):
        read_weights(path)
    torch.save(state, path)
    assert set(read_weights(path)[0]) == set(state)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "weights.pt")
    with Watch().over(str(tmp_path / "weights.pt")) as seen, refused("file-weights-unsafe"):
        read_weights(tmp_path / "weights.pt")
    assert not (tmp_path / "pwned").exists()
    assert not [event for event in seen if "system" in event]
    with zipfile.ZipFile(tmp_path / "weights.pt") as archive:  # the control: it would run
        assert b"system" in next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_a_source_that_tells_of_a_huge_network(known: dict[str, Seed], tmp_path: Path) -> None:
    for change, code, *quoted in (
        (lambda t: t["options"].update(width=60.0), "file-weights-mismatch", "LeNet5"),
        (lambda t: t.update(input_shape=[3, 10**6, 10**6]), MANIFEST, "input_shape"),
        (lambda t: t["options"].update(classes=10**12), "option-range"),
    ):
        path = tmp_path / "source.safetensors"
        path.write_bytes(with_text(known["source"], change))
        with limited(), refused(code, *quoted):
            load_source(str(path))


def test_what_lies_beside_weights_is_hostile_too(known: dict[str, Seed], tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(known["plain"].content)
    for mean in (5, {"a": 1}, "abc"):
        (tmp_path / "w.json").write_text(json.dumps({"arch": "lenet5", "mean": mean, "std": [1]}))
        assert load_source("zoo:lenet5", weights=tmp_path / "w.pt").preprocessing == by.Preprocessing()
    (tmp_path / "w.json").write_text(json.dumps({"arch": "lenet5", "mean": [0.5], "std": [float("nan")]}))
    with refused(MANIFEST):
        load_source("zoo:lenet5", weights=tmp_path / "w.pt")


# -- nothing else happens ------------------------------------------------------------------------------------


def test_reading_opens_nothing_else_and_the_watch_sees_what_would(known: dict[str, Seed], tmp_path: Path) -> None:
    watch = Watch()
    for name in ("uncut", "gated", "relevance"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(known[name].content)
        by.load(path)
        with watch.over(str(path)) as seen:
            found = by.load(path)
            if not isinstance(found, by.Relevance):
                found.predict_proba(IMAGES)
        assert seen == []
    with watch.over(str(path)) as seen:  # the control
        (tmp_path / "other").write_text("")
        exec("1")  # noqa: S102
        import antigravity as _  # noqa: F401
    assert {event.split()[0] for event in seen} >= {"open", "exec", "import"}


def test_the_judge_sees_what_is_wrong(known: dict[str, Seed], tmp_path: Path, monkeypatch) -> None:
    """Controls: without a protection, the same file is a find."""
    seed = known["uncut"]
    judge = Judge({"file": [seed]}, tmp_path, 0)
    judge.judge("file", seed, seed.content, "none")
    twice = with_text(seed, lambda t: json.dumps(t)[:-1] + ', "format": 1}')
    deep = stepped(seed, ("relu_", "$"))
    assert judge.judge("file", seed, seed.content, "same").problem == ""
    assert judge.judge("file", seed, twice, "text").outcome == "refused"
    monkeypatch.setattr("brickyard.network._stored.match_types", lambda *args: 1 / 0)
    assert "ZeroDivisionError" in judge.judge("file", seed, seed.content, "same").problem
    monkeypatch.undo()
    assert judge.judge("file", seed, deep, "network").problem == ""
    monkeypatch.setattr("brickyard.network._network.Network.taken", lambda self, x: x.clamp_max_(0))
    assert "changed the images" in judge.judge("file", seed, deep, "network").problem
    monkeypatch.undo()
    other = with_text(seed, set_("another", "manifest", "created"))
    assert differs(seed.content, seed.content) == ""
    assert "created" in differs(seed.content, other)


@pytest.mark.slow
def test_a_slice_of_the_fuzzer(tmp_path: Path) -> None:
    """`python tests/fuzzing --count 200000` reads many more."""
    assert threading.active_count() < 50
    judge = Judge(seeds(tmp_path), tmp_path, 1)
    for kind, items in judge.seeds.items():
        for seed in items:
            judge.judge(kind, seed, seed.content, "none")
    for index in range(100):
        judge.case(-1 - index)  # what is imported late is imported
    torch.manual_seed(0)
    found = [judge.case(index) for index in range(1000)]
    assert [(v.kind, v.how, v.problem) for v in found if v.problem] == []
    outcomes = [v.outcome for v in found]
    assert outcomes.count("loaded") > 70
    assert outcomes.count("refused") > 200
    assert {v.how for v in found if v.outcome == "loaded"} >= {"same", "network", "text", "tensor"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere(known: dict[str, Seed], tmp_path: Path, data: st.DataObject) -> None:
    def change(text: Any) -> None:
        holder, key = data.draw(st.sampled_from(places(text)))
        holder[key] = data.draw(JSON)

    content = with_text(known["uncut"], change)
    try:
        found = loaded(tmp_path, content)
    except BrickyardError:
        return
    again = found.save(tmp_path / "again.safetensors", overwrite=True)
    assert differs(content, again.read_bytes()) == ""


# -- what a component tells of its source ---------------------------------------------------------------------

STRUCTURES: dict[str, Callable[[Any], Any]] = {
    "a step that does not run": set_([{"node": "conv1"}, 5], "skeleton", "nodes", 2, "args"),
    "another size": set_(7, "skeleton", "layers", "conv2", "config", "out_channels"),
    "pieces": lambda t: t["skeleton"]["nodes"].insert(
        1, {"name": "n", "op": "function", "target": "unbind", "args": [{"node": t["skeleton"]["nodes"][0]["name"]}, 9]}
    ),
    "other channels": lambda t: t["manifest"]["axes"]["conv1"].update(kept=t["manifest"]["axes"]["conv1"]["kept"][:1]),
    "no such axis": lambda t: t["manifest"]["axes"].pop("conv1") and None,
}


@pytest.mark.parametrize("form", ["padded", "grouped", "union"])
@pytest.mark.parametrize("case", STRUCTURES)
def test_a_structure_that_is_not_the_parts_is_one_clear_error(case, form, known: dict[str, Seed], tmp_path) -> None:
    path, other = tmp_path / "case.safetensors", tmp_path / "other.safetensors"
    path.write_bytes(with_text(known["chain"], STRUCTURES[case]))
    other.write_bytes(known["chain"].content)
    part, honest = by.load(path), by.load(other)
    united = (case, form) == ("other channels", "union")  # this far it is a part
    with refused("surgery-union-classes" if united else "surgery-structure-mismatch"):
        by.assemble([honest, part], form=form, on_duplicate="rename")
    assert by.assemble([honest, part], on_duplicate="rename").predict_proba(IMAGES).shape == (2, 4)
    if form != "union":
        whole = by.assemble([honest, by.load(other)], form=form, on_duplicate="rename")
        assert whole.predict_proba(IMAGES).shape == (2, 4)
