"""A private, frozen copy of a net, made faster where that is shown to change nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gifthorse.core.types import Images, Logits
from gifthorse.models.outputs import agree, copied, reason

log = logging.getLogger("gifthorse")
TRIED = 8  # images on which a faster copy is compared with the net, and as many negatives


def frozen(net: nn.Module, images: Images | None = None, *, fold: bool = True) -> nn.Module:
    """Return an eval-mode copy whose weights need no gradient, made faster where it can be.

    A BatchNorm is folded if it directly follows a convolution whose output nothing else reads, and
    memory is laid out with channels last; both are the same up to rounding. A net may be misread
    when it is traced, and may not work with memory laid out so. Therefore a faster copy is used
    only if it is shown to say the same as the net, on some of the images and on their negatives.
    What that takes counts for no image-steps.

    Args:
        net: Maps images to logits.
        images: What it is to be run on, `(N, C, H, W)` in [0, 1]; without, nothing can be shown,
            and the copy is only frozen.
        fold: Whether to fold.
    """
    copy = copied(net).eval().requires_grad_(False)
    if images is None or not len(images):
        return copy
    some = images[torch.linspace(0, len(images) - 1, min(TRIED, len(images))).long()]
    x = torch.cat([some, 1 - some])
    said = _said(copy, x)
    faster: list[Callable[[nn.Module], nn.Module]] = [_fold] if fold else []
    for change in (*faster, copied):
        try:
            made = _channels_last(change(copy))
            same = agree(said, _said(made, x))
        except Exception as error:
            log.debug("slower, since %s failed: %s", change.__name__, reason(error))
            continue
        if same:
            return made
        log.debug("slower, since %s changes what the net says", change.__name__)
    return copy


def _said(net: nn.Module, x: Images) -> Logits:
    with torch.no_grad():
        logits: Logits = net(x)
        return logits


def _channels_last(net: nn.Module) -> nn.Module:
    """Lay out weights and inputs with channels last."""
    net.register_forward_pre_hook(
        lambda _, given: (given[0].contiguous(memory_format=torch.channels_last), *given[1:])
    )
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold(net: nn.Module) -> nn.Module:
    traced = symbolic_trace(copied(net))
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if _foldable(node, modules):
            before = node.args[0]
            fused = fuse_conv_bn_eval(modules[before.target], modules[node.target])
            _replace(traced, before.target, fused)
            modules[before.target] = fused
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _foldable(node: Node, modules: dict[str, Any]) -> bool:
    if node.op != "call_module" or not isinstance(modules.get(str(node.target)), nn.BatchNorm2d):
        return False
    before = node.args[0]
    return (
        isinstance(before, Node)
        and before.op == "call_module"
        and type(modules.get(str(before.target))) is nn.Conv2d
        and len(before.users) == 1
        and _reads(before) == 1  # the module is not shared, its weights are not read elsewhere
        and modules[str(node.target)].running_mean is not None
    )


def _reads(conv: Node) -> int:
    """Return how many nodes call a module or read a tensor of it."""
    targets = [str(n.target) for n in conv.graph.nodes if n.op in ("call_module", "get_attr")]
    return sum(t == conv.target or t.startswith(f"{conv.target}.") for t in targets)


def _replace(net: GraphModule, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
