"""Files: bit-for-bit round trips, hostile content, and writing that leaves nothing half-done."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import brickyard as by
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised

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


@pytest.mark.parametrize("form", ["parallel", "padded"])
@pytest.mark.parametrize("scaling", ["none", "logit-mean", "log-probability"])
def test_an_assembly_comes_back_bit_for_bit(form, scaling, tmp_path) -> None:
    whole = assembly(form, scaling=scaling)
    again = by.load(whole.save(tmp_path / "whole.safetensors"))
    assert isinstance(again, by.Assembly)
    assert again.manifest == whole.manifest
    assert torch.equal(again(DATA[0]), whole(DATA[0]))
    resaved = again.save(tmp_path / "again.safetensors")
    assert resaved.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("scaling", ["mahalanobis", "lda"])
@pytest.mark.parametrize("votes", [False, True])
def test_gates_and_votes_come_back_bit_for_bit(scaling, votes, tmp_path) -> None:
    pair = [component(task=(k,), seed=seed, reject=True) for seed, k in enumerate("02")]
    images = [DATA, DATA] if scaling == "lda" else None
    whole = by.assemble(pair, scaling=scaling, votes=votes, images=images)
    again = by.load(whole.save(tmp_path / "whole.safetensors"))
    assert again.manifest == whole.manifest
    assert torch.equal(again(DATA[0]), whole(DATA[0]))
    assert not torch.equal(whole(DATA[0]), by.assemble(pair, votes=not votes)(DATA[0]))
    assert again.save(tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text, tensors: tensors.pop("scaling.gate.slopes"), r"'scaling.gate.slopes' is missing"),
        (lambda text, tensors: tensors.update({"scaling.gate.bias": torch.zeros(3)}), r"gate.bias' is \(3,\)"),
        (lambda text, tensors: tensors.pop("familiarity.1.mean"), r"'familiarity.1.mean' is missing"),
        (lambda text, tensors: tensors["familiarity.0.length"].zero_(), r"must be above 0"),
        (lambda text, tensors: text["manifest"]["scaling"].update(gate=False), r"belongs to nothing"),
        (lambda text, tensors: text["manifest"].update(votes=[[2], [9]]), r"cannot vote on"),
        (lambda text, tensors: text["manifest"].update(votes=[[2]]), r"votes of 1 parts for 2"),
        (
            lambda text, tensors: text["manifest"]["parts"][0]["statistics"]["familiarity"].update(size=7),
            r"tells of 7 features",
        ),
    ],
)
def test_gates_and_votes_that_do_not_fit_are_refused(change, message, tmp_path) -> None:
    pair = [component(task=(k,), seed=seed, reject=True) for seed, k in enumerate("02")]
    path = by.assemble(pair, scaling="mahalanobis", votes=True).save(tmp_path / "whole.safetensors")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = json.loads(file.metadata()["brickyard"])
    assert isinstance(by.load(path), by.Assembly)
    change(text, tensors)
    save_file(tensors, path, {"brickyard": json.dumps(text)})
    with pytest.raises(by.BrickyardError, match=message):
        by.load(path)


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
    with pytest.raises(by.BrickyardError, match=r"relevances from a file remember none"):
        by.disassemble(model, again, task=[0, 2])


def test_a_file_has_the_permissions_of_other_files(tmp_path, honest) -> None:
    (tmp_path / "other").write_text("")
    assert honest.stat().st_mode == (tmp_path / "other").stat().st_mode


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
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "True", done.stderr


def test_the_same_component_gives_the_same_bytes(tmp_path) -> None:
    paths = [component().save(tmp_path / f"{i}.safetensors") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert component(seed=1).save(tmp_path / "2.safetensors").read_bytes() != paths[0].read_bytes()


# -- hostile files -------------------------------------------------------------------------------------------


@pytest.fixture
def honest(tmp_path) -> Path:
    return component(Residual).save(tmp_path / "honest.safetensors")


def tampered(path: Path, change, tensors_change=None) -> Path:
    """The same file with its text changed by `change(dict)`."""
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["brickyard"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = change(text) or text
    if tensors_change:
        tensors_change(tensors)
    target = path.with_name("tampered.safetensors")
    save_file(tensors, target, {"brickyard": text if isinstance(text, str) else json.dumps(text)})
    return target


def set_(*keys, value):
    def change(text):
        place = text
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


NODE = ("network", "nodes")
HOSTILE = {
    "version": (set_("format", value=99), "format version 99.*install a version that fits"),
    "no version": (lambda t: t.pop("format") and None, "without a format version"),
    "kind": (set_("manifest", "kind", value="yacht"), "holds a 'yacht'"),
    "not JSON": (lambda t: "{", "not JSON"),
    "a list": (lambda t: "[1]", "without a format version"),
    "deep": (lambda t: '{"format":' * 5000, "not JSON"),
    "NaN": (lambda t: '{"format": NaN}', "NaN is not allowed"),
    "extra key": (set_("manifest", "evil", value=1), "manifest.*evil"),
    "function": (set_(*NODE, 3, "target", value="system"), "'system', which is not"),
    "op": (set_(*NODE, 1, "op", value="exec"), "network.nodes.1.op"),
    "layer type": (set_("network", "layers", "conv1", "type", value="Popen"), "'Popen' is not one"),
    "layer argument": (
        set_("network", "layers", "conv1", "config", "evil", value=1),
        "takes no argument 'evil'",
    ),
    "layer size": (set_("network", "layers", "conv1", "config", "in_channels", value=10**9), "does not run"),
    "negative": (set_("network", "layers", "conv1", "config", "out_channels", value=-1), "cannot be made"),
    "argument": (set_(*NODE, 1, "args", value=[{"import": "os"}]), "is not allowed"),
    "forward reference": (set_(*NODE, 1, "args", value=[{"node": "output"}]), "no earlier step"),
    "two inputs": (set_(*NODE, 1, "op", value="input"), "second input"),
    "no nodes": (set_("network", "nodes", value=[]), "start with its input"),
    "missing layer": (
        lambda t: t["network"]["layers"].pop("conv1") and None,
        "'conv1', which is not in the file",
    ),
    "classes": (set_("manifest", "classes", value=["1", "2"]), "is not class '2' of the source"),
    "hash": (set_("manifest", "source", "sha256", value="x"), "manifest.source.sha256"),
    "width": (set_("manifest", "reject", value=True), "does not give 4 outputs"),
    "input": (set_("manifest", "input_shape", value=[3]), "is not \\(channels, height, width\\)"),
    "huge image": (set_("manifest", "input_shape", value=[3, 100_000, 100_000]), "is the limit"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_text_is_one_clear_error(case, honest) -> None:
    change, message = HOSTILE[case]
    with pytest.raises(by.BrickyardError, match=message) as caught:
        by.load(tampered(honest, change))
    assert "tampered.safetensors" in str(caught.value)


TENSORS = {
    "missing": (lambda t: t.pop("network.conv1.weight"), "'network.conv1.weight' is missing"),
    "extra": (lambda t: t.update(evil=torch.zeros(1)), "'evil' \\(1 in all\\) belongs to nothing"),
    "shape": (lambda t: t.update({"network.conv1.weight": torch.zeros(1, 1)}), "\\(1, 1\\) of torch.float32"),
    "type": (lambda t: t.update({"network.bn.bias": torch.zeros(6, dtype=torch.int64)}), "of torch.int64"),
    "NaN": (lambda t: t["network.bn.bias"].fill_(float("nan")), "not finite"),
    "Inf": (lambda t: t["network.bn.bias"].fill_(float("inf")), "not finite"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_hostile_tensors_are_one_clear_error(case, honest) -> None:
    change, message = TENSORS[case]
    with pytest.raises(by.BrickyardError, match=message):
        by.load(tampered(honest, lambda text: None, change))


def test_foreign_and_cut_off_files(tmp_path, honest) -> None:
    whole = honest.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(by.BrickyardError, match=r"--weights"):
        by.load(foreign)
    with pytest.raises(by.BrickyardError, match=r"cannot be read.*check the path"):
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
        with pytest.raises(by.BrickyardError, match=r"bad.safetensors"):
            by.load(bad)
    bad.write_bytes(whole)
    assert isinstance(by.load(bad), by.Component)


def test_a_hostile_relevance_is_one_clear_error(tmp_path) -> None:
    path = by.locate(chain(), DATA).save(tmp_path / "relevance.safetensors")
    cases = [
        (lambda text: None, lambda t: t["reads.conv2"].fill_(999), "outside 0"),
        (lambda text: None, lambda t: t.pop("scores"), "'scores' is missing"),
        (set_("task", value=[9]), None, "does not fit 4 classes"),
        (set_("thresholds", "alpha", value=2.0), None, "alpha=2.0"),
        (set_("thresholds", value={"gamma": 0.1}), None, "thresholds"),
    ]
    for change, tensors, message in cases:
        with pytest.raises(by.BrickyardError, match=message):
            by.load(tampered(path, change, tensors))


# -- writing -------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path, honest) -> None:
    before = honest.read_bytes()
    with pytest.raises(by.BrickyardError, match=r"exists; give another path, or overwrite=True"):
        component().save(honest)
    assert honest.read_bytes() == before
    component().save(honest, overwrite=True)
    assert honest.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["honest.safetensors"]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_file(where, error, tmp_path, honest, monkeypatch) -> None:
    before = honest.read_bytes()

    def fail(*_args, **_kwargs):
        raise error

    target = {"write": "brickyard.storage._safefile.save_file", "fsync": "os.fsync", "replace": "os.replace"}[where]
    monkeypatch.setattr(target, fail)
    expected = by.BrickyardError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        component().save(honest, overwrite=True)
    monkeypatch.undo()
    assert honest.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["honest.safetensors"]


def test_a_full_disk_is_one_clear_error(tmp_path) -> None:
    """A real one: the process may not write files above two kilobytes."""
    code = (
        "import resource, signal, brickyard as by, torch\n"
        "from brickyard.testing import chain\n"
        "model = chain()\n"
        "data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4\n"
        "part = by.disassemble(model, by.locate(model, data), task=[0, 1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "try:\n    part.save('part.safetensors')\n"
        "except by.BrickyardError as error:\n    print('clear:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert "clear: part.safetensors cannot be written" in done.stdout, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_folder_no_file(tmp_path) -> None:
    with pytest.raises(by.BrickyardError, match=r"no place for a file"):
        component().save(tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(by.BrickyardError, match=r"exists|no place"):
        component().save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_numbers_that_are_not_finite_are_not_written(tmp_path) -> None:
    part = component()
    with torch.no_grad():
        next(part.parameters()).fill_(float("nan"))
    with pytest.raises(by.BrickyardError, match=r"not finite; nothing was written"):
        part.save(tmp_path / "x.safetensors")
    assert os.listdir(tmp_path) == []


def test_the_published_schema_is_current() -> None:
    from brickyard.base._records import file_schema

    published = Path(__file__).parent.parent / "docs" / "format.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(file_schema()))


def test_every_kind_of_file_fits_the_published_schema(tmp_path) -> None:
    import jsonschema

    from brickyard.base._records import file_schema

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
