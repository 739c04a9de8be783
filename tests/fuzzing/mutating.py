"""Changes to files: of bytes, of headers, of the text in them, of tensors, and mixtures of two files."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import LAYER_TYPES
from fuzzing.seeding import Seed, built

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPES = (*SIZES, "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "U16", "U64", "X", "", "f32")
HUGE = (2**31, 2**32 + 1, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**9, 10**6, 10**4, 4096)
SMALL = (-1, 0, 1, 2, 3, 4, 5, 7, 8, -2, -7, 16, 64)
WORDS = (
    *("", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a.b.c", "x" * 2000, "a\nb", "a\x00b", "\x1b[2J", "é"),
    *("\u202egpj", "\ud800", "__class__", "__init__", "forward", "training", "_steps", "self", "0", "1", "NaN"),
    *("os.system", "weight", "relu", "Conv2d", "same", "zeros", "circular", "bilinear", "float64", "none", "network"),
    *(".".join("abc" * 30), "ij,jk->ik", "b...->b", "%1000000000d", "0x10", "1e400", "\U0001f600", "a" * 70),
)
FLOATS = (0.0, -0.0, 0.5, 1.5, -1.0, 1e-300, 1e300, 1e38, 3.4e38, -1e9, 1e18, 1e-8)
RAW = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000, b"[" * 3000, b"{", b"null", b'"\\ud800"', b"1E400")


def value(rng: random.Random, depth: int = 0) -> Any:
    """Something that a text may hold where it should not."""
    kind = rng.randrange(12)
    if kind < 3:
        return rng.choice(SMALL)
    if kind == 3:
        return rng.choice(HUGE) * rng.choice((1, 1, -1))
    if kind == 4:
        return rng.choice(FLOATS)
    if kind == 5:
        return rng.choice(WORDS)
    if kind == 6:
        return rng.choice((None, True, False, [], {}))
    if kind == 7:
        return [rng.choice(SMALL) for _ in range(rng.randrange(5))]
    if kind == 8 and depth < 3:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 9 and depth < 3:
        key = rng.choice((*WORDS, "node", "tuple", "slice", "dtype", "ellipsis"))
        return {key: value(rng, depth + 1)}
    if kind == 10:
        return rng.choice(({"dtype": "bool"}, {"dtype": "float64"}, {"slice": [None, 1, None]}, {"ellipsis": True}))
    if kind == 11 and depth == 0:
        nest: Any = rng.choice(SMALL)
        for _ in range(rng.choice((3, 15, 17, 40, 70, 300))):
            nest = [nest] if rng.random() < 0.5 else {"a": nest}
        return nest
    return rng.choice(SMALL)


# -- of bytes ------------------------------------------------------------------------------------------------


def flip(rng: random.Random, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return content
    at, length = rng.randrange(len(content)), rng.choice((1, 2, 4, 8, 40))
    return content[:at] + rng.choice((b"\x00", b"\xff", b"9", b'"', b"}")) * length + content[at + length :]


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def splice(rng: random.Random, content: bytes) -> bytes:
    a, b, c = (rng.randrange(len(content) + 1) for _ in range(3))
    piece = content[min(a, b) : max(a, b)][: rng.choice((8, 64, 4096))]
    return content[:c] + piece + content[c + rng.choice((0, len(piece))) :]


def insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((*RAW, rng.randbytes(rng.randrange(1, 40)))) + content[at:]


def length(rng: random.Random, content: bytes) -> bytes:
    size = rng.choice((0, 1, 2, 7, 8, len(content), len(content) - 8, 2**63, 2**64 - 1, 64 << 20, rng.randrange(5000)))
    return struct.pack("<Q", size) + content[8:]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip, overwrite, truncate, splice, insert, length)


# -- of headers ----------------------------------------------------------------------------------------------


def tensor_names(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def change_header(rng: random.Random, header: dict[str, Any]) -> dict[str, Any] | bytes:
    """One change of what a header says of tensors or of itself."""
    names = tensor_names(header)
    if not names:
        return header
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    kind = rng.randrange(14)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = [rng.choice((*SMALL, *HUGE)) for _ in range(rng.choice((0, 1, 2, 4, 70)))]
    elif kind == 2:
        entry["data_offsets"] = header[other]["data_offsets"]
    elif kind == 3:
        start, end = entry["data_offsets"]
        entry["data_offsets"] = [start + rng.choice(SMALL), end + rng.choice((*SMALL, *HUGE))]
    elif kind == 4:
        del header[name]
    elif kind == 5:
        header[rng.choice((*WORDS, other))] = header.pop(name)
    elif kind == 6:
        header[rng.choice(WORDS)] = dict(entry)
    elif kind == 7:
        entry[rng.choice(("shape", "dtype", "data_offsets", "evil"))] = value(rng)
    elif kind == 8:
        header["__metadata__"] = rng.choice(({}, None, [], {"brickyard": 1}, {"brickyard": ""}, value(rng)))
    elif kind == 9:
        header["__metadata__"][rng.choice(("brickyard", "brickyard-source", "format", *WORDS[:8]))] = "{}"
    elif kind == 10 and entry["shape"]:
        entry["shape"] = [*entry["shape"][::-1]]
    elif kind == 11 and entry["shape"]:
        entry["shape"] = rng.choice(([*entry["shape"], 1], [1, *entry["shape"]], entry["shape"] * 2))
    elif kind == 12:  # both by the same rows: a swap that fits
        header[name], header[other] = header[other], header[name]
    else:
        text = json.dumps(header).encode()
        again = json.dumps({name: header[other]}).encode()[1:-1]
        return text[:-1] + b"," + again + b"}"
    return header


def _fitting(header: dict[str, Any], body: bytes, parts: dict[str, bytes]) -> bytes:
    """The file whose tensors have these bytes; offsets are written anew."""
    at, pieces = 0, []
    for name in tensor_names(header):
        start, end = header[name]["data_offsets"]
        piece = parts.get(name, body[start:end])
        header[name]["data_offsets"] = [at, at + len(piece)]
        pieces.append(piece)
        at += len(piece)
    return built(header, b"".join(pieces))


def change_tensor(rng: random.Random, header: dict[str, Any], body: bytes) -> bytes:
    """One change of numbers, or of a type with as many bytes as it takes."""
    name = rng.choice(tensor_names(header))
    entry = header[name]
    start, end = entry["data_offsets"]
    piece = bytearray(body[start:end])
    size = SIZES[entry["dtype"]]
    kind = rng.randrange(8)
    if kind == 0:
        entry["dtype"] = rng.choice(tuple(SIZES))
        piece = bytearray(len(piece) // size * SIZES[entry["dtype"]])
    elif kind == 1 and entry["shape"]:
        axis = rng.randrange(len(entry["shape"]))
        rows = rng.choice((0, 1, entry["shape"][axis] + 1, 64))
        piece = bytearray(len(piece) // max(1, entry["shape"][axis]) * rows)
        entry["shape"][axis] = rows
    elif kind == 2:
        del header[name]
        return _fitting(header, body, {})
    elif kind == 3:
        piece = bytearray(rng.randbytes(len(piece)))
    elif entry["dtype"] == "F32" and piece:
        number = rng.choice((*FLOATS[:8], float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-40))
        packed = struct.pack("<f", number if abs(number) < 3.4e38 or number != number or abs(number) > 1e300 else 0)
        every = rng.random() < 0.3
        for at in range(0, len(piece), 4) if every else [4 * rng.randrange(len(piece) // 4)]:
            piece[at : at + 4] = packed
    elif entry["dtype"] == "I64" and piece:
        piece[:8] = struct.pack("<q", rng.choice((-1, 0, 7, 999, 2**62, -(2**63))))
    return _fitting(header, body, {name: bytes(piece)})


# -- of texts ------------------------------------------------------------------------------------------------


def places(item: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """All (container, key) of a JSON value."""
    found = [] if found is None else found
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, inner in pairs:
        found.append((item, key))
        places(inner, found)
    return found


def change_value(rng: random.Random, text: Any) -> None:
    """Replace, remove, double or move one value."""
    every = places(text)
    if not every:
        return
    holder, key = rng.choice(every)
    kind = rng.randrange(9)
    if kind < 3:
        holder[key] = value(rng)
    elif kind == 3:
        other, place = rng.choice(every)
        holder[key] = copy.deepcopy(other[place])
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 5:
        holder[rng.choice(WORDS)] = holder[key]
    elif kind == 6 and isinstance(holder, dict):
        holder[rng.choice(WORDS)] = holder.pop(key)
    elif kind == 6:
        rng.shuffle(holder)
    elif isinstance(holder[key], bool):
        holder[key] = not holder[key]
    elif isinstance(holder[key], int):
        holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 1000, *HUGE[:4], 0))
    elif isinstance(holder[key], float):
        holder[key] = rng.choice(FLOATS)
    elif isinstance(holder[key], str):
        holder[key] = rng.choice((holder[key] * 2, holder[key][:-1], rng.choice(WORDS), holder[key] + "\n"))
    else:
        holder[key] = value(rng)


def networks(text: Any) -> list[dict[str, Any]]:
    """The networks in a text, skeletons included."""
    found = [text.get("network"), text.get("skeleton"), *(text.get("networks") or []), *(text.get("skeletons") or [])]
    return [item for item in found if isinstance(item, dict) and item.get("nodes")]


def argument(rng: random.Random, names: list[str]) -> Any:
    """An argument of a step: another step's value, a number, a list of both, or something absurd."""
    kind = rng.randrange(10)
    if kind < 2:
        return {"node": rng.choice(names)}
    if kind < 5:
        return rng.choice(SMALL)
    if kind == 5:
        return [rng.choice((*SMALL, *SMALL, *HUGE)) for _ in range(rng.randrange(1, 5))]
    if kind == 6:
        return [{"node": rng.choice(names)} for _ in range(rng.randrange(1, 4))]
    if kind == 7:
        return {"tuple": [rng.choice(({"slice": [None, rng.choice(SMALL), None]}, 0, {"ellipsis": True}, None))] * 2}
    return value(rng)


