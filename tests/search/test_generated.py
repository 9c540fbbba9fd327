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


def whole(form: GeneratedChange, bias: Tensor) -> Parts:
    """Return a linear layer on u and z that computes what the folded one does."""
    return bias.flatten()[:, None].expand(-1, form.hidden + 100), bias


def load(net: nn.Sequential, weights: Parts, calm: float = 1.0) -> None:
    """Put the weights of one arm into the reference, all but one bias; calm its last layer."""
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "5.weight", "5.bias"]
    names += ["7.weight", "7.bias"]
    state = net.state_dict()
    for name, weight in zip(names, weights, strict=True):
        state[name] = weight.reshape(state[name].shape) * (calm if name[0] == "7" else 1.0)
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
        bias, *weights = (v[arm] for v in variables)
        calm = form.calm if form.mode == "additive" else 1.0
        load(net, (*whole(form, bias), *weights), calm)
        expected = net(form._read().double()[None])[0]
        assert torch.allclose(g[arm], expected, atol=1e-10)
        (alone,) = form.decode(tuple(v[arm : arm + 1] for v in variables))
        assert torch.allclose(alone[0], g[arm], atol=1e-12)


def test_adam_moves_the_folded_layer_as_it_moves_the_whole(rng: Generator) -> None:
    form = GeneratedChange(hidden=6, width=4, calm=1.0)
    weights = [v.double() for v in form.start(SHAPE, rng)]
    net, read = reference(form).train(), form._read().double()
    columns = torch.randn(form.width * 56, form.hidden + 100, generator=rng).double()
    load(net, (columns, *weights))
    bias = (weights[0].flatten() + columns @ read) / (1 + read.sum())
    folded = [bias.view_as(weights[0]), *weights[1:]]
    ours = [v[None].clone().requires_grad_() for v in folded]
    mine = torch.optim.Adam(ours, lr=0.01)
    theirs = torch.optim.Adam(net.parameters(), lr=0.01)
    wanted = 1e4 * torch.randn(SHAPE, generator=rng).double()  # far above Adam's epsilon

    def both() -> tuple[Tensor, Tensor]:
        return form.decode(tuple(ours))[0][0], net(read[None])[0]

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
    bias, scale1, shift1, conv1, scale2, shift2, conv2, last = form.start(SHAPE, rng)
    net, read = reference(form), form._read()
    for mine, theirs in ((conv1, net[4].weight), (conv2, net[7].weight)):
        assert isinstance(theirs, Tensor)
        assert mine.numel() == theirs.numel()
        assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02)
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
    # What a linear layer of PyTorch makes of the same inputs, spread over cells.
    made = net[0].float()(read[None]).std().item()
    assert (bias * (1 + read.sum())).std().item() == pytest.approx(made, rel=0.2)
    assert last.abs().max() <= 75**-0.5
    u, noise = read[:60], read[60:]
    assert 0.6 < u.max() <= 1.0  # weight and bias of a layer on 4 inputs: 0.5 each
    assert len(noise) == 100
    assert torch.equal(torch.cat([scale1, scale2]), torch.ones(36))
    assert torch.equal(torch.cat([shift1, shift2]), torch.zeros(36))
    again = form.start(SHAPE, Generator().manual_seed(0))
    other = form.start(SHAPE, Generator().manual_seed(1))
    assert torch.equal(again[0], bias)
    assert not torch.equal(other[0], bias)


def test_a_change_begins_near_nothing_and_is_not_saturated_by_the_first_steps(
    rng: Generator,
) -> None:
    moved = {}
    for calm in (0.02, 1.0):
        form = GeneratedChange(calm=calm)
        variables = [v[None].requires_grad_() for v in form.start((3, 16, 16), rng)]
        assert (form.decode(tuple(variables))[0].abs().max() < 0.1) == (calm < 1)
        adam = torch.optim.Adam(variables, lr=0.01)
        for _ in range(3):
            adam.zero_grad()
            form.decode(tuple(variables))[0].sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
        moved[calm] = -form.decode(tuple(variables))[0].mean().item()
    assert moved[1.0] > 0.95  # tanh is flat there
    assert 0.02 < moved[0.02] < 0.5


@forms
def test_gradients_reach_every_variable(form: Parametrization, rng: Generator) -> None:
    variables = [v.requires_grad_() for v in start(form, rng)]
    x = torch.rand(ARMS, 2, *SHAPE, generator=rng)
    weight = torch.randn(x.shape, generator=rng)
    loss = (form.stamp(form.decode(tuple(variables)), x) * weight).sum()
    for v, gradient in zip(variables, torch.autograd.grad(loss, variables), strict=True):
        assert (gradient.flatten(1).abs().amax(1) > 1e-6).all(), v.shape


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
