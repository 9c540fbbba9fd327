"""The generator as a form of trigger: against a plain PyTorch net with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption
from gifthorse.search.parametrizations.generated import GeneratedChange
from gifthorse.search.parametrizations.masks import Parametrization, Parts
from gifthorse.triggers import Additive, Patch

ARMS, SHAPE = 3, (3, 8, 7)
SMALL = GeneratedChange(hidden=6, width=4)
ZOO = GeneratedChange("zoo", hidden=6, width=4)
FORMS: list[Parametrization] = [SMALL, ZOO]
forms = pytest.mark.parametrize("form", FORMS, ids=["additive", "zoo"])


def start(form: Parametrization, rng: Generator, dtype: torch.dtype = torch.float32) -> Parts:
    rows = [form.start(SHAPE, rng) for _ in range(ARMS)]
    return tuple(torch.stack(v).to(dtype) for v in zip(*rows, strict=True))


def reference(form: GeneratedChange) -> nn.Sequential:
    c, h, w = SHAPE
    return nn.Sequential(
        nn.Linear(form.hidden + 100, form.width * h * w),
        nn.Unflatten(1, (form.width, h, w)),
        nn.BatchNorm2d(form.width),
        nn.ReLU(),
        nn.ConvTranspose2d(form.width, 32, 5, padding=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, c, 5, padding=2),
        nn.Tanh() if form.mode == "additive" else nn.Sigmoid(),
    ).double()


def z() -> Tensor:
    return torch.rand(100, generator=Generator().manual_seed(0)).double()


def unfold(linear: Tensor, bias: Tensor) -> Parts:
    """Return a linear layer on u and z that computes what the folded one does."""
    columns = bias.flatten()[:, None].expand(-1, 100)
    return torch.cat([linear.t(), columns], 1), bias


def load(net: nn.Sequential, weights: Parts) -> None:
    """Put the weights of one arm, without u, into the reference, all but one bias."""
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "5.weight", "5.bias"]
    names += ["7.weight", "7.bias"]
    state = net.state_dict()
    for name, weight in zip(names, weights, strict=True):
        state[name] = weight.reshape(state[name].shape)
    net.load_state_dict(state)


@pytest.mark.parametrize("form", [SMALL, ZOO], ids=["additive", "zoo"])
def test_each_arm_decodes_like_a_plain_net(form: GeneratedChange, rng: Generator) -> None:
    # Affine weights away from 1 and 0, or a missing one would go unseen.
    variables = tuple(
        v + 0.3 * torch.rand(v.shape, generator=rng) for v in start(form, rng, torch.float64)
    )
    (g,) = form.decode(variables)
    net = reference(form).train()
    for arm in range(ARMS):
        u, linear, bias, *weights = (v[arm] for v in variables)
        load(net, (*unfold(linear, bias), *weights))
        expected = net(torch.cat([u.relu(), z()])[None])[0]
        assert torch.allclose(g[arm], expected, atol=1e-10)
        (alone,) = form.decode(tuple(v[arm : arm + 1] for v in variables))
        assert torch.allclose(alone[0], g[arm], atol=1e-12)


def test_adam_moves_the_folded_layer_as_it_moves_the_whole(rng: Generator) -> None:
    u, *weights = (v.double() for v in SMALL.start(SHAPE, rng))
    net = reference(SMALL).train()
    columns = torch.randn(SMALL.width * 56, SMALL.hidden + 100, generator=rng).double()
    load(net, (columns, *weights[1:]))
    bias = (weights[1].flatten() + columns[:, SMALL.hidden :] @ z()) / (1 + z().sum())
    folded = [u, columns[:, : SMALL.hidden].t(), bias.view_as(weights[1]), *weights[2:]]
    ours = [v[None].clone().requires_grad_() for v in folded]
    given = u.clone().requires_grad_()
    mine = torch.optim.Adam(ours, lr=0.01)
    theirs = torch.optim.Adam([given, *net.parameters()], lr=0.01)
    wanted = 1e4 * torch.randn(SHAPE, generator=rng).double()  # far above Adam's epsilon

    def both() -> tuple[Tensor, Tensor]:
        return SMALL.decode(tuple(ours))[0][0], net(torch.cat([given.relu(), z()])[None])[0]

    start = both()[0].detach()
    for _ in range(30):
        mine.zero_grad()
        theirs.zero_grad()
        for g in both():
            (g * wanted).sum().backward()  # type: ignore[no-untyped-call]
        mine.step()
        theirs.step()
    one, other = both()
    assert torch.allclose(one, other, atol=1e-5)
    assert (one - start).abs().max() > 0.5


def test_weights_start_in_the_ranges_of_pytorch(rng: Generator) -> None:
    form = GeneratedChange(hidden=60, width=4, classes=4)
    u, linear, bias, scale1, shift1, conv1, scale2, shift2, conv2, last = form.start(SHAPE, rng)
    net = reference(form)
    whole = net.get_parameter("0.weight")[:, :60]
    pairs = [(linear, whole), (conv1, net[4].weight), (conv2, net[7].weight)]
    for mine, theirs in pairs:
        assert isinstance(theirs, Tensor)
        assert mine.numel() == theirs.numel()
        assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02)
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
    # The folded bias: the sum of 101 uniform numbers on 160 inputs, weighted by z and 1.
    spread = ((z().square().sum() + 1) / (3 * 160)).sqrt() / (1 + z().sum())
    assert bias.std().item() == pytest.approx(spread.item(), rel=0.1)
    assert last.abs().max() <= 75**-0.5
    assert 0.6 < u.abs().max() <= 1.0  # weight and bias of a layer on 4 inputs: 0.5 each
    assert torch.equal(torch.cat([scale1, scale2]), torch.ones(36))
    assert torch.equal(torch.cat([shift1, shift2]), torch.zeros(36))
    again = form.start(SHAPE, Generator().manual_seed(0))
    other = form.start(SHAPE, Generator().manual_seed(1))
    assert torch.equal(again[1], linear)
    assert not torch.equal(other[1], linear)


@forms
def test_gradients_reach_every_variable(form: Parametrization, rng: Generator) -> None:
    variables = [v.requires_grad_() for v in start(form, rng)]
    x = torch.rand(ARMS, 2, *SHAPE, generator=rng)
    weight = torch.randn(x.shape, generator=rng)
    loss = (form.stamp(form.decode(tuple(variables)), x) * weight).sum()
    for v, gradient in zip(variables, torch.autograd.grad(loss, variables), strict=True):
        assert (gradient.flatten(1).abs().amax(1) > 1e-6).all(), v.shape
    (u, *_), (first, *_) = (
        variables,
        torch.autograd.grad(
            form.penalty(tuple(variables), form.decode(tuple(variables))).sum(), variables
        ),
    )
    assert torch.equal(first != 0, u > 0)  # relu


def test_gradients_agree_with_finite_differences(rng: Generator) -> None:
    form = GeneratedChange(hidden=2, width=1)
    leaves = [v[None].double().requires_grad_() for v in form.start((1, 3, 3), rng)]

    def value(*now: Tensor) -> Tensor:
        parts = form.decode(now)
        return form.penalty(now, parts)

    assert value(*leaves).item() > 0
    assert torch.autograd.gradcheck(value, leaves, fast_mode=True)


@forms
def test_each_arm_stamps_like_its_frozen_trigger(form: Parametrization, rng: Generator) -> None:
    parts = form.decode(start(form, rng))
    x = torch.rand(ARMS, 2, *SHAPE, generator=rng)
    stamped = form.stamp(parts, x)
    kind = Additive if form is SMALL else Patch
    for arm in range(ARMS):
        trigger = form.to_trigger(tuple(p[arm] for p in parts))
        assert isinstance(trigger, kind)
        assert torch.allclose(stamped[arm], trigger(x[arm]), atol=1e-6)


def test_what_is_added_is_clipped_and_what_replaces_hides_the_image() -> None:
    g = torch.tensor([0.5, -0.5, 0.1]).view(1, 1, 1, 3)
    x = torch.tensor([0.7, 0.2, 0.1]).view(1, 1, 1, 1, 3)
    assert torch.allclose(SMALL.stamp((g,), x).flatten(), torch.tensor([1.0, 0.0, 0.2]))
    assert torch.equal(ZOO.stamp((g,), x).flatten(), g.flatten())


def test_size_and_penalty_by_hand() -> None:
    g = torch.zeros(2, 3, 10, 10)
    g[0, :, 0, 0] = torch.tensor([0.1, -0.5, 0.2])  # below the allowance of one pixel
    g[1, :, 0, :4] = torch.tensor([0.1, -0.5, 0.2])[:, None]
    for form in (SMALL, ZOO):
        assert form.size((g,)).tolist() == pytest.approx([0.5, 2.0])
        assert form.soft_size((g,)).tolist() == pytest.approx([0.5, 2.0])
    assert SMALL.penalty((), (g,)).tolist() == pytest.approx([0.0, 1.0])
    assert ZOO.penalty((), (g,)).tolist() == pytest.approx([0.8, 3.2])  # all channels


@forms
def test_a_confined_change_stays_within_its_support(form: Parametrization, rng: Generator) -> None:
    parts = form.decode(start(form, rng))
    live = torch.rand(ARMS, 1, *SHAPE[1:], generator=rng) > 0.5
    (confined,) = form.restrict(parts, live)
    keep = live.expand_as(confined)
    assert torch.equal(confined[keep], parts[0][keep])
    assert confined[~keep].count_nonzero() == 0


@forms
def test_a_generator_goes_on_as_it_is_and_takes_no_patch(
    form: Parametrization, rng: Generator
) -> None:
    variables = start(form, rng)
    parts = form.decode(variables)
    assert form.postprocess(parts) is parts
    assert form.project(variables) is variables
    assert form.restart(parts, variables, rng) is variables
    with pytest.raises(BadOption, match="set probe to null"):
        form.init_from(variables, parts[0], parts[0] > 0)