KEYWORDS = (
    *("dim", "keepdim", "inplace", "training", "p", "dtype", "size", "scale_factor", "mode", "kernel_size", "stride"),
    *("padding", "groups", "value", "ceil_mode", "memory_format", "out", "generator", "alpha", "dims", "shifts"),
)


def change_network(rng: random.Random, text: Any) -> None:
    """Put in a step, call another function, or give a step or a layer absurd arguments."""
    found = networks(text)
    if not found:
        change_value(rng, text)
        return
    network = rng.choice(found)
    nodes, layers = network["nodes"], network["layers"]
    kind = rng.randrange(8)
    at = rng.randrange(1, len(nodes)) if len(nodes) > 1 else 0
    names = [node["name"] for node in nodes[:at]] or ["x"]
    if kind < 3:  # a new step, which what comes next reads
        before = names[-1]
        name = f"new{rng.randrange(1000)}"
        step: dict[str, Any] = {"name": name, "op": "function", "target": rng.choice(tuple(FUNCTIONS)), "kwargs": {}}
        first = {"node": before} if rng.random() < 0.9 else [{"node": before}, {"node": rng.choice(names)}]
        step["args"] = [first, *(argument(rng, names) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))]
        if rng.random() < 0.3:
            step["kwargs"][rng.choice(KEYWORDS)] = argument(rng, names)
        if kind == 2:
            kind_of = rng.choice(tuple(LAYER_TYPES))
            config = {key: value(rng) for key in LAYER_TYPES[kind_of].config if rng.random() < 0.5}
            layers[name] = {"type": kind_of, "config": config}
            step.update(op="layer", target=name, args=[{"node": before}])
        reader = nodes[at]
        reader["args"] = json.loads(
            json.dumps(reader["args"]).replace(json.dumps({"node": before}), json.dumps({"node": name}))
        )
        nodes.insert(at, step)
    elif kind == 3:
        nodes[at]["target"] = rng.choice(tuple(FUNCTIONS))
        nodes[at]["op"] = "function"
    elif kind == 4:
        every = [node["name"] for node in nodes]
        arguments = nodes[at]["args"]
        arguments[rng.randrange(len(arguments)) if arguments else 0 :] = [argument(rng, every)]
    elif kind == 5:
        nodes[at]["kwargs"][rng.choice(KEYWORDS)] = argument(rng, names)
    elif kind == 6 and layers:
        layer = rng.choice(list(layers.values()))
        keys = list(layer["config"]) or ["inplace"]
        layer["config"][rng.choice(keys)] = rng.choice((value(rng), rng.choice(SMALL), rng.choice(HUGE)))
    elif layers:
        name = rng.choice(list(layers))
        layers[name]["type"] = rng.choice(tuple(LAYER_TYPES))
        if rng.random() < 0.5:
            layers[name]["config"] = {}


