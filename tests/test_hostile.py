"""Files are hostile: each is an object that equals what it says, or one clear error, in bounded time and memory.

Cases by hand, with a part of the message that each must give; then a slice of the fuzzer (`python tests/fuzzing`).
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.network import _cost_limit as bounding
from brickyard.recipes._reader import load_recipe
from brickyard.sources._loading import load_source, read_weights
from brickyard.storage import _safefile as container
from brickyard.yard._index import read_index
from fuzzing.judging import FLOOR, Judge, Watch, answers, differs, limited, peak, reset_peak
from fuzzing.mutating import _fitting, tensor_names
from fuzzing.seeding import Seed, built, seeds

Header = dict[str, Any]
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seed]:
    """Small valid files by name."""
    return {seed.name: seed for items in seeds(tmp_path_factory.mktemp("seeds")).values() for seed in items}


def refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Reading must be one BrickyardError with this in its message, in one printable line."""
    path = tmp_path / "case.safetensors"
    path.write_bytes(content)
    with limited(), pytest.raises(BrickyardError, match=message) as caught:
        by.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def with_text(seed: Seed, change: Callable[[Any], Any]) -> bytes:
    """The file with its text changed in place, or replaced by what `change` returns."""
    header, text = copy.deepcopy(seed.header), seed.text
    new = change(text)
    header["__metadata__"]["brickyard"] = new if isinstance(new, str) else json.dumps(text)
    return built(header, seed.body)


# -- headers -------------------------------------------------------------------------------------------------


def swap_offsets(header: Header) -> None:
    a, b = tensor_names(header)[:2]
    header[a]["data_offsets"] = header[b]["data_offsets"]


def shape(*size: int) -> Callable[[Header], None]:
    return lambda header: header["network.conv1.weight"].update(shape=list(size))


