"""The zoo: tracing in both modes, options read off weights, and published logits bit for bit."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

import brickyard as by
from brickyard.inputs._preprocessing import preprocess
from brickyard.sources import _registry as registry
from brickyard.sources import _zoo as zoo
from brickyard.sources._loading import load_source
from brickyard.training._sources import build_seeded
from errors import refused

CASES = [*((name, {}) for name in zoo.available()), ("resnet20", {"shortcut": "B"})]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_every_network_traces_and_takes_any_batch(name, options, training) -> None:
    model = build_seeded(name, 5, 0.125, **options).train(training)
    traced = torch.fx.symbolic_trace(model)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 32, 32)
        results = []
        for network in (model, traced):
            torch.manual_seed(1)  # for dropout
            results.append(network(x))
        assert results[0].shape == (batch, 5)
        assert torch.equal(*results)
        assert not torch.equal(results[0], model(x + 1))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("width", [0.13, 0.5])
def test_options_are_read_off_the_weights(name, options, width) -> None:
    tensors = build_seeded(name, 7, width, channels=1, **options).state_dict()
    found = zoo.infer_options(name, tensors, {"size": 32} if name == "lenet5" else {})
    assert (found["classes"], found["channels"], found.get("shortcut", "A")) == (7, 1, options.get("shortcut", "A"))
    rest = {key: value for key, value in found.items() if key not in ("classes", "width")}
    right = {key: tuple(value.shape) for key, value in tensors.items()}
    assert zoo.shapes(name, 7, found["width"], **rest) == right
    assert zoo.shapes(name, 7, 2 * width, **rest) != right


def test_option_a_pads_both_sides_with_zeros() -> None:
    x = torch.randn(2, 4, 6, 6)
    y = build_seeded("resnet20", 3, 0.25).layer2[0].shortcut(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y.shape == (2, 8, 3, 3)
    assert not y[:, :2].any()
    assert not y[:, 6:].any()
    assert y[:, 2:6].any()


def test_what_cannot_be_built_says_why() -> None:
    for arguments, options, code, quoted in [
        (("googlnet", 10), {}, "option-source-unknown", "'googlenet'"),
        (("resnet20", 10), {"shortcut": "C"}, "option-choice", "'C'"),
        (("vgg16", 10), {"shortcut": "A"}, "option-unknown-name", "'shortcut'"),
        (("lenet5", 10), {"size": 8}, "option-source-size", "size"),
    ]:
        with refused(code, quoted):
            zoo.build(*arguments, **options)
    with refused("option-duplicate", "resnet20"):
        registry.register("resnet20")(zoo.build)


@pytest.mark.shared
def test_the_published_logits_come_out(shared) -> None:
    with safe_open(shared / "golden" / "chain.safetensors", framework="pt") as file:
        images, logits = file.get_tensor("images"), file.get_tensor("logits")
    how = by.Preprocessing(channels=3, mean=(0.1307,), std=(0.3081,))
    source = load_source("zoo:cnn", weights=shared / "models" / "vggs-mnist.safetensors", preprocessing=how)
    torch.testing.assert_close(source.model(preprocess(images, how)), logits, rtol=1e-4, atol=1e-4)
    assert (source.model(preprocess(images, by.Preprocessing(channels=3))) - logits).abs().max() > 0.1