def mix(rng: random.Random, text: Any, other: Any) -> None:
    """Put a piece of another text into this one, at a place of the same name where there is one."""
    mine, theirs = places(text), places(other)
    holder, key = rng.choice(mine)
    alike = [(h, k) for h, k in theirs if k == key] or theirs
    source, place = rng.choice(alike)
    holder[key] = copy.deepcopy(source[place])


def spoiled(rng: random.Random, text: Any) -> str:
    """A text with something in it that JSON does not allow, or two keys of one name."""
    content = json.dumps(text)
    at = rng.choice([i for i, c in enumerate(content) if c in ":,"] or [0])
    kind = rng.randrange(4)
    if kind == 0:
        return content[: at + 1] + rng.choice(RAW).decode() + content[at + 1 :]
    if kind == 1 and isinstance(text, dict):
        key = rng.choice(list(text))
        return content[:-1] + f",{json.dumps(key)}:{json.dumps(value(rng))}}}"
    if kind == 2:
        return content[:at]
    found = [i for i, c in enumerate(content) if c.isdigit()]
    at = rng.choice(found or [0])
    return content[:at] + rng.choice(("1e999", "-", "00", "1.5", "9" * 400, "9" * 5000)) + content[at + 1 :]


# -- all together --------------------------------------------------------------------------------------------


