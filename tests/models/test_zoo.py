"""Every net of the zoo against published sizes, costs and keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from gifthorse.models.nets.densenet import DenseLayer
from gifthorse.models.nets.mobile import InvertedResidual
from gifthorse.models.nets.resnet import PadShortcut
from gifthorse.models.zoo import NETS

# Classes and trainable parameters.
PARAMS: dict[str, tuple[int, int]] = {
    # torchvision's model pages, `num_params` of the ImageNet weights.
    "densenet121": (1000, 7_978_856),
    "efficientnet_b0": (1000, 5_288_548),
    "mobilenetv2": (1000, 3_504_872),
    "resnet18": (1000, 11_689_512),
    "resnet34": (1000, 21_797_672),
    "resnet50": (1000, 25_557_032),
    "vgg11": (1000, 132_863_336),
    "vgg11_bn": (1000, 132_868_840),
    "vgg13": (1000, 133_047_848),
    "vgg13_bn": (1000, 133_053_736),
    "vgg16": (1000, 138_357_544),
    "vgg16_bn": (1000, 138_365_992),
    "vgg19": (1000, 143_667_240),
    "vgg19_bn": (1000, 143_678_248),
    # timm's results, in millions: 5.72, 22.05, 86.57; 22.88, 88.22; torchvision has the last two of
    # base size exactly.
    "vit_base_patch16_224": (1000, 86_567_656),
    "vit_base_patch32_224": (1000, 88_224_232),
    "vit_small_patch16_224": (1000, 22_050_664),
    "vit_small_patch32_224": (1000, 22_878_952),
    "vit_tiny_patch16_224": (1000, 5_717_416),
    # He et al., CVPR 2016, table 6: 0.27, 0.46, 0.66, 0.85 M; exact from
    # akamaster/pytorch_resnet_cifar10 at commit d5489e8.
    "resnet20": (10, 269_722),
    "resnet32": (10, 464_154),
    "resnet44": (10, 658_586),
    "resnet56": (10, 853_018),
    # chenyaofo/pytorch-cifar-models, README: 0.27, 0.47, 0.66, 0.86, 2.24 M and 9.76, 9.94, 15.25,
    # 20.57 M; exact from its code at commit 786c162.
    "mobilenetv2_cifar_fc": (10, 2_236_682),
    "resnet20_fc": (10, 272_474),
    "resnet32_fc": (10, 466_906),
    "resnet44_fc": (10, 661_338),
    "resnet56_fc": (10, 855_770),
    "vgg11_bn_fc": (10, 9_756_426),
    "vgg13_bn_fc": (10, 9_941_322),
    "vgg16_bn_fc": (10, 15_253_578),
    "vgg19_bn_fc": (10, 20_565_834),
    # kuangliu/pytorch-cifar at commit 49b7aa9, counted from its code.
    "densenet121_cifar": (10, 6_956_298),
    "mobilenetv2_cifar": (10, 2_296_922),
    "preactresnet18": (10, 11_171_146),
    "resnet18_cifar": (10, 11_173_962),
    "resnet34_cifar": (10, 21_282_122),
    "resnet50_cifar": (10, 23_520_842),
    "vgg11_bn_cifar": (10, 9_231_114),
    "vgg13_bn_cifar": (10, 9_416_010),
    "vgg16_bn_cifar": (10, 14_728_266),
    "vgg19_bn_cifar": (10, 20_040_522),
    # The same nets under the keys of torchvision.
    "resnet18_cifar_fc": (10, 11_173_962),
    "resnet34_cifar_fc": (10, 21_282_122),
    "resnet50_cifar_fc": (10, 23_520_842),
    # Zagoruyko and Komodakis, BMVC 2016: WRN-28-10 has 36.5 M; the others by the same rule, exact
    # from xternalz/WideResNet-pytorch at commit 1171f93.
    "wrn16_1": (10, 175_066),
    "wrn28_10": (10, 36_479_194),
    "wrn28_2": (10, 1_467_610),
    # Lin et al., ICLR 2014: 0.97 M.
    "nin": (10, 966_986),
    # Layer by layer: 16*25+16, 32*16*25+32, 512*512+512, 10*512+10 (USB, A.7, one channel).
    "basic": (10, 416 + 12_832 + 262_656 + 5_130),
    # 64*3*8*8+64, 128*64*6*6+128, 128*128*5*5+128, 18*512+18 (18 classes of LISA).
    "lisa_cnn": (18, 12_352 + 295_040 + 409_728 + 9_234),
    # Patches, the extra word, places, six blocks, last norm, head for 10 classes.
    "vit_cifar": (10, 6_272 + 128 + 65 * 128 + 6 * 198_272 + 256 + 1_290),
    # Convolutions, norms, head for 43 classes.
    "tiny": (43, 76_464 + 464 + 4_171),
}

# Side of the image and multiply-adds in millions, to the digits that were published.
COSTS: dict[str, tuple[int, float, float]] = {
    # torchvision's model pages, GFLOPS (which counts multiply-adds), rounded to 1 M.
    "densenet121": (224, 2834.0, 0.6),
    "efficientnet_b0": (224, 386.0, 0.6),
    "mobilenetv2": (224, 301.0, 0.6),
    "resnet18": (224, 1814.0, 0.6),
    "resnet34": (224, 3664.0, 0.6),
    "resnet50": (224, 4089.0, 0.6),
    "vgg11": (224, 7609.0, 0.6),
    "vgg11_bn": (224, 7609.0, 0.6),
    "vgg13": (224, 11308.0, 0.6),
    "vgg16": (224, 15470.0, 0.6),
    "vgg19_bn": (224, 19632.0, 0.6),
    "vit_base_patch16_224": (224, 17564.0, 0.6),
    "vit_base_patch32_224": (224, 4409.0, 0.6),
    # Ours, by 12 L D^2 + 2 L^2 D a block of L words: the papers say 4.6 and 1.3 G.
    "vit_small_patch16_224": (224, 4599.0, 0.6),
    "vit_small_patch32_224": (224, 1142.9, 0.6),
    "vit_tiny_patch16_224": (224, 1253.7, 0.6),
    # chenyaofo/pytorch-cifar-models, README, MAdds.
    "mobilenetv2_cifar_fc": (32, 87.98, 0.1),
    "resnet20_fc": (32, 40.81, 0.01),
    "resnet32_fc": (32, 69.12, 0.01),
    "resnet44_fc": (32, 97.44, 0.01),
    "resnet56_fc": (32, 125.75, 0.01),
    "vgg11_bn_fc": (32, 153.29, 0.5),
    "vgg16_bn_fc": (32, 313.73, 0.5),
    # Ours: 442,368 + 884,736 + 663,552 + 1,327,104 + 663,552, and 960 for 10 classes.
    "tiny": (32, 3.982272, 1e-9),
}

KEYS: dict[str, dict[str, tuple[int, ...]]] = {
    "densenet121": {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.denseblock1.denselayer2.norm1.weight": (96,),
        "features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3),
        "features.transition3.conv.weight": (512, 1024, 1, 1),
        "features.norm5.running_var": (1024,),
        "classifier.bias": (10,),
    },
    "densenet121_cifar": {
        "conv1.weight": (64, 3, 3, 3),
        "dense1.0.bn1.weight": (64,),
        "dense4.15.conv2.weight": (32, 128, 3, 3),
        "trans1.conv.weight": (128, 256, 1, 1),
        "trans3.bn.bias": (1024,),
        "bn.weight": (1024,),
        "linear.weight": (10, 1024),
    },
    "efficientnet_b0": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
        "features.1.0.block.2.1.bias": (16,),
        "features.2.1.block.2.fc2.weight": (144, 6, 1, 1),
        "features.7.0.block.3.0.weight": (320, 1152, 1, 1),
        "features.8.1.running_mean": (1280,),
        "classifier.1.weight": (10, 1280),
    },
    "vit_tiny_patch16_224": {
        "cls_token": (1, 1, 192),
        "pos_embed": (1, 197, 192),
        "patch_embed.proj.weight": (192, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (576, 192),
        "blocks.0.attn.proj.bias": (192,),
        "blocks.3.mlp.fc1.weight": (768, 192),
        "norm.weight": (192,),
        "head.weight": (10, 192),
    },
    "mobilenetv2": {
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.2.conv.3.running_mean": (24,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (10, 1280),
    },
    "mobilenetv2_cifar": {
        "layers.0.shortcut.0.weight": (16, 32, 1, 1),
        "layers.16.conv2.weight": (960, 1, 3, 3),
        "bn2.weight": (1280,),
        "linear.weight": (10, 1280),
    },
    "nin": {
        "classifier.0.weight": (192, 3, 5, 5),
        "classifier.8.weight": (192, 96, 5, 5),
        "classifier.20.weight": (10, 192, 1, 1),
    },
    "preactresnet18": {
        "layer1.0.bn1.weight": (64,),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "linear.weight": (10, 512),
    },
    "resnet18_cifar": {
        "conv1.weight": (64, 3, 3, 3),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "layer2.0.shortcut.1.weight": (128,),
        "linear.weight": (10, 512),
    },
    "resnet20": {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.weight": (16,),
        "layer1.0.conv1.weight": (16, 16, 3, 3),
        "layer3.2.bn2.running_var": (64,),
        "linear.weight": (10, 64),
    },
    "resnet20_fc": {"layer2.0.downsample.0.weight": (32, 16, 1, 1), "fc.weight": (10, 64)},
    "resnet50": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (10, 2048),
    },
    "vgg16": {
        "features.28.weight": (512, 512, 3, 3),
        "classifier.0.weight": (4096, 25088),
        "classifier.6.weight": (10, 4096),
    },
    "vgg16_bn_cifar": {"features.41.weight": (512,), "classifier.weight": (10, 512)},
    "wrn28_10": {
        "block1.layer.0.convShortcut.weight": (160, 16, 1, 1),
        "block3.layer.3.bn2.weight": (640,),
        "bn1.weight": (640,),
        "fc.weight": (10, 640),
    },
}

SMALL = ("basic", "lisa_cnn", "nin", "resnet20", "resnet20_fc", "tiny", "wrn16_1")
MIDDLE = (
    "densenet121_cifar",
    "efficientnet_b0",
    "mobilenetv2",
    "mobilenetv2_cifar",
    "vgg11_bn_cifar",
)


def on_meta(name: str, classes: int = 10) -> nn.Module:
    channels = 1 if name == "basic" else 3
    with torch.device("meta"):
        return NETS[name](classes, channels).eval()


def stirred(name: str) -> nn.Module:
    """Make a net whose norms have seen a batch, so that its logits show what it sees."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = NETS[name](10, 3).train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
        net(pixels(8))
    return net.eval().requires_grad_(False)


