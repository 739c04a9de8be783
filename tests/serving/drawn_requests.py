"""Requests to the workbench that nobody would send by hand, and what must hold for every answer."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from PIL import Image

import brickyard as by
from brickyard.testing import chain
from brickyard.yard._yard import Yard

SECRET = "never-to-be-read"
ORDERS = "\x1b]0;owned\x07\r\x9b31m‮[red]<script>document.title='owned'</script>"  # to terminals, pages and rich
NASTY = (
    *("", ".", "..", "../secret.txt", "..\\secret.txt", "/etc/passwd", "%2e%2e/secret.txt", "..%2fsecret.txt"),
    *("%252e%252e%252fsecret.txt", "a\0b", "%00", "C:\\secret.txt", "\\\\host\\share", "file:///etc/passwd", "~"),
    *("samples/a.png", "outside", "link.png", "outside.safetensors", "index.sqlite", ".lock", "good.safetensors"),
    *(ORDERS, "\ud800", "é" * 300, "x" * 5000, "$(id)", "`id`", "' OR 1=1 --", "{{7*7}}", "-rf", "\r\nx-evil: 1"),
)


def small_yard(folder: Path) -> Yard:
    """Two bricks, one of which is called names that give orders; and links that lead out of the yard."""
    yard = Yard(folder / "yard", create=True)
    (folder / "secret.txt").write_text(SECRET)
    data = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    for name, classes in (
        ("good", ["ant", "bee", "cow", "dog"]),
        ("hostile", [ORDERS, "bee\nfake line", "hen", "pig"]),
    ):
        relevance = by.locate(chain(), data, classes=classes, name=f"chain {classes[0]}")
        yard.add(by.disassemble(chain(), relevance, task=classes[:2]), name)
    samples = yard.path / "samples"
    samples.mkdir()
    Image.new("RGB", (8, 8), "teal").save(samples / "a.png")
    Image.new("RGB", (8, 8), "teal").save(folder / "outside.png")
    (samples / "link.png").symlink_to(folder / "outside.png")
    (yard.path / "outside.safetensors").symlink_to(folder / "secret.txt")
    (yard.path / "notes.txt").symlink_to(folder / "secret.txt")
    return yard


# -- asking --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request, byte for byte as a server hands it to an application."""

    method: str = "GET"
    path: bytes = b"/"
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    chunks: tuple[bytes, ...] = (b"",)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        found: str = json.loads(self.body)["error"]
        return found


async def _ask(app: Any, asked: Asked, sent: list[Any] | None = None) -> Answer:
    """The answer; its messages are also put into `sent`, where one is given."""
    from urllib.parse import unquote

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": unquote(asked.path.decode("latin-1")),
        "raw_path": asked.path,
        "query_string": asked.query,
        "headers": [(k.lower(), v) for k, v in asked.headers],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 5),
    }
    left = list(asked.chunks) or [b""]
    sent = [] if sent is None else sent

    async def receive() -> dict[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    head = {k.decode().lower(): v.decode("latin-1") for k, v in sent[0]["headers"]}
    return Answer(sent[0]["status"], head, b"".join(m.get("body", b"") for m in sent[1:]))


def ask(app: Any, asked: Asked, loop: asyncio.AbstractEventLoop | None = None) -> Answer:
    return loop.run_until_complete(_ask(app, asked)) if loop else asyncio.run(_ask(app, asked))


HOST = (b"host", b"127.0.0.1:8000")


def form(*parts: tuple[str, str | None, bytes], boundary: str = "----b") -> tuple[bytes, tuple[bytes, bytes]]:
    """A body of parts (name, file name, content), and its content type."""
    body = io.BytesIO()
    for name, file, content in parts:
        title = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22")
        body.write(b"--" + boundary.encode() + b'\r\nContent-Disposition: form-data; name="' + title + b'"')
        if file is not None:
            body.write(b'; filename="' + file.encode("utf-8", "surrogatepass").replace(b'"', b"%22") + b'"')
        body.write(b"\r\n\r\n" + content + b"\r\n")
    body.write(b"--" + boundary.encode() + b"--\r\n")
    return body.getvalue(), (b"content-type", f"multipart/form-data; boundary={boundary}".encode())


def upload(path: str, *parts: tuple[str, str | None, bytes]) -> Asked:
    body, kind = form(*parts)
    size = (b"content-length", str(len(body)).encode())
    return Asked("POST", path.encode(), headers=(HOST, kind, size), chunks=(body,))


def built(app: Any, bricks: Sequence[str] = ("good",)) -> str:
    """The key of a classifier."""
    answer = ask(app, upload("/api/assemblies", ("plan", None, json.dumps({"bricks": list(bricks)}).encode())))
    key: str = json.loads(answer.body)["id"]
    return key


# -- drawing -------------------------------------------------------------------------------------------------


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "navy").save(out, kind, **options)
    return out.getvalue()


PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")]
texts = st.sampled_from(NASTY) | st.text(max_size=30)
words = texts | st.sampled_from(["good", "hostile", "a.png"]) | st.sampled_from(["good", "hostile", "a.png"])


@st.composite
def images(draw: Any) -> bytes:
    """A picture, often a damaged one, or none at all."""
    content = bytearray(draw(st.sampled_from(PICTURES)))
    how = draw(st.sampled_from(["whole", "cut", "hit", "none"]))
    if how == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    if how == "hit":
        for _ in range(draw(st.integers(1, 5))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return draw(st.binary(max_size=60)) if how == "none" else bytes(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
plans = st.fixed_dictionaries(
    {"bricks": st.lists(words, max_size=3) | json_values},
    optional={
        "form": st.sampled_from(["parallel", "padded", "grouped", "union"]) | json_values,
        "scaling": st.sampled_from(["none", "logit-mean", "mahalanobis", "lda", "affine"]) | json_values,
        "on_duplicate": st.sampled_from(["error", "average", "max", "rename"]) | json_values,
        "more": json_values,
    },
)
documents = (
    (plans | json_values).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=50)
    | st.integers(1, 70_000).map(lambda depth: b"[" * depth)
    | st.sampled_from([b"9" * 5000, b'{"bricks":' * 4000, b'"\\ud800"', b"NaN", b"1e999", b"\xef\xbb\xbf{}"])
)


@st.composite
def bodies(draw: Any) -> tuple[bytes, bytes | None]:
    """A body, and the content type that it is sent with."""
    kind = draw(st.sampled_from(["form", "json", "junk", "many"]))
    if kind == "json":
        return draw(documents), draw(st.sampled_from([b"application/json", b"text/plain", None]))
    if kind == "junk":
        kinds = [
            b"multipart/form-data",
            b"multipart/form-data; boundary=",
            b"application/x-www-form-urlencoded",
            b"\xff",
        ]
        return draw(st.binary(max_size=200)), draw(st.sampled_from([*kinds, b"multipart/form-data; boundary=----b"]))
    if kind == "many":
        count = draw(st.integers(0, 500))
        body, (_, said) = form(*[("p", draw(st.sampled_from(["a.png", None])), b"x")] * count)
        return body, said
    fields = st.sampled_from(["plan", "picture", "0.0", "0.1", "1.0", "0.99999", "-1.0"]) | texts
    sound = st.lists(st.sampled_from(["good", "hostile"]), min_size=1, max_size=2, unique=True)
    sound = st.tuples(sound, st.sampled_from(["rename", "error"])).map(
        lambda pair: ("plan", None, json.dumps({"bricks": pair[0], "on_duplicate": pair[1]}).encode())
    )
    shots = st.lists(st.tuples(st.just("picture"), words, images()), min_size=1, max_size=3)
    parts = draw(
        sound.map(lambda part: [part])
        | shots
        | st.lists(st.tuples(fields, st.none() | words, images() | documents), max_size=4)
        | st.tuples(st.just("plan"), st.none(), documents).map(lambda part: [part])
    )
    body, (_, said) = form(*parts)
    if draw(st.sampled_from([False, False, False, True])):
        body = body[: draw(st.integers(0, len(body)))]
    return body, said


def _quoted(text: str) -> bytes:
    from urllib.parse import quote

    return quote(text.encode("utf-8", "surrogatepass"), safe="").encode()


@st.composite
def requests(draw: Any, key: str) -> Asked:
    """One request; `key` is that of a classifier that there is."""
    some = st.sampled_from([key, key, key, "nothing"]) | st.sampled_from([key, key]) | words
    part = draw(some)
    raw = draw(st.booleans())
    name = part.encode("utf-8", "surrogatepass") if raw else _quoted(part)
    # Exporting takes seconds, whoever asks: ONNX has tests of its own.
    paths = [b"/", b"/static/" + name, b"/static/app.js", b"/api/yard", b"/api/inside", b"/api/sample", b"/api/plan"]
    paths += [b"/api/assemblies", b"/api/assemblies/" + name + b"/classify", b"/api/assemblies/" + name + b"/file"]
    paths += [b"/api/assemblies/" + name + end for end in (b"", b"/table", b"/why", b"/texts")]
    paths += [b"/" + name, b"//" + name, name, b"/api/../" + name, b"/openapi.json"]
    path = draw(st.sampled_from(paths)).replace(b"?", b"").replace(b"#", b"") or b"/"
    names = st.sampled_from(["brick", "name", "kind", "sample", "token"]) | texts
    values = words | st.sampled_from(["safetensors", "html", "exe"])
    pairs = draw(st.lists(st.tuples(names, values), max_size=3))
    query = b"&".join(_quoted(k) + b"=" + _quoted(v) for k, v in pairs) or draw(st.binary(max_size=12))
    fitting = "POST" if path.endswith((b"plan", b"assemblies", b"classify", b"table", b"why")) else "GET"
    method = draw(st.sampled_from([fitting] * 12 + ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "X"]))
    body, kind = draw(bodies()) if method != "GET" or draw(st.booleans()) else (b"", None)
    headers = (
        [HOST]
        if draw(st.sampled_from([True] * 19 + [False]))
        else draw(st.lists(st.tuples(st.just(b"host"), st.binary(max_size=20))))
    )
    headers += [] if kind is None else [(b"content-type", kind)]
    odd = st.sampled_from([b"origin", b"sec-fetch-site", b"cookie", b"range", b"x-brickyard-token", b"content-length"])
    values_of = st.binary(max_size=30) | st.sampled_from(
        [b"http://[", b"\xb2", b"9" * 5000, b"-1", b"brickyard-token=;"]
    )
    headers += draw(st.lists(st.tuples(odd, values_of), max_size=1)) if draw(st.sampled_from([0, 0, 0, 1])) else []
    if draw(st.booleans()) and not any(k == b"content-length" for k, _ in headers):
        headers.append((b"content-length", str(len(body)).encode()))
    cut = draw(st.integers(0, len(body)))
    return Asked(method, path, query, tuple(headers), (body[:cut], body[cut:]))


