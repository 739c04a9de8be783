"""Locating: allocation against loops, the golden file, forms of data, and going on after a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.network._identity import fingerprint
from brickyard.relevance._allocation import EPSILON
from brickyard.relevance._contribution import ContributionSums, class_sums, window_sums
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from errors import refused


def test_sums_in_blocks_are_the_same(monkeypatch) -> None:
    conv, image = nn.Conv2d(7, 5, 3, dtype=torch.float64), torch.randn(4, 7, 6, 6, dtype=torch.float64)
    whole, blocks = ContributionSums(conv), ContributionSums(conv)
    whole.add(image)
    monkeypatch.setattr("brickyard.relevance._contribution._BLOCK", 1)
    blocks.add(image)
    torch.testing.assert_close(blocks.dense(), whole.dense())
    assert window_sums(nn.Linear(5, 3), torch.randn(4, 6, 5)).shape == (4, 5, 1)


@pytest.mark.shared
def test_the_golden_file_comes_out(shared) -> None:
    with safe_open(shared / "golden" / "chain.safetensors", framework="pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    from brickyard.sources import _zoo as zoo

    model = zoo.build("cnn", classes=10)
    model.load_state_dict({k.removeprefix("weights."): v for k, v in golden.items() if k.startswith("weights.")})
    relevance = by.locate(
        model.eval(),
        (golden["images"], golden["labels"]),
        preprocessing=by.Preprocessing(channels=3, mean=(0.1307,), std=(0.3081,)),
        choose="all",
    )
    layers = [name.removeprefix("S.") for name in golden if name.startswith("S.")]
    assert set(layers) == set(relevance.layers)
    assert len(layers) == 9
    for name in layers:
        expected = golden[f"S.{name}"]
        assert float((relevance.sum(name) - expected).abs().max() / expected.abs().max()) < 1e-5
        assert torch.equal(relevance.hard(name), golden[f"mask.{name}"].bool())
    looser = relevance.with_thresholds(by.Thresholds(alpha=0.2, beta=0.1), relevance.graph(model))
    assert not torch.equal(looser.hard("seq.21"), golden["mask.seq.21"].bool())


def loops(relevance: by.Relevance, model: nn.Module, k: int) -> dict[str, np.ndarray]:
    """Section 2 by loops, on a plain chain."""
    names = list(relevance.layers)
    outputs = np.zeros(len(relevance.classes), dtype=bool)
    outputs[k] = True
    found = {}
    for name in reversed(names):
        s = relevance.sum(name)[k].double().numpy()
        alpha, beta = relevance.thresholds.of(isinstance(model.get_submodule(name), nn.Linear))
        q_count, p_count = s.shape
        t = np.zeros(p_count)
        for q in range(q_count):
            low, high = s[q].min(), s[q].max()
            for p in range(p_count):
                if outputs[q] and (s[q, p] - low) / (high - low + EPSILON) > alpha:
                    t[p] += 1
        u = (t - t.min()) / (t.max() - t.min() + EPSILON)
        found[name] = outputs = u > beta
    return found


@pytest.mark.parametrize("seed", range(3))
def test_allocation_is_section_two_on_a_chain(seed) -> None:
    model = randomised(chain(widths=(12, 16)), seed)
    relevance = by.locate(model, (torch.rand(24, 3, 8, 8), torch.arange(24) % 4))
    for k in range(4):
        for name, mask in loops(relevance, model, k).items():
            assert np.array_equal(relevance.hard(name)[k].numpy(), mask)
    assert any(not relevance.hard(name).all() for name in relevance.layers)


@pytest.mark.parametrize("make", [Residual, Branches, SqueezeExcite])
def test_a_channel_is_relevant_when_any_reader_says_so(make) -> None:
    model = make()
    relevance = by.locate(model, (torch.rand(24, 3, 8, 8), torch.arange(24) % 4))
    graph = relevance.graph(model)
    for axis in graph.free:
        expected = torch.zeros(4, axis.size, dtype=torch.bool)
        for name, layer in relevance.layers.items():
            for place, channel in enumerate(layer.reads):
                if axis.start <= channel < axis.start + axis.size:
                    expected[:, channel - axis.start] |= relevance.hard(name)[:, place]
        assert torch.equal(relevance.relevant(axis.name), expected)
        assert float(relevance.axis(axis.name).min()) >= 0
        assert float(relevance.axis(axis.name).max()) <= 1


def test_one_class_does_not_see_the_images_of_others() -> None:
    images, labels = torch.rand(24, 3, 8, 8), torch.arange(24) % 4
    one = by.locate(chain(), (images, labels), task=["1"])
    other = images.clone()
    other[labels != 1] = torch.rand(18, 3, 8, 8)
    same = by.locate(chain(), (other, labels), task=[1])
    all_of_them = by.locate(chain(), (other, labels))
    for name in one.layers:
        assert torch.equal(one.sum(name)[1], same.sum(name)[1])
        assert torch.equal(one.sum(name)[1], all_of_them.sum(name)[1])
    assert not torch.equal(all_of_them.sum("conv2")[1], all_of_them.sum("conv2")[2])


def test_every_form_of_data_gives_the_same_relevances() -> None:
    images, labels = torch.rand(30, 3, 8, 8), torch.arange(30) % 4
    pair = by.locate(chain(), (images, labels), per_class=3)
    forms = {
        "numpy": (images.numpy(), labels.numpy()),
        "dataset": TensorDataset(images, labels),
        "loader": DataLoader(TensorDataset(images, labels), batch_size=7, shuffle=True),
        "batches": [(images[:13], labels[:13]), (images[13:], labels[13:])],
        "items": [(x, int(y)) for x, y in zip(images, labels, strict=True)],
    }
    forms["items"] = _Items(forms["items"])
    for form, data in forms.items():
        other = by.locate(chain(), data, per_class=3)
        assert all(torch.equal(pair.sum(name), other.sum(name)) for name in pair.layers), form
    fewer = by.locate(chain(), (images, labels), per_class=2)
    assert not torch.equal(pair.sum("conv2"), fewer.sum("conv2"))


class _Items(torch.utils.data.Dataset):
    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_the_most_confident_images_are_chosen() -> None:
    model, images, labels = chain(), torch.rand(40, 3, 8, 8), torch.arange(40) % 4
    relevance = by.locate(model, (images, labels), per_class=3)
    _, indices = relevance.images()
    with torch.no_grad():
        own = model(images).double().log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    for k in range(4):
        best = set(own.masked_fill(labels != k, -float("inf")).topk(3).indices.tolist())
        assert {i for i in indices if labels[i] == k} == best
    drawn = by.locate(model, (images, labels), per_class=3, choose="random", seed=1)
    again = by.locate(model, (images, labels), per_class=3, choose="random", seed=1)
    assert drawn.images()[1] == again.images()[1] != indices
    assert len(by.locate(model, (images, labels), choose="all").images()[1]) == 40


def test_preprocessing_is_applied_and_remembered() -> None:
    raw = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(12) % 4
    how = by.Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    ready = (raw.float() / 255 - torch.tensor(how.mean).reshape(3, 1, 1)) / 0.2
    a = by.locate(chain(), (raw, labels), preprocessing=how)
    b = by.locate(chain(), (ready, labels))
    assert a.preprocessing == how
    torch.testing.assert_close(a.sum("conv1"), b.sum("conv1"), rtol=1e-4, atol=1e-4)


def test_thresholds_may_change_while_sums_are_kept() -> None:
    model, data = chain(), (torch.rand(24, 3, 8, 8), torch.arange(24) % 4)
    loose = by.Thresholds(alpha=0.0, beta=0.0, linear_alpha=0.0, linear_beta=0.0)
    a = by.locate(model, data)
    b = by.locate(model, data, thresholds=loose)
    c = a.with_thresholds(loose, a.graph(model))
    assert all(torch.equal(b.hard(name), c.hard(name)) for name in b.layers)
    assert any(not torch.equal(a.hard(name), c.hard(name)) for name in a.layers)
    bare = by.locate(model, data, keep_sums=False)
    with refused("option-sums-not-kept", "conv2", "keep_sums=True"):
        bare.contribution("conv2")
    with refused("option-sums-not-kept"):
        bare.with_thresholds(loose, bare.graph(model))
    assert all(torch.equal(a.hard(name), bare.hard(name)) for name in a.layers)


def test_the_model_comes_back_as_it_was() -> None:
    model = chain().train()
    model.bn1.eval()
    calls = []
    model.conv2.register_forward_hook(lambda *_: calls.append(1))
    data, wrong = (torch.rand(24, 3, 8, 8), torch.arange(24) % 4), (torch.rand(4, 5, 8, 8), torch.arange(4))
    before, state = fingerprint(model), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    by.locate(model, data)
    with refused("trace-run-failed", "(2, 5, 8, 8)"):
        by.locate(model, wrong)
    assert fingerprint(model) == before
    assert [module.training for module in model.modules()] == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert len(model.conv2._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_channel_order_of_the_source_does_not_matter() -> None:
    """Permuting a hidden layer's channels permutes its relevances and nothing else."""
    model, other = chain(), chain()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(other.conv1, name).copy_(getattr(model.conv1, name)[order])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(other.bn1, name).copy_(getattr(model.bn1, name)[order])
        other.conv2.weight.copy_(model.conv2.weight[:, order])
    data = (torch.rand(24, 3, 8, 8), torch.arange(24) % 4)
    a, b = by.locate(model, data), by.locate(other, data)
    assert torch.equal(a.relevant("conv1")[:, order], b.relevant("conv1"))
    assert torch.equal(a.relevant("conv2"), b.relevant("conv2"))


