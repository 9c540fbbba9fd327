"""Run the situations of tests/cases and print them as a table of Markdown.

    python scripts/cases.py [WORD ...]   # those whose name holds a word; all by default

One row a case: what was fed, what is right, what came, seconds and peak memory of a process.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cases.case import Case, Outcome, play
from tests.cases.test_cases import CASES

HEADER = "| case | fed | right | got | s | MB |\n|---|---|---|---|---|---|"


def row(case: Case, outcome: Outcome) -> str:
    """One line of the table; a fault is in bold."""
    got = f"exit {outcome.status}" + "".join(f"; **{fault}**" for fault in outcome.wrong)
    cells = (case.name, case.fed, case.right, got, f"{outcome.seconds:.0f}", f"{outcome.memory}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(words: list[str]) -> int:
    """Print the table; return how many cases are not right."""
    print(HEADER)
    wrong = 0
    for case in CASES:
        if not words or any(word in case.name for word in words):
            outcome = play(case)
            wrong += bool(outcome.wrong)
            print(row(case, outcome), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
