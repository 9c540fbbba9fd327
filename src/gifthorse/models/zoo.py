"""Every architecture that can be named: randomly initialized nets on normalized images."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import nn

from gifthorse.models.nets.densenet import densenet121, densenet121_cifar
from gifthorse.models.nets.mobile import efficientnet_b0, mobilenetv2, mobilenetv2_cifar
from gifthorse.models.nets.resnet import Bottleneck, resnet
from gifthorse.models.nets.small import basic, lisa_cnn, nin, tiny
from gifthorse.models.nets.vgg import vgg
from gifthorse.models.nets.vit import vit
from gifthorse.models.nets.wide import preactresnet18, wrn


class NetFactory(Protocol):
    """Makes a net that maps normalized images `(N, C, H, W)` to logits `(N, K)`."""

    def __call__(self, classes: int, channels: int = 3) -> nn.Module:
        """Return a new net; its weights draw from the global generator of torch."""
        ...


_11, _13, _16, _19 = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
_18, _34 = (2, 2, 2, 2), (3, 4, 6, 3)

_aka = partial(resnet, width=16, shortcut="pad")
_fc = partial(resnet, width=16)
_kuangliu = partial(resnet, shortcut="shortcut")
_vgg_cifar = partial(vgg, norm=True, pool=1, hidden=0)
_vgg_fc = partial(vgg, norm=True, pool=1, hidden=512)

# A name without a suffix has the keys that most files of that name have. `_cifar` stands for a form
# that does not shrink 32 pixels at once. `_fc` stands for the keys of torchvision on such a form,
# which are those of chenyaofo/pytorch-cifar-models where it has the net.
NETS: dict[str, NetFactory] = {
    "basic": basic,
    "densenet121": densenet121,
    "densenet121_cifar": densenet121_cifar,
    "efficientnet_b0": efficientnet_b0,
    "lisa_cnn": lisa_cnn,
    "mobilenetv2": mobilenetv2,
    "mobilenetv2_cifar": mobilenetv2_cifar,
    "mobilenetv2_cifar_fc": partial(mobilenetv2, large=False),
    "nin": nin,
    "preactresnet18": preactresnet18,
    "resnet18": partial(resnet, depths=_18, pooled=True),
    "resnet18_cifar": partial(_kuangliu, depths=_18),
    "resnet18_cifar_fc": partial(resnet, depths=_18),
    "resnet20": partial(_aka, depths=(3, 3, 3)),
    "resnet20_fc": partial(_fc, depths=(3, 3, 3)),
    "resnet32": partial(_aka, depths=(5, 5, 5)),
    "resnet32_fc": partial(_fc, depths=(5, 5, 5)),
    "resnet34": partial(resnet, depths=_34, pooled=True),
    "resnet34_cifar": partial(_kuangliu, depths=_34),
    "resnet34_cifar_fc": partial(resnet, depths=_34),
    "resnet44": partial(_aka, depths=(7, 7, 7)),
    "resnet44_fc": partial(_fc, depths=(7, 7, 7)),
    "resnet50": partial(resnet, depths=_34, block=Bottleneck, pooled=True),
    "resnet50_cifar": partial(_kuangliu, depths=_34, block=Bottleneck),
    "resnet50_cifar_fc": partial(resnet, depths=_34, block=Bottleneck),
    "resnet56": partial(_aka, depths=(9, 9, 9)),
    "resnet56_fc": partial(_fc, depths=(9, 9, 9)),
    "tiny": tiny,
    "vgg11": partial(vgg, depths=_11),
    "vgg11_bn": partial(vgg, depths=_11, norm=True),
    "vgg11_bn_cifar": partial(_vgg_cifar, depths=_11),
    "vgg11_bn_fc": partial(_vgg_fc, depths=_11),
    "vgg13": partial(vgg, depths=_13),
    "vgg13_bn": partial(vgg, depths=_13, norm=True),
    "vgg13_bn_cifar": partial(_vgg_cifar, depths=_13),
    "vgg13_bn_fc": partial(_vgg_fc, depths=_13),
    "vgg16": partial(vgg, depths=_16),
    "vgg16_bn": partial(vgg, depths=_16, norm=True),
    "vgg16_bn_cifar": partial(_vgg_cifar, depths=_16),
    "vgg16_bn_fc": partial(_vgg_fc, depths=_16),
    "vgg19": partial(vgg, depths=_19),
    "vgg19_bn": partial(vgg, depths=_19, norm=True),
    "vgg19_bn_cifar": partial(_vgg_cifar, depths=_19),
    "vgg19_bn_fc": partial(_vgg_fc, depths=_19),
    "vit_base_patch16_224": partial(vit, width=768),
    "vit_base_patch32_224": partial(vit, width=768, patch=32),
    "vit_cifar": partial(vit, side=32, patch=4, width=128, depth=6),
    "vit_small_patch16_224": partial(vit, width=384),
    "vit_small_patch32_224": partial(vit, width=384, patch=32),
    "vit_tiny_patch16_224": vit,
    "wrn16_1": partial(wrn, depth=16, factor=1),
    "wrn28_10": partial(wrn, depth=28, factor=10),
    "wrn28_2": partial(wrn, depth=28, factor=2),
}
