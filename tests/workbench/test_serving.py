"""The workbench and the command line, against those who mean ill: what is sent, what is asked for, what is shown."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import socket
import stat
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from PIL import Image

import brickyard as by
from brickyard.base._messages import shown
from brickyard.inputs._preprocessing import preprocess
from brickyard.storage._atomic import write_content
from brickyard.testing import chain
from conftest import calls, needed_package
from errors import refused
from misuse.rows import chunk
from misuse.rows import png as png_of
from shell import run
from workbench_yard import raw, serving

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

import drawn_requests as drawn
from drawn_requests import HOST, ORDERS, SECRET, Asked, ask, built, form, small_yard, upload
from drawn_requests import picture as saved

from brickyard.workbench import _pictures as pictures
from brickyard.workbench._app import create_app
from brickyard.workbench._bench import Bench
from brickyard.workbench._guard import Guard
from brickyard.workbench._limits import Limits
from brickyard.workbench._why import frame
from brickyard.yard._index import INDEX


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def yard(root):
    torch.manual_seed(0)
    return small_yard(root)


@pytest.fixture(scope="module")
def app(yard):
    return create_app(yard)


def plan_of(*bricks: str) -> bytes:
    return json.dumps({"bricks": bricks}).encode()


# -- drawn requests ------------------------------------------------------------------------------------------


def test_no_drawn_request_gets_a_traceback_or_a_file_from_outside(app, yard, root) -> None:
    key, loop = built(app), asyncio.new_event_loop()
    statuses = set()

    @seed(1)
    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn.requests(key))
    def check(asked: Asked) -> None:
        with drawn.watched() as opened:
            answer = ask(app, asked, loop)
        assert drawn.wrong(answer, root) == ""
        assert drawn.foreign(opened, yard.path) == []
        statuses.add(answer.status)

    check()
    loop.close()
    assert {200, 400, 404, 405} <= statuses


def test_what_is_looked_for_in_drawn_requests_would_be_found(yard, root, monkeypatch) -> None:
    """The control: a server that reads by a name that was sent, and one that fails."""
    app = create_app(yard)
    asked = Asked(path=b"/api/sample", query=b"name=..%2F..%2Fsecret.txt", headers=(HOST,))
    with drawn.watched() as opened:
        assert ask(app, asked).status == 400
    assert drawn.foreign(opened, yard.path) == []
    careless = lambda self, name: (yard.path / "samples" / name).read_bytes()  # noqa: E731
    monkeypatch.setattr(Bench, "sample", careless)
    with drawn.watched() as opened, contextlib.suppress(Exception):
        ask(app, asked)
    assert drawn.foreign(opened, yard.path) == [str(yard.path / "samples/../../secret.txt")]
    assert SECRET in drawn.wrong(drawn.Answer(200, {}, SECRET.encode()), root)

    def failing(self) -> None:
        raise ZeroDivisionError("inner words")

    monkeypatch.setattr(Bench, "overview", failing)
    sent = []
    with pytest.raises(ZeroDivisionError):  # for the log of the server
        asyncio.run(drawn._ask(app, Asked(path=b"/api/yard", headers=(HOST,)), sent))
    assert sent[0]["status"] == 500
    assert b"content-security-policy" in dict(sent[0]["headers"])
    assert b"inner words" not in sent[1]["body"]
    assert json.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (((b"content-length", b"\xb2"), HOST), 413),  # a digit, says Python; no number
        (((b"content-length", b"9" * 5000), HOST), 413),
        (((b"content-length", b"-1"), HOST), 413),
        (((b"content-length", b"5"), (b"content-length", b"6"), HOST), 400),
        ((HOST, (b"host", b"evil.example")), 400),
        ((HOST, (b"origin", b"http://[")), 403),
        ((HOST, (b"origin", b"http://127.0.0.1:8000"), (b"origin", b"http://evil.example")), 400),
        ((), 421),  # as HTTP/1.0 allows
    ],
)
def test_headers_that_do_not_agree_with_themselves_are_refused(app, headers, status) -> None:
    asked = Asked("POST", b"/api/plan", headers=headers, chunks=(plan_of("good"),))
    assert ask(app, asked).status == status
    assert ask(app, drawn.only(asked, headers=(HOST,))).status == 200


def test_errors_do_not_say_where_the_yard_is(app, yard, root) -> None:
    answer = ask(app, Asked("POST", b"/api/plan", headers=(HOST,), chunks=(plan_of("nothing"),)))
    with refused("file-unknown-component", str(root)):
        yard.entry("nothing")  # where it does say it
    assert (answer.status, str(root) in answer.error, "yard" in answer.error) == (400, False, True)


def samples(app) -> list[str]:
    return json.loads(ask(app, Asked(path=b"/api/yard", headers=(HOST,))).body)["samples"]


def test_samples_that_are_links_are_not_followed(app, tmp_path) -> None:
    link = Asked(path=b"/api/sample", query=b"name=link.png", headers=(HOST,))
    assert (samples(app), ask(app, link).status) == (["a.png"], 400)
    assert ask(app, drawn.only(link, query=b"name=a.png")).status == 200  # the control
    other = by.yard.Yard(tmp_path / "yard", create=True)
    elsewhere = tmp_path / "private"
    elsewhere.mkdir()
    Image.new("L", (4, 4)).save(elsewhere / "link.png")
    (other.path / "samples").symlink_to(elsewhere, target_is_directory=True)
    assert pictures.sample_paths(elsewhere)  # the control: the pictures are fine
    assert (samples(create_app(other)), ask(create_app(other), link).status) == ([], 400)


# -- what is sent --------------------------------------------------------------------------------------------


def png(width: int, height: int, before: bytes = b"") -> bytes:
    return png_of(np.zeros((height, width)), before=before)


def headed(width: int, height: int) -> bytes:
    """A PNG whose head says what its content does not."""
    return png_of(np.zeros((0, 1)), size=(height, width))


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = saved("JPEG", (64, 64), progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def bombs() -> dict[str, tuple[bytes, str]]:
    jpeg, gif = saved("JPEG"), saved("GIF")
    frame, comment = gif.index(b"\x2c"), b"\xffx".ljust(256) * 60_000 + b"\0"
    packed = b"a\0\0" + zlib.compress(b"\0" * 60_000_000)
    return {
        "a side of a million": (headed(1_000_000, 40), "data-image-too-large"),
        "a billion pixels": (headed(30_000, 30_000), "data-image-too-large"),
        "a million chunks": (png(2, 2, chunk(b"teSt", b"") * 1_000_000), "data-image-too-large"),
        "a large text": (png(2, 2, chunk(b"zTXt", packed)), "data-unreadable-image"),
        "a large profile": (png(2, 2, chunk(b"iCCP", packed)), "data-unreadable-image"),
        "many segments": (jpeg[:2] + b"\xff\xe2\x00\x02" * 4_000_000 + jpeg[2:], "data-image-too-large"),
        "many comments": (gif[:frame] + b"\x21\xfe\x01a\0" * 3_000_000 + gif[frame:], "data-image-too-large"),
        "one long comment": (gif[:frame] + b"\x21\xfe" + comment + gif[frame:], "data-image-too-large"),
        "many scans": (scans(1000), "data-image-too-large"),
        "a format with a large reader": (saved("TIFF"), "data-unreadable-image"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "data-unreadable-image"),
    }


MOST_CALLS = 200_000  # of functions: a fraction of a second


@pytest.mark.parametrize("case", bombs())
def test_pictures_that_are_bombs_are_refused_at_once(case) -> None:
    content, code = bombs()[case]

    def decoded() -> None:
        with refused(code, "a.png"):
            pictures.decode(content, "a.png", Limits())

    assert calls(decoded) < MOST_CALLS


@pytest.mark.parametrize("case", ["a million chunks", "many segments", "many comments"])
def test_without_a_limit_on_pieces_such_pictures_take_long(case, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "PIECES", 10 * pictures.PIECES)
    assert calls(lambda: pictures.pieces(bombs()[case][0])) > MOST_CALLS


def test_ordinary_pictures_of_all_kinds_are_read() -> None:
    """The control of the bombs: the same files without what makes them bombs."""
    frames = [Image.new("P", (8, 8), k % 256) for k in range(300)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    fine = [saved(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]
    fine += [scans(10), png(9, 9), moving.getvalue(), png(2, 2, chunk(b"teSt", b"") * 1000)]
    for content in fine:
        assert pictures.decode(content, "a", Limits()).ndim == 3
    assert [pictures.pieces(content) < 1000 for content in fine[:-1]] == [True] * 8
    assert pictures.pieces(fine[-1]) == 1003


def test_pixels_are_counted_over_the_whole_request(yard) -> None:
    app = create_app(yard, limits=Limits(all_pixels=10_000))
    key, content = built(app), png(50, 50)
    for what in ("classify", "table"):
        path = f"/api/assemblies/{key}/{what}"
        assert ask(app, upload(path, *[("p", "a.png", content)] * 4)).status == 200
        answer = ask(app, upload(path, *[("p", "a.png", content)] * 5))
        assert (answer.status, "0.01" in answer.error) == (400, True)
    labelled = [(f"0.{k}", "a.png", content) for k in (0, 1)] * 3
    answer = ask(app, upload("/api/assemblies", ("plan", None, plan_of("good")), *labelled))
    assert (answer.status, "0.01" in answer.error) == (400, True)


def test_no_further_picture_is_begun_after_the_time_of_a_request(yard) -> None:
    for seconds, status in ((60, 200), (-1, 503)):
        app = create_app(yard, limits=Limits(work_seconds=seconds))
        key = built(app)
        for what in ("classify", "table", "why"):
            assert ask(app, upload(f"/api/assemblies/{key}/{what}", ("p", "a.png", png(9, 9)))).status == status


def test_large_pictures_are_shrunk_once_and_say_the_same(yard) -> None:
    how = by.Preprocessing(size=(16, 16), mean=(0.4,), std=(0.3,))
    manifest = yard.load("good").manifest
    parts = [manifest.model_copy(update={"preprocessing": how})] * 2
    picture = torch.randint(0, 256, (3, 1500, 1501), dtype=torch.uint8)
    small = pictures.shrunk(picture, parts)
    assert small.shape == (3, 16, 16)
    assert torch.equal(preprocess(small[None], how), preprocess(picture[None], how))
    assert pictures.shrunk(picture[:, :900], parts) is not None
    assert pictures.shrunk(picture[:, :900], parts).shape == (3, 900, 1501)  # not large: it stays

    middle = how.model_copy(update={"fit": "crop", "crop": 0.875})
    parts = [manifest.model_copy(update={"preprocessing": middle})] * 2
    slope = (torch.arange(3000) * 255 // 2999).to(torch.uint8).expand(3, 1000, 3000)  # a part sees its middle third
    small = pictures.shrunk(slope, parts)
    assert small.shape == (3, 816, 2449)
    torch.testing.assert_close(preprocess(small[None], middle), preprocess(slope[None], middle), atol=0.03, rtol=0)
    squeezed = preprocess(slope[None], by.Preprocessing(size=(16, 16)))  # the control
    assert float((preprocess(squeezed, middle) - preprocess(slope[None], middle)).abs().max()) > 0.5


def test_pictures_of_several_sizes_are_letterboxed_and_not_squeezed(yard) -> None:
    boxed = by.Preprocessing(size=(16, 16), channels=3, fit="letterbox", fill=0.4, mean=(0.4,), std=(0.3,))
    manifest = yard.load("good").manifest
    parts = [manifest.model_copy(update={"preprocessing": boxed, "input_shape": (3, 16, 16)})] * 2
    generator = torch.Generator().manual_seed(0)
    shown = [torch.randint(0, 256, (3, *sides), dtype=torch.uint8, generator=generator) for sides in ((9, 40), (40, 9))]
    batch = pictures.stacked(shown, parts)
    wanted = torch.cat([preprocess(one[None], boxed) for one in shown])
    assert torch.equal(preprocess(batch, boxed), wanted)
    squeezed = torch.cat([preprocess(one[None], boxed.changed({"fit": "resize"})) for one in shown])  # the control
    assert not torch.allclose(squeezed, wanted, atol=0.1)
    other = manifest.model_copy(update={"preprocessing": boxed.changed({"fit": "resize"})})
    with refused("data-not-batchable", repr(manifest.source.name)):
        pictures.stacked(shown, [parts[0], other])
    assert len(pictures.stacked(shown[:1] * 2, [parts[0], other])) == 2


@pytest.mark.parametrize("place", ["centre", "corner"])
def test_a_map_lies_where_the_letterbox_has_the_picture(place) -> None:
    how = by.Preprocessing(size=(40, 40), fit="letterbox", place=place)
    picture = torch.zeros(1, 1, 100, 200, dtype=torch.float64)
    picture[..., 60:80, 20:60] = 1
    rows, columns = (preprocess(picture, how)[0, 0].amax(side) > 0.5 for side in (1, 0))
    left, top, width, height = frame((100, 200), how)
    for lit, first, length, edges in ((rows, top, height, (0.6, 0.8)), (columns, left, width, (0.1, 0.3))):
        cells = lit.nonzero().flatten()
        found = (first + length * int(cells[0]) / 40, first + length * (int(cells[-1]) + 1) / 40)
        assert found == pytest.approx(edges, abs=length / 40)
    assert (left, width) == (0, 1)
    assert (top, height) == ((-0.5, 2) if place == "centre" else (0, 2))


def test_forms_that_are_bombs_are_refused_at_once(app, yard) -> None:
    key = built(app)
    path = f"/api/assemblies/{key}/classify"
    many = upload(path, *[("p", "a.png", b"x")] * 20_000)
    long_head = form(("p", "a" * 8_000_000, b"x"))[0]
    inner = form(*[("q", "a.png", b"x")] * 100, boundary="inner")[0]
    pairs = b"a=1&" * 2_000_000
    pairs_head = (
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"content-length", str(len(pairs)).encode()),
    )
    cases = [
        many,
        drawn.only(many, headers=(HOST, form()[1]), chunks=(long_head,)),
        drawn.only(many, headers=(HOST, form()[1]), chunks=(b"\r\n" * 4_000_000,)),
        drawn.only(many, headers=(HOST, *pairs_head), chunks=(pairs,)),
        drawn.only(many, headers=(HOST, pairs_head[0]), chunks=(pairs,)),
        upload(path, ("p", "a.png", inner)),
        drawn.only(many, headers=(HOST, (b"content-type", b"multipart/mixed; boundary=x")), chunks=(inner,)),
    ]
    for number, asked in enumerate(cases):
        found = []
        assert calls(lambda asked=asked, found=found: found.append(ask(app, asked))) < MOST_CALLS, number
        assert found[0].status == 400, number
    assert ask(app, upload(path, *[("p", "a.png", png(9, 9))] * 3)).status == 200
    unlimited = create_app(yard, limits=Limits(files=30_000))  # the control
    many = upload(f"/api/assemblies/{built(unlimited)}/classify", *[("p", "a.png", b"x")] * 20_000)
    assert calls(lambda: ask(unlimited, many)) > MOST_CALLS


def test_plans_cannot_ask_for_more_than_there_is(app) -> None:
    for content in (
        json.dumps({"bricks": [str(k) for k in range(100_000)]}).encode(),
        json.dumps({"bricks": ["good"] * 24}).encode(),
        b'{"bricks":' * 5000,
        b'{"bricks": [' + b"1" * 6000 + b"]}",
    ):
        assert ask(app, Asked("POST", b"/api/plan", headers=(HOST,), chunks=(content,))).status == 400
    for field in ("0.99999999999", "99999999.0", "0.1e9", "\u0663.\u0660"):
        answer = ask(app, upload("/api/assemblies", ("plan", None, plan_of("good")), (field, "a.png", png(9, 9))))
        assert answer.status == 400


# -- many at once, and slow ones -----------------------------------------------------------------------------


def test_requests_in_work_are_bounded() -> None:
    async def scenario(limits: Limits) -> tuple[int, list[int]]:
        free, running, most = asyncio.Event(), 0, 0

        async def slow(scope, receive, send):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await free.wait()
            running -= 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(slow, token=None, hosts=("127.0.0.1",), limits=limits)
        asked = [drawn._ask(guard, Asked(method, b"/x", headers=(HOST,))) for method in ["POST"] * 6 + ["GET"] * 6]
        tasks = [asyncio.create_task(item) for item in asked]
        await asyncio.sleep(0.3)
        free.set()
        return most, [answer.status for answer in await asyncio.gather(*tasks)]

    # Uploads: two at once, the others wait; of all, no more than ten.
    most, statuses = asyncio.run(scenario(Limits(requests=10, uploads=2, each=2, wait=5)))
    assert (most, statuses) == (2 + 4, [200] * 10 + [503] * 2)
    most, statuses = asyncio.run(
        scenario(Limits(requests=10, uploads=2, each=2, wait=0.1))  # who waits too long is told
    )
    assert statuses == [200] * 2 + [503] * 4 + [200] * 4 + [503] * 2
    most, statuses = asyncio.run(scenario(Limits(requests=99, uploads=99, each=99)))
    assert (most, statuses) == (12, [200] * 12)


def head(port: int, more: str = "", path: str = "/", method: str = "GET", host: bool = True) -> bytes:
    name = f"Host: 127.0.0.1:{port}\r\n" if host else ""
    return f"{method} {path} HTTP/1.1\r\n{name}{more}Connection: close\r\n\r\n".encode()


def is_dropped(line: socket.socket) -> bool:
    line.settimeout(0.01)
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("plain", [False, True])
def test_clients_that_never_finish_their_head_do_not_keep_others_out(app, yard, plain) -> None:
    limits = Limits(connections=6, head_seconds=2)
    own = create_app(yard, limits=limits)
    with serving(own, limits, plain) as port:
        lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        for line in lines[:4]:
            line.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        time.sleep(0.2)
        # The places are taken: one that never finishes has to go for the next.
        assert (b" 503 " if plain else b" 200 ") in raw(port, head(port))
        dropped = [False] * 8
        for _ in range(25 if plain else 600):  # the control: without the dropping they stay for ever
            with contextlib.suppress(OSError):
                lines[0].sendall(b"0")  # one of them drips
            time.sleep(0.1)
            dropped = [before or is_dropped(line) for before, line in zip(dropped, lines, strict=True)]
            if all(dropped):
                break
        assert dropped == [not plain] * 8
        assert (b" 200 " in raw(port, head(port))) is not plain
        for line in lines:
            line.close()


def test_bodies_that_drip_are_refused(yard) -> None:
    limits = Limits(seconds=0.5, head_seconds=5)
    with serving(create_app(yard, limits=limits), limits) as port:
        line = socket.create_connection(("127.0.0.1", port))
        line.settimeout(60)
        line.sendall(head(port, "Content-Length: 900\r\n", "/api/plan", "POST") + b"{")
        found = line.recv(1 << 16)
        assert found.startswith(b"HTTP/1.1 408 ")
        line.close()
        # Too much without a Content-Length, and less than one promises.
        some = b"4\r\n    \r\n" * 20
        chunked = head(port, "Transfer-Encoding: chunked\r\n", "/api/plan", "POST")
        assert raw(port, chunked + some + b"0\r\n\r\n", 10).startswith(b"HTTP/1.1 400 ")
        both = chunked.replace(b"Transfer", b"Content-Length: 4\r\nTransfer")
        assert raw(port, both + some + b"0\r\n\r\n", 10)[:12] in (b"HTTP/1.1 400", b"")


def test_answers_that_are_not_read_are_dropped(monkeypatch) -> None:
    from brickyard.workbench import _server as module

    async def large(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * (64 << 20)})

    monkeypatch.setattr(module, "RATE", 1 << 40)
    with contextlib.ExitStack() as stack:
        lines = []
        for seconds in (0.5, 60):
            port = stack.enter_context(serving(large, Limits(seconds=seconds, head_seconds=0.4)))
            lines.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            lines[-1].sendall(head(port))
        time.sleep(4)
        for line, dropped in zip(lines, (True, False), strict=True):
            line.settimeout(60)
            found = 0
            with contextlib.suppress(OSError):
                while piece := line.recv(1 << 20):
                    found += len(piece)
            assert (found < 64 << 20) is dropped


def test_what_is_no_ordinary_request_is_refused(app) -> None:
    with serving(app, Limits()) as port:
        upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        asked = head(port, upgrade, "/api/yard").replace(b"Connection: close", b"Connection: Upgrade")
        assert b" 101 " not in raw(port, asked, 1)
        for method in ("TRACE", "PUT", "X"):
            found = raw(port, head(port, "X-Marker: marker\r\n", method=method))
            assert found.startswith(b"HTTP/1.1 405 ")
            assert b"marker" not in found
        connect = head(port, path="example.com:443", method="CONNECT")
        assert raw(port, connect)[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 405", b"HTTP/1.1 400")
        assert raw(port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421 ")
        assert raw(port, head(port, "Host: evil.example\r\n")).startswith(b"HTTP/1.1 400 ")
        assert raw(port, head(port, "Host: evil.example\r\n", host=False)).startswith(b"HTTP/1.1 421 ")
        assert raw(port, head(port, f"X: {'a' * 200_000}\r\n"))[:12] in (b"HTTP/1.1 400", b"")
        assert raw(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9)[:12] == b"HTTP/1.1 400"
        fine = raw(port, head(port))
        assert fine.startswith(b"HTTP/1.1 200 ")
        assert b"x-frame-options: DENY" in fine
        assert b"\nserver:" not in fine.lower()


# -- the token -----------------------------------------------------------------------------------------------


def test_the_token_is_in_no_answer_and_in_no_log(yard, tmp_path, capfd) -> None:
    token = "t0ken-that-stays-here"
    limits = Limits()
    with serving(create_app(yard, token=token), limits) as port:
        found = raw(port, head(port, path=f"/?token={token}&a=1"))
        assert found.startswith(b"HTTP/1.1 303 ")
        place = re.search(rb"location: (\S+)", found)[1]
        assert place == b"/?a=1"
        cookie = re.search(rb"set-cookie: (.+)\r", found)[1].decode()
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        known = f"Cookie: brickyard-token={token}\r\n"
        pages = [raw(port, head(port, known, path)) for path in ("/", "/api/yard", "/x")]
        assert [page[9:12] for page in pages] == [b"200", b"200", b"404"]
        wrong = [f"/?token={token}x", "/?token=", f"/api/yard?x={token}", f"/?token={token[:-1]}", f"/?TOKEN={token}"]
        refused = [raw(port, head(port, path=path)) for path in wrong]
        assert {page[9:12] for page in refused} == {b"401"}
        for page in (*pages, *refused):
            assert token.encode() not in page
            assert b"referrer-policy: no-referrer" in page
    out = capfd.readouterr()
    assert token not in out.out + out.err


def test_only_this_machine_is_let_in_without_a_token(yard, monkeypatch) -> None:
    from brickyard.cli import _serve as command
    from brickyard.workbench import _server as module

    made: list[str | None] = []

    class Nothing:
        def run(self, sockets) -> None:
            pass

    monkeypatch.setattr(module, "server", lambda app: Nothing())
    from brickyard.workbench import _app as package

    class App:
        state = SimpleNamespace(makings=contextlib.ExitStack())  # which is closed at the end

        def __init__(self, yard, *, token, **others) -> None:
            made.append(token)

    monkeypatch.setattr(package, "create_app", App)
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        command.workbench(yard.path, host=host, port=0)
    assert made[:2] == [None, None]
    assert len(made[2]) >= 32
    # A name that says it is this machine, and is not.
    monkeypatch.setattr(command, "_bound", lambda host, port: socket.create_server(("0.0.0.0", 0)))
    command.workbench(yard.path, host="localhost", port=0)
    command.workbench(yard.path, host="0.0.0.0", port=0)
    assert made[3] is not None
    command.workbench(yard.path, host="127.0.0.1", port=0, ask_token=True)
    assert None not in made[5:]
    assert len(set(made[2:])) == 4
    monkeypatch.undo()
    assert "--host" in run("workbench", "--yard", yard.path, "--host", "", code=1).stderr


# -- what is shown -------------------------------------------------------------------------------------------


def obeyed(text: str) -> list[str]:
    """What a terminal, or a reader of lines, would take for more than text."""
    return [c for c in text if not c.isprintable() and c != "\n"]


def test_texts_from_files_give_no_orders_to_a_terminal(yard, tmp_path) -> None:
    file, picture = yard.path / "hostile.safetensors", tmp_path / "pic\nfake: line\x1b[31m.png"
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "p.png").rename(picture)
    names = by.load(file).classes
    assert obeyed("".join(names))  # the control: they would
    whole = tmp_path / "whole.safetensors"
    results = [
        run("show", file, "--axes"),
        run("show", file, "--json"),
        run("yard", "list", "--yard", yard.path),
        run("yard", "list", "--yard", yard.path, "--json"),
        run("yard", "show", "hostile", "--yard", yard.path),
        run("yard", "search", "hen", "--yard", yard.path),
        run("yard", "verify", "--yard", yard.path, code=1),
        run("yard", "add", file, "--yard", tmp_path / "other"),
        run("assemble", file, yard.path / "good.safetensors", "-o", whole, "--json"),
        run("assemble", ORDERS, "ant", "--yard", yard.path, "-o", whole, "--force"),
        run("assemble", file, file, "-o", tmp_path / "twice.safetensors", code=1),
        run("predict", file, picture),
        run("predict", whole, picture, "--json"),
        run("report", file, "-o", tmp_path / "r.html"),
        run("predict", file, tmp_path / "\x1b[2Jnone", code=1),
        run("export", file, "-o", tmp_path / "state\x1b.safetensors"),
        run("disassemble", "zoo:lenet5", "--data", "digits", "--task", "\x1b[1m", "-o", tmp_path / "n", code=1),
    ]
    for number, result in enumerate(results):
        assert result.stdout + result.stderr, number
        assert obeyed(result.stdout + result.stderr) == [], number
    lines = results[0].stdout.splitlines() + results[11].stdout.splitlines()
    assert not [line for line in lines if line.startswith("fake")]
    assert tuple(json.loads(results[1].stdout)["classes"]) == names  # JSON says it all the same
    assert "[red]" in results[0].stdout


def test_progress_shows_names_as_text(monkeypatch) -> None:
    from rich.console import Console

    from brickyard.runtime import _progress as progress

    out = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=out, force_terminal=True, width=200))
    with progress.bar("[/red]\x1b]0;x\x07", 2) as advance:
        advance(text=f"at {ORDERS}[/nothing]")  # closing what was not opened is an error in markup
    assert "\x1b]0" not in out.getvalue()
    assert "[red]" in out.getvalue()


def test_cards_show_names_as_text(tmp_path) -> None:
    import markdown
    import yaml

    from brickyard.reports._cards import model_card

    names = ["<img src=x onerror=alert(1)>", "](javascript:alert(1))", "a`<b>`|\n# title\n---\nlicense: mine", "‮hen"]
    data = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    relevance = by.locate(chain(), data, classes=names, name="---\n<script>alert(2)</script> [x](http://evil.example)")
    part = by.disassemble(chain(), relevance, task=names)
    text = model_card(part, license="mit\nlicense: mine", title="t: {x}\n---\n# <b>")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit\nlicense: mine"
    assert "<script" not in (made := markdown.markdown(body, extensions=["tables", "fenced_code"]))
    assert not re.search(r"<(script|img|b|a)\b", made)
    assert len(re.findall(r"<h1", made)) == 1
    assert not obeyed(body)
    loose = markdown.markdown(re.sub(r"\\(.)", r"\1", body))  # the control: it is the escapes that hold
    assert "<script" in loose


# -- what is kept to itself ----------------------------------------------------------------------------------

MARKS = {
    name: f"mark{k}xyzzy" for k, name in enumerate(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "USER", "LOGNAME", "HOSTNAME"))
}
NET = """
import torch
class Odd(torch.nn.Module):  # of a kind that is not known
    def forward(self, x):
        return x * torch.sigmoid(x).mean(1, keepdim=True)
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 1), Odd(),
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(24, 3))
"""
RECIPE = """
brickyard: 1
license: mit
sources: {{a: {{network: "{net}:make", data: "{data}", preprocessing: {{size: 16}}}}}}
components: {{low: {{source: a, task: "0-1", flops: 0.8}}}}
evaluate: {{data: "{data}", latency: false}}
"""


def test_no_output_says_who_made_it_and_where(tmp_path, monkeypatch) -> None:
    home = tmp_path / "home" / "markhomexyzzy"
    private, out = home / "markfolderxyzzy", tmp_path / "out"
    private.mkdir(parents=True)
    out.mkdir()
    for name, value in {**MARKS, "HOME": str(home), "PWD": str(private)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "gethostname", lambda: "markhostxyzzy")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in ("cat", "dog", "hen"):
            folder = private / "photos" / split / name
            folder.mkdir(parents=True)
            for k in range(6):
                array = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
                Image.fromarray(array).save(folder / f"{k}.png")
    (private / "net.py").write_text(NET)
    source, data = f"{private / 'net.py'}:make", str(private / "photos")
    monkeypatch.chdir(out)
    needed_package("onnxscript")
    said = [
        run(*line.split(), "--json")
        for line in (
            f"locate {source} --data {data} --size 16 -o r.safetensors",
            f"disassemble {source} --relevance r.safetensors --data {data} --task cat,dog -o c.safetensors --flops 0.8",
            "assemble c.safetensors -o w.safetensors",
            f"evaluate c.safetensors --data {data} --source {source} --no-latency --csv s.csv",
            f"routes {source} --relevance r.safetensors --classes cat,dog -o routes.svg",
            "report w.safetensors c.safetensors --relevance r.safetensors -o page.html",
            "export w.safetensors -o state.safetensors",
            "yard add c.safetensors --yard yard",
            "yard list --yard yard",
            "show c.safetensors",
            "export w.safetensors -o w.onnx",
        )
    ]
    from brickyard.export._hub import save_pretrained

    save_pretrained(by.load("w.safetensors"), "hub")
    # A recipe that lies beside what it names, as recipes do.
    (private / "recipe.yaml").write_text(RECIPE.format(net="net.py", data="photos"))
    run("build", private / "recipe.yaml", "--trust-code")
    # And one that lies elsewhere and says whole paths: its copy and the notes of what it said have them, nothing else.
    (out / "far").mkdir()
    (out / "far" / "recipe.yaml").write_text(RECIPE.format(net=private / "net.py", data=data))
    run("build", out / "far" / "recipe.yaml", "--trust-code")
    places = (*out.rglob("*"), *private.glob("out/**/*"))
    files = [path for path in places if path.is_file() and path.name != "recipe.yaml"]
    files.remove(out / "far" / "out" / ".build.json")
    assert {".build.json", "README.md", "w.onnx", "page.html", "routes.svg"} <= {path.name for path in files}
    for path in files:
        found = re.findall(rb"mark\w*xyzzy", path.read_bytes())
        assert not found, (path, found)
        assert str(tmp_path).encode() not in path.read_bytes(), path
    for number, result in enumerate(said):
        assert "xyzzy" not in result.stdout, number
    assert b"net.py:make" in (out / "c.safetensors").read_bytes()  # what it is called is said


# -- writing -------------------------------------------------------------------------------------------------


def test_outputs_replace_a_link_and_never_what_it_leads_to(tmp_path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(kept)
    dangling.symlink_to(tmp_path / "new")
    for path in (link, dangling):
        with refused("file-exists"):
            write_content(path, "other", overwrite=False)
        write_content(path, "other", overwrite=True)
        assert (path.is_symlink(), path.read_text()) == (False, "other")
    assert kept.read_text() == "mine"
    assert not (tmp_path / "new").exists()
    dangling.unlink()
    dangling.symlink_to(tmp_path / "new")
    assert "dangling" in run("assemble", "x", "-o", dangling, code=1).stderr


def test_outputs_never_replace_a_device_or_a_pipe(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with refused("file-path-invalid"):
            write_content(path, "other", overwrite=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_temporary_names_cannot_be_guessed_and_are_not_followed(tmp_path, monkeypatch) -> None:
    from brickyard.storage import _atomic as container

    kept, folder, path = tmp_path / "kept.txt", tmp_path / "folder", tmp_path / "out" / "b"
    kept.write_text("mine")
    folder.mkdir()
    path.parent.mkdir()
    names: list[str] = []

    def write(place: Path) -> None:
        names.append(place.relative_to(path.parent).parts[0])
        place.write_text("x")

    for _ in range(5):
        container.write_atomically(path, write, overwrite=True)
    assert len(set(names)) == 5
    monkeypatch.setattr(container.secrets, "token_hex", lambda count: "0badcafe"[: 2 * count])
    container.write_atomically(path, write, overwrite=True)  # the control: nothing is in the way
    for target in (kept, folder, tmp_path / "nowhere"):  # someone guessed all the same
        (path.parent / names[-1]).symlink_to(target)
        with refused("file-not-writable"):
            container.write_atomically(path, write, overwrite=True)
        (path.parent / names[-1]).unlink(missing_ok=True)
        assert path.read_text() == "x"
    assert (kept.read_text(), list(folder.iterdir()), (tmp_path / "nowhere").exists()) == ("mine", [], False)


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(tmp_path, yard, mask, mode) -> None:
    before = os.umask(mask)
    try:
        yard.load("good").save(tmp_path / "c.safetensors")
        write_content(tmp_path / "t.txt", "x", overwrite=False)
        run("report", tmp_path / "c.safetensors", "-o", tmp_path / "p.html")
        run("yard", "add", tmp_path / "c.safetensors", "--yard", tmp_path / "yard")
    finally:
        os.umask(before)
    made = [*tmp_path.glob("*.*"), *tmp_path.glob("yard/*.*")]
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in made if path.is_file()} == {
        name: oct(mode) for name in ("c.safetensors", "t.txt", "p.html", INDEX, ".lock")
    } | {path.name: oct(mode) for path in tmp_path.glob("yard/*.safetensors")}


def test_arguments_are_names_and_never_commands(yard, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["$(touch owned)", "`touch owned`", "; touch owned", "a\nb", "-rf", "--json", "'\"", "*", "~", "%s"]
    for name in names:
        (tmp_path / name).write_bytes(saved())
    done = run("predict", "--json", yard.path / "good.safetensors", "--", *names)
    assert [item["image"] for item in json.loads(done.stdout)["predictions"]] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_no_code_starts_a_shell() -> None:
    import ast

    package = Path(by.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"subprocess", "pty", "commands"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("os.system", "os.popen", "os.execv", "os.spawnv"), path


def test_shown_escapes_what_is_not_printable_and_nothing_else() -> None:
    assert shown("käfer 猫 [x]\n") == "käfer 猫 [x]\n"
    assert shown("\x1b\r\x9b‮\ud800\n", keep="") == r"\x1b\r\x9b\u202e\ud800\n"
