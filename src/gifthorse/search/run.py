"""An inversion from its first step to its last: limited, charged, watched, kept and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

import torch

from gifthorse.core.errors import Halted, Incomplete
from gifthorse.core.pacing import paced
from gifthorse.core.run import Run
from gifthorse.core.signals import Hold, held
from gifthorse.core.types import Candidate, Inversion, Progress, WithStart
from gifthorse.search.schedulers import Scheduler

SAVE_EVERY = 60.0  # seconds between two writes of an unfinished search
ENDED = "ended"  # in the kept state of a search that came to its end: it is not stepped again
Portion: TypeAlias = tuple[int, int, str]  # steps done, steps in all, words


def finish(
    inversion: Inversion,
    scheduler: Scheduler,
    run: Run,
    *,
    rounds: int | None = None,
    longest: int = 0,
    watch: Callable[[Progress], None] | None = None,
) -> str:
    """Step an inversion to the end of its schedule; return why it had to stop before, or nothing.

    This is the only place where an inversion is stepped. Its start (a sweep of whole images, the
    stimulation of neurons) comes in portions that are counted, limited and kept like rounds. One
    that was kept at its end is not stepped again.

    Args:
        inversion: An inversion that nobody has stepped yet; it goes on from what the run kept of
            it.
        scheduler: In which order arms are stepped.
        run: Is told, charged and obeyed, and keeps the state: every minute, at the end, and after
            the step in which a signal asked to stop.
        rounds: Most rounds from now; None for all.
        longest: Rounds that an arm may get, for progress in rounds; 0 counts arms that are done.
        watch: Told the standing after every round.

    Returns:
        Why the run stopped it, in words; empty if it came to its end.
    """
    state = run.load()
    if state is not None:
        inversion.restore({name: value for name, value in state.items() if name != ENDED})
        if ENDED in state:
            return ""
    spent = inversion.image_steps if state is not None else 0.0
    portions = _portions(inversion, scheduler, rounds, longest, watch)
    with held(run.store is not None) as hold:  # half a step would be no state to go on from
        meter = _Meter(inversion, run, hold, spent)
        try:
            while portion := meter.next(portions):
                meter.report(*portion)
                if stopped := meter.ended(run.stop_reason):
                    return stopped
        except Halted as halt:
            return meter.ended(str(halt))
        run.save(inversion.state() | ({ENDED: torch.tensor(True)} if rounds is None else {}))
    return ""


def _portions(
    inversion: Inversion,
    scheduler: Scheduler,
    rounds: int | None,
    longest: int,
    watch: Callable[[Progress], None] | None,
) -> Iterator[Portion]:
    """Take what is left of the start, then the rounds; say after each how far it is."""
    if isinstance(inversion, WithStart):
        for words in inversion.start():
            yield 0, longest or 1, words
    for progress in islice(scheduler(inversion), rounds):
        if watch is not None:
            watch(progress)
        done, arms = int(inversion.done.sum()), len(inversion.done)
        words = f"{done} of {arms} done, smallest {progress.size.min().item():.0f} px"
        # The start counts as a step: a run in which no arm is done yet is no standstill.
        at = (int(progress.rounds.max()), longest) if longest else (done + 1, arms + 1)
        yield *at, words


def found(
    inversion: Inversion, scheduler: Scheduler, run: Run, failure: str
) -> tuple[Candidate, ...]:
    """Step an inversion to its end and return its candidates, one an arm.

    Args:
        inversion: As for `finish`.
        scheduler: As for `finish`.
        run: As for `finish`.
        failure: What is to be said if it ends too early: `nothing was unlearned`.

    Raises:
        Incomplete: If the run must stop before; the state is kept.
    """
    stopped = finish(inversion, scheduler, run)
    if stopped:
        raise Incomplete(
            f"{failure}: {stopped} before the triggers were found; go on with a higher limit"
        )
    return inversion.best


class _Meter:
    """Charges a run for the work of an inversion since last asked, and saves now and then."""

    def __init__(self, inversion: Inversion, run: Run, hold: Hold, spent: float) -> None:
        self.inversion, self.run, self.hold, self.spent = inversion, run, hold, spent
        self.saved, self.moved = time.monotonic(), False

    def next(self, portions: Iterator[Portion]) -> Portion | None:
        """Return the next portion, or None after the last.

        Raises:
            Halted: If it was left before its end.
        """
        with paced(self.reason):
            portion = next(portions, None)
        self.moved = True
        self.charge()
        return portion

    def reason(self, kept: bool) -> str:
        """Say why a portion must be left; never before something was done that is kept."""
        self.moved |= kept
        late = self.run.overtime() if self.moved else ""
        return "a signal asked to stop" if self.hold.asked else late

    def charge(self) -> None:
        """Charge the run for what was done since last asked."""
        now = self.inversion.image_steps
        self.run.charge(now - self.spent)
        self.spent = now

    def report(self, done: int, total: int, words: str) -> None:
        """Tell whoever watches, who may interrupt."""
        try:
            self.run.report(done, total, words)
        except KeyboardInterrupt:
            self.save()
            raise

    def ended(self, stopped: str) -> str:
        """Charge, save if it is time to, obey a signal that came; return why it was stopped."""
        self.charge()
        if stopped or self.hold.asked or time.monotonic() - self.saved > SAVE_EVERY:
            self.save()
        self.hold.obey()
        return stopped

    def save(self) -> None:
        """Keep the state."""
        self.run.save(self.inversion.state())
        self.saved = time.monotonic()
