"""What will be refused later is said now, and what a result costs stands beside what its sources cost."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.component._describe import later_texts, missing_texts
from brickyard.scaling._strategies import SCALINGS
from brickyard.sources._loading import load_source, save_source
from brickyard.testing import chain
from errors import judge
from shell import run

NAMES = ["hen", "dog", "cat", "pig"]


def relevances(count: int = 32):
    source, data = chain(), (torch.rand(count, 3, 8, 8), torch.arange(count) % 4)
    return source, data, by.locate(source, data, classes=NAMES)


def refused_scalings(parts, images) -> set[str]:
    """By trying each: those that need what was not measured."""
    found = set()
    for name, one in SCALINGS.items():
        try:
            by.assemble(parts, scaling=name, images=images if one.few_shot else None)
        except BrickyardError as error:
            judge(error, "option-needs-statistics", repr(name))
            found.add(name)
    return found


def test_what_is_said_is_what_assembling_does(tmp_path) -> None:
    source, data, relevance = relevances()
    bare = by.load(relevance.save(tmp_path / "r.safetensors"))  # a file holds no images
    parts, blind = [], []
    for task in (["hen", "dog"], ["cat", "pig"]):
        parts.append(by.disassemble(source, relevance, task=task))
        blind.append(by.disassemble(source, bare, task=task, heal="none"))
    for built in (parts, blind):
        said = {name for part in built for text in missing_texts(part.manifest) for name in re.findall(r"[\w-]+", text)}
        assert refused_scalings(built, [data, data]) == said & (set(SCALINGS) - {"auto", "none"})
        notes = " ".join(by.assemble(built).manifest.scaling.notes)
        assert ("auto" in said) == ("stay as they are" in notes)
    assert missing_texts(parts[0].manifest) == []
    assert "later" not in str(parts[0])
    assert str(blind[0]).count("  later  ") == 1
    assert "labelled images" in str(blind[0])


def test_votes_are_told_of_where_they_are_not_possible() -> None:
    source, _, relevance = relevances()
    without = by.disassemble(source, relevance, task=["hen", "dog"])
    having = by.disassemble(source, relevance, task=["hen", "dog"], reject=True)
    whole = by.disassemble(source, relevance, task=NAMES)
    told = ["--reject" in " ".join(later_texts(one.manifest)) for one in (without, having, whole)]
    assert told == [True, False, False]
    other = by.disassemble(source, relevance, task=["cat"])
    with pytest.raises(BrickyardError, match="reject"):
        by.assemble([without, other], votes=True)
    assert by.assemble([having, other], votes=True).manifest.votes


def flops_of(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Two for each multiply-add of convolutions and matrix products, counted from the shapes that come out."""
    total = 0

    def count(layer, _, output) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += 2 * output[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += 2 * layer.weight.numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def test_costs_stand_beside_those_of_the_sources(tmp_path) -> None:
    for name, arch in (("s", "cnn"), ("t", "lenet5")):
        shape = {"width": 0.25, "channels": 1} | ({"size": 16} if arch == "lenet5" else {})
        spec = f"zoo:{arch}?classes=10&{'&'.join(f'{key}={value}' for key, value in shape.items())}"
        source = load_source(spec, random_weights=True, preprocessing=by.Preprocessing(size=(16, 16), channels=1))
        save_source(tmp_path / f"{name}.safetensors", source, arch=arch, options=shape)
    for name, task in (("s", "0,1"), ("t", "2")):
        located = (tmp_path / f"{name}.safetensors", "--data", "digits", "--per-class", 5, "--choose", "random")
        run("locate", *located, "-o", tmp_path / f"{name}.r.safetensors")
        cut = (tmp_path / f"{name}.safetensors", "--relevance", tmp_path / f"{name}.r.safetensors", "--task", task)
        said = run("disassemble", *cut, "--heal", "none", "-o", tmp_path / f"{name}.part.safetensors")
        assert said.stdout.count("  later  ") == 2  # no images were given, and no votes
        value = json.loads(run("disassemble", *cut, "--heal", "none", "-o", tmp_path / "x", "--force", "--json").stdout)
        assert value["later"] == later_texts(by.load(tmp_path / f"{name}.part.safetensors").manifest)
    files = [tmp_path / f"{name}.part.safetensors" for name in "st"]
    said = run("assemble", *files, "-o", tmp_path / "both.safetensors").stdout
    parts = [by.load(file) for file in files]
    own = sum(flops_of(part.network, part.input_shape) for part in parts)
    whole = [part.manifest.source.flops for part in parts]
    value = json.loads(run("show", tmp_path / "both.safetensors", "--json").stdout)["costs"]
    assert (value["flops"], value["multiply_adds"]) == (own, own // 2)
    assert [one["flops"] for one in value["sources"]] == whole
    (line,) = [line for line in said.splitlines() if line.startswith("  costs ")]
    assert f"{own / sum(whole):.1%} of its 2 sources" in line
    assert f"{own / max(whole):.2g} times cnn" in line
    assert line in run("show", tmp_path / "both.safetensors").stdout
    alone = run("show", files[1]).stdout
    assert f"{flops_of(parts[1].network, parts[1].input_shape) / whole[1]:.1%} of its source lenet5" in alone
    run("assemble", files[0], files[0], "--on-duplicate", "average", "-o", tmp_path / "twice.safetensors")
    once = json.loads(run("show", tmp_path / "twice.safetensors", "--json").stdout)["costs"]
    assert len(once["sources"]) == 1  # a source of two parts counts once
