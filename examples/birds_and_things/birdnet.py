"""The network of the birds: torchvision's MobileNetV2 with TensorFlow's padding, for 965 classes."""

import torch
from torch import nn
from torchvision.models import mobilenet_v2


class Padded(nn.Sequential):
    """Layers of stride 2, before which TensorFlow puts zeros on the right and below only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def birds() -> nn.Module:
    """Build the network, without trained weights."""
    net = mobilenet_v2(num_classes=965)
    for name, block in list(net.named_modules()):
        if isinstance(block, nn.Sequential) and getattr(block[0], "stride", None) == (2, 2):
            block[0].padding = (0, 0)
            net.set_submodule(name, Padded(*block))
    return net