def test_graph_is_of_the_model_that_was_located() -> None:
    model = chain()
    relevance = by.locate(model, (torch.rand(8, 3, 8, 8), torch.arange(8) % 4))
    other = randomised(chain(), 1)
    with refused("data-wrong-source"):
        relevance.graph(other)
    assert relevance.graph(model).names == trace(model, torch.rand(2, 3, 8, 8)).names


def test_a_stopped_call_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    """Finished classes are not done again, and the file has the bytes of a call that was never stopped."""
    model, data = Residual(), (torch.rand(24, 3, 8, 8), torch.arange(24) % 4)

    def find(**options):
        return by.locate(model, data, per_class=3, **options)

    whole = find().save(tmp_path / "whole.safetensors").read_bytes()
    calls: list[int] = []

    def stopping(graph, batches, seen, answering):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return class_sums(graph, batches, seen, answering)

    monkeypatch.setattr("brickyard.relevance._locate.class_sums", stopping)
    folder = tmp_path / "notes"
    with pytest.raises(KeyboardInterrupt):
        find(resume=folder)
    assert sorted(path.stem for path in folder.iterdir()) == ["class-00000", "class-00001", "confidences"]
    assert find(resume=folder).save(tmp_path / "again.safetensors").read_bytes() == whole
    assert len(calls) == 3 + 2  # the two that were left
    assert find(resume=folder).save(tmp_path / "third.safetensors").read_bytes() == whole
    assert len(calls) == 3 + 2
    monkeypatch.setattr("brickyard.relevance._locate._confidences", None)  # nor is an image run to be chosen
    find(resume=folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, images, options: options.update(per_class=2),
        lambda model, images, options: options.update(thresholds=by.Thresholds(alpha=0.5)),
        lambda model, images, options: options.update(keep_sums=False),
        lambda model, images, options: images.mul_(0.5),
        lambda model, images, options: model.stem.weight.data.mul_(2),
    ],
)
def test_work_of_another_call_is_refused(tmp_path, change) -> None:
    model, images, labels = Residual(), torch.rand(24, 3, 8, 8), torch.arange(24) % 4
    options = {"per_class": 3, "resume": tmp_path / "notes"}
    by.locate(model, (images, labels), **options)
    by.locate(model, (images, labels), **options)  # the control
    change(model, images, options)
    with refused("file-resume-mismatch", "notes"):
        by.locate(model, (images, labels), **options)


def test_where_nothing_can_be_kept_it_says_so(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with refused("file-not-writable", "file"):
        by.locate(chain(), (torch.rand(4, 3, 8, 8), torch.arange(4)), resume=tmp_path / "file")


def test_sums_are_kept_while_those_of_all_classes_are_small(monkeypatch) -> None:
    """They are held for every class of the source, however few are located."""
    data = torch.rand(4, 3, 8, 8), torch.arange(4)
    size = sum(value.nbytes for value in by.locate(chain(), data).sums.values())
    assert size == 4 * 4 * (6 * 3 + 8 * 6 + 4 * 8)
    monkeypatch.setattr("brickyard.relevance._locate.KEEP_BYTES", size - 1)
    assert by.locate(chain(), data, task=[0]).sums is None
    assert by.locate(chain(), data, task=[0], keep_sums=True).sums is not None
    monkeypatch.setattr("brickyard.relevance._locate.KEEP_BYTES", size)
    assert by.locate(chain(), data, task=[0]).sums is not None