def pixels(n: int, side: int = 32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_tables_cover_the_zoo() -> None:
    assert sorted(PARAMS) == sorted(NETS) == list(NETS)


@pytest.mark.parametrize("name", sorted(NETS))
def test_parameters_shape_and_trace(name: str) -> None:
    classes, expected = PARAMS[name]
    net = on_meta(name, classes)
    assert sum(p.numel() for p in net.parameters()) == expected
    side = COSTS[name][0] if name in COSTS else 32
    x = torch.empty(2, 1 if name == "basic" else 3, side, side, device="meta")
    assert net(x).shape == (2, classes)
    assert symbolic_trace(net)(x).shape == (2, classes)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_multiply_adds(name: str) -> None:
    side, millions, within = COSTS[name]
    net = on_meta(name, 1000 if side == 224 else 10)
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, side, side, device="meta"))
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, abs=within)


@pytest.mark.parametrize("name", sorted(KEYS))
def test_keys(name: str) -> None:
    state = on_meta(name).state_dict()
    assert {key: tuple(state[key].shape) for key in KEYS[name]} == KEYS[name]


def test_forms_differ_in_keys_or_shapes() -> None:
    layouts: dict[frozenset[tuple[str, torch.Size]], list[str]] = {}
    for name in NETS:
        state = on_meta(name).state_dict()
        layouts.setdefault(frozenset((k, v.shape) for k, v in state.items()), []).append(name)
    alike = [names for names in layouts.values() if len(names) > 1]
    assert alike == [["mobilenetv2", "mobilenetv2_cifar_fc"]]


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_through_safetensors(name: str, tmp_path: Path) -> None:
    net, x = stirred(name), pixels(2)
    torch.manual_seed(1)  # `stirred` starts from 0, as every test does
    other = NETS[name](10, 3).eval()
    assert not torch.equal(net(x), other(x))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("name", SMALL + MIDDLE)