HEADERS: dict[str, tuple[Callable[[Header], Any], str]] = {
    "overlapping": (swap_offsets, "not a whole safetensors file"),
    "huge shape": (shape(1 << 40, 1 << 40), "not a whole safetensors file"),
    "shape of another size": (shape(1, 1, 1, 1), "not a whole safetensors file"),
    "negative shape": (shape(-1, 3), "not a whole safetensors file"),
    "reversed offsets": (lambda h: h["network.conv1.weight"]["data_offsets"].reverse(), "not a whole safetensors file"),
    "offsets beyond the end": (
        lambda h: h["network.conv1.weight"].update(data_offsets=[0, 1 << 40]),
        "not a whole safetensors file",
    ),
    "unknown type": (lambda h: h["network.conv1.weight"].update(dtype="X9"), "not a whole safetensors file"),
    "no text": (lambda h: h.pop("__metadata__") and None, "without the text 'brickyard'"),
    "text is a number": (lambda h: h["__metadata__"].update(brickyard=1), "not a whole safetensors file"),
    "renamed tensor": (
        lambda h: h.update({"../../x\n\x1b[2J": h.pop("network.conv1.weight")}),
        "'network.conv1.weight' is missing",
    ),
    "two names in one": (
        lambda h: json.dumps(h).encode()[:-1] + b', "network.conv1.bias": {}}',
        "not a whole safetensors file",
    ),
    "deep": (lambda h: b'{"a":' * 100_000, "not a whole safetensors file"),
    "not UTF-8": (lambda h: b'{"\xff\xfe":1}', "not a whole safetensors file"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    change, message = HEADERS[case]
    header = copy.deepcopy(known["uncut"].header)
    made = change(header)
    refused(tmp_path, built(made if isinstance(made, bytes) else header, known["uncut"].body), message)


@pytest.mark.parametrize("size", [0, 7, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_with_a_wrong_length(size: int, known: dict[str, Seed], tmp_path: Path) -> None:
    refused(tmp_path, struct.pack("<Q", size) + known["uncut"].content[8:], r"safetensors")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for place in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(BrickyardError, match=r"cannot be (read|used)"):
            by.load(place)
    assert time.monotonic() - start < 5


# -- numbers -------------------------------------------------------------------------------------------------


def as_type(name: str, kind: str, size: int) -> Callable[[Seed], bytes]:
    def change(seed: Seed) -> bytes:
        header = copy.deepcopy(seed.header)
        start, end = header[name]["data_offsets"]
        numbers = (end - start) // {"F32": 4, "I64": 8, "BOOL": 1}[header[name]["dtype"]]
        header[name]["dtype"] = kind
        return _fitting(header, seed.body, {name: bytes(numbers * size)})

    return change


def filled(name: str, piece: bytes) -> Callable[[Seed], bytes]:
    def change(seed: Seed) -> bytes:
        header = copy.deepcopy(seed.header)
        start, end = header[name]["data_offsets"]
        return _fitting(header, seed.body, {name: piece * ((end - start) // len(piece))})

    return change


def without(name: str) -> Callable[[Seed], bytes]:
    def change(seed: Seed) -> bytes:
        header = copy.deepcopy(seed.header)
        del header[name]
        return _fitting(header, seed.body, {})

    return change


NUMBERS: dict[str, tuple[str, Callable[[Seed], bytes], str]] = {
    "NaN": ("uncut", filled("network.conv1.bias", struct.pack("<f", float("nan"))), "not finite"),
    "Inf": ("uncut", filled("network.conv1.bias", struct.pack("<f", float("-inf"))), "not finite"),
    "float8": ("uncut", as_type("network.conv1.bias", "F8_E4M3", 1), "float8_e4m3fn, which our files do not hold"),
    "complex": ("uncut", as_type("network.bn1.num_batches_tracked", "C64", 8), "do not hold|not a whole"),
    "mixed types": ("uncut", as_type("network.conv1.bias", "F64", 8), "does not run"),
    "counts as bytes": ("uncut", as_type("network.bn1.num_batches_tracked", "U8", 1), "uint8.*int64 is expected"),
    "neither true nor false": ("relevance", filled("hard.conv2", b"\x02"), "neither true nor false"),
    "half of a scaling": ("grouped", without("scaling.shift"), "one of scaling.matrix and scaling.shift"),
    "missing": ("uncut", without("network.conv1.bias"), "'network.conv1.bias' is missing"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_hostile_numbers(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    name, change, message = NUMBERS[case]
    refused(tmp_path, change(known[name]), message)


# -- texts ---------------------------------------------------------------------------------------------------


def set_(value: Any, *keys: Any) -> Callable[[Any], None]:
    def change(text: Any) -> None:
        for key in keys[:-1]:
            text = text[key]
        text[keys[-1]] = value

    return change


def renamed(new: str) -> Callable[[Any], Any]:
    """The layer conv1 under another name, wherever the text has it."""
    return lambda text: json.dumps(text).replace('"conv1"', json.dumps(new))


def raw(old: str, new: str) -> Callable[[Any], str]:
    return lambda text: json.dumps(text).replace(old, new, 1)


NODES = ("network", "nodes")
TEXTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "future version": (set_(2, "format"), "format version 2; this Brickyard reads version 1"),
    "huge version": (set_(10**400, "format"), "format version 1000.*install a version"),
    "true as version": (set_(True, "format"), "without a format version"),
    "deep list": (lambda t: raw('"heal":', '"heal":' + "[" * 900 + "]" * 900 + ', "x":')(t), "nested deeper than 64"),
    "deep scores": (set_(json.loads("[" * 70 + "]" * 70), "manifest", "scores"), "nested deeper than 64"),
    "key twice": (lambda t: json.dumps(t)[:-1] + ', "format": 1}', "the key 'format' is there twice"),
    "1e999": (raw('"scores": {}', '"scores": {"a": 1e999}'), "the number 1e999 is too large"),
    "NaN": (raw('"scores": {}', '"scores": {"a": NaN}'), "NaN is not allowed"),
    "half a character": (set_({"\ud800": 1}, "manifest", "scores"), "half a character"),
    "many digits": (raw('"scores": {}', '"scores": {"a": ' + "9" * 5000 + "}"), "not JSON"),
    "unknown operation": (set_("eval", *NODES, 2, "target"), "'eval', which is not in the file"),
    "unknown function": (lambda t: t["network"]["nodes"][2].update(op="function", target="exec"), "not an allowed"),
    "cyclic graph": (set_([{"node": "relu2"}], *NODES, 1, "args"), "uses 'relu2', which is no earlier step"),
    "step of itself": (set_([{"node": "conv1"}], *NODES, 1, "args"), "uses 'conv1', which is no earlier step"),
    "stride 0": (set_([0, 0], "network", "layers", "conv1", "config", "stride"), "does not run|cannot be made"),
    "huge kernel": (
        set_([10**6, 10**6], "network", "layers", "conv1", "config", "kernel_size"),
        "does not run|cannot be made",
    ),
    "huge padding": (set_([10**6, 10**6], "network", "layers", "conv1", "config", "padding"), "is the limit"),
    "groups": (set_(2, "network", "layers", "conv1", "config", "groups"), "divisible by groups"),
    "negative size": (set_([3, -8, 8], "manifest", "input_shape"), "input_shape.1"),
    "huge image": (set_([3, 1 << 20, 1 << 20], "manifest", "input_shape"), "numbers for an image; .* is the limit"),
    "resized to another size": (
        set_({"size": [9000, 9000]}, "manifest", "preprocessing"),
        r"makes images of \(9000, 9000\), and its network takes \(8, 8\)",
    ),
    "a format": (
        set_("%1000000000d", "network", "layers", "conv1", "config", "out_channels"),
        "out_channels='%1000000000d': numbers are expected",
    ),
    "lists to repeat": (
        lambda t: t["network"]["layers"]["conv1"]["config"].update(
            dilation=[[1], [1]], kernel_size=[10**10, 10**10], padding="same"
        ),
        "numbers are expected",
    ),
    "a count of many digits": (set_(10**400, "manifest", "selection", "flops"), "selection.flops"),
    "class twice": (
        lambda t: t["manifest"].update(task=[0, 0], classes=["0", "0"]),
        "the task has a class twice",
    ),
    "channel twice": (set_([0, 0, 1], "manifest", "axes", "conv1", "kept"), "are not each one of"),
    "channel that is not there": (set_([99], "manifest", "axes", "conv1", "kept"), "are not each one of"),
    "name of an attribute": (renamed("forward"), "'forward' is no free attribute name"),
    "name of dots": (renamed("..."), "no free attribute name"),
    "name that is deep": (renamed(".".join("a" * 200)), "lies deeper than 32 others"),
    "name with a newline": (renamed("a\nb\x1b[2J"), r"'network.a b.x1b\[2J.weight' is missing|is missing"),
    "name with NUL": (renamed("a\0b"), "is missing"),
    "name of a path": (renamed("../../etc/passwd"), "no free attribute name"),
    "many steps": (
        lambda t: t["network"]["nodes"].extend(t["network"]["nodes"][1:2] * 9000),
        "9,011 steps; 8,192 is the limit",
    ),
    "long message": (set_("x" * 100_000, "network", "layers", "conv1", "type"), "type"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_hostile_text(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    change, message = TEXTS[case]
    refused(tmp_path, with_text(known["uncut"], change), message)


def test_axes_of_relevances_that_do_not_lie_side_by_side(known: dict[str, Seed], tmp_path: Path) -> None:
    def change(text: Any) -> None:
        axis = next(iter(text["axes"]))
        text["axes"][axis] = [text["axes"][axis][0] + 1, text["axes"][axis][1]]

    refused(tmp_path, with_text(known["relevance"], change), "starts at channel")


# -- networks that cost too much ------------------------------------------------------------------------------


def stepped(seed: Seed, *steps: tuple[Any, ...], image: tuple[int, ...] = (3, 8, 8)) -> bytes:
    """A component without layers: these steps in a row ("$" is the last value, "@" the image), then a mean."""
    text = seed.text
    nodes: list[dict[str, Any]] = [{"name": "x", "op": "input"}]
    last = "x"
    tail = (("mean", "$", [1, 2, 3]), ("unsqueeze", "$", 1), ("expand", "$", -1, 1))
    for index, (target, *args) in enumerate((*steps, *tail)):
        put = json.loads(json.dumps(args).replace('"$"', json.dumps({"node": last})).replace('"@"', '{"node": "x"}'))
        last = f"s{index}"
        nodes.append({"name": last, "op": "function", "target": target, "args": put})
    nodes.append({"name": "out", "op": "output", "args": [{"node": last}]})
    text["network"] = {"nodes": nodes, "layers": {}}
    text["manifest"]["statistics"] = None
    text["manifest"]["input_shape"] = list(image)
    return built({"__metadata__": {"brickyard": json.dumps(text)}}, b"")


BOMBS: dict[str, tuple[bytes | tuple[Any, ...], str]] = {
    "a huge step": ((("repeat", "$", 1, 1, 10**5, 10**5),), "1,920,000,000,000 numbers for an image"),
    "many steps at the limit": (
        (("repeat", "$", 1, 1, 300, 300), *[("relu", "$")] * 200),
        "more than 4.3e.09 multiply-adds",
    ),
    "a view of what is not there": (
        (("unsqueeze", "$", 0), ("expand", "$", 1 << 40, -1, -1, -1, -1), ("sum", "$", 0)),
        "multiply-adds",
    ),
    "pooling windows": ((("repeat", "$", 1, 1, 200, 200), ("max_pool2d", "$", 101, 1, 50)), "multiply-adds"),
    "products": ((("repeat", "$", 1, 1, 400, 400), ("matmul", "$", "$")), "multiply-adds"),
    "a product of four": (
        (("repeat", "$", 1, 1, 13, 13), ("einsum", "abij,abkl,abij,abkl->ab", "$", "$", "$", "$")),
        "numbers for an image",
    ),
    "pieces": ((("repeat", "$", 1, 1, 99, 99), ("flatten", "$", 1), ("unbind", "$", 1)), "pieces; 16,384 is the limit"),
    "pieces of one": (
        (("repeat", "$", 1, 1, 99, 99), ("flatten", "$", 1), ("split", "$", 1, 1)),
        "pieces; 16,384 is the limit",
    ),
    "towers of powers": ((("size", "$", 2), *[("pow", "$", "$")] * 9, ("add", "@", "$")), "to the power of"),
    "long numbers": ((("size", "$", 2), *[("mul", "$", "$")] * 40, ("add", "@", "$")), "a size is too large"),
    "long shapes": ((("shape", "$"), *[("add", "$", "$")] * 40, ("reshape", "@", "$")), "of 128 dimensions"),
    "a format": ((("mod", "%1000000000d", 1), ("add", "@", "$")), "is no argument of a function"),
    "a long text": ((("mul", "abc", 10**10), ("add", "@", "$")), "mul of a str"),
    "a long list": ((("mul", [1], 10**10), ("add", "@", "$")), "mul of a list"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_that_would_cost_much(case: str, known: dict[str, Seed], tmp_path: Path) -> None:
    steps, message = BOMBS[case]
    content = stepped(known["uncut"], *steps)
    assert len(content) < 64_000
    refused(tmp_path, content, message)


def test_without_the_bound_such_a_file_is_read(known: dict[str, Seed], tmp_path: Path, monkeypatch) -> None:
    content = stepped(known["uncut"], ("repeat", "$", 1, 1, 300, 300), *[("relu", "$")] * 200)
    refused(tmp_path, content, "multiply-adds")
    monkeypatch.setattr(bounding, "FLOOR", 1 << 60)
    assert isinstance(by.load(tmp_path / "case.safetensors"), by.Component)


def test_what_is_just_below_the_bound_runs_in_time(known: dict[str, Seed], tmp_path: Path) -> None:
    for steps in ([("repeat", "$", 1, 1, 100, 100), *[("relu", "$")] * 30], [("repeat", "$", 1, 1, 250, 250)]):
        path = tmp_path / "case.safetensors"
        path.write_bytes(stepped(known["uncut"], *steps))
        part = by.load(path)
        with limited():
            assert answers(part, IMAGES).shape == (2, 1)


def test_the_parts_of_an_assembly_share_one_bound(known: dict[str, Seed], tmp_path: Path) -> None:
    seed = known["parallel"]
    steps = [("repeat", "$", 1, 1, 300, 300), *[("relu", "$")] * 4]
    one = json.loads(parse_text(stepped(known["uncut"], *steps)))["network"]

    def change(text: Any, count: int) -> None:
        for index, part in enumerate(text["manifest"]["parts"]):
            part["statistics"] = None
            if index < count:
                nodes = copy.deepcopy(one["nodes"])
                nodes[-2]["args"][-1] = 4
                text["networks"][index] = {"nodes": nodes, "layers": {}}

    def file(count: int) -> bytes:
        text, header = seed.text, copy.deepcopy(seed.header)
        change(text, count)
        header["__metadata__"]["brickyard"] = json.dumps(text)
        for name in tensor_names(header):
            if name.startswith("familiarity") or any(name.startswith(f"networks.{i}.") for i in range(count)):
                del header[name]
        return _fitting(header, seed.body, {})

    (tmp_path / "case.safetensors").write_bytes(file(1))
    assert isinstance(by.load(tmp_path / "case.safetensors"), by.Assembly)
    refused(tmp_path, file(2), "multiply-adds")


def parse_text(content: bytes) -> str:
    (size,) = struct.unpack("<Q", content[:8])
    text: str = json.loads(content[8 : 8 + size])["__metadata__"]["brickyard"]
    return text


@pytest.mark.parametrize(
    "steps", [[("relu_", "$")], [("iadd", "$", 1)], [("flatten", "$", 1), ("mul_", "$", 0), ("add", "@", 0)]]
)
def test_a_file_does_not_change_the_images_of_its_caller(steps, known: dict[str, Seed], tmp_path: Path) -> None:
    path = tmp_path / "case.safetensors"
    path.write_bytes(stepped(known["uncut"], *steps))
    part = by.load(path)
    images = -IMAGES
    part(images)
    assert torch.equal(images, -IMAGES)
    part.network.keeps_input = True  # the control: the same network without the copy
    part(images)
    assert not torch.equal(images, -IMAGES)


def test_a_file_does_not_change_its_own_numbers(known: dict[str, Seed], tmp_path: Path) -> None:
    def change(text: Any) -> None:
        nodes = text["network"]["nodes"]
        text["network"]["tensors"] = {"own": {"kind": "buffer", "shape": [1]}}
        nodes.insert(1, {"name": "own", "op": "tensor", "target": "own"})
        nodes.insert(2, {"name": "more", "op": "function", "target": "iadd", "args": [{"node": "own"}, 1]})

    text, head = known["uncut"].text, copy.deepcopy(known["uncut"].header)
    change(text)
    head["__metadata__"]["brickyard"] = json.dumps(text)
    head["network.own"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    refused(
        tmp_path, _fitting(head, known["uncut"].body, {"network.own": bytes(4)}), "writes into its own tensor 'own'"
    )


def test_meta_shapes_take_no_memory_and_a_long_text_takes_its_share(known: dict[str, Seed], tmp_path: Path) -> None:
    huge = {"type": "Linear", "config": {"in_features": 1 << 20, "out_features": 1 << 20, "bias": False}}
    content = with_text(known["uncut"], set_(huge, "network", "layers", "more"))
    refused(tmp_path, content, "'network.more.weight' is missing")  # 4 TiB, had they been taken
    many = [[] for _ in range(100_000)]
    start = time.process_time()
    (tmp_path / "long.safetensors").write_bytes(with_text(known["uncut"], set_({"a": many}, "manifest", "scores")))
    assert isinstance(by.load(tmp_path / "long.safetensors"), by.Component)
    assert time.process_time() - start < 5


def test_memory_for_a_long_text_is_that_of_the_text(known: dict[str, Seed], tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "case.safetensors"
    path.write_bytes(with_text(known["uncut"], set_({"a": "x" * 2_000_000}, "manifest", "scores")))

    def taken() -> int:
        before = reset_peak()
        assert isinstance(by.load(path), by.Component)
        return peak() - before

    assert taken() < FLOOR + 2 * path.stat().st_size
    monkeypatch.setattr(
        container, "STRING", re.compile(r'"(?:[^"\\]|\\.)*"')
    )  # the control: an expression that goes back
    assert taken() > FLOOR + 2 * path.stat().st_size


def test_time_does_not_grow_with_the_square_of_the_classes(known: dict[str, Seed], tmp_path: Path) -> None:
    names = [str(k) for k in range(30_000)]

    def change(text: Any) -> None:
        text["manifest"]["source"]["classes"] = names
        text["manifest"].update(classes=names[:-1], task=list(range(29_999)))

    start = time.process_time()
    refused(tmp_path, with_text(known["uncut"], change), "does not give 29999 outputs")
    assert time.process_time() - start < 5


def test_a_network_without_parameters_runs(known: dict[str, Seed], tmp_path: Path) -> None:
    path = tmp_path / "case.safetensors"
    path.write_bytes(stepped(known["uncut"], ("tanh", "$")))
    part = by.load(path)
    torch.testing.assert_close(part.predict_proba(IMAGES), torch.ones(2, 1, dtype=torch.float64))
    torch.testing.assert_close(part(IMAGES)[:, 0], IMAGES.tanh().mean((1, 2, 3)))


def test_a_network_that_fails_as_it_runs_is_one_clear_error(known: dict[str, Seed], tmp_path: Path) -> None:
    path = tmp_path / "case.safetensors"
    path.write_bytes(stepped(known["uncut"], ("squeeze", "$"), ("flatten", "$", 1), ("reshape", "$", [2, 3, 8, 8])))
    part = by.load(path)
    assert part.predict_proba(IMAGES).shape == (2, 1)
    with pytest.raises(BrickyardError, match=r"do not fit the model"):
        part.predict_proba(IMAGES[:1])


# -- sources, recipes, indexes --------------------------------------------------------------------------------


def test_weights_that_tell_of_more_than_they_hold(known: dict[str, Seed], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = torch.load(io.BytesIO(known["plain"].content), weights_only=True)
    first = next(iter(state))
    bad = {
        "expanded": torch.zeros(1).expand(1 << 20, 1 << 20),
        "meta": torch.empty(1 << 20, 1 << 20, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
    }
    for name, value in bad.items():
        torch.save({**state, first: value}, path)
        with pytest.raises(BrickyardError, match=r"no plain tensor with a name"):
            read_weights(path)
        assert name
    torch.save({0: torch.zeros(1)}, path)
    with pytest.raises(BrickyardError, match=r"no plain tensor with a name"):
        read_weights(path)
    torch.save(state, path)
    assert set(read_weights(path)[0]) == set(state)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "weights.pt")
    with Watch().over(str(tmp_path / "weights.pt")) as seen, pytest.raises(BrickyardError, match=r"more than tensors"):
        read_weights(tmp_path / "weights.pt")
    assert not (tmp_path / "pwned").exists()
    assert not [event for event in seen if "system" in event]
    with zipfile.ZipFile(tmp_path / "weights.pt") as archive:  # the control: it would run
        assert b"system" in next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_a_source_that_tells_of_a_huge_network(known: dict[str, Seed], tmp_path: Path) -> None:
    for change, message in (
        (lambda t: t["options"].update(width=60.0), "do not fit LeNet5"),
        (lambda t: t.update(input_shape=[3, 10**6, 10**6]), "input_shape"),
        (lambda t: t["options"].update(classes=10**12), "classes=1000000000000"),
    ):
        header, text = copy.deepcopy(known["source"].header), known["source"].text
        change(text)
        header["__metadata__"]["brickyard-source"] = json.dumps(text)
        path = tmp_path / "source.safetensors"
        path.write_bytes(built(header, known["source"].body))
        with limited(), pytest.raises(BrickyardError, match=message):
            load_source(str(path))


def test_what_lies_beside_weights_is_hostile_too(known: dict[str, Seed], tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(known["plain"].content)
    for mean in (5, {"a": 1}, "abc"):
        (tmp_path / "w.json").write_text(json.dumps({"arch": "lenet5", "mean": mean, "std": [1]}))
        assert load_source("zoo:lenet5", weights=tmp_path / "w.pt").preprocessing == by.Preprocessing()
    (tmp_path / "w.json").write_text(json.dumps({"arch": "lenet5", "mean": [0.5], "std": [float("nan")]}))
    with pytest.raises(BrickyardError, match=r"preprocessing"):
        load_source("zoo:lenet5", weights=tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [touch pwned]", "tag"),
        ("a: " + "[" * 500, "nested deeper than"),
        ("a: &x [1]\nb: [" + "*x, " * 100 + "]", "aliases"),
        ("a: &x [*x]", "not known|not YAML|alias"),
        ("brickyard: .inf", "lacks the key"),
        ('"\\e[2J": 1', "not known"),
        ("brickyard: " + "9" * 5000, "lacks the key"),
        ("brickyard: 1\nsources: {'../x': {}}", "no safe file name"),
        (
            "brickyard: 1\nsources: {a: {network: zoo:lenet5, data: " + "d" * 3000 + "}}\n"
            "components: {b: {source: a, task: '0'}}",
            "sources.a.data is 'ddd",
        ),
    ],
)
def test_hostile_recipes(text: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with limited(), pytest.raises(BrickyardError, match=message) as caught:
        load_recipe("r.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "pwned").exists()


def test_hostile_indexes(known: dict[str, Seed], tmp_path: Path) -> None:
    path, content = tmp_path / "index.sqlite", known["index"].content
    path.write_bytes(content)
    assert read_index(path) is not None
    for bad in (
        content.hex().encode(),
        content.replace(b"chain", b"../ch"),
        content.replace(b"name TEXT", b"nome TEXT"),
        content.replace(b"why TEXT", b"why TXET"),
        b"[" * 100_000,
        content[: len(content) // 2],
    ):
        assert bad != content
        path.write_bytes(bad)
        assert read_index(path) is None


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
    from fuzzing.mutating import places

    text = known["uncut"].text
    every = places(text)
    holder, key = every[data.draw(st.integers(0, len(every) - 1))]
    holder[key] = data.draw(JSON)
    header = copy.deepcopy(known["uncut"].header)
    header["__metadata__"]["brickyard"] = json.dumps(text)
    content = built(header, known["uncut"].body)
    path = tmp_path / "case.safetensors"
    path.write_bytes(content)
    try:
        found = by.load(path)
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
    with pytest.raises(BrickyardError, match=r"form='parallel'|not those of its structure|not the same|cannot|differ"):
        by.assemble([honest, part], form=form, on_duplicate="rename")
    assert by.assemble([honest, part], on_duplicate="rename").predict_proba(IMAGES).shape == (2, 4)
    if form != "union":
        whole = by.assemble([honest, by.load(other)], form=form, on_duplicate="rename")
        assert whole.predict_proba(IMAGES).shape == (2, 4)
