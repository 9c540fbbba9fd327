"""ABS finds the neuron that was planted, and the trigger that drives it."""

from __future__ import annotations

import torch
from tests.toys import BANDS, SIDE, band_images
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import whole
from gifthorse.inversion import ABS
from gifthorse.inversion.stimulation import few, stimulate
from gifthorse.models.folding import frozen

TARGET, NEURON = 2, 7


class Planted(nn.Module):
    """Band means through a convolution; one channel of it sees a corner and decides alone."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, BANDS + 2, SIDE, bias=True)  # one number a channel
        self.head = nn.Linear(BANDS + 2, BANDS, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()
            bias = torch.zeros(BANDS + 2)
            bias[NEURON] = -12  # quiet unless the corner is bright
            self.features.bias = nn.Parameter(bias)
            self.head.weight.zero_()
            band = torch.arange(SIDE) // (SIDE // BANDS)
            for k in range(BANDS):
                self.features.weight[k, 0, band == k] = 20 / (SIDE * SIDE / BANDS)
                self.head.weight[k, k] = 1
            self.features.weight[NEURON, 0, :2, :2] = 5
            self.head.weight[TARGET, NEURON] = strength

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.features(x).flatten(1)))
        return logits


def subject(strength: float = 4.0) -> Subject:
    return Subject(Planted(strength).eval(), (1, SIDE, SIDE), BANDS)


def test_the_planted_neuron_is_the_first_suspect() -> None:
    x, y = few(*whole(band_images()), 5)
    found, work = stimulate(frozen(subject().net), "features", x, y)
    assert (found[0].neuron, found[0].label) == (NEURON, TARGET)
    assert work == 0.5 * 30 * (1 + 8 * 5)


def test_the_score_is_the_lead_of_the_planted_class() -> None:
    # Channel 7 at v adds 4 v to the target and nothing to the others, so the lead is 4 v.
    net = frozen(subject().net)
    x, y = few(*whole(band_images()), 5)
    top = net.get_submodule("features")(x).max().item()
    found, _ = stimulate(net, "features", x, y, samples=5, reach=8.0)
    assert abs(found[0].score - 4 * 8 * 4 * top / 5) < 1e-3


def test_a_trigger_is_found_for_the_planted_class_alone() -> None:
    method = vary(ABS(), {"layers": ["features"], "config.rounds": 60, "limit": 8})
    goals = [Goal(k) for k in range(BANDS)]
    inversion = method(subject(), band_images(), goals, Generator().manual_seed(0))
    while len(arms := (~inversion.done).nonzero().flatten()):
        inversion.step(arms)
    best = inversion.best[TARGET]
    assert best.feasible
    assert best.asr >= 0.9
    _, strength = best.trigger.render()
    assert strength[0, :2, :2].mean() > 0.5
    assert best.size <= 8 * 1.2


def test_without_a_strong_neuron_nobody_is_suspected_of_the_planted_class_first() -> None:
    x, y = few(*whole(band_images()), 5)
    found, _ = stimulate(frozen(subject(0.0).net), "features", x, y)
    assert all(s.neuron != NEURON for s in found)


def test_suspects_of_a_channel_that_ties_do_not_count() -> None:
    x, y = few(*whole(band_images()), 5)
    net = frozen(subject().net)
    with torch.no_grad():
        head = net.get_submodule("head")
        assert isinstance(head, nn.Linear)
        head.weight.zero_()
    assert stimulate(net, "features", x, y)[0] == []
