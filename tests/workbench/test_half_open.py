"""What strangers do to a workbench that others use: half-open requests, long ones, and answers to all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from workbench_yard import raw, serving

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from drawn_requests import small_yard

from brickyard.workbench._app import create_app
from brickyard.workbench._bench import Bench
from brickyard.workbench._guard import HEADERS
from brickyard.workbench._limits import Limits
from brickyard.workbench._line import Line

PLAN = json.dumps({"bricks": ["good"]}).encode()
FORM = "Content-Type: application/x-www-form-urlencoded\r\n"


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    torch.manual_seed(0)
    return small_yard(tmp_path_factory.mktemp("strangers"))


def said(port: int, content: bytes, wait: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to some bytes."""
    found = raw(port, content, wait)
    top, _, body = found.partition(b"\r\n\r\n")
    first, *rest = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in rest)}
    return int(first.split()[1]), headers, body


def request(port: int, path: str, method: str = "GET", more: str = "", body: bytes = b"") -> bytes:
    size = f"Content-Length: {len(body)}\r\n" if body else ""
    top = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{more}{size}Connection: close\r\n\r\n"
    return top.encode() + body


def building(port: int, more: str = "") -> bytes:
    return request(port, "/api/assemblies", "POST", FORM + more, b"plan=" + PLAN.replace(b" ", b""))


# -- answers --------------------------------------------------------------------------------------------------------


def test_answers_of_the_server_itself_have_the_safety_headers(yard) -> None:
    limits = Limits(seconds=0.3, head_seconds=30, body_bytes=1 << 20)
    with serving(create_app(yard, limits=limits), limits) as port:
        asked = [
            (200, request(port, "/")),
            (400, b"no request at all\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nbad header\r\n\r\n"),
            (404, request(port, "/nothing")),
            (405, request(port, "/", "DELETE")),
            (408, request(port, "/api/plan", "POST", "Content-Length: 9\r\n")),
            (413, request(port, "/api/plan", "POST", "Content-Length: 99999999\r\n")),
            (421, request(port, "/").replace(b"127.0.0.1", b"evil.example")),
        ]
        answers = [(status, *said(port, content)) for status, content in asked]
    for status, found, headers, body in answers:
        assert found == status, (status, found, body)
        assert {name: headers.get(name) for name in HEADERS} == HEADERS, status
        assert status == 200 or json.loads(body)["error"]


def test_where_all_connections_work_the_next_is_told_so(yard) -> None:
    limits = Limits(connections=2, seconds=20)
    with serving(create_app(yard, limits=limits), limits) as port, contextlib.ExitStack() as stack:
        for _ in range(2):  # whole heads, and bodies that never come
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.sendall(request(port, "/api/plan", "POST", "Content-Length: 9\r\n"))
        time.sleep(0.3)
        status, headers, body = said(port, request(port, "/"))
        assert status == 503
        assert {name: headers.get(name) for name in HEADERS} == HEADERS
        assert "busy" in json.loads(body)["error"]


# -- half-open requests ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def flood(port: int, content: bytes, rate: float) -> Iterator[list[socket.socket]]:
    """Connections that are opened all the time, and never finish what they ask."""
    lines: list[socket.socket] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(1 / rate):
            with contextlib.suppress(OSError):
                line = socket.create_connection(("127.0.0.1", port))
                lines.append(line)
                line.sendall(content)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lines
    finally:
        stop.set()
        thread.join()
        for line in lines:
            line.close()


@pytest.mark.parametrize("plain", [False, True])
def test_half_open_requests_keep_nobody_out(yard, plain: bool) -> None:
    limits = Limits(connections=16, heads=8)
    with serving(create_app(yard, limits=limits), limits, plain) as port:
        with flood(port, b"GET / HTTP/1.1\r\nHost: 127", 40) as lines:
            while len(lines) < 24:
                time.sleep(0.05)
            statuses = [said(port, request(port, "/"))[0] for _ in range(25)]
        assert statuses == [503 if plain else 200] * 25  # plain: the control


