"""The fast slice of the conformity suite; `make conformity` runs the whole of it."""

from __future__ import annotations

from pathlib import Path

import checks
import models
import pytest

FAST = [entry for entry in models.MODELS if entry.fast]
EXPORTED = ("resnet18", "shufflenet_v2_x1_0")  # exporting takes longer than all the rest


def test_the_slice_has_six_architectures_and_none_is_named_twice() -> None:
    assert len(FAST) == 6
    assert len({entry.title for entry in models.MODELS}) == len(models.MODELS) == 51


@pytest.mark.slow
@pytest.mark.parametrize("entry", FAST, ids=lambda entry: entry.name)
def test_architecture(entry: models.Entry, tmp_path: Path) -> None:
    pytest.importorskip(entry.library)
    chosen = entry.name in EXPORTED
    report = checks.check(entry, tmp_path, onnx=chosen, pruning=chosen)
    assert report["free"] >= 0.3
    assert report["flops"] <= 0.6
    assert checks.wrong(report) == []
    assert (report["onnx"] is not None) == chosen
    if entry.name == "resnet18":
        assert report["pruning"].startswith("agrees")
