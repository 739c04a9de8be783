"""The network of the birds: torchvision's MobileNetV2 with TensorFlow's padding, for 965 classes."""

import torch
from torch import nn
from torchvision.models import mobilenet_v2


class Padded(nn.Sequential):
    """Layers of stride 2, before which TensorFlow puts zeros on the right and below only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad, then run the layers."""
        x = nn.functional.pad(x, (0, 1, 0, 1))
        for layer in self:
            x = layer(x)
        return x


def birds() -> nn.Module:
    """Build the network, without trained weights."""
    net: nn.Module = mobilenet_v2(num_classes=965)
    for name, block in list(net.named_modules()):
        first = block[0] if isinstance(block, nn.Sequential) else None
        if isinstance(first, nn.Conv2d) and first.stride == (2, 2):
            first.padding = (0, 0)
            net.set_submodule(name, Padded(*block.children()))
    return net