def test_of_many_addresses_the_one_with_most_half_open_requests_pays() -> None:
    from brickyard.workbench._server import Patient

    class Wire:
        closed = False

        def is_closing(self) -> bool:
            return self.closed

        def abort(self) -> None:
            self.closed = True

    known: set[Patient] = set()

    def connection(address: str, begun: float) -> Patient:
        made = Patient.__new__(Patient)
        made.limits, made.connections, made.client = Limits(connections=6, heads=9), known, (address, 1)
        made.transport, made.begun, made.cycle = Wire(), begun, None
        known.add(made)
        return made

    owner, *strangers = [connection("10.0.0.2" if begun else "10.0.0.1", begun) for begun in range(6)]
    connection("10.0.0.1", 9)._make_room()
    assert [c.transport.closed for c in (owner, *strangers)] == [False, True, False, False, False, False]
    known.clear()
    known.update((owner, *strangers))
    for item in known:  # only the owner's last request is answered
        item.cycle, item.transport.closed = SimpleNamespace(response_complete=item is owner), False
    connection("10.0.0.3", 11)._make_room()
    assert [c.transport.closed for c in (owner, *strangers)] == [True, False, False, False, False, False]


# -- long requests --------------------------------------------------------------------------------------------------


def test_long_requests_of_one_visitor_do_not_stop_others() -> None:
    async def scenario() -> list[str]:
        line, done = Line(Limits(uploads=2, each=1, wait=20)), []
        free = asyncio.Event()

        async def work(visitor: str, name: str) -> None:
            async with line.place(visitor, name):
                if visitor == "stranger":
                    await free.wait()
                done.append(name)

        long = [asyncio.create_task(work("stranger", f"s{k}")) for k in range(5)]
        await asyncio.sleep(0.1)
        assert line.told("s2") == {"working": 1, "waiting": 4, "before": 2}
        assert line.told() == {"working": 1, "waiting": 4, "before": None}
        await asyncio.wait_for(work("owner", "o"), 10)
        assert done == ["o"]
        free.set()
        await asyncio.gather(*long)
        return done

    assert asyncio.run(scenario()) == ["o", "s0", "s1", "s2", "s3", "s4"]


def test_who_waits_too_long_is_told() -> None:
    async def scenario() -> Line:
        line = Line(Limits(uploads=1, wait=0.05))
        async with line.place("a", ""):
            with pytest.raises(TimeoutError):
                async with line.place("b", ""):
                    pass
        return line

    assert asyncio.run(scenario()).told() == {"working": 0, "waiting": 0, "before": None}


def test_the_yard_is_shown_while_a_request_computes(yard, monkeypatch) -> None:
    begun, free = threading.Event(), threading.Event()

    def build(self: Bench, plan: object, labelled: object) -> dict[str, str]:
        with self._turn():
            begun.set()
            free.wait(30)
            return {"id": "made"}

    monkeypatch.setattr(Bench, "build", build)
    limits = Limits(wait=0.5)
    with serving(create_app(yard, limits=limits), limits) as port:
        first = threading.Thread(target=said, args=(port, building(port, "X-Brickyard-Ticket: t\r\n"), 30))
        first.start()
        assert begun.wait(20)
        assert said(port, request(port, "/api/yard"))[0] == 200
        assert said(port, request(port, "/api/plan", "POST", body=PLAN))[0] == 200
        assert json.loads(said(port, request(port, "/api/queue"))[2]) == {"working": 1, "waiting": 0, "before": None}
        status, _, body = said(port, building(port))
        assert (status, json.loads(body)["queue"]["working"]) == (503, 1)
        free.set()
        first.join()


# -- ending ---------------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from brickyard.workbench._bench import Bench
def build(self, plan, labelled):
    print("computing", file=sys.stderr, flush=True)
    time.sleep(600)
Bench.build = build
from brickyard.cli._app import main
sys.argv = ["brickyard", "workbench", "--yard", sys.argv[1], "--port", "0"]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_a_request_computes(yard, number) -> None:
    command = [sys.executable, "-c", SLOW, str(yard.path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stderr.readline().split("http://127.0.0.1:")[1].split("/")[0])
            threading.Thread(target=said, args=(port, building(port), 60), daemon=True).start()
            while "computing" not in server.stderr.readline():
                pass
            server.send_signal(number)
            assert server.wait(60) in (130, 143)
        finally:
            server.kill()
