"""A fast slice of the own modules; `python tests/conformity --own` runs the whole of them."""

from __future__ import annotations

import own_checks
import own_modules
import own_report
import pytest

OWN = own_modules.all_own()
FAST = (
    *("Cbam", "CoordinateAttention", "FrequencyAttention", "Involution", "GatedConv", "PartialConv", "ShiftChannels"),
    *("UNetLike", "SpatialTransformer", "PixelUnshuffleDown", "CoordConv", "Prototypes", "Capsules", "KMaxSorted"),
    *("RelativeBias", "Rotary", "MixtureOfExperts", "WindowAttention", "LstmOverRows", "FourierUnit", "FoldBack"),
    *("MaskedBySign", "Autocast", "NewTensors", "SizeDependent", "TorchRmsNorm", "ThreeDimensional", "Checkpointed"),
)
UNSAVED = ("LstmOverRows",)  # all of its operations are in the recurrent layer, so that no cut saves any


def test_the_modules_are_many() -> None:
    assert len(OWN) == 179
    assert set(FAST) <= set(OWN)


@pytest.mark.parametrize("name", FAST)
def test_own_module(name: str) -> None:
    report = own_checks.check(OWN[name], onnx=False)
    assert own_report.exact(report)
    assert report["control"] > 1e-6
    assert report["saved"] or (name in UNSAVED and "option-budget-too-small" in report["reason"])
    assert report["foreign"] == []
    assert report["sizes"] is None or own_report.any_size(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Cbam", "Rotary", "FoldBack"])
def test_own_module_exported(name: str) -> None:
    report = own_checks.check(OWN[name], onnx=True)
    assert report["onnx"] < 1e-5
