"""Shared material: trained sources and images, read from the folder that BRICKYARD_SHARED names."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for each other
ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="Run the slow tests too.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: it runs with --slow, as make test-slow does"))


def needed(path: Path, what: str) -> Path:
    """The path; where it is missing the test is skipped with its reason, and fails in CI."""
    if path.exists():
        return path
    reason = f"{what} is not at {path}: set the environment variable that names it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def needed_package(name: str) -> Any:
    """A package that an extra brings; where it is missing the tests are skipped, and fail in CI."""
    return importlib.import_module(name) if os.environ.get("CI") == "true" else pytest.importorskip(name)


def calls(act: Callable[[], object]) -> int:
    """How many functions an act calls, of Python and of C, in this thread and in those that it starts.

    What work is bounded by is counted, not timed: the count is the same on a busy machine.
    """
    found = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def python_blocks(page: Path) -> list[str]:
    """The Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def run_blocks(page: Path, **given: Any) -> dict[str, Any]:
    """Run the Python blocks of a document one after the other, with some names given, and return all names."""
    blocks = python_blocks(page)
    assert blocks, f"{page.name} has no Python"
    for block in blocks:
        exec(compile(block, page.name, "exec"), given)  # noqa: S102
    return given


def rewritten(path: Path, to: Path, change: Callable[[Any, dict[str, torch.Tensor]], object]) -> Path:
    """A copy of one of our files after a change of its text (in place, or a string instead) and its tensors."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = json.loads(file.metadata()["brickyard"])
    instead = change(text, tensors)
    save_file(tensors, to, {"brickyard": instead if isinstance(instead, str) else json.dumps(text)})
    return to


@pytest.fixture(scope="session")
def shared() -> Path:
    return needed(Path(os.environ.get("BRICKYARD_SHARED", ROOT.parent / "shared")), "BRICKYARD_SHARED")


@pytest.fixture(scope="session")
def fashion() -> Path:
    place = os.environ.get("BRICKYARD_FASHION", "/usr/share/datasets/fashion-mnist")
    return needed(Path(place), "Fashion-MNIST (BRICKYARD_FASHION)")


@pytest.fixture(scope="session")
def digits_yard(tmp_path_factory) -> Any:
    """What `workbench_yard.make_yard` makes, once for all tests; nothing may change it."""
    from workbench_yard import make_yard

    torch.manual_seed(0)
    return make_yard(tmp_path_factory.mktemp("yard"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