# -- what must hold ------------------------------------------------------------------------------------------


def wrong(answer: Answer, root: Path) -> str:
    """What is wrong with an answer, or ""."""
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}"
    for word in (SECRET.encode(), b"root:x:", b"Traceback (most", b'File "', str(root).encode()):
        if word in answer.body:
            return f"{word!r} is in the answer"
    if "default-src 'none'" not in answer.headers.get("content-security-policy", ""):
        return "no policy"
    if any(ord(c) < 32 or c == "\x7f" for value in answer.headers.values() for c in value):
        return "a header has a control character"
    return ""


_opened: list[str] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir"):
        place = arguments[0]
        if isinstance(place, str | bytes | Path):
            _opened.append(place.decode("utf-8", "replace") if isinstance(place, bytes) else str(place))


@contextmanager
def watched() -> Iterator[list[str]]:
    """All files and folders that this process opens in the body."""
    global _opened, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


def foreign(opened: Sequence[str], yard: Path) -> list[str]:
    """What was opened outside the yard (or is a link in it), the temporary folder, and the installed packages."""
    code = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platstdlib")] + [Path(by.__file__).parent]
    code += [Path(by.__file__).parents[2], Path(__file__).parents[2], Path(sys.base_prefix)]
    found = []
    for text in dict.fromkeys(opened):
        place = Path(text)
        if not place.is_absolute():
            place = Path.cwd() / place
        real = Path(place.parent.resolve()) / place.name
        if place.is_symlink() or ".." in place.parts:
            real = place.resolve()
        if real.is_relative_to(yard.resolve()) or any(real.is_relative_to(part) for part in code):
            continue
        # Files of a form, and what is packed for a download: in a folder or under a name of their own.
        temporary = Path(tempfile.gettempdir()).resolve()
        if real.is_relative_to(temporary) and real.relative_to(temporary).parts[0].startswith("tmp"):
            continue
        found.append(text)
    return found


def only(asked: Asked, **changes: Any) -> Asked:
    return replace(asked, **changes)