def test_eval_logits_do_not_depend_on_the_batch(name: str) -> None:
    net, x = stirred(name).double(), pixels(3).double()
    together = net(x)
    torch.testing.assert_close(torch.cat([net(image[None]) for image in x]), together)
    assert (together[0] - together[1]).abs().max() > 1e-3  # far above rounding


def folded(net: nn.Module) -> GraphModule:
    """Fold each norm that follows a convolution which nothing else reads."""
    traced = symbolic_trace(net)
    for node in traced.graph.nodes:
        before = node.args[0] if node.op == "call_module" else None
        if before is None or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = traced.get_submodule(before.target), traced.get_submodule(node.target)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            traced.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            traced.set_submodule(node.target, nn.Identity())
    return traced


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("efficientnet_b0", 0),
        ("mobilenetv2_cifar", 0),
        ("resnet20", 0),
        ("tiny", 0),
        ("wrn16_1", 7),  # 6 blocks and the last one
    ],
)
def test_norms_after_convolutions_fold(name: str, left: int) -> None:
    net, x = stirred(name).double(), pixels(2).double()
    without = folded(net)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in without.modules()) == left
    torch.testing.assert_close(without(x), net(x))


def test_weights_come_from_the_global_generator() -> None:
    def first_weight() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return next(NETS["tiny"](4).parameters())

    assert torch.equal(first_weight(), first_weight())


