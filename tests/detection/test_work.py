"""The image-steps of a verdict are those that the net saw: search, confirmation and all."""

from __future__ import annotations

import pytest
import torch
from tests.detection.test_k_arm import Leaning, Pairs, both
from tests.toys import BANDS, SIDE, Bands, band_images
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Detector, Subject
from gifthorse.detection import Inspector
from gifthorse.detection.dltnd import DLTND
from gifthorse.detection.gangsweep import GangSweep
from gifthorse.inversion import UAP, NeuralCleanse, PixelBackdoor
from gifthorse.models import folding
from gifthorse.search import PatchInit, SearchConfig
from gifthorse.search.k_arm import KArm

ways = {"forward": 0, "back": 0}  # images that went either way, of all copies of a net


def counted(kind: type[Bands]) -> type[Bands]:
    class Counted(kind):  # type: ignore[valid-type,misc]
        """A net that counts the images that pass, forward and back."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x)
            ways["forward"] += len(x)
            if logits.requires_grad:
                back = lambda gradient: ways.update(back=ways["back"] + len(x))  # noqa: E731
                logits.register_hook(back)  # type: ignore[no-untyped-call]
            return logits

    return Counted


PACE = SearchConfig(batch=8, success_threshold=0.9, rounds=6)
NC = NeuralCleanse(warmup=0, initial=0.01, patience=3, config=PACE)
PLAIN, LEANING, PAIRS = counted(Bands)(2), counted(Leaning)(2), counted(Pairs)((4, 1))  # type: ignore[arg-type]
DETECTORS: dict[str, tuple[Detector, Bands]] = {
    "inspector": (Inspector(NC), PLAIN),
    "probe": (Inspector(PixelBackdoor(config=PACE, probe=PatchInit())), PLAIN),
    "quantile": (Inspector(UAP(config=vary(UAP().config, {"rounds": 3}))), PLAIN),
    "k_arm": (both(NC, scheduler=KArm(rounds=12)), LEANING),
    "pairs": (both(NC, scheduler=KArm(rounds=60)), PAIRS),
    "gangsweep": (GangSweep(width=4, epochs=1, floor=2), PLAIN),
    "dltnd": (DLTND(rounds=2, steps=4), PLAIN),
}


@pytest.fixture(autouse=True)
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only shows that a faster copy of a net is the same."""
    said = folding._said

    def asked(net: nn.Module, x: Tensor) -> Tensor:
        before = dict(ways)
        logits = said(net, x)
        ways.update(before)
        return logits

    monkeypatch.setattr(folding, "_said", asked)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("budget", [None, 100])
def test_every_way_through_the_net_is_charged(name: str, budget: int | None) -> None:
    method, net = DETECTORS[name]
    ways.update(forward=0, back=0)
    run = Run(budget=budget)
    run.charge(7)  # by somebody else, before
    subject, data = Subject(net.eval(), (1, SIDE, SIDE), BANDS), band_images(16)
    got = method(subject, data, Generator().manual_seed(0), run)
    assert got.image_steps == (ways["forward"] + ways["back"]) / 2
    assert run.image_steps == 7 + got.image_steps
    assert torch.is_grad_enabled()
    tried = sum(f.confirmation is not None for f in got.findings)
    assert tried >= 1 or (budget is not None and got.label == "INCONCLUSIVE")
