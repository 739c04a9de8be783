"""The scaling that needs no labelled images: a part loses where its logits are lower than on its own images."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

import brickyard as by
from brickyard.export import export_module, export_onnx
from brickyard.testing import chain, randomised
from nets import relative

DATA = (torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 4)
OTHERS = (
    torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * torch.linspace(0, 1, 9)[:, None, None, None]
)


def part(seed: int, task: list[int], **options) -> by.Component:
    source = randomised(chain(), seed)
    relevance = by.locate(source, DATA, classes=[f"{seed}{name}" for name in "abcd"])
    return by.disassemble(source, relevance, task=task, **options)


@pytest.fixture(scope="module")
def parts() -> list[by.Component]:
    return [part(0, [2, 0]), part(1, [1, 3, 2])]


def by_hand(parts: list[by.Component], images: Tensor) -> Tensor:
    """The rule written down once more, from the parts' answers to their own images."""
    found = []
    for one in parts:
        x, y = DATA
        own = torch.cat([x[y == k] for k in one.manifest.task])
        energy = one.logits(own).double().exp().sum(1).log().sort().values
        usual = (energy[(len(energy) - 1) // 2] + energy[len(energy) // 2]) / 2
        place = 0.1 * (len(energy) - 1)
        low = energy[int(place)] + (place % 1) * (energy[int(place) + 1] - energy[int(place)])
        logits = one.logits(images).double()
        below = ((usual - logits.exp().sum(1).log()) / (usual - low)).clamp_min(0)
        found.append(logits - ((usual - low) * (1 + below).log())[:, None])
    return torch.cat(found, 1)


def test_it_is_the_default_and_follows_its_rule(parts) -> None:
    with torch.no_grad():
        whole = by.assemble(parts)
        assert whole.manifest.scaling.name == "auto"
        assert "lower than on the part's own images" in str(whole)
        assert relative(whole(OTHERS).double(), by_hand(parts, OTHERS)) < 1e-6
        plain = by.assemble(parts, scaling="none")
        assert torch.equal(plain(OTHERS), torch.cat([one.logits(OTHERS) for one in parts], 1))
        assert relative(plain(OTHERS), whole(OTHERS)) > 1e-4  # the control
        assert torch.equal(whole.side_by_side(OTHERS), plain(OTHERS))


@pytest.mark.parametrize("form", ["padded", "grouped"])
def test_every_form_follows_it(parts, form: str) -> None:
    with torch.no_grad():
        assert relative(by.assemble(parts, form=form)(OTHERS), by.assemble(parts)(OTHERS)) < 1e-5


def test_files_and_exports_follow_it(parts, tmp_path: Path) -> None:
    import onnxruntime

    whole = by.assemble(parts)
    with torch.no_grad():
        wanted = whole(OTHERS)
    assert torch.equal(by.load(whole.save(tmp_path / "whole.safetensors"))(OTHERS), wanted)
    export_onnx(whole, tmp_path / "whole.onnx")
    (logits,) = onnxruntime.InferenceSession(tmp_path / "whole.onnx").run(["logits"], {"images": OTHERS.numpy()})
    assert relative(torch.from_numpy(logits), wanted) < 1e-5
    export_module(whole, tmp_path / "whole.py")
    spec = importlib.util.spec_from_file_location("whole", tmp_path / "whole.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        assert torch.equal(module.load()(module.preprocess(OTHERS)), wanted)


def test_a_class_that_is_left_out_changes_no_other(parts) -> None:
    with torch.no_grad():
        whole, fewer = by.assemble(parts), by.assemble(parts, without=["1d"])
        kept = [whole.classes.index(name) for name in fewer.classes]
        assert torch.equal(fewer(OTHERS), whole(OTHERS)[:, kept])


def test_what_it_cannot_know_it_leaves_alone_and_says_so(parts) -> None:
    few = part(1, [1, 3])
    statistics = few.manifest.statistics.model_copy(update={"energy": None})
    whole = by.assemble([parts[0], few.with_manifest(statistics=statistics)])
    assert not whole.manifest.scaling.energy
    assert "too few labelled images of the parts for 1b, 1d" in str(whole)
    assert torch.equal(whole(OTHERS), whole.side_by_side(OTHERS))
    assert by.assemble(parts[:1]).manifest.scaling.notes == ("one part needs no scaling",)


def test_parts_that_vote_are_compared_by_log_probabilities() -> None:
    source = randomised(chain(), 0)
    relevance = by.locate(source, DATA)
    pair = [by.disassemble(source, relevance, task=task, reject=True) for task in ([0, 1], [2, 3])]
    whole, wanted = by.assemble(pair, votes=True), by.assemble(pair, votes=True, scaling="log-probability")
    with torch.no_grad():
        assert torch.equal(whole(OTHERS), wanted(OTHERS))


def test_with_labelled_images_it_learns_from_them(parts) -> None:
    own = [(DATA[0], torch.tensor([0, 1, 0, 1]).repeat(15)), (DATA[0], torch.tensor([0, 1, 2, 1]).repeat(15))]
    data = [(x, torch.tensor(one.manifest.task)[y]) for (x, y), one in zip(own, parts, strict=True)]
    assert by.assemble(parts, images=data).manifest.scaling.name == "lda"
    assert by.assemble(parts, images=data, form="padded").manifest.scaling.name == "joint-head"
