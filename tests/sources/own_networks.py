"""Networks that are in nobody's library, each in a function of at most thirty lines, for trained weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet8(nn.Module):
    """Three blocks; stride 2 pads right and below alone, as TensorFlow does."""

    def __init__(self) -> None:
        super().__init__()
        widths = {0: (3, 16), 1: (16, 16), 2: (16, 16), 3: (16, 32), 4: (32, 32), 6: (32, 64), 7: (64, 64)}
        for k, (before, after) in widths.items():
            wide = k in (3, 6)
            self.add_module(f"conv{k}", nn.Conv2d(before, after, 3, 2 if wide else 1, 0 if wide else 1))
            self.add_module(f"bn{k if k < 5 else k - 1}", nn.BatchNorm2d(after, eps=1e-3))
        self.conv5, self.conv8, self.fc = nn.Conv2d(16, 32, 1, 2), nn.Conv2d(32, 64, 1, 2), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(F.pad(x, (0, 1, 0, 1)))))))
        x = F.relu(self.conv5(x) + y)
        y = self.bn6(self.conv7(F.relu(self.bn5(self.conv6(F.pad(x, (0, 1, 0, 1)))))))
        result: Tensor = self.fc(F.relu(self.conv8(x) + y).mean((2, 3)))
        return result


class Keywords(nn.Module):
    """Separable convolutions on (1, 49, 10) cepstral coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.fc = nn.Conv2d(1, 64, (10, 4), 2), nn.Linear(64, 12)
        for k in range(1, 9):
            own = {"kernel_size": 3, "padding": 1, "groups": 64} if k % 2 else {"kernel_size": 1}
            self.add_module(f"conv{k}", nn.Conv2d(64, 64, **own))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv0(F.pad(x, (1, 1, 4, 5))))
        for k in range(1, 9):
            x = F.relu(self.get_submodule(f"conv{k}")(x))
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


def signs() -> nn.Module:
    """Traffic signs of 30 x 30."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1152, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 42)),
    )


class Same(nn.Sequential):
    """Layers before which zeros are put right and below alone, as TensorFlow does for stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(F.pad(x, (0, 1, 0, 1)))
        return result


def birds() -> nn.Module:
    """MobileNetV2 of TensorFlow's padding for 965 birds."""
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2(num_classes=965)
    for name, block in list(net.named_modules()):
        if isinstance(block, nn.Sequential) and getattr(block[0], "stride", None) == (2, 2):
            block[0].padding = (0, 0)
            net.set_submodule(name, Same(*block))
    return net


def shuffle() -> nn.Module:
    """ShuffleNetV2 for pictures of 32 x 32: neither its first layer nor a pool halves them."""
    from torchvision.models import shufflenet_v2_x0_5

    net = shufflenet_v2_x0_5(num_classes=10)
    net.conv1[0].stride = (1, 1)
    net.maxpool = nn.Identity()
    return net
