"""Networks that predict a quantity or a rank are refused with a reason, before any image is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.inputs._datasets import ImageData
from brickyard.sources import load_source
from brickyard.sources._resolve import fitted
from brickyard.testing import chain
from errors import refused

X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))
RANKS = torch.arange(40) % 5  # of five ranks, which an ordinal network has four outputs for


class Net(nn.Module):
    """A chain with another head; `end` makes its result."""

    def __init__(self, width: int, end: Callable[[Tensor], Any] = lambda z: z, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.end = nn.Conv2d(3, 8, 3), end
        self.head = nn.Linear(8, width, bias=bias)
        self.steps = nn.Parameter(torch.tensor([1.5, 0.5, -0.5, -1.5]))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(torch.relu(self.body(x)).mean((2, 3))))


class Coral(Net):
    """Rank-consistent ordinal regression (Cao et al., 2020): one score, and a step for each pair of ranks."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__(1, end, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(torch.relu(self.body(x)).mean((2, 3))) + self.steps)


@pytest.mark.parametrize("end", [lambda z: z, torch.sigmoid, lambda z: {"logits": z}, lambda z: (z, z.sigmoid())[0]])
def test_outputs_that_move_together_are_a_rank(end: Callable[[Tensor], Any]) -> None:
    with refused("trace-output", "4 outputs", "CORAL"):
        by.locate(Coral(end), (X, RANKS % 4))
    with refused("trace-output", "CORAL"):
        by.locate(Coral(end), (X, (torch.arange(4) < RANKS[:, None]).long()), outputs="several")


def test_shares_of_classes_as_labels_are_no_quantity() -> None:
    smoothed = torch.full((40, 4), 0.025) + 0.9 * torch.eye(4)[RANKS % 4]
    for labels in (smoothed, smoothed.numpy(), torch.rand(40, 4).softmax(1)):
        with refused("data-label-mismatch", "argmax") as caught:
            by.locate(Net(4), (X, labels))
        assert "quantity" not in str(caught.value)
    assert len(by.locate(Net(4), (X, smoothed.argmax(1))).task) == 4


@pytest.mark.parametrize("make", [chain, lambda: Net(4), lambda: Net(2), lambda: Net(1), lambda: Net(4).double()])
def test_classifiers_are_no_ranks(make: Callable[[], nn.Module]) -> None:
    model = make()
    count = max(2, int(model(X.to(next(model.parameters()))).shape[1]))
    relevance = by.locate(model, (X.to(next(model.parameters())), torch.arange(40) % count))
    assert len(relevance.task) == count


def test_a_network_that_says_the_same_to_every_image_is_not_taken_for_a_rank() -> None:
    model = Net(4)
    nn.init.zeros_(model.head.weight)
    assert len(by.locate(model, (X, RANKS % 4)).task) == 4


def test_one_label_more_than_outputs() -> None:
    with refused("data-label-out-of-range", "0 to 4", "classes 0 to 3", "CORN", "background"):
        by.locate(Net(4), (X, RANKS))
    with refused("task-class-count", "5 class names", "4 model outputs", "CORN"):
        by.locate(Net(4), (X, RANKS % 4), classes=list("abcde"))
    for labels in (RANKS + 1, torch.arange(40) % 7):  # these are other mistakes
        with refused("data-label-out-of-range") as caught:
            by.locate(Net(4), (X, labels))
        assert "CORN" not in str(caught.value)
    with pytest.raises(BrickyardError) as caught:
        by.locate(Net(4), (X, RANKS % 4), classes=list("abc"))
    assert "CORN" not in str(caught.value)


def test_one_output_and_labels_that_are_no_yes_or_no() -> None:
    for labels in (torch.arange(40), RANKS, torch.full((40,), 2)):
        with refused("data-label-out-of-range", "0 to 1", "quantity"):
            by.locate(Net(1), (X, labels))
    for labels in (torch.rand(40), torch.rand(40, 1), torch.rand(40).numpy(), torch.rand(40).double() * 90):
        with refused("data-label-mismatch", "fractions such as", "quantity"):
            by.locate(Net(1), (X, labels))
    with refused("data-label-mismatch", "fractions"):
        by.locate(Net(3), (X, torch.rand(40, 3)), outputs="several")
    with refused("data-label-mismatch") as caught:  # whole numbers in another type are another mistake
        by.locate(Net(1), (X, (RANKS % 2).float()))
    assert "fractions" not in str(caught.value)


def test_nothing_is_run_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(1)
    monkeypatch.setattr(type(model), "forward", lambda *_: pytest.fail("it was run"))
    with refused("data-label-mismatch"):
        by.locate(model, (X, torch.rand(40)))


def test_images_from_the_shell_with_one_label_too_many() -> None:
    data = ImageData(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), RANKS, tuple("01234"), "grades")
    with refused("data-label-out-of-range", "grades", "4 outputs", "CORN"):
        fitted(data, tuple("0123"))
    assert len(fitted(data, tuple("abcde"))) == 40
    assert len(fitted(data, ("0", "1", "2"))) == 24  # a source of some of the classes, as ever


# -- what models of transformers say of themselves -------------------------------------------------------------


class NetForImageClassification(Net):
    """With a name as those of transformers."""


def said(**config: Any) -> nn.Module:
    model = NetForImageClassification(config.get("num_labels", 4))
    model.config = SimpleNamespace(problem_type=None, **config)  # type: ignore[assignment]
    return model


class Around(nn.Module):
    """A user's module around a model of transformers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


@pytest.mark.parametrize("around", [lambda m: m, Around])
def test_a_config_tells_a_quantity_and_several_classes(around: Callable[[nn.Module], nn.Module], capsys: Any) -> None:
    for config in ({"num_labels": 1}, {"num_labels": 4, "problem_type": "regression"}):
        model = said(num_labels=config["num_labels"])
        vars(model.config).update(config)
        with refused("trace-output", "quantity", "num_labels"):
            by.locate(around(model), (X, RANKS % 2))
    model = said(num_labels=4)
    model.config.problem_type = "multi_label_classification"
    rows = (torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    assert by.locate(around(model), (X, rows)).outputs == "several"
    assert "outputs='several'" in capsys.readouterr().err
    assert by.locate(around(model), (X, RANKS % 4), outputs="one").outputs == "one"
    assert capsys.readouterr().err == ""
    with refused("data-label-mismatch", "one row"):
        by.locate(around(model), (X, RANKS % 4))
    backbone = Around(Net(4))  # the config of a trunk says nothing of the classifier around it
    backbone.inner.config = model.config  # type: ignore[union-attr]
    assert by.locate(backbone, (X, RANKS % 4)).outputs == "one"
    model.config.problem_type = "single_label_classification"
    assert by.locate(around(model), (X, RANKS % 4)).outputs == "one"


def test_folders_of_transformers_tell_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    for name, more in (
        ("one", {"num_labels": 1}),
        ("regression", {"num_labels": 3, "problem_type": "regression"}),
        ("several", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    ):
        config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, **more)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / name)
    for name in ("one", "regression"):
        with refused("option-source-unknown", "quantity", "num_labels"):
            load_source(f"hf:{tmp_path / name}")
    source = load_source(f"hf:{tmp_path / 'several'}")
    rows = torch.eye(3).repeat(14, 1)[:40].long()
    images = torch.rand(40, 3, 8, 8)
    assert by.locate(source.model, (images, rows), preprocessing=source.preprocessing).outputs == "several"
