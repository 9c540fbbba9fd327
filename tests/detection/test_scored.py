"""One rule for what is confirmed, whichever detector asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from tests.detection.test_gangsweep import Given as Scored
from tests.detection.test_inspector import Given as Inverted
from tests.toys import BANDS, SIDE, band_images, bands, brightness
from torch import Generator, Tensor

from gifthorse.core.metrics import rate as share
from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Confirmation, Goal, Images, Rate, Samples, Subject
from gifthorse.data.samples import InMemory
from gifthorse.detection import Inspector, dltnd, gangsweep
from gifthorse.detection.confirmation import Proof
from gifthorse.detection.dltnd import DLTND
from gifthorse.detection.gangsweep import GangSweep
from gifthorse.detection.k_arm import KArmScan
from gifthorse.detection.scored import verdict
from gifthorse.detection.verdict import Scores

TABLE = [  # hits of the trigger, of its control, and whether that is a proof
    ((60, 100), (0, 800), True),
    ((59, 100), (0, 800), False),  # too seldom
    ((100, 100), (560, 800), True),
    ((100, 100), (568, 800), False),  # too close to the control
    ((3, 5), (0, 40), True),  # low 0.23 above high 0.09
    ((3, 5), (8, 40), False),  # low 0.23 below high 0.35, though 0.6 - 0.2 is margin enough
    ((6, 10), (12, 40), False),
    ((5, 5), (24, 40), False),  # low 0.57 below high 0.74
    ((0, 0), (0, 0), False),
]


def rate(hits: int, trials: int) -> Rate:
    return share(torch.arange(trials) < hits)


@pytest.mark.parametrize(("hits", "control", "holds"), TABLE)
def test_a_proof_asks_for_success_margin_and_intervals_apart(
    hits: tuple[int, int], control: tuple[int, int], holds: bool
) -> None:
    seen = Confirmation(rate(*hits), rate(*control), rate(0, 10))
    assert Proof().holds(seen) is holds
    assert Proof(success=0.0, margin=0.0).holds(seen) is (seen.asr.low > seen.control.high)


class Few:
    """Lights the corner of images whose class is among some; shuffled, of fewer."""

    def __init__(self, shown: Sequence[int], anyhow: Sequence[int]) -> None:
        self.shown, self.anyhow = shown, anyhow

    def __call__(self, x: Images, /) -> Images:
        lit = torch.isin(brightness(x).argmax(1), torch.tensor(self.shown))
        out = x.clone()
        out[lit, :, 0, 0] = 1.0
        return out

    def shuffled(self, rng: Generator, /) -> Few:
        return Few(self.anyhow, self.anyhow)

    def render(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, SIDE, SIDE), torch.zeros(1, SIDE, SIDE)


TARGET = 2
WORKS = Few((0, 1, 3), ())  # 3 of 5 unseen images, and never when shuffled
HARDLY = Few((0, 1, 3), (0,))  # the same, but 1 of 5 when shuffled: intervals overlap
SIZES = (30.0, 31.0, 1.0, 30.5, 29.5, 30.0)


@dataclass(frozen=True)
class Found(Scored):
    """A scorer that finds one trigger for every class."""

    trigger: Few = WORKS

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, run: Run
    ) -> Scores:
        best = tuple(Candidate(Goal(k), self.trigger, 1.0, 1.0, 1) for k in range(BANDS))
        return Scores(best, torch.tensor(self.scores))


def images() -> InMemory:
    """Two of each class: one is searched, the other stays unseen."""
    return band_images(each=2)


def label(kind: str, trigger: Few, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What a detector makes of a trigger that stands out clearly for one class."""
    rng, net = Generator().manual_seed(0), bands(TARGET)
    found = Found((0.0, 0.0, 9.0, 0.0, 0.0, 0.0), (), trigger=trigger)
    if kind in ("gangsweep", "dltnd"):
        module = {"gangsweep": gangsweep, "dltnd": dltnd}[kind]
        monkeypatch.setattr(module, "verdict", lambda method, *a: verdict(found, *a))
        method = GangSweep() if kind == "gangsweep" else DLTND()
        got = method(net, images(), rng, Run())
    elif kind == "inspector":
        got = Inspector(Inverted(SIZES, (trigger,) * BANDS))(net, images(), rng, Run())
    else:
        inverter = Inverted(SIZES, (trigger,) * BANDS)
        got = KArmScan(inverter, inverter, screening=False)(net, images(), rng, Run())
    (seen,) = [f.confirmation for f in got.findings if f.confirmation is not None][:1]
    assert seen is not None
    assert seen.asr == rate(3, 5)
    assert (seen.asr.low > seen.control.high) is (trigger is WORKS)
    assert got.findings[0].goal == Goal(TARGET)
    return got.label, got.findings[0].severity


@pytest.mark.parametrize("kind", ["inspector", "k_arm", "gangsweep", "dltnd"])
def test_all_detectors_ask_for_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert label(kind, WORKS, monkeypatch) == ("BACKDOORED", "CRITICAL")
    assert label(kind, HARDLY, monkeypatch) == ("SUSPICIOUS", "MEDIUM")
