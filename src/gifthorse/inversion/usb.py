"""USB: mask and pattern that start from a universal perturbation and keep images similar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.tensors import spawn, to_box
from gifthorse.core.types import Goal, Images, Inversion, Samples, Subject
from gifthorse.inversion.deepfool import DeepFoolInversion, DeepFoolUAP
from gifthorse.search import (
    CostController,
    MaskPattern,
    Objective,
    Parametrization,
    Search,
    SearchConfig,
)
from gifthorse.search.losses import Similarity
from gifthorse.search.objective import Net
from gifthorse.search.parametrizations.masks import Parts
from gifthorse.search.start import Swept
from gifthorse.triggers.changes import open_changes


@method
class USB:
    """Minimize `CE(f(x'), t) - SSIM(x, x') + cost |m|_1`, from a targeted universal perturbation.

    Assumes a patch trigger; the perturbation v points to it where a random start does not, since
    for the backdoor's target v is smaller and lies on the trigger. Needs clean images and
    gradients. The size of a trigger is the L1 norm of its mask over one channel.

    Attributes:
        start: What makes v.
        uap: A file with v of every goal, made once on a model of like architecture and data:
            `triggers.safetensors` of `compare-triggers --method deepfool`. Empty makes v here.
        init: `signed` starts mask and pattern from size and sign of v; `reference` takes v as raw
            pattern and a random raw mask, as the released code.
        similarity: Weight of the SSIM term.
        initial: Weight of the mask norm at the start.
        patience: Rounds in a row before it moves.
        up: Factor by which it rises; it falls by `up ** 1.5`.
        config: Steps, success bar and stopping; 500 steps in all.

    Source: Xu et al., Universal Soldier for Backdoor Detection, 2023, eq. 1, algorithms 1 and 2.
    Differs: the mask norm has the adapted weight of the released code, not 1; v has both signs, so
    mask and pattern start from its size and sign; a trigger is stored only if it meets the bar; the
    size is the norm of m, as in the code, not that of m p.
    """

    start: DeepFoolUAP = DeepFoolUAP()
    uap: str = ""
    init: Literal["signed", "reference"] = "signed"
    similarity: Annotated[float, NotNegative] = 1.0
    initial: Annotated[float, NotNegative] = 1e-3
    patience: Annotated[int, AtLeast(1)] = 10
    up: Annotated[float, Positive] = 1.5
    config: SearchConfig = SearchConfig(
        success_threshold=0.99, steps=5, min_steps=5, rounds=100, schedule="cosine"
    )

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over masks and patterns, one arm a goal; its start is the sweep.

        Raises:
            UsageError: If `uap` is no such file, or has no v for a goal.
            ShapeMismatch: If its v are for images of another shape.
        """
        cost = CostController.rising(len(goals), self.initial, self.patience, self.up)

        def begun(v: Tensor) -> Search:
            terms = ((self.similarity, Similarity()),)
            objective = Objective(MaskPattern(), cost, terms=terms, init=_From(v, self.init))
            return Search(subject, clean, goals, rng, objective, self.config)

        draw = spawn(rng)
        if self.uap:
            return begun(open_changes(Path(self.uap), goals, subject.shape))
        sweep = DeepFoolInversion(self.start, subject, clean, goals, draw)
        return Swept(sweep, lambda sweep: begun(sweep.perturbations))


@dataclass(frozen=True, eq=False)
class _From:
    """Mask and pattern from perturbations `(A, C, H, W)` of either sign."""

    v: Tensor
    init: Literal["signed", "reference"]

    def __call__(
        self,
        net: Net,
        pool: Images,
        target: Tensor,
        form: Parametrization,
        variables: Parts,
        rng: Generator,
        own: Tensor | None = None,
    ) -> Parts:
        v = self.v.to(variables[1])
        if self.init == "reference":
            return torch.randn(variables[0].shape, generator=rng).to(v), v
        top = v.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1, 1)
        mask = v.abs().amax(1, keepdim=True) / top
        return to_box(mask, 0.01), to_box(0.5 + 0.5 * v / top, 0.01)
