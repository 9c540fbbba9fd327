"""An inversion from its first step to its last: limited, charged, watched, kept and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from gifthorse.core.errors import Incomplete
from gifthorse.core.run import Run
from gifthorse.core.signals import held
from gifthorse.core.types import Candidate, Inversion, Progress, WithStart
from gifthorse.search.schedulers import Scheduler

SAVE_EVERY = 60.0  # seconds between two writes of an unfinished search
ENDED = "ended"  # in the kept state of a search that came to its end: it is not stepped again


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
    meter = _Meter(inversion, run, inversion.image_steps if state is not None else 0.0)
    with held(run.store is not None) as hold:  # half a step would be no state to go on from
        for done, total, words in _portions(inversion, scheduler, rounds, longest, watch):
            meter.charge()
            try:
                run.report(done, total, words)
            except KeyboardInterrupt:
                meter.save(True)
                raise
            stopped = run.stop_reason
            meter.save(bool(stopped) or hold.asked)
            hold.obey()
            if stopped:
                return stopped
        meter.charge()
        run.save(inversion.state() | ({ENDED: torch.tensor(True)} if rounds is None else {}))
    return ""


def _portions(
    inversion: Inversion,
    scheduler: Scheduler,
    rounds: int | None,
    longest: int,
    watch: Callable[[Progress], None] | None,
) -> Iterator[tuple[int, int, str]]:
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

    def __init__(self, inversion: Inversion, run: Run, spent: float) -> None:
        self.inversion, self.run, self.spent, self.saved = inversion, run, spent, time.monotonic()

    def charge(self) -> None:
        now = self.inversion.image_steps
        self.run.charge(now - self.spent)
        self.spent = now

    def save(self, at_once: bool) -> None:
        if at_once or time.monotonic() - self.saved > SAVE_EVERY:
            self.run.save(self.inversion.state())
            self.saved = time.monotonic()
