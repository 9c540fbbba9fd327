"""What surrounds a long run: who watches it, when it must stop, where it can go on from."""

from __future__ import annotations

import hashlib
import io
import math
import os
import time
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Generator, Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.core.files import check_regular
from gifthorse.core.isolated.tensors import from_file, from_state

if TYPE_CHECKING:
    from gifthorse.core.types import ProgressCallback, Samples, Subject

CPU = torch.device("cpu")
GRACE = 8.0  # seconds beyond the limit in which a search that was stopped may be judged


@dataclass
class _Meter:
    """What all views of one run count together."""

    image_steps: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())
    loaded: bool = False
    stopped: str = ""


@dataclass
class Run:
    """The context of everything that takes long; by default nothing stops it and nothing is kept.

    A run is handed on whole. `keyed` and `checkpoint` give views of it that count together and
    keep their states apart; `part` gives a run within a run, with a file of its own.

    Attributes:
        progress: Told of every round: steps done, steps in all, words.
        seconds: Wall time from now after which the run must stop.
        budget: Image-steps after which it must stop.
        store: File that keeps the state of an unfinished run; None keeps nothing.
        device: Where nets run.
        whole: The run that this one is a part of, whose limits count.
        parts: The runs within it.
    """

    progress: ProgressCallback | None = None
    seconds: float | None = None
    budget: int | None = None
    store: Path | None = None
    device: torch.device = CPU
    whole: Run | None = None
    parts: list[Run] = field(default_factory=list)
    _meter: _Meter = field(default_factory=_Meter, repr=False)
    _key: str = ""
    _slot: str = "run"
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def report(self, done: int, total: int, words: str) -> None:
        """Tell whoever watches."""
        if self.progress is not None:
            self.progress(done, total, words)

    @property
    def image_steps(self) -> float:
        """Image-steps so far: an image's way forward and back; forward alone counts a half."""
        return self._meter.image_steps

    def charge(self, image_steps: float) -> None:
        """Count work that was done, in image-steps, here and for the whole."""
        self._meter.image_steps += image_steps
        if self.whole is not None:
            self.whole.charge(image_steps)

    @property
    def stop_reason(self) -> str:
        """Why the run must stop, in words; empty as long as it may go on.

        A part is never stopped before the whole did anything, so that each run gets on.
        """
        meter, whole = self._meter, self.whole
        if whole is not None and whole.image_steps and not meter.stopped:
            meter.stopped = whole.stop_reason
        if meter.stopped:
            return meter.stopped
        if self.seconds is not None and (late := self.overtime()):
            return late
        if self.budget is not None and self.image_steps >= self.budget:
            return f"the budget of {self.budget:,} image-steps is spent"
        return ""

    def overtime(self, grace: float = 0.0) -> str:
        """Return, in words, that the time limit of the whole is over; empty before that.

        Args:
            grace: Seconds beyond it that are allowed.
        """
        if self.whole is not None:
            return self.whole.overtime(grace)
        spent = time.monotonic() - self._meter.started
        over = self.seconds is not None and spent >= self.seconds + grace
        return f"the time limit of {self.seconds:g} s is reached" if over else ""

    def part(self, store: Path | None = None) -> Run:
        """Return a run within this one: it keeps its state in a file of its own."""
        part = Run(self.progress, store=store, device=self.device, whole=self)
        self.parts.append(part)
        return part

    def keyed(
        self,
        method: object,
        subject: Subject,
        clean: Samples,
        rng: Generator,
        *,
        most: int | None = None,
    ) -> Run:
        """Return a view whose state is that of one method on these weights, images and seed.

        Args:
            method: What runs; see `fingerprint`.
            subject: The net.
            clean: Images and labels.
            rng: The generator as the run begins.
            most: How many of the images count, the first ones; None for all.

        Raises:
            UsageError: If the file holds the state of another run, or is damaged.
        """
        if self.store is None:
            return self
        view = copy(self)
        view._key = fingerprint(method, subject, clean, rng, most)
        view._kept = dict(view._read(self.store))
        return view

    def checkpoint(self, name: str) -> Run:
        """Return a view that keeps its state beside those of other names."""
        view = copy(self)
        view._slot = name
        return view

    @property
    def unkept(self) -> Run:
        """A view that keeps nothing and counts together with this one."""
        view = copy(self)
        view.store, view._kept = None, {}
        return view

    def load(self) -> Any:
        """Return what was saved under this name, or None."""
        if self._slot not in self._kept:
            return None
        return from_state(self._kept[self._slot], f"{self.store}, the state of an unfinished run,")

    def save(self, state: Any) -> None:
        """Keep tensors, numbers, text, and lists and dicts of those: all of it or nothing."""
        if self.store is None:
            return
        out = io.BytesIO()
        torch.save(state, out)
        self._kept[self._slot] = torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)
        claims = {"key": self._key, "image_steps": str(self.image_steps)}
        claims["sha256"] = _digest(self._kept, claims)
        with atomic(self.store) as file:
            file.write(save(self._kept, claims))

    def _read(self, store: Path) -> Mapping[str, Tensor]:
        if not os.path.lexists(store):
            return {}
        check_regular(store)
        try:
            kept, claims = from_file(store, "it")
            steps = float(claims.get("image_steps", "nan"))
        except (UsageError, OSError, ValueError) as error:
            raise UsageError(
                f"{store} cannot be continued ({error}): delete it to start again"
            ) from error
        if claims.get("key") != self._key:
            raise UsageError(
                f"{store} keeps another run: of another model, of other images or with "
                "other options; name another file, or delete it to start again"
            )
        if claims.get("sha256") != _digest(kept, claims) or not 0 <= steps < math.inf:
            raise UsageError(
                f"{store} cannot be continued (it was changed since it was written, or is of "
                "another version): delete it to start again"
            )
        if not self._meter.loaded:  # a run of several steps asks once for each
            self._meter.image_steps += steps
        self._meter.loaded = True
        return kept


def _digest(kept: Mapping[str, Tensor], claims: Mapping[str, str]) -> str:
    """Return a hash of all that a state is gone on from."""
    whole = hashlib.sha256(repr([claims.get("key"), claims.get("image_steps")]).encode())
    for name in sorted(kept):
        whole.update(repr((name, kept[name].dtype, len(kept[name]))).encode())
        whole.update(kept[name].numpy().data)
    return whole.hexdigest()


def fingerprint(
    method: object, subject: Subject, clean: Samples, rng: Generator, most: int | None = None
) -> str:
    """Return a name for a run: the same method on the same weights, images and seed.

    Args:
        method: A frozen dataclass; its options count.
        subject: The net; its state counts, not its file.
        clean: The images and labels.
        rng: The generator as the run begins.
        most: How many of the images count, the first ones; None for all.
    """
    digest = hashlib.sha256(repr(method).encode())
    every = clean[torch.arange(len(clean) if most is None else min(most, len(clean)))]
    state = (t for t in subject.net.state_dict().values() if isinstance(t, Tensor))
    for tensor in (*state, *every, rng.get_state()):
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
