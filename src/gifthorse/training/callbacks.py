"""What trains beside a net, or acts between its epochs, and outlasts an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Generator
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from gifthorse.core.types import Subject


class Callback(Protocol):
    """What trains beside a net, or watches it train. Every method may be left out.

    What it remembers from one epoch to the next goes through `state_dict`, so that an interrupted
    training goes on as if nothing had happened.
    """

    def extra_optimizers(self, learner: Subject) -> Sequence[Optimizer]:
        """Return optimizers of further variables that go down the net's own loss."""
        return ()

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Act before an epoch; the net is in training, and a mode set here holds for the epoch."""
        return

    def on_epoch_end(self, learner: Subject, epoch: int) -> None:
        """Act after an epoch."""
        return

    def should_stop(self) -> bool:
        """Whether training may end before its last epoch; asked before each, after `after`."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what must be kept: tensors, numbers, text, lists and dicts of those."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        return


@runtime_checkable
class Stateful(Protocol):
    """Anything with a state to go on from: a trigger that draws or learns, a module."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers, text, lists and dicts of those."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go on from what `state_dict` returned."""
        ...


class FrozenBatchNorm(Callback):
    """Lets BatchNorm use the statistics that it has, and keep them, while its weights train."""

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Take BatchNorm out of training for the epoch."""
        for module in learner.net.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


class Checkpointed(Callback):
    """Something whose state belongs to a training, and nothing more."""

    def __init__(self, thing: Stateful) -> None:
        self.thing = thing

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        return self.thing.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set its state."""
        self.thing.load_state_dict(state)


class RngState(Callback):
    """A generator that training draws from, kept with it."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator is."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generator there."""
        self.rng.set_state(state["rng"])
