"""Files: bit-for-bit round trips, hostile content, and writing that leaves nothing half-done."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import brickyard as by
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from errors import refused
from shell import python

DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
NETS = [chain, Residual, Branches, SqueezeExcite]


def component(make=chain, task=("1", "3"), seed=0, **options) -> by.Component:
    model = randomised(make(), seed)
    return by.disassemble(model, by.locate(model, DATA), task=list(task), **options)


def assembly(form="parallel", **options) -> by.Assembly:
    return by.assemble([component(), component(task=("0",), seed=1)], form=form, **options)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("reject", [False, True])
def test_a_component_comes_back_bit_for_bit(make, reject, tmp_path) -> None:
    part = component(make, reject=reject)
    again = by.load(part.save(tmp_path / "part.safetensors"))
    assert isinstance(again, by.Component)
    assert again.manifest == part.manifest
    assert again.skeleton == part.skeleton
    assert torch.equal(again(DATA[0]), part(DATA[0]))
    for a, b in zip(again.state_dict().items(), part.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    other = component(make, reject=reject, task=("3", "1"))
    assert not torch.equal(other(DATA[0]), part(DATA[0]))


ASSEMBLIES = [(f, s, False) for f in ("parallel", "padded") for s in ("none", "logit-mean", "log-probability")]
ASSEMBLIES += [("parallel", scaling, votes) for scaling in ("mahalanobis", "lda") for votes in (False, True)]


@pytest.mark.parametrize(("form", "scaling", "votes"), ASSEMBLIES)
def test_an_assembly_comes_back_bit_for_bit(form, scaling, votes, tmp_path) -> None:
    pair = [component(task=(k,), seed=seed, reject=True) for seed, k in enumerate("02")]
    images = [DATA, DATA] if scaling == "lda" else None
    whole = by.assemble(pair, form=form, scaling=scaling, votes=votes, images=images)
    again = by.load(whole.save(tmp_path / "whole.safetensors"))
    assert isinstance(again, by.Assembly)
    assert again.manifest == whole.manifest
    assert torch.equal(again(DATA[0]), whole(DATA[0]))
    assert not torch.equal(whole(DATA[0]), by.assemble(pair[::-1], form=form, votes=votes)(DATA[0]))
    assert again.save(tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_components_from_files_assemble_as_those_in_memory(tmp_path) -> None:
    parts = [component(), component(task=("0",), seed=1)]
    loaded = [by.load(part.save(tmp_path / f"{i}.safetensors")) for i, part in enumerate(parts)]
    for form in ("parallel", "padded"):
        a, b = by.assemble(parts, form=form), by.assemble(loaded, form=form)
        assert torch.equal(a(DATA[0]), b(DATA[0]))


def test_relevances_come_back(tmp_path) -> None:
    model = Residual()
    relevance = by.locate(model, DATA)
    again = by.load(relevance.save(tmp_path / "relevance.safetensors"))
    assert isinstance(again, by.Relevance)
    for name in relevance.layers:
        assert torch.equal(again.hard(name), relevance.hard(name))
        assert torch.equal(again.contribution(name), relevance.contribution(name))
    for options in ({}, {"budget": by.Budget(parameters=0.6)}, {"thresholds": by.Thresholds(alpha=0.1)}):
        a = by.disassemble(model, relevance, task=[0, 2], images=DATA, **options)
        b = by.disassemble(model, again, task=[0, 2], images=DATA, **options)
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    with refused("option-needs-data"):
        by.disassemble(model, again, task=[0, 2])


def test_a_file_loads_without_the_sources_class(tmp_path) -> None:
    part = component(Branches)
    part.save(tmp_path / "part.safetensors")
    save_file({"x": DATA[0], "y": part(DATA[0]).detach()}, tmp_path / "case.safetensors")
    code = (
        "import sys, torch, brickyard as by\n"
        "from safetensors.torch import load_file\n"
        "case = load_file('case.safetensors')\n"
        "part = by.load('part.safetensors')\n"
        "assert 'brickyard.testing' not in sys.modules and 'torchvision' not in sys.modules\n"
        "print(torch.equal(part(case['x']), case['y']))\n"
    )
    assert python(code, cwd=tmp_path) == "True\n"


# -- hostile files -------------------------------------------------------------------------------------------


@pytest.fixture
def honest(tmp_path) -> Path:
    return component(Residual).save(tmp_path / "honest.safetensors")


def test_foreign_and_cut_off_files(tmp_path, honest) -> None:
    whole = honest.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with refused("file-wrong-kind", "--weights"):
        by.load(foreign)
    with refused("file-missing", "nowhere.safetensors"):
        by.load(tmp_path / "nowhere.safetensors")
    bad = tmp_path / "bad.safetensors"
    for content in (
        b"",
        b"abc",
        b"\x80\x04pickle" * 10,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 10) + b"not json..",
        *(whole[:size] for size in range(0, len(whole), len(whole) // 40)),
    ):
        bad.write_bytes(content)
        with refused("file-not-safetensors", "bad.safetensors"):
            by.load(bad)
    bad.write_bytes(whole)
    assert isinstance(by.load(bad), by.Component)


# -- writing -------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path, honest) -> None:
    before = honest.read_bytes()
    with refused("file-exists", "overwrite=True"):
        component().save(honest)
    assert honest.read_bytes() == before
    component().save(honest, overwrite=True)
    assert honest.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["honest.safetensors"]


def test_the_published_schema_is_current() -> None:
    from brickyard.base._schema import file_schema

    published = Path(__file__).parents[2] / "docs" / "format.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(file_schema()))


def test_every_kind_of_file_fits_the_published_schema(tmp_path) -> None:
    import jsonschema

    from brickyard.base._schema import file_schema

    paths = [
        component().save(tmp_path / "a.safetensors"),
        assembly("padded").save(tmp_path / "b.safetensors"),
        assembly(scaling="mahalanobis").save(tmp_path / "d.safetensors"),
        by.locate(chain(), DATA).save(tmp_path / "c.safetensors"),
    ]
    for path in paths:
        with safe_open(path, framework="pt") as file:
            text = json.loads(file.metadata()["brickyard"])
        jsonschema.validate(text, file_schema())
        text["format"] = "one"
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(text, file_schema())
