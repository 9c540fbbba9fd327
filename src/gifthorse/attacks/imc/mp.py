"""What IMC adds to pass MagNet: triggers are shaped and learned behind an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.attacks.training import Job
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.tensors import seeded
from gifthorse.core.types import Batch, Images, Samples, Subject
from gifthorse.models.folding import frozen
from gifthorse.training import Recipe, fit
from gifthorse.triggers import Learned, Patch

View: TypeAlias = Callable[[Images], Images]


@method
class AgainstMP:
    """Train an autoencoder as a defender would; the attack sees stamped images through it.

    Attributes:
        recipe: How the autoencoder is trained; no epochs turn it off.
        width: Channels of its two hidden maps.
        noise: Standard deviation of the noise that it learns to take away.

    Source: TrojanZoo sec. 6.3 (IMC adapted to MP); Meng and Chen, MagNet, CCS 2017. Differs: both
    the trigger and the net see reformed images (the released code has it only for the net); noise
    is Gaussian and the output a sigmoid, as MagNet has it; trained with momentum, not by Adam.
    """

    recipe: Recipe = Recipe(epochs=0, lr=1.0, decay=0.0)
    width: Annotated[int, AtLeast(1)] = 32
    noise: Annotated[float, NotNegative] = 0.1

    def surrogate(self, like: Subject, clean: Samples, rng: Generator, job: Job) -> View:
        """Return a trained, frozen autoencoder for the images of a subject; none: the identity."""
        if not self.recipe.epochs:
            return nn.Identity()
        with seeded(rng):
            net = autoencoder(like.shape[0], self.width, self.noise)
        start = Subject(net.to(like.device), like.shape, like.classes)
        run = job.checkpoint("autoencoder")
        return frozen(fit(start, clean, self.recipe, rng, loss=_missing, run=run).net)


class Noise(nn.Module):
    """Gaussian noise of a standard deviation, in training mode only."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Images) -> Images:
        """Return noisy images in [0, 1]; in evaluation mode `x` itself."""
        if not self.training:
            return x
        return (x + self.deviation * torch.randn_like(x)).clamp(0, 1)


def autoencoder(channels: int, width: int, noise: float) -> nn.Sequential:
    """Return MagNet's net for color images: three 3x3 convolutions, nothing is made smaller.

    Args:
        channels: Channels of an image.
        width: Channels of the two hidden maps.
        noise: Standard deviation of the noise in training.
    """
    layers: list[nn.Module] = [Noise(noise)]
    for cin in (channels, width):
        layers += [nn.Conv2d(cin, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())


def _missing(subject: Subject, batch: Batch) -> Tensor:
    return F.mse_loss(subject(batch[0]), batch[0])


class TransformedTrigger:
    """A learned trigger as the net sees it, behind whatever images pass on their way.

    Args:
        learned: The trigger.
        view: What stamped images pass; gradients go through it.
    """

    def __init__(self, learned: Learned, view: View) -> None:
        self.learned, self.view = learned, view

    @property
    def variables(self) -> tuple[Tensor, ...]:
        """What an attack moves."""
        return self.learned.variables

    def stamp(self, x: Images) -> Images:
        """Return stamped images behind the view, with gradients on the variables."""
        return self.view(self.learned.stamp(x))

    @torch.no_grad()
    def __call__(self, x: Images, /) -> Images:
        """Return stamped images behind the view, without gradients."""
        return self.stamp(x)

    def shuffled(self, rng: Generator, /) -> Patch:
        """Return the trigger as it is now, with its pixels shuffled."""
        return self.learned.shuffled(rng)

    def render(self) -> tuple[Tensor, Tensor]:
        """Return pattern and mask as they are now."""
        return self.learned.render()

    def state_dict(self) -> dict[str, Any]:
        """Return the variables."""
        return self.learned.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the variables."""
        self.learned.load_state_dict(state)
