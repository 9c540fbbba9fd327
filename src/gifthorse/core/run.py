"""What surrounds a long run: who watches it, when it must stop, where it can go on from."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Generator, Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.core.types import Progress, Samples, Session, Subject


def fingerprint(method: object, subject: Subject, clean: Samples, rng: Generator) -> str:
    """Return a name for a run: the same method on the same weights, images and seed.

    Args:
        method: A frozen dataclass; its options count.
        subject: The net; its state counts, not its file.
        clean: The images and labels.
        rng: The generator as the run begins.
    """
    digest = hashlib.sha256(repr(method).encode())
    every = clean[torch.arange(len(clean))]
    for tensor in (*subject.net.state_dict().values(), *every, rng.get_state()):
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class LocalSession:
    """A session on this machine; without arguments it never stops a run and keeps nothing.

    Attributes:
        progress: Told of every round.
        seconds: Wall time from now after which runs must stop.
        budget: Image-steps after which runs must stop.
        store: File that keeps the state of an unfinished run; None keeps nothing.
        image_steps: Image-steps spent so far. One is an image's way forward and back through the
            net; forward alone counts a half.
    """

    progress: Progress | None = None
    seconds: float | None = None
    budget: int | None = None
    store: Path | None = None
    image_steps: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _recalled: bool = False

    def report(self, done: int, total: int, words: str) -> None:
        """Tell whoever watches."""
        if self.progress is not None:
            self.progress(done, total, words)

    def spend(self, image_steps: float) -> None:
        """Count work that was done."""
        self.image_steps += image_steps

    @property
    def over(self) -> str:
        """Why the run must stop, in words; empty as long as it may go on."""
        if self.seconds is not None and time.monotonic() - self._started >= self.seconds:
            return f"the time limit of {self.seconds:g} s is reached"
        if self.budget is not None and self.image_steps >= self.budget:
            return f"the budget of {self.budget:,} image-steps is spent"
        return ""

    def recall(self, key: str) -> Mapping[str, Tensor] | None:
        """Return the state kept under this key, or None.

        Raises:
            UsageError: If the file holds the state of another run, or is damaged.
        """
        if self.store is None or not self.store.exists():
            return None
        try:
            with safe_open(self.store, "pt") as file:
                claims = file.metadata() or {}
            if claims.get("key") != key:
                raise UsageError(
                    f"{self.store} keeps another run: of another model, of other images or with "
                    "other options; name another file, or delete it to start again"
                )
            if not self._recalled:  # a run of several stages asks once for each
                self.image_steps += float(claims.get("image_steps", 0))
            self._recalled = True
            return load_file(self.store)
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{self.store} cannot be continued ({error}): delete it to start again"
            ) from error

    def keep(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Write the state of an unfinished run, whole or not at all."""
        if self.store is not None:
            claims = {"key": key, "image_steps": str(math.ceil(self.image_steps))}
            with atomic(self.store) as file:
                file.write(save({k: v.contiguous() for k, v in state.items()}, claims))


class Ledger:
    """The states of the stages of one run, kept together in a session.

    Args:
        session: Where they are kept.
        key: Name of the run; see `fingerprint`.
    """

    def __init__(self, session: Session, key: str) -> None:
        self.session, self.key, self.name = session, key, "training"
        self._kept = dict(session.recall(key) or {})

    def stage(self, name: str) -> Ledger:
        """Return the same ledger, opened at another stage of the run."""
        other = copy(self)
        other.name = name
        return other

    def recall(self) -> Any:
        """Return what was kept for this stage, or None."""
        if self.name not in self._kept:
            return None
        return torch.load(io.BytesIO(self._kept[self.name].numpy().tobytes()), weights_only=True)

    def keep(self, state: Any) -> None:
        """Keep tensors, numbers, text, and lists and dicts of those, beside other stages."""
        out = io.BytesIO()
        torch.save(state, out)
        self._kept[self.name] = torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)
        self.session.keep(self.key, self._kept)
