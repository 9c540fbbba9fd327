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

# Rows that take seconds of a core; others of their table hold the same in less.
SECONDS = {
    "tests/analysis/test_distance.py": ["that_is_stopped_goes_on"],
    "tests/attacks/test_input_aware.py": ["on_their_own_images_and_hardly_on_others", "at_rest"],
    "tests/bench/test_ray.py": ["of_a_lost_node", "of_its_own_outlives", "nothing_answers"],
    "tests/bench/test_sources.py": [
        "[workflows.evaluate]",
        "[data.packed]",
        "[core.tensors]",
        "[detection.inspector]",
        "[inversion.pixel]",
    ],
    "tests/contract/test_attacks.py": [
        "[input_aware]",
        "[natural]",
        "[imc_abs]",
        "[imc_mp]",
        "test_it_implants[abe]",
        "test_it_implants[imc_ar]",
        "test_it_implants[label_consistent]",
        "test_it_implants[refool]",
        "test_it_implants[wanet]",
        "whatever_else_is_random[refool]",
        "whatever_else_is_random[reflection]",
    ],
    "tests/contract/test_defenses.py": ["in_any_batches[ensemble]"],
    "tests/contract/test_detectors.py": [
        "-bands-2]",  # the same toys, planted for another class
        "-tiles-2]",
        "[deep_inspect-",
        "[gangsweep-",
        "[budget-deep_inspect]",
        "[budget-dltnd]",
        "[budget-gangsweep]",
        "whatever_else_is_random[gangsweep]",
    ],
    "tests/contract/test_filters.py": ["[ensemble]"],
    "tests/contract/test_inverters.py": [
        "alone_or_together_end_alike[cw_l0]",
        "alone_or_together_end_alike[deep_inspect]",
        "alone_or_together_end_alike[deepfool]",
        "needs_only_that_class[deep_inspect]",
        "of_the_closed_form[deep_inspect]",
    ],
    "tests/contract/test_remedies.py": [
        "success_of_a_patch[adversarial_retraining]",
        "[anp]",
        "[hardening_nc_iterative]",
        "[hardening_pixel]",
        "[hardening_uap]",
        "inputs_stay_as_they_were[adversarial_retraining]",
        "whatever_else_is_random[unlearning]",
    ],
    "tests/detection/test_gangsweep.py": ["[4]", "without_a_linear_layer"],
    "tests/remedies/test_hardening.py": ["lies_far_from_them_afterwards"],
    "tests/search/test_loop.py": ["than_an_early_one[form1]"],
    "tests/search/test_run.py": ["[20 goals-USB]"],
    "tests/test_device.py": [
        "[standin-abs]",
        "[standin-deep_inspect]",
        "[standin-ensemble]",
        "[standin-gangsweep]",
        "[standin-natural]",
        "[standin-transferability]",
        "[standin-umd]",
        "[standin-unlearning]",
    ],
    "tests/workflows/test_analyze.py": ["the_gift_beside_its_twin"],
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
