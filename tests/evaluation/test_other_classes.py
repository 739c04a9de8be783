"""Images of classes that are not scored are left out, and counted."""

from __future__ import annotations

import json

import numpy as np
import torch

import brickyard as by
from brickyard import gnn
from brickyard.gnn._network import NodeData
from brickyard.testing import chain, random_graph
from shell import run

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.tensor([0] * 10 + [1] * 14 + [2] * 17 + [3] * 19)
NEW = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)


def parts(*tasks: list[int], **options):
    source = chain()
    relevance = by.locate(source, (IMAGES, LABELS), per_class=5)
    return [by.disassemble(source, relevance, task=task, **options) for task in tasks]


def test_images_of_other_classes_are_counted() -> None:
    for options in ({}, {"reject": True}):
        (part,) = parts([1, 3], **options)
        found = by.evaluate(part, (NEW, LABELS), latency=False)
        assert (found.other_classes, found.images) == ((27,), 33)
        assert any("27 of 60 images" in note for note in found.notes)
        mine = (LABELS == 1) | (LABELS == 3)
        found = by.evaluate(part, (NEW[mine], LABELS[mine]), latency=False)
        assert (found.other_classes, found.images) == ((0,), 33)
        assert not any("left out" in note for note in found.notes)


def test_one_class_alone_is_compared_with_the_others_which_are_not_left_out() -> None:
    (part,) = parts([1])
    found = by.evaluate(part, (NEW, LABELS), latency=False)
    assert (found.other_classes, found.row("component").auroc is not None) == ((0,), True)


def test_each_part_of_an_assembly_counts_those_of_no_class_of_the_assembly() -> None:
    whole = by.assemble(parts([0], [1, 3]))
    found = by.evaluate(whole, [(NEW, LABELS), (NEW[20:], LABELS[20:])], latency=False)
    assert found.other_classes == (17, 17)  # class 2; those of another part's class are scored there
    assert [note for note in found.notes if "17 of" in note][1].startswith("17 of 40 images for part 1")


def test_nodes_are_counted_too() -> None:
    source, graph = gnn.random_network("gcn", 12, 8, 4), random_graph()
    part = gnn.disassemble(source, gnn.locate(source, graph, nodes=range(40)), task=[1, 3])
    labels = NodeData.of(graph).labels[40:60]
    others = int(((labels != 1) & (labels != 3)).sum())
    assert gnn.evaluate(part, graph, nodes=range(40, 60)).other_classes == (others,)
    assert others


def test_the_command_line_says_it_in_its_table_and_as_json(tmp_path) -> None:
    place, data = tmp_path / "part.safetensors", tmp_path / "data.npz"
    parts([1, 3])[0].save(place)
    np.savez(data, images=NEW.numpy(), labels=LABELS.numpy())
    words = ("evaluate", place, "--data", data, "--no-latency")
    assert "27 of 60 images are of other classes" in run(*words).stdout
    assert json.loads(run(*words, "--json").stdout)["other_classes"] == [27]
