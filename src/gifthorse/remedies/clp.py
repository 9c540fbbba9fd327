"""Channel Lipschitz pruning: silence channels that amplify far more than others beside them."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, TypeAlias

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.types import Samples, Subject
from gifthorse.training import eval_mode

Pair: TypeAlias = tuple[nn.Conv2d, nn.BatchNorm2d]

log = logging.getLogger("gifthorse")


@method
class CLP:
    """Silence channels whose Lipschitz bound lies far above the mean of their layer.

    Looks at weights alone: clean images are not used. Cost: a singular value for each channel.
    It reaches every BatchNorm that directly follows a convolution. One that comes before its
    convolution, as in pre-activation nets and the dense blocks' first norm, is left as it is. Among
    K channels no one can lie more than (K - 1) / sqrt(K) deviations above the mean: at 3, layers of
    ten channels or fewer are never pruned.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        u: Standard deviations above the mean of the layer from which a channel is silenced;
            infinity silences none.

    Source: Zheng et al., Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022;
    u = 3 as BackdoorBench has it for small images. Differs: norms are paired with the convolution
    whose output they read, found in a forward of a black image, not with the one that was
    registered before them; the norm's epsilon counts; scale and shift are both zeroed.
    """

    u: Annotated[float, NotNegative] = 3.0

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the pruned net.

        Raises:
            NotApplicable: If no BatchNorm of the net directly follows a convolution.
        """
        made = replace(subject, net=deepcopy(subject.net).eval())
        found = pairs(made)
        if not found:
            raise NotApplicable(
                "no BatchNorm of this net directly follows a convolution, so it has no channels "
                "to prune: use another remedy, e.g. fine_pruning"
            )
        count = sum(self._prune(conv, norm) for conv, norm in found)
        log.info("%d channels of %d layers were silenced", count, len(found))
        return made

    @torch.no_grad()
    def _prune(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> int:
        """Silence the outliers of one layer, in place; return how many they are."""
        bounds = lipschitz(conv, norm)
        far = bounds > bounds.mean() + self.u * bounds.std()  # one channel alone: std is NaN, none
        silence(norm, far)
        return int(far.sum())


def lipschitz(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return an upper bound on how far each channel stretches its input, `(C,)`.

    The largest singular value of the kernel as a matrix `(C_in, kh * kw)`, times |scale| over the
    running deviation of the norm.

    Source: Zheng et al., ECCV 2022. Differs: the norm's epsilon counts.
    """
    assert norm.running_var is not None
    stretch: Tensor = torch.linalg.matrix_norm(conv.weight.flatten(2), ord=2)
    gain = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return stretch * gain


@torch.no_grad()
def silence(norm: nn.BatchNorm2d, channels: Tensor) -> None:
    """Make some channels, `(C,)` bool, exactly zero behind a norm, in place."""
    norm.weight[channels] = 0.0
    norm.bias[channels] = 0.0


@torch.no_grad()
def pairs(subject: Subject) -> list[Pair]:
    """Return every convolution with the BatchNorm that reads its very output, in order of use.

    Norms without scale and shift or without running statistics are left out, and so are modules
    that a forward asks more than once. The net is asked for one black image.
    """
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # the tensor keeps its id from reuse
    asked: list[nn.Module] = []
    found: list[Pair] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        asked.append(module)
        if isinstance(module, nn.Conv2d):
            made[id(out)] = (module, out, out._version)
        source = made.get(id(given[0]))
        # Another version: something has changed the tensor in place since, a ReLU say.
        if source is None or source[2] != given[0]._version:
            return
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None:
            found.append((source[0], module))

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    modules = [m for m in subject.net.modules() if isinstance(m, kinds)]
    handles = [m.register_forward_hook(note) for m in modules]
    try:
        with eval_mode(subject.net):
            subject(torch.zeros(1, *subject.shape, device=subject.device))
    finally:
        for handle in handles:
            handle.remove()
    return [(c, n) for c, n in found if asked.count(c) == asked.count(n) == 1]