def same(rng: random.Random, seed: Seed) -> bytes:
    """Other bytes that say the same: order of keys, spaces, order of tensors."""
    header = seed.header
    text = seed.text

    def shuffled(item: Any) -> Any:
        if isinstance(item, dict) and not {"axes", "layers", "tensors"} & {*item}:
            keys = list(item)
            rng.shuffle(keys)
            return {key: shuffled(item[key]) for key in keys}
        if isinstance(item, dict):
            return {key: item[key] for key in item}
        return [shuffled(inner) for inner in item] if isinstance(item, list) else item

    header["__metadata__"][seed.key] = json.dumps(shuffled(text), indent=rng.choice((None, 1)), ensure_ascii=False)
    parts = {name: seed.body[slice(*header[name]["data_offsets"])] for name in tensor_names(header)}
    names = tensor_names(header)
    rng.shuffle(names)
    again = {"__metadata__": header["__metadata__"], **{name: header[name] for name in names}}
    return _fitting(again, seed.body, parts)


def mutant(rng: random.Random, seed: Seed, others: list[Seed]) -> tuple[bytes, str]:
    """A file made from a seed, and how."""
    if not seed.head:
        return _plain(rng, seed, others)
    kind = rng.choices(
        ("same", "bytes", "header", "tensor", "text", "network", "mix", "spoiled", "swap", "both"),
        (2, 14, 14, 10, 24, 24, 6, 3, 1, 6),
    )[0]
    if kind == "same":
        return same(rng, seed), kind
    if kind == "bytes":
        content = seed.content
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            content = rng.choice(BYTES)(rng, content)
        return content, kind
    header = seed.header
    other = rng.choice(others)
    if kind == "header":
        changed: dict[str, Any] | bytes = header
        for _ in range(rng.choice((1, 1, 2))):
            if isinstance(changed, dict) and isinstance(changed.get("__metadata__"), dict):
                changed = change_header(rng, changed)
        return built(changed, seed.body), kind
    if kind == "tensor":
        return change_tensor(rng, header, seed.body), kind
    if kind == "swap" and other.header:
        mine, theirs = header["__metadata__"], other.header["__metadata__"]
        mine[seed.key] = theirs[other.key]
        return built(header, seed.body), kind
    text = seed.text
    if kind == "spoiled":
        header["__metadata__"][seed.key] = spoiled(rng, text)
        return built(header, seed.body), kind
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if kind == "mix" and other.header:
            mix(rng, text, other.text)
        elif kind in ("network", "both"):
            change_network(rng, text)
        else:
            change_value(rng, text)
    if not isinstance(text, dict):
        text = {}
    header["__metadata__"][seed.key] = json.dumps(text)
    if kind == "both":
        return change_tensor(rng, header, seed.body), kind
    return built(header, seed.body), kind


