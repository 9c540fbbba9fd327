"""A private, frozen copy of a net with BatchNorm folded into convolutions."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn.utils.fusion import fuse_conv_bn_eval

log = logging.getLogger("gifthorse")


def frozen(net: nn.Module, *, fold: bool = True) -> nn.Module:
    """Return an eval-mode copy whose weights need no gradient, with BatchNorm folded where it can.

    A BatchNorm is folded if it directly follows a convolution whose output nothing else reads;
    the result is the same up to rounding. A net that cannot be traced is only frozen.
    """
    copy = deepcopy(net).eval()
    for p in copy.parameters():
        p.requires_grad_(False)
    if fold:
        copy = _fold(copy)
    return copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold(net: nn.Module) -> nn.Module:
    try:
        traced = symbolic_trace(net)
    except (
        torch.fx.proxy.TraceError,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        # Data-dependent control flow: correct without folding, only slower.
        log.debug("BatchNorm not folded: %s", error)
        return net
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
