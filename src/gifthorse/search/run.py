"""A hunt from its first step to its last, watched, limited and kept by a session."""

from __future__ import annotations

import time

from gifthorse.core.errors import Incomplete
from gifthorse.core.run import Ledger
from gifthorse.core.types import Candidate, Hunt
from gifthorse.search.schedulers import Turns

SAVE_EVERY = 60.0  # seconds between two writes of an unfinished search


def hunted(hunt: Hunt, turns: Turns, ledger: Ledger, failure: str) -> tuple[Candidate, ...]:
    """Step a hunt to the end of its turns and return its candidates, one an arm.

    Args:
        hunt: A hunt that nobody has stepped yet; it goes on from what the ledger kept of it.
        turns: In which order arms are stepped.
        ledger: The stage that keeps the hunt; its session is told, charged and obeyed.
        failure: What is to be said if it ends too early: `nothing was unlearned`.

    Raises:
        Incomplete: If the session is over before the hunt is; its state is kept.
    """
    session, state = ledger.session, ledger.recall()
    if state is not None:
        hunt.restore(state)
    spent, saved = hunt.image_steps if state is not None else 0.0, time.monotonic()
    for standing in turns(hunt):
        session.spend(hunt.image_steps - spent)
        spent = hunt.image_steps
        words = f"searching triggers, smallest {standing.size.min().item():.0f} px"
        # The start counts as a step: a run in which no arm has settled yet is no standstill.
        session.report(int(hunt.settled.sum()) + 1, len(hunt.settled) + 1, words)
        if session.over or time.monotonic() - saved > SAVE_EVERY:
            ledger.keep(hunt.state())
            saved = time.monotonic()
        if session.over:
            raise Incomplete(
                f"{failure}: {session.over} before the triggers were found; go on with a higher "
                "limit"
            )
    ledger.keep(hunt.state())
    return hunt.best