def _plain(rng: random.Random, seed: Seed, others: list[Seed]) -> tuple[bytes, str]:
    content = seed.content
    if seed.ending == ".pt" and rng.random() < 0.7:
        return _repacked(rng, content), "pickle"
    kinds = ("bytes", "words", "json") if seed.ending == ".json" else ("bytes", "words")
    kind = rng.choice(kinds)
    if kind == "json":
        text = json.loads(content)
        for _ in range(rng.choice((1, 1, 2))):
            change_value(rng, text)
        return json.dumps(text).encode(), kind
    for _ in range(rng.choice((1, 1, 2, 3))):
        if kind == "bytes" or seed.ending == ".pt":
            content = rng.choice(BYTES[:-1])(rng, content)
        else:
            content = _words(rng, content, rng.choice(others).content)
    return content, kind


def _repacked(rng: random.Random, content: bytes) -> bytes:
    """A .pt file whose pickle is changed, as a whole archive."""
    made = io.BytesIO()
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w", how) as other:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("data.pkl"):
                for _ in range(rng.choice((1, 1, 2))):
                    data = rng.choice(BYTES[:-1])(rng, data) if rng.random() < 0.6 else _opcode(rng, data)
            elif rng.random() < 0.02:
                continue
            other.writestr(name, data)
    return made.getvalue()


def _opcode(rng: random.Random, data: bytes) -> bytes:
    """Swap small numbers, names and calls of a pickle."""
    old, new = rng.choice(
        (
            (b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem"),
            (b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_meta_tensor_no_storage"),
            (b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter"),
            (b"torch\nFloatStorage", b"torch\nDoubleStorage"),
            (b"torch\nFloatStorage", b"builtins\neval"),
            (b"K\x01", b"J\xff\xff\xff\x7f"),
            (b"K\x05", b"K\x00"),
            (b"K\x03", b"M\xff\xff"),
            (b"cpu", b"cud"),
            (b"X", b"K"),
        )
    )
    at = data.find(old, rng.randrange(len(data)))
    return data if at < 0 else data[:at] + new + data[at + len(old) :]


ODD = b"*x ;; &x [*x] ;; !!python/object/apply:os.system [ls] ;; !!binary aGk= ;; ? a ;; | ;; - ;; 0x1F ;; 1_000 ;; "
ODD += b"~ ;; 2001-01-01 ;; <<: {a: 1} ;; .inf ;; .nan ;; -1 ;; 1e999 ;; ' ;; [["


def _words(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Change a word or a line of a text."""
    words = content.replace(b":", b" ").replace(b",", b" ").replace(b"{", b" ").replace(b"}", b" ").split() or [b"a"]
    lines = content.split(b"\n")
    kind = rng.randrange(6)
    if kind < 3:
        choices = (*RAW, *ODD.split(b" ;; "))
        new = rng.choice((rng.choice(words), str(value(rng)).encode("utf-8", "replace"), rng.choice(choices)))
        old = rng.choice(words)
        at = content.find(old)
        return content[:at] + new + content[at + len(old) :]
    if kind == 3:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(other.split(b"\n")))
    elif kind == 4:
        del lines[rng.randrange(len(lines))]
    else:
        at = rng.randrange(len(lines))
        lines[at] = b" " * rng.choice((1, 2, 8)) + lines[at]
    return b"\n".join(lines)
