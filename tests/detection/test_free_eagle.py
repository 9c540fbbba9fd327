"""FreeEagle on a net whose halves are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.toys import band_images
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject
from gifthorse.detection.free_eagle import FreeEagle, outlier
from gifthorse.models.cutting import halfway

K, TARGET = 6, 4


def net(pull: float = 0.0, source: int | None = None) -> Subject:
    """Class k is unit k of the middle; the target also reads the others', or that of a source."""
    first, second = nn.Linear(K, K), nn.Linear(K, K)
    weight = 3 * torch.eye(K)
    weight[TARGET, range(K) if source is None else [source]] += pull
    with torch.no_grad():
        for layer, value in ((first, torch.eye(K)), (second, weight)):
            layer.weight.copy_(value)
            layer.bias.zero_()
    inner = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    return Subject(inner.eval(), (1, 2, 3), K)


def seen(subject: Subject, max_batch: int = 100) -> Tensor:
    found, stopped = FreeEagle(steps=60, lr=0.2, max_batch=max_batch).table(
        halfway(subject.net, subject.shape), K, Generator().manual_seed(0), Run()
    )
    assert not stopped
    return found


def test_the_table_is_what_adam_finds_for_each_class_alone() -> None:
    subject = net(1.0)
    together = seen(subject)
    assert together.diagonal().tolist() == [0] * K
    for batch in (1, 4):
        assert torch.allclose(seen(subject, batch), together, atol=1e-5)
    second = subject.net.get_submodule("3")
    start = torch.rand(K, K, generator=Generator().manual_seed(0))[2].clone().requires_grad_()
    adam = torch.optim.Adam([start], 0.2, weight_decay=0.005)
    for _ in range(60):
        adam.zero_grad()
        loss = nn.functional.cross_entropy(second(start), torch.tensor(2))
        (start.grad,) = torch.autograd.grad(loss, start)
        adam.step()
        start.data.clamp_(min=0)
    expected = second(start).softmax(0).detach()
    expected[2] = 0
    assert torch.allclose(together[2], expected, atol=1e-5)


def test_a_target_that_reads_what_stands_for_the_others_stands_out() -> None:
    images = band_images()
    verdicts = [
        FreeEagle(steps=60, lr=0.2)(net(pull), images, Generator().manual_seed(0), Run())
        for pull in (0.0, 2.0)
    ]
    assert [v.label for v in verdicts] == ["NO BACKDOOR FOUND", "SUSPICIOUS"]
    assert verdicts[1].findings[0].goal == Goal(TARGET)
    assert verdicts[1].score > 5 > verdicts[1].threshold > verdicts[0].score


def test_a_pair_of_classes_is_a_cell() -> None:
    said = FreeEagle(steps=60, lr=0.2)(
        net(2.5, source=1), band_images(), Generator().manual_seed(0), Run()
    )
    assert (said.statistics["pair_source"], said.statistics["pair_target"]) == (1, TARGET)
    assert said.statistics["pair_share"] > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_outlier_is_that_of_a_box_plot(seed: int) -> None:
    values = np.random.default_rng(seed).gamma(2, size=12)
    low, high = np.quantile(values, [0.25, 0.75])
    expected = (values.max() - high) / (high - low)
    assert outlier(torch.from_numpy(values), 0.0) == pytest.approx(expected)
    assert outlier(torch.full((5,), 0.3), 0.1) == 0


def test_nets_that_cannot_be_judged_say_so() -> None:
    one = Subject(nn.Sequential(nn.Flatten(), nn.Linear(6, K)), (1, 2, 3), K)
    few = Subject(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), (1, 2, 3), 3)
    for subject, words in ((one, "cannot be cut in two"), (few, "3 classes")):
        said = FreeEagle()(subject, band_images(), Generator().manual_seed(0), Run())
        assert said.label == "INCONCLUSIVE"
        assert words in said.findings[0].message


def test_a_limit_leaves_no_verdict() -> None:
    said = FreeEagle(max_batch=2)(net(), band_images(), Generator().manual_seed(0), Run(budget=50))
    assert [f.rule for f in said.findings] == ["IN003"]
