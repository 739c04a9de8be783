"""The architectures that are checked: adding one is one line."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from brickyard.testing import randomised


@dataclass(frozen=True)
class Entry:
    """An architecture of a library.

    Attributes:
        library: "torchvision" or "timm".
        name: Its name there.
        size: Height and width of the images.
        fast: Whether it belongs to the slice that the tests run.
    """

    library: str
    name: str
    size: int = 64
    fast: bool = False

    @property
    def title(self) -> str:
        return f"{self.library}:{self.name}"


def torchvision(name: str, size: int = 64, fast: bool = False) -> Entry:
    return Entry("torchvision", name, size, fast)


def timm(name: str, size: int = 64, fast: bool = False) -> Entry:
    return Entry("timm", name, size, fast)


MODELS = (
    torchvision("alexnet", 96),
    torchvision("vgg11"),
    torchvision("vgg16_bn"),
    torchvision("resnet18", fast=True),
    torchvision("resnet50"),
    torchvision("wide_resnet50_2"),
    torchvision("resnext50_32x4d"),
    torchvision("googlenet"),
    torchvision("inception_v3", 96),
    torchvision("densenet121"),
    torchvision("squeezenet1_1"),
    torchvision("mobilenet_v2"),
    torchvision("mobilenet_v3_large"),
    torchvision("shufflenet_v2_x1_0", fast=True),
    torchvision("mnasnet1_0"),
    torchvision("efficientnet_b0"),
    torchvision("efficientnet_v2_s"),
    torchvision("regnet_y_400mf", fast=True),
    torchvision("convnext_tiny"),
    torchvision("vit_b_32", 224),
    torchvision("swin_t", 224),
    torchvision("maxvit_t", 224),
    timm("resnet26d"),
    timm("resnetv2_50"),
    timm("seresnet50"),
    timm("skresnet18", fast=True),
    timm("res2net50_26w_4s"),
    timm("dla34"),
    timm("hrnet_w18_small"),
    timm("cspresnet50"),
    timm("darknet53"),
    timm("ghostnet_100"),
    timm("mixnet_s"),
    timm("tf_efficientnetv2_b0"),
    timm("rexnet_100"),
    timm("repvgg_a0"),
    timm("nfnet_l0"),
    timm("vovnet39a"),
    timm("xception41"),
    timm("convnextv2_atto", fast=True),
    timm("mobileone_s0"),
    timm("fastvit_t8"),
    timm("resnest14d"),
    timm("efficientformer_l1", 224),
    timm("levit_128s", 224),
    timm("mobilevit_xxs"),
    timm("coatnet_0_rw_224", 224),
    timm("vit_tiny_patch16_224", 224, fast=True),
    timm("deit_tiny_patch16_224", 224),
    timm("mixer_s32_224", 224),
    timm("swin_tiny_patch4_window7_224", 224),
)
CLASSES = 6


def build(entry: Entry) -> nn.Module:
    """The architecture with random weights, none of them at its usual starting value."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if entry.library == "timm":
            import timm

            model = timm.create_model(entry.name, num_classes=CLASSES)
        else:
            import torchvision.models

            slow = entry.name.startswith(("vgg", "googlenet", "inception"))  # to start; the weights are drawn below
            options = {"init_weights": False} if slow else {}
            model = torchvision.models.get_model(entry.name, num_classes=CLASSES, **options)
    return randomised(model)
