"""How strongly the channels of one stage of a net feed those of the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gifthorse.core.types import Subject
from gifthorse.training import frozen_eval

LOGITS = ""  # stands for what follows the last stage


def gains(subject: Subject, names: Sequence[str]) -> dict[str, Tensor]:
    """Return how strongly each stage is fed by the one before, `(C_out, C_in)` by its name.

    Entries are Frobenius norms of kernels; of several convolutions in a row, the product of their
    matrices of norms. Convolutions that do not read what the one before gave, such as those of
    shortcuts, are left out; so are stages that are not reached that way.

    Args:
        subject: The classifier; it is asked for one black image.
        names: The stages, in the order of the net. `LOGITS` is added for the logits.
    """
    chain: Tensor | None = None
    out: dict[str, Tensor] = {}
    for name, module, width in _asked(subject, names):
        if chain is not None:  # a stage may be a convolution itself
            step = norms(module, len(chain))
            chain = chain if step is None else step @ chain
        if name in names:
            if chain is not None and len(chain) == width:
                out[name] = chain
            chain = torch.eye(width, dtype=torch.float64)
    if chain is not None and len(chain) == subject.classes:
        out[LOGITS] = chain
    return out


def norms(module: nn.Module, given: int) -> Tensor | None:
    """Return the norm of what leads from each channel to each, `(C_out, C_in)` float64.

    Args:
        module: A convolution or a linear layer.
        given: Channels that come in; a linear layer may read several places of each.

    Returns:
        None if the layer reads another number of channels.

    Example:
        >>> layer = nn.Linear(4, 1)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0, 0.0, 2.0]]))
        >>> norms(layer, 2).tolist()
        [[5.0, 2.0]]
    """
    if isinstance(module, nn.Linear) and module.in_features % given == 0:
        weight = module.weight.detach().double().cpu()
        places: Tensor = weight.view(len(weight), given, -1).norm(dim=2)
        return places
    if isinstance(module, nn.Conv2d) and module.in_channels == given:
        kernels: Tensor = module.weight.detach().double().cpu().flatten(2).norm(dim=2)
        blocks = kernels.view(module.groups, -1, kernels.shape[1])
        whole: Tensor = torch.block_diag(*blocks)
        return whole
    return None


def _asked(subject: Subject, names: Sequence[str]) -> list[tuple[str, nn.Module, int]]:
    """Return what a forward asks, in order: name, module, and how many channels it gives."""
    seen: list[tuple[str, nn.Module, int]] = []
    handles = []
    for name, module in subject.net.named_modules():
        if name in names or isinstance(module, nn.Conv2d | nn.Linear):

            def hook(m: nn.Module, _: object, out: Tensor, name: str = name) -> None:
                seen.append((name, m, out.shape[1]))

            handles.append(module.register_forward_hook(hook))
    try:
        with frozen_eval(subject), torch.no_grad():
            subject(torch.zeros(1, *subject.shape, device=subject.device))
    finally:
        for handle in handles:
            handle.remove()
    return seen
