"""Saliency features against numpy on a net whose gradients are known, and the test on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from tests.toys import blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject, Verdict
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.detection.neuron_inspect import NeuronInspect, laplacian, saliency

TARGET, CLASSES, SIDE = 3, 8, 10
KERNEL = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])


class Squares(nn.Module):
    """Logit k is `sum(w_k * x^2) / 2`, so that its gradient is `w_k * x`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x.square()[:, None] * self.weight).flatten(2).sum(2) / 2


def squares(sparse: bool) -> Subject:
    """Classes that look everywhere; with `sparse`, the target looks at one pixel."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.rand(CLASSES, 2, SIDE, SIDE, generator=rng) + 0.5
    if sparse:
        weight[TARGET] = 0
        weight[TARGET, :, 4, 5] = 5.0
    return Subject(Squares(weight).eval(), (2, SIDE, SIDE), CLASSES)


def images(count: int = 11) -> InMemory:
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(1, 256, (count, 2, SIDE, SIDE), generator=rng).to(torch.uint8)
    return InMemory(x, torch.arange(count) % CLASSES, CLASSES)


def maps_by_hand(subject: Subject, x: Tensor) -> np.ndarray[Any, Any]:
    weight = next(subject.net.parameters()).detach().double().numpy()
    raw = np.abs(weight[None] * x.double().numpy()[:, None]).max(2)  # (N, K, H, W)
    low, high = raw.min((2, 3), keepdims=True), raw.max((2, 3), keepdims=True)
    scaled: np.ndarray[Any, Any] = (raw - low) / (high - low)
    return scaled


def judge(subject: Subject, **options: Any) -> Verdict:
    return NeuronInspect(**options)(subject, images(), Generator().manual_seed(0), Run())


def test_maps_and_features_are_those_made_by_hand(rng: Generator) -> None:
    subject, (x, _) = squares(True), whole(images())
    maps = maps_by_hand(subject, x)
    assert np.allclose(saliency(subject.net, x).numpy(), maps, atol=1e-5)
    edges = [[np.abs(convolve2d(m, KERNEL, "valid")).sum() for m in row] for row in maps]  # (N, K)
    active = maps > 0.3
    majority = active.mean(0) > 0.5
    want = np.stack(
        [
            np.median(maps.sum((2, 3)), 0),
            np.median(edges, 0),
            (active ^ majority).mean((0, 2, 3)),
        ]
    )
    method = NeuronInspect(mode="normalized", cut=0.3, max_batch=4)
    got, stopped = method.features(subject, images(), rng, Run())
    assert np.allclose(got.numpy(), want, atol=1e-4)
    assert stopped == ""


def test_the_target_of_a_hand_set_net_has_a_sparse_smooth_and_persistent_map(
    rng: Generator,
) -> None:
    features, _ = NeuronInspect(mode="normalized").features(squares(True), images(), rng, Run())
    assert features[:, TARGET].tolist() == pytest.approx([1.0, 8.0, 0.0])  # one pixel, 4 + 4 * 1
    assert features.argmin(1).tolist() == [TARGET] * 3


@pytest.mark.parametrize("mode", ["normalized", "zoo"])
def test_the_sparse_class_is_suspicious_and_no_more(mode: str) -> None:
    got = judge(squares(True), mode=mode)
    assert got.label == "SUSPICIOUS"
    assert got.score >= got.threshold == 2
    (found,) = got.findings
    assert (found.rule, found.severity, found.goal) == ("BD010", "MEDIUM", Goal(TARGET))
    assert f"class {TARGET}" in found.message
    assert found.evidence["sparse"] == pytest.approx(1.0)
    assert min(range(CLASSES), key=lambda k: got.statistics[f"value_{k}"]) == TARGET
    assert got.arms == ()
    assert got.image_steps == 11 * (1 + CLASSES) / 2


def test_classes_that_look_everywhere_are_not_suspicious() -> None:
    got = judge(squares(False), mode="normalized")
    assert got.label == "NO BACKDOOR FOUND"
    assert 0 <= got.score < got.threshold
    assert [f.severity for f in got.findings] == ["INFO"]


@pytest.mark.parametrize("mode", ["normalized", "zoo"])
def test_the_order_of_the_images_does_not_matter(mode: Any, rng: Generator) -> None:
    order = torch.randperm(11, generator=rng)
    method = NeuronInspect(mode=mode, max_batch=4)
    straight = method(squares(True), images(), Generator().manual_seed(0), Run())
    mixed = method(squares(True), Subset(images(), order), Generator().manual_seed(7), Run())
    assert dict(mixed.statistics) == pytest.approx(dict(straight.statistics), rel=1e-4, abs=1e-6)
    assert mixed.score == pytest.approx(straight.score, rel=1e-4)


def test_how_many_images_run_at_once_does_not_matter(rng: Generator) -> None:
    a, b = (
        NeuronInspect(max_batch=c).features(squares(True), images(), rng, Run())[0] for c in (1, 64)
    )
    assert torch.allclose(a, b, atol=1e-5)


def test_the_scale_of_a_feature_over_all_classes_does_not_matter() -> None:
    features = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) + 1
    scale = torch.tensor([[1e-4], [1.0], [1e5]])
    method = NeuronInspect(mode="normalized")
    assert torch.allclose(method.scores(features * scale), method.scores(features), atol=1e-4)
    shifted = torch.tensor([[0.0], [0.0], [-1.5]])
    scores = method.scores(features + shifted)  # values of both signs are in order
    assert scores.isfinite().all()
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)


def test_only_low_scores_are_suspicious() -> None:
    method = NeuronInspect(mode="normalized")
    even = torch.linspace(0.95, 1.05, 9).repeat(3, 1)
    high, low = even.clone(), even.clone()
    high[:, 4], low[:, 4] = 3.0, 0.2
    assert method._judge(high, "")[0] < 2
    assert method._judge(low, "")[0] > 2
    assert method._judge(low, "")[1].goal == Goal(4)


def test_near_equal_features_do_not_stand_out() -> None:
    features = torch.ones(3, 6)
    features[:, 2] -= 1e-5
    assert NeuronInspect(mode="normalized")._judge(features, "")[1].severity == "INFO"


def test_zoo_persistence_is_the_parity_of_the_active_pixels(rng: Generator) -> None:
    subject, (x, _) = squares(False), whole(images())
    active = saliency(subject.net, x) > 0.4
    chain = active[0]
    for row in active[1:]:
        chain = chain ^ row
    got, _ = NeuronInspect(mode="zoo", cut=0.4).features(subject, images(), rng, Run())
    assert got[2].tolist() == chain.sum((1, 2)).tolist()
    assert torch.allclose(
        NeuronInspect(mode="zoo").scores(got), 1e-5 * got[0] + 1e-5 * got[1] + got[2]
    )


def test_a_map_without_contrast_is_not_sparse() -> None:
    weight = torch.rand(CLASSES, 1, 4, 4)
    weight[0] = 0
    weight[1] = 2.0
    last = nn.Linear(16, CLASSES)
    with torch.no_grad():
        last.weight.copy_(weight.flatten(1))
    net = nn.Sequential(nn.Flatten(), last)
    maps = saliency(net, torch.rand(3, 1, 4, 4))
    assert (maps[:, :2] == 1).all()
    assert (maps[:, 2:].amin((2, 3)) == 0).all()
    assert (maps.amax((2, 3)) == 1).all()


def test_all_classes_share_one_forward_pass() -> None:
    calls = []
    net = squares(True).net
    net.register_forward_hook(lambda *_: calls.append(1))
    saliency(net, whole(images())[0])
    assert len(calls) == 1


def test_the_laplacian_of_a_plane_is_zero() -> None:
    plane = (torch.arange(6.0)[:, None] * 2 + torch.arange(5.0)).expand(2, 3, 6, 5)
    assert laplacian(plane).shape == (2, 3, 4, 3)
    assert laplacian(plane).abs().max() == 0
    assert laplacian(plane.square()).mean().item() == pytest.approx(2 * (4 + 1))


def test_a_spent_budget_leaves_no_verdict() -> None:
    run = Run(budget=20)
    got = NeuronInspect(max_batch=4)(squares(True), images(), Generator().manual_seed(0), run)
    assert (got.label, got.findings[0].rule) == ("INCONCLUSIVE", "IN003")
    assert got.image_steps == run.image_steps == 2 * 4 * (1 + CLASSES) / 2
    enough = Run(budget=int(11 * (1 + CLASSES) / 2))
    whole_run = NeuronInspect(max_batch=11)
    got = whole_run(squares(True), images(), Generator().manual_seed(0), run=enough)
    assert got.label == "SUSPICIOUS"


def test_too_few_images_or_classes_allow_no_verdict(rng: Generator) -> None:
    got = NeuronInspect()(squares(True), images(1), rng, Run())
    assert (got.label, got.findings[0].rule) == ("INCONCLUSIVE", "IN002")
    two = Subject(squares(True).net, (2, SIDE, SIDE), 2)
    assert NeuronInspect()(two, images(), rng, Run()).label == "INCONCLUSIVE"


def test_at_most_so_many_images_are_looked_at(rng: Generator) -> None:
    assert NeuronInspect(images=5)(squares(True), images(), rng, Run()).image_steps == 5 * 4.5


def test_net_and_images_stay_as_they_were() -> None:
    subject, clean = blobs(), blob_images(each=2)
    before = {k: v.clone() for k, v in subject.net.state_dict().items()}
    pixels, state = clean.images.clone(), torch.get_rng_state()
    a, b = (
        NeuronInspect()(subject, clean, Generator().manual_seed(0), Run()).statistics
        for _ in range(2)
    )
    assert a == b
    assert torch.equal(clean.images, pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in subject.net.parameters())
