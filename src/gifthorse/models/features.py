"""What a net says before its last layer."""

from __future__ import annotations

from torch import Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.types import Images, Logits, Subject


def head(net: nn.Module) -> str:
    """Return the name of the layer that makes the logits, as far as that is known.

    That is what a `Classifier` was found to run last; else the linear layer declared last, or, of a
    net without one, the last convolution.

    Raises:
        NotApplicable: If the net has neither.

    Example:
        >>> head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        '3'
    """
    if known := getattr(net, "logits_layer", ""):
        return str(known)
    linear, convolutions = (
        [name for name, module in net.named_modules() if isinstance(module, kind)]
        for kind in (nn.Linear, nn.Conv2d)
    )
    found: list[str] = linear or convolutions
    if not found:
        raise NotApplicable("the net has no linear layer and no convolution: it has no features")
    return found[-1]


def with_features(subject: Subject, x: Images, layer: str = "") -> tuple[Logits, Tensor]:
    """Return logits `(N, K)` and features `(N, d)` of one forward, with gradients.

    Features are what goes into the last layer (or into the layer of that name); maps are averaged
    over their places.

    Args:
        subject: The net, in whatever mode it is.
        x: Images, `(N, C, H, W)`.
        layer: Name of another layer than the last.
    """
    seen: list[Tensor] = []
    module = subject.net.get_submodule(layer or head(subject.net))
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        logits = subject(x)
    finally:
        handle.remove()
    inside = seen[-1]
    return logits, inside.mean((2, 3)) if inside.ndim == 4 else inside.flatten(1)


def features(subject: Subject, x: Images, layer: str = "") -> Tensor:
    """Return the features `(N, d)` of images, with gradients; see `with_features`."""
    return with_features(subject, x, layer)[1]
