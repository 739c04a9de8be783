"""Faults: calls that fail, processes that are killed or stopped, and folders that are not what they were."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.cli import _signals as stopping
from brickyard.recipes._build import build
from brickyard.recipes._reader import load_recipe
from brickyard.storage import _atomic as container
from brickyard.storage._atomic import lock_folder, write_content
from brickyard.testing import chain
from brickyard.yard._yard import Yard
from errors import refused
from shell import run

FAULTS = Path(__file__).parents[1] / "faults"
DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
RECIPE = """\
brickyard: 1
sources:
  a:
    train: {network: lenet5?width=0.5, data: digits, classes: "0-3", epochs: 1, batch-size: 64}
    preprocessing: {size: 16}
    locate: {per-class: 4}
components:
  low: {source: a, task: "0,1", flops: 0.6, heal-images: 20}
"""
SLOW = RECIPE.replace("epochs: 1", "epochs: 5000")


@pytest.fixture(scope="module")
def part() -> by.Component:
    return by.disassemble(chain(), by.locate(chain(), DATA), task=[0, 1], heal="none")


def faults(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Run `python tests/faults`: its exit code and its figures."""
    if sys.platform != "linux" or subprocess.run(["which", "cc"], capture_output=True, check=False).returncode:
        reason = "the shim that disturbs calls needs Linux and a C compiler"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    command = [sys.executable, str(FAULTS), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


# -- killed, many at once, calls that fail ----------------------------------------------------------------

QUICK = ("save a component", "save an assembly", "save relevances", "add to a yard", "remove from a yard")


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_file_or_the_new_one() -> None:
    code, found = faults("kill", "--points", 24, "--only", *QUICK, "locate and resume")
    assert (code, found["problems"]) == (0, [])
    assert sum(job["kills"] for name, job in found["kill"].items() if name != "seconds") == 24


@pytest.mark.slow
def test_files_written_carelessly_are_found_half_written() -> None:
    """The control: the same kills find what they look for where files are written under their final names."""
    code, found = faults("kill", "--points", 12, "--only", *QUICK[:3], "--careless")
    assert code == 1
    assert any("neither the old file nor the new one" in problem for problem in found["problems"])


@pytest.mark.slow
def test_many_writers_lose_and_double_nothing() -> None:
    code, found = faults("writers", "--writers", 3, "--adds", 30)
    assert (code, found["problems"]) == (0, [])
    assert found["writers"]["components"] == 22
    assert found["writers"]["lists read"] > 10


@pytest.mark.slow
def test_writers_without_the_lock_lose_components() -> None:
    code, found = faults("writers", "--writers", 3, "--adds", 30, "--careless")
    assert code == 1
    assert any(problem.startswith("lost") for problem in found["problems"])


@pytest.mark.slow
def test_every_call_may_fail_or_be_interrupted() -> None:
    jobs = ("save a component", "add to a yard", "report")
    code, found = faults("failing", "--only", *jobs, "--calls", 6)
    assert (code, found["problems"]) == (0, [])
    told = [found["failing"][name]["told"] for name in jobs]  # of 36: there are ways around some failures
    assert min(told) >= 24, told


# -- temporaries -------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_cleared_by_the_next_write_and_what_is_in_use_is_not(part, tmp_path) -> None:
    left, used, foreign = (tmp_path / name for name in (".brickyard-00000000.tmp", ".brickyard-11111111.tmp", ".x.tmp"))
    for folder in (left, used, foreign):
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
    held = lock_folder(used)
    assert held is not None
    part.save(tmp_path / "part.safetensors")
    assert [folder.exists() for folder in (left, used, foreign)] == [False, True, True]
    os.close(held)
    write_content(tmp_path / "text", "text", overwrite=False)
    assert [folder.exists() for folder in (left, used, foreign)] == [False, False, True]


def test_a_file_that_came_to_be_meanwhile_is_not_replaced(tmp_path) -> None:
    path = tmp_path / "file"
    with refused("file-exists"):
        container.write_atomically(
            path, lambda place: (place.write_text("mine"), path.write_text("another's")), overwrite=False
        )
    assert path.read_text() == "another's"
    container.write_atomically(path, lambda place: place.write_text("mine"), overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "mine"


def test_where_there_are_no_hard_links_files_are_renamed(part, tmp_path, monkeypatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    part.save(tmp_path / "part.safetensors")
    assert by.load(tmp_path / "part.safetensors").classes == part.classes
    assert len(list(tmp_path.iterdir())) == 1


def test_content_and_name_are_flushed_in_this_order(tmp_path, monkeypatch) -> None:
    """What a power cut cannot take: the file is flushed before it gets its name, the folder after it."""
    done: list[str] = []
    real, link = os.fsync, os.link

    def flushed(place: int) -> None:
        done.append("folder" if os.path.isdir(f"/dev/fd/{place}") else "file")
        real(place)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "link", lambda *names: (done.append("name"), link(*names)))
    write_content(tmp_path / "text", "text", overwrite=False)
    assert done == ["file", "name", "folder"]


# -- places that are no good -------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path):
    """A folder that not even root may write to."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "old.safetensors").write_bytes(b"old")
    if os.getuid():
        folder.chmod(0o555)
    elif (
        subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode
        or subprocess.run(["mount", "-o", "remount,bind,ro", folder], capture_output=True, check=False).returncode
    ):
        subprocess.run(["umount", folder], capture_output=True, check=False)
        pytest.skip("root may write everywhere here, and nothing can be mounted")
    yield folder
    if os.getuid():
        folder.chmod(0o755)
    else:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_folder_is_one_clear_error(part, read_only) -> None:
    with refused("file-not-writable", "old.safetensors"):
        part.save(read_only / "old.safetensors", overwrite=True)
    with refused("file-not-writable", str(read_only)):
        Yard(read_only).add(part)
    assert (read_only / "old.safetensors").read_bytes() == b"old"
    assert len(list(read_only.iterdir())) == 1


def test_a_folder_that_vanishes_is_one_clear_error(part, tmp_path, monkeypatch) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    real = container.clear_stages
    monkeypatch.setattr(container, "clear_stages", lambda folder: (real(folder), folder.rmdir()))
    with refused("file-not-writable", "part.safetensors"):
        part.save(place / "part.safetensors")


def test_a_folder_in_the_place_of_the_file_stays(part, tmp_path) -> None:
    (tmp_path / "part.safetensors" / "inside").mkdir(parents=True)
    with refused("file-path-invalid", "part.safetensors"):
        part.save(tmp_path / "part.safetensors", overwrite=True)
    assert (tmp_path / "part.safetensors" / "inside").is_dir()


# -- two builds --------------------------------------------------------------------------------------------


def recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_two_builds_in_one_folder_are_refused_and_the_lock_ends_with_its_process(tmp_path) -> None:
    path = recipe(tmp_path)
    other = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time, pathlib\nfrom brickyard.storage._atomic import lock_folder\n"
            "pathlib.Path('out').mkdir()\nheld = lock_folder(pathlib.Path('out'))\nprint('held', flush=True)\n"
            "time.sleep(600)",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    assert "--output-folder" in run("build", path, code=1).stderr
    assert list((tmp_path / "out").iterdir()) == []
    other.kill()
    other.wait()
    assert {step["status"] for step in build(load_recipe(path))["steps"]} == {"ran"}
    assert {step["status"] for step in build(load_recipe(path))["steps"]} == {"up to date"}


# -- stopped -----------------------------------------------------------------------------------------------


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "brickyard", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(line: str, process: subprocess.Popen[str]) -> None:
    for text in process.stderr:
        if line in text:
            return
    pytest.fail(f"{line!r} was not said")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_build_says_one_line_and_leaves_no_half_file(number, code, tmp_path) -> None:
    recipe(tmp_path, SLOW)
    process = start("build", "recipe.yaml", cwd=tmp_path)
    until("train a ...", process)
    time.sleep(0.3)
    process.send_signal(number)
    output, error = process.communicate(timeout=600)
    assert (process.returncode, output, error) == (code, "", "brickyard: stopped\n")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [".build.json", "sources"]
    lock = lock_folder(tmp_path / "out")
    assert lock is not None
    os.close(lock)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_libraries_load_is_no_traceback(number, code, tmp_path) -> None:
    for wait in (0.2, 0.6, 1.0):
        process = start("show", "zoo:resnet20", cwd=tmp_path)
        time.sleep(wait)
        process.send_signal(number)
        _, error = process.communicate(timeout=600)
        assert "Traceback" not in error
        assert process.returncode in (code, -number, 0)  # before our first line the system ends it; or it had ended
        assert process.returncode != code or error == "brickyard: stopped\n"


LOADING = """
import sys, time
from brickyard.cli import _signals as stopping
stopping.listen()
print("loading", flush=True)
try:
    import slow
    time.sleep(600)
except BaseException as error:
    print(type(error).__name__, "loaded" if getattr(sys.modules.get("slow"), "whole", False) else "in the middle")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no timer that signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_library_is_loaded_whole_before_the_interruption_and_a_second_one_does_not_wait(
    number, times, tmp_path
) -> None:
    (tmp_path / "slow.py").write_text("import time\nfor _ in range(100): time.sleep(0.03)\nwhole = True\n")
    (tmp_path / "main.py").write_text(LOADING)
    process = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    for _ in range(times):
        time.sleep(0.2)
        process.send_signal(number)
    name = "KeyboardInterrupt" if number == signal.SIGINT else "Stopped"
    assert process.communicate(timeout=600)[0] == f"{name} {'loaded' if times == 1 else 'in the middle'}\n"


def test_an_interruption_that_a_library_turned_into_its_own_error_is_still_one(monkeypatch, capsys) -> None:
    import brickyard.cli._app as cli

    def raising(error: BaseException):
        def call(*_args: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise error  # not reached: the signal comes first

        return call

    def swallowing() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a library could not be loaded") from None

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for call, code in ((swallowing, 130), (raising(ValueError("x")), 143)):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            monkeypatch.setattr(cli, "app", call)
            with pytest.raises(SystemExit) as found:
                cli.main()
            assert found.value.code == code
            assert re.fullmatch(r"brickyard: [^\n]+\n", capsys.readouterr().err)
    finally:
        stopping._seen = None  # for the tests that follow in this process: monkeypatch would bring it back
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_workbench_stops(number, code, part, tmp_path) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    Yard(tmp_path / "yard", create=True).add(part, "one")
    process = start("workbench", "--yard", "yard", "--port", 0, cwd=tmp_path)
    until("http://", process)
    time.sleep(1)
    process.send_signal(number)
    _, error = process.communicate(timeout=600)
    assert "Traceback" not in error
    assert process.returncode == code
    assert re.fullmatch(r"brickyard: [^\n]+\n", error)


# -- output that nobody reads ------------------------------------------------------------------------------


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = command.replace("brickyard", f"{sys.executable} -m brickyard")
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_a_pipe_that_closes_is_no_error(part, tmp_path) -> None:
    yard = Yard(tmp_path / "yard", create=True)
    for k in range(40):
        yard.add(part.with_scores({"number": k}), f"part{k}")
    closed = shell("brickyard yard list --json | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert (closed.stdout, closed.stderr) == ("141\n", "")
    read = shell("brickyard yard list | head -1", tmp_path)
    assert read.stdout.startswith("name")
    assert read.stderr == ""
