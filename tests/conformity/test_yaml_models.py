"""A fast slice of the classifiers made of rows; `python tests/conformity --families --only yaml:` runs all of them."""

from __future__ import annotations

import families
import pytest
import torch
import yaml_models

FAST = ("c3, sppf", "routes")  # which end in probabilities alone, and in logits beside them


@pytest.mark.parametrize("name", FAST)
def test_classifiers_of_rows_are_cut_exactly_and_saved(name: str) -> None:
    report = families.check(f"yaml:{name}", 32, onnx=False)
    assert report["reason"] == ""
    assert families.exact(report)
    assert report["control"] > 1e-3
    assert report["saved"]
    assert report["free"] > families.MOSTLY


def test_rows_take_what_their_indices_say() -> None:
    model = yaml_models.made("routes", 5)
    assert model.save == [2, 4, 6, 9, 15, 18]
    layers, x = model.model, torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        high = layers[:3](x)
        middle = layers[3:5](high)
        low = layers[5:7](middle)
        up = layers[9](torch.cat([layers[7](low), middle], 1))
        over = layers[13](layers[12](torch.cat([layers[10](up), high], 1)))
        back = layers[15](torch.cat([over, up], 1))
        down = layers[18](torch.cat([layers[16](back), low], 1))
        _, logits = layers[20]([down, layers[19](back)])
        assert torch.equal(model(x)[1], logits)
        assert not torch.equal(model(x.flip(3))[1], logits)  # the control
