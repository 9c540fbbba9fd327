"""Every situation, met as a user would meet it: `pytest -m slow tests/cases`."""

import importlib
import pkgutil

import pytest
import tests.cases
from tests.cases.case import Case, play

KINDS = sorted(
    module.name
    for module in pkgutil.iter_modules(tests.cases.__path__)
    if module.name not in {"case", "test_cases"}
)
CASES: list[Case] = [
    case for kind in KINDS for case in importlib.import_module(f"tests.cases.{kind}").CASES
]


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    outcome = play(case)
    assert not outcome.wrong, (outcome.wrong, outcome.text)
