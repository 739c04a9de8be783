"""Class names in the forms in which people hold them, and tasks of classes that are named by numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.base._classes import ordered_names, parse_classes, resolve_task
from brickyard.sources._loading import load_source
from brickyard.testing import chain
from errors import refused

FOLDERS = tuple(sorted(map(str, range(11))))  # 0, 1, 10, 2, ...: the order of ImageFolder's outputs


@pytest.mark.parametrize(
    "given",
    [
        {"person": 3, "ball": 0, "cat": 1, "lamp": 2},  # class_to_idx
        {3: "person", 0: "ball", 2: "lamp", 1: "cat"},  # names
        {"3": "person", "0": "ball", "2": "lamp", "1": "cat"},  # id2label, from JSON
        ["ball", "cat", "lamp", "person"],
    ],
)
def test_names_in_the_order_of_the_outputs(given: Any) -> None:
    wanted = ("ball", "cat", "lamp", "person")
    data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    assert by.locate(chain(), data, classes=given).classes == wanted

    class Named(torch.utils.data.TensorDataset):
        classes = given

    assert by.locate(chain(), Named(*data)).classes == wanted
    assert load_source("zoo:lenet5?classes=4", classes=given, random_weights=True).classes == wanted


@pytest.mark.parametrize(
    "given", [{"a": 1, "b": 2}, {"a": 0, "b": 0}, {"a": 0, "b": None}, {"a": "x", "b": "y"}, {0.5: "a", 1: "b"}]
)
def test_dictionaries_that_do_not_number_the_classes_are_refused(given: Any) -> None:
    with refused("task-class-name", "from 0 to 1"):
        ordered_names(given)


@pytest.mark.parametrize(
    ("text", "wanted"), [("0-2", "0 1 2"), ("2", "2"), ("0,1,2", "0 1 2"), ("9-10", "9 10"), ("10,0-1", "10 0 1")]
)
def test_numbers_are_names_where_all_classes_are_numbers(text: str, wanted: str) -> None:
    assert [FOLDERS[k] for k in resolve_task(parse_classes([text], FOLDERS), FOLDERS)] == wanted.split()


@pytest.mark.parametrize("names", [("1", "2", "3"), ("3", "5", "7")])
def test_a_number_that_names_no_class_is_no_index(names: tuple[str, ...]) -> None:
    with refused("task-unknown-class", "'0'"):
        resolve_task(parse_classes(["0"], names), names)
    with refused("task-range", "'0-2'"):
        parse_classes(["0-2"], names)


def test_indices_are_indices_where_classes_have_names() -> None:
    names = ("cat", "dog", "3")
    assert [names[k] for k in resolve_task(parse_classes(["0-1,3"], names), names)] == ["cat", "dog", "3"]
