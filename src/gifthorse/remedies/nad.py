"""Neural attention distillation: tune a teacher on clean images, and let the net attend like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.fields import NotEmpty, NotNegative, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Images, Samples, Subject
from gifthorse.data.samples import near
from gifthorse.training import BatchLoss, Recipe, charged, fit, frozen_eval, usual_loss

TUNING = Recipe(epochs=20, batch=64, lr=0.01, decay=1e-4, schedule="constant")

Weights: TypeAlias = Annotated[tuple[Annotated[float, NotNegative], ...], NotEmpty]


@method
class NAD:
    """Fine-tune a copy of the net, and then the net itself so that it attends where the copy does.

    Assumes that tuning moves the copy's attention off the trigger; users find that what it does is
    mostly the fine-tuning's, so compare it with that. Cost: `epochs` passes for the teacher, then
    `recipe.epochs` for the net, half as dear again.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        epochs: Passes in which the teacher is tuned, by `recipe` otherwise.
        weights: Weights of the distance of attention maps, from the first layer to the last; where
            layers were found and there are fewer of them, the last weights count.
        power: To which power the magnitude of activations is summed over channels.
        layers: Names of the layers; empty finds the last ones of each size of map.
        recipe: How the net is tuned.

    Source: Li et al., Neural Attention Distillation, ICLR 2021; weights and the
    teacher's epochs from the authors' code. Differs: a constant learning rate of 0.01 with Nesterov
    momentum, where the authors begin with 0.1; layers are found by the size of their maps.
    """

    epochs: Annotated[int, NotNegative] = 10
    weights: Weights = (500.0, 1000.0, 1000.0)
    power: Annotated[float, Positive] = 2.0
    layers: tuple[str, ...] = ()
    recipe: Recipe = TUNING

    def __post_init__(self) -> None:
        if self.layers and len(self.layers) != len(self.weights):
            raise BadOption(
                f"weights must be one a layer: {len(self.layers)} layers and "
                f"{len(self.weights)} weights were given"
            )

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the tuned net.

        Raises:
            NotApplicable: If the net has no layer of such a name, or none with maps.
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        one = near(clean, subject)[torch.arange(1)][0]
        layers = self.layers or stages(subject, one)[-len(self.weights) :]
        known = dict(subject.net.named_modules())
        wrong = [name for name in layers if name not in known]
        if wrong:
            raise NotApplicable(f"the net has no layer {wrong[0]!r}; it has {', '.join(known)}")
        teacher = fit(
            subject,
            clean,
            replace(self.recipe, epochs=self.epochs),
            spawn(rng),
            run=run.checkpoint("teacher"),
        )
        teacher.net.requires_grad_(False)
        loss = charged(self.loss(teacher, layers), run, 0.5)
        return fit(subject, clean, self.recipe, rng, loss=loss, run=run)

    def loss(self, teacher: Subject, layers: Sequence[str]) -> BatchLoss:
        """Return the loss `CE + sum_l w_l mean (Q(A_l) - Q(A_l of the teacher))^2`."""
        plain, weights = usual_loss(self.recipe), self.weights[-len(layers) :]

        def loss(learner: Subject, batch: Batch) -> Tensor:
            with outputs(learner.net, layers) as mine:
                value = plain(learner, batch)
            with torch.no_grad(), outputs(teacher.net, layers) as theirs:
                teacher(batch[0])
            for weight, name in zip(weights, layers, strict=True):
                goal = attention(theirs[name], self.power)
                value = value + weight * F.mse_loss(attention(mine[name], self.power), goal)
            return value

        return loss


def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """Return `sum_c |A_c|^p` of maps `(N, C, H, W)` as vectors of length one, `(N, H * W)`.

    Example:
        >>> attention(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]]), power=1).round(decimals=2)
        tensor([[0.8300, 0.5500]])
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.normalize(maps.abs().pow(power).sum(1).flatten(1))


def stages(subject: Subject, x: Images) -> tuple[str, ...]:
    """Return the names of the last modules to give maps of each size, in the order of the net.

    Args:
        subject: The net.
        x: Images to send through it; one will do.

    Raises:
        NotApplicable: If no module gives maps of more than one place.
    """
    with frozen_eval(subject), torch.no_grad(), outputs(subject.net, _names(subject.net)) as seen:
        subject(x)
    last = {
        m.shape[2:]: name for name, m in seen.items() if m.ndim == 4 and m.shape[2:].numel() > 1
    }
    if not last:
        raise NotApplicable("no layer of the net gives maps, so it has no attention to distill")
    return tuple(name for name in seen if name in last.values())


@contextmanager
def outputs(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Gather what these modules give while the net runs, by name, in the order they give it."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor):
                seen.pop(name, None)
                seen[name] = output

        return keep

    handles = [net.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_modules() if name]
