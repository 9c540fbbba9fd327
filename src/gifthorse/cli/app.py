"""The first and last of the command line: streams, signals, and an exit status for every end."""

from __future__ import annotations

import sys

from gifthorse.cli import border
from gifthorse.core.heap import keep_freed


def main() -> None:
    """Run the command line; whatever happens ends in one sentence and an exit status.

    0 is nothing found, 1 a finding and nothing else, 2 an error, 3 no verdict, 4 wrong usage, and
    128 more than its number after a signal.
    """
    border.open_streams()
    keep_freed()
    signals = border.Signals()
    status = border.ERROR
    try:
        from gifthorse.cli import commands  # slow: a signal during it ends the process at once

        signals.listen()
        status = commands.run(sys.argv[1:])
    except border.Interrupted:
        status = signals.status
    except KeyboardInterrupt:
        border.say("interrupted; nothing was written for the file at hand")
        status = signals.status
    except BaseException as error:
        border.say(border.unforeseen(error))
    border.leave(status)


if __name__ == "__main__":
    main()
