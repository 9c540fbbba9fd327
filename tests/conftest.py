"""Fixtures of all tests: seeds, signals and precision; the same examples in every run."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from torch import Generator

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

settings.register_profile("repeatable", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("repeatable")

# A shell that runs the tests in the background has them ignore these; programs that the tests start
# would do so, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Rows that take many seconds of two cores; others of their table hold the same in less.
SECONDS = {
    "tests/attacks/test_input_aware.py": ["on_their_own_images_and_hardly_on_others"],
    "tests/bench/test_ray.py": ["of_a_lost_node", "of_its_own_outlives"],
    "tests/contract/test_attacks.py": ["[input_aware]", "[imc_mp]", "[natural]"],
    "tests/contract/test_defenses.py": ["in_any_batches[ensemble]"],
    "tests/contract/test_filters.py": [
        "test_inputs_stay_as_they_were[ensemble]",
        "test_labels_of_suspects_have_no_part_in_it[ensemble]",
        "test_scores_follow_the_order_of_the_suspects[ensemble]",
        "whatever_else_is_random[ensemble]",
    ],
    "tests/remedies/test_hardening.py": ["lies_far_from_them_afterwards"],
    "tests/test_device.py": ["[standin-gangsweep]", "[standin-transferability]", "[standin-umd]"],
    "tests/workflows/test_make.py": ["test_signs_are_drawn_and_divided"],
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these rows as slow."""
    for item in items:
        path, _, name = item.nodeid.partition("::")
        if any(part in name for part in SECONDS.get(path, ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def double() -> Iterator[None]:
    """Make float64 the default type for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Pages in a browser; what uses them says by a fixture `address` which one.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium on this machine")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=[1280, 390])
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """The page, opened; it may not complain, nor ask for anything that is not on the disk."""
    opened = browser.new_page(viewport={"width": request.param, "height": 844})
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith("file://") else wrong.append(r.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert wrong == []