@pytest.mark.parametrize("side", [28, 32])
def test_basic_reads_both_sizes_and_one_channel(side: int) -> None:
    assert NETS["basic"](10, 1)(torch.zeros(2, 1, side, side)).shape == (2, 10)


def test_pad_shortcut_by_hand() -> None:
    x = torch.arange(18.0).view(1, 2, 3, 3)
    out = PadShortcut(2)(x)
    assert torch.equal(out[0, [0, 3]], torch.zeros(2, 2, 2))
    assert out[0, 1].tolist() == [[0.0, 2.0], [6.0, 8.0]]
    assert out[0, 2].tolist() == [[9.0, 11.0], [15.0, 17.0]]


@pytest.mark.parametrize("new_first", [False, True])
def test_dense_layer_keeps_its_input_on_the_right_side(new_first: bool) -> None:
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    out = DenseLayer(8, new_first=new_first).eval()(x)
    assert out.shape == (1, 40, 4, 4)
    assert torch.equal(out[:, -8:] if new_first else out[:, :8], x)


def test_stochastic_depth_drops_whole_images() -> None:
    block = InvertedResidual("block", nn.Identity(), skip=True, drop=0.5).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = block(torch.ones(64, 2, 3, 3))
    # Kept images count double, so that the mean stays: 1 + 2 or 1 + 0.
    values = out.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    assert set(values[:, 0].tolist()) == {1.0, 3.0}
    assert torch.equal(block.eval()(torch.ones(1, 2, 3, 3)), torch.full((1, 2, 3, 3), 2.0))
