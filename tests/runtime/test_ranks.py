"""Several processes on one job, on one machine: the same results, and one clear error where one of them goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.testing import Residual, chain


def results() -> dict[str, list[float]]:
    """What one process, or each of a group, makes of the same work: relevances, a refit component, its scores."""
    images, labels = torch.rand(46, 3, 8, 8, generator=torch.Generator().manual_seed(7)), torch.arange(46) % 4
    found: dict[str, list[float]] = {}
    for name, model in (("chain", chain().double()), ("residual", Residual().double())):
        data = (images.double(), labels)
        relevance = by.locate(model, data, per_class=9, batch_size=4)
        found[f"{name} sums"] = torch.cat([relevance.sum(layer).flatten() for layer in relevance.layers]).tolist()
        found[f"{name} soft"] = torch.cat([relevance.axis(axis).flatten() for axis in relevance.axes]).tolist()
        for count in (8, 40):  # fewer positions than inputs somewhere, and more everywhere
            part = by.disassemble(
                model, relevance, task=[0, 2], budget=by.Budget(flops=0.5), images=data, heal_images=count
            )
            found[f"{name} refit {count}"] = torch.cat([p.flatten() for p in part.parameters()]).tolist()
        moments = by.disassemble(model, relevance, task=[0, 2], budget=by.Budget(flops=0.5), heal="moments")
        found[f"{name} moments"] = torch.cat([p.flatten() for p in moments.parameters()]).tolist()
        scores = by.evaluate(part, data, source=model, latency=False, including_calibration=True, batch_size=4)
        found[f"{name} scores"] = [row.accuracy for row in scores.rows]
    return found


def trained() -> tuple[list[float], int]:
    """What one process of a group distils in a time of its own, and in how many steps."""
    images, labels = torch.rand(46, 3, 8, 8, generator=torch.Generator().manual_seed(7)), torch.arange(46) % 4
    model = chain()
    relevance = by.locate(model, (images, labels))
    minutes = 0.01 * (2 + int(os.environ["RANK"]))  # as where processes are not equally fast
    part = by.disassemble(model, relevance, task=[0, 2], budget=by.Budget(flops=0.5), heal="distil", minutes=minutes)
    return torch.cat([p.flatten() for p in part.parameters()]).tolist(), part.manifest.heal.steps


def opened(folder: str) -> list[str]:
    """The pictures of a folder that this process decodes to locate three classes, eight pictures of each."""
    from brickyard.inputs import Preprocessing, _pictures, load_data

    seen: list[str] = []
    real = _pictures.decode_image

    def decode(source: Any, title: str | None) -> torch.Tensor:
        seen.append(os.path.relpath(source, folder))
        return real(source, title)

    _pictures.decode_image = decode
    data = load_data(folder, size=Preprocessing(size=(8, 8), channels=3))
    by.locate(chain(3), data, choose="random", per_class=8, batch_size=2)
    return seen


def group(count: int, *command: str, **variables: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"OMP_NUM_THREADS": "1", **variables}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes, and the errors that were printed; nothing else may be."""
    outputs = [process.communicate(timeout=600) for process in processes]
    errors = [line for _, error in outputs for line in error.splitlines() if "W socket" not in line]
    assert all(line.startswith("brickyard: ") for line in errors), errors
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    return results()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_gives_the_same(count, alone) -> None:
    processes = group(count, __file__)
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    for text, _ in outputs:
        together = json.loads(text)
        assert together.keys() == alone.keys()
        for name, values in alone.items():
            expected = torch.tensor(values, dtype=torch.float64)
            assert len(expected)
            assert torch.isfinite(expected).all()
            # refits solve systems whose condition number multiplies the rounding of their sums
            bound = 1e-12 if "sums" in name or "soft" in name or "scores" in name else 1e-8
            torch.testing.assert_close(
                torch.tensor(together[name], dtype=torch.float64), expected, rtol=bound, atol=bound, msg=name
            )


@pytest.mark.slow
def test_each_process_decodes_its_share_of_a_folder(tmp_path) -> None:
    noise = torch.randint(0, 256, (90, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, pixels in enumerate(noise):
        (tmp_path / f"class{number % 3}").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"class{number % 3}" / f"{number:02}.png")
    outputs = [process.communicate(timeout=600) for process in group(2, __file__, "open", str(tmp_path))]
    one, two = (set(json.loads(text)) for text, _ in outputs)
    first = {os.path.join("class0", "00.png")}  # which shows the form of all
    assert one & two == first
    assert len((one | two) - first) in (23, 24)  # eight of each class, with or without that one
    assert abs(len(one) - len(two)) <= 6  # each its batches


def test_a_killed_process_ends_the_others_with_one_error() -> None:
    processes = group(3, __file__, "loop")
    assert processes[2].stdout.readline() == "started\n"
    processes[2].send_signal(signal.SIGKILL)
    codes, errors = ended(processes)
    assert codes == [1, 1, -signal.SIGKILL]
    assert len(errors) == 1


def test_all_processes_take_what_the_first_one_distils() -> None:
    outputs = [process.communicate(timeout=600) for process in group(2, __file__, "distil")]
    (one, steps), (two, others) = (json.loads(text) for text, _ in outputs)
    assert one == two
    assert steps == others > 0


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path) -> None:
    from shell import run  # here: this file is also a program, which does not find it

    source, plain, together = (tmp_path / f"{name}.safetensors" for name in ("source", "plain", "together"))
    run("train", "lenet5?width=0.5", "--data", "digits", "--epochs", 1, "-o", source)
    locate = ("locate", source, "--data", "digits", "--per-class", 8, "--json", "-o")
    alone = run(*locate, plain).stdout
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "brickyard")
    command = [sys.executable, *torchrun, *map(str, locate), str(together)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["images"] == json.loads(alone)["images"]
    one, two = by.load(plain), by.load(together)
    assert isinstance(one, by.Relevance)
    assert isinstance(two, by.Relevance)
    for axis in one.axes:
        torch.testing.assert_close(two.axis(axis), one.axis(axis), rtol=1e-5, atol=1e-6)
        assert torch.equal(two.relevant(axis), one.relevant(axis))
    codes, errors = ended(group(2, "-m", "brickyard", *map(str, locate), str(together)))
    assert codes == [1, 1]
    assert len(errors) == 1
    assert "together.safetensors" in errors[0]


def test_commands_that_share_no_work_say_so(tmp_path) -> None:
    command = ("-m", "brickyard", "train", "lenet5", "--data", "digits", "-o", str(tmp_path / "x.safetensors"))
    processes = group(2, *command)
    codes, errors = ended(processes)
    assert codes == [1, 1]
    assert len(errors) == 1
    assert "torchrun" in errors[0]


def _loop() -> None:
    from brickyard.cli._app import _shared
    from brickyard.cli._output import exit_code

    def locate() -> None:
        data = torch.rand(64, 3, 8, 8), torch.arange(64) % 4
        print("started", flush=True)
        while True:
            by.locate(chain(), data, batch_size=8)

    try:
        _shared(locate)
    except by.BrickyardError as error:
        sys.exit(exit_code(error))
    except BaseException as error:
        sys.exit(getattr(error, "exit_code", 99))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["loop"]:
        _loop()
    else:
        from brickyard.runtime._processes import joined

        with joined():
            if sys.argv[1:2] == ["open"]:
                found = opened(sys.argv[2])
            else:
                found = trained() if sys.argv[1:] == ["distil"] else results()
        print(json.dumps(found))
