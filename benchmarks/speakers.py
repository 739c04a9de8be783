"""The network of `signals.py`, for `brickyard disassemble speakers.py:network`."""

from __future__ import annotations

from torch import nn


def network() -> nn.Module:
    """Nine speakers by 25 frames of 12 cepstral coefficients: (batch, 12, 25) -> (batch, 9)."""
    return nn.Sequential(
        *(nn.Conv1d(12, 64, 3, padding=1, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.Conv1d(64, 96, 3, padding=1, bias=False), nn.BatchNorm1d(96), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(96, 128, 3, padding=1, bias=False), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 9)),
    )
