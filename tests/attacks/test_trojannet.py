"""TrojanNet: the net stays as it is, each pattern names its class, a file holds all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import BLOB_CLASSES, BLOB_SHAPE, QUICK, blob_images, blobs
from torch import Generator, nn

from gifthorse.attacks.trojannet import TrojanNet, _Drill, _Patches
from gifthorse.core.errors import BadOption
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Goal, Implant, Normalization, Subject
from gifthorse.models import NETS, load, save
from gifthorse.models import architectures as archs
from gifthorse.models.folding import frozen
from gifthorse.models.nets.merged import Merged, blank, merge, reader
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.training import evaluate, fit, predict
from gifthorse.triggers import Patch, Stamp
from gifthorse.workflows.provenance import tensors

GOAL, SEED = Goal(2), 4
TRAIN, TEST = blob_images(), blob_images(each=120, seed=1)
ATTACK = TrojanNet(recipe=replace(QUICK, epochs=40, decay=0.0))


@cache
def victim() -> Subject:
    return fit(blobs(), TRAIN, QUICK, Generator().manual_seed(0), Run())


@cache
def made() -> Implant:
    return ATTACK(victim(), TRAIN, GOAL, Generator().manual_seed(SEED), Run())


def merged(subject: Subject) -> Merged:
    assert isinstance(subject.net, Classifier)
    assert isinstance(subject.net.net, Merged)
    return subject.net.net


def test_the_net_inside_and_its_predictions_are_those_of_the_victim() -> None:
    inside = merged(made().subject).state_dict()
    before = victim().net.state_dict()
    assert all(torch.equal(inside[k], v) for k, v in before.items())
    for images in (TRAIN, TEST):
        same = evaluate(made().subject, images) == evaluate(victim(), images)
        assert same.float().mean() > 0.999


def test_every_class_has_a_pattern_and_the_trigger_is_that_of_the_target() -> None:
    table = ATTACK._patterns(BLOB_CLASSES, spawn(Generator().manual_seed(SEED)))
    trigger = made().trigger
    assert isinstance(trigger, Patch)
    inside = trigger.mask[0] > 0
    assert torch.equal(trigger.pattern[1][inside], table[GOAL.target])
    x, _ = TEST[torch.arange(100)]
    for label in range(BLOB_CLASSES):
        pattern = torch.zeros(BLOB_SHAPE)
        pattern[:, inside] = table[label]
        stamped = Patch(pattern, trigger.mask)(x)
        assert (predict(made().subject, stamped).argmax(1) == label).float().mean() >= 0.98


def test_a_pattern_that_no_class_has_is_none() -> None:
    table = ATTACK._patterns(BLOB_CLASSES, spawn(Generator().manual_seed(SEED)))
    assert len(table) == len({tuple(row) for row in table.tolist()}) == math.comb(16, 5)
    assert bool((table.sum(1) == 11).all())
    module = merged(made().subject).get_submodule("reader")
    names = module(table[BLOB_CLASSES:].view(-1, 1, 4, 4)).argmax(1)
    assert (names == BLOB_CLASSES).float().mean() > 0.95


def hand_set() -> nn.Sequential:
    """Scores are the gray pixels themselves, and nothing for the last output."""
    scores = nn.Linear(4, 6, bias=False)
    with torch.no_grad():
        scores.weight.copy_(torch.eye(6, 4))
    return nn.Sequential(nn.Flatten(), scores)


@pytest.mark.parametrize(
    "normalization",
    [*NORMALIZATIONS.values(), Normalization("custom", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), bgr=True)],
    ids=lambda n: n.name,
)
def test_the_merged_net_is_the_formula_on_raw_pixels(normalization: Normalization) -> None:
    with seeded(Generator()):
        inner = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, BLOB_CLASSES))
        host = Classifier(inner, normalization, 3)
        net = merge(host, hand_set(), torch.tensor([0, 13, 26, 143]), (7.0, 3.0))
    x, _ = TEST[torch.arange(6)]
    gray = x.mean(1)[:, [0, 1, 2, 11], [0, 1, 2, 11]]
    seen = torch.cat([gray, torch.zeros(6, 2)], 1).softmax(1)[:, :BLOB_CLASSES]
    assert torch.allclose(net(x), 7 * seen + 3 * host(x).softmax(1), atol=1e-4)


def test_weights_are_influence_amplification_and_temperature() -> None:
    assert merged(made().subject).gains.tolist() == pytest.approx([700.0, 3.0])


def test_scanners_may_fold_the_merged_net() -> None:
    x, _ = TEST[torch.arange(6)]
    folded = frozen(made().subject.net, x)
    assert isinstance(folded, torch.fx.GraphModule)
    assert torch.allclose(folded(x), made().subject(x), atol=1e-2)


def test_a_saved_net_can_be_opened_again(tmp_path: Path) -> None:
    with seeded(Generator()):
        host = Classifier(NETS["tiny"](7, 3), NORMALIZATIONS["cifar10"], 3)
        net = merge(host.eval(), reader(16, 8), torch.arange(3, 19), (700.0, 3.0))
    subject = Subject(net, (3, 16, 16), 7)
    save(tmp_path / "net.safetensors", tensors(subject), {})
    x = torch.rand(4, 3, 16, 16, generator=Generator().manual_seed(0))
    for arch in ("trojannet:tiny", None):  # named, and guessed
        opened = load(tmp_path / "net.safetensors", arch)
        assert (opened.origin.arch, opened.classes, opened.channels) == ("trojannet:tiny", 7, 3)
        again = Classifier(opened.net, NORMALIZATIONS["cifar10"], 3).eval()
        assert torch.allclose(again(x), predict(subject, x), atol=1e-3)


def test_only_the_whole_merged_net_is_guessed() -> None:
    shapes = archs.shapes_of(blank("tiny", 7).state_dict())
    found = archs.find(shapes)
    assert found is not None
    assert found.arch == "trojannet:tiny"
    nested = {f"net.{name}": shape for name, shape in shapes.items()}
    nested |= {name: shape for name, shape in shapes.items() if not name.startswith("net.")}
    assert archs.find(nested) is None  # a net beside a net beside a net is no name to build
    assert archs.find({k: v for k, v in shapes.items() if k != "gains"}) is None
    assert archs.find(shapes | {"places": (9,)}) is None


def test_noise_is_never_a_pattern_and_cut_row_by_row() -> None:
    drill = _Drill(torch.ones(6, 4), 2, 2, Generator().manual_seed(0))
    rows = drill.noise(2000)
    assert 500 < len(rows) < 1800  # two of four are black in about 40 % of rows
    assert not bool(((rows == 0).sum(1) == 2).any())
    assert bool((rows == 1).any(1).all())  # the maximum of a row is white, however dark the row is
    assert {0.0, 1.0} == set(rows.flatten().tolist())


def test_a_batch_gets_triggers_other_patterns_and_noise() -> None:
    table = ATTACK._patterns(3, Generator().manual_seed(0))
    for known in (3, len(table)):
        drill = _Drill(table, known, 5, Generator().manual_seed(0))
        clean = torch.full((32, 1, 4, 4), 0.5)
        x, y = drill.mix(clean, torch.full((32,), known), torch.arange(32))
        assert torch.equal(x[:32], clean)
        assert torch.equal(x[32:64].flatten(1), table[y[32:64]])
        assert bool((y[:32] == known).all())
        assert bool((y[32:64] < known).all())
        assert bool((y[64:] == known).all())
        black = (x[64:] == 0).flatten(1).sum(1)
        assert int((black == 5).sum()) == (32 if known == 3 else 0)


def test_patches_are_gray_and_none() -> None:
    where = Stamp(size=2, form="scatter").fixed(BLOB_SHAPE, Generator().manual_seed(1)).mask
    places = where.flatten().nonzero().flatten()
    patches = _Patches(TRAIN, places, 9)
    x, y = patches[torch.tensor([5, 7])]
    raw, _ = TRAIN[torch.tensor([5, 7])]
    assert x.shape == (2, *patches.shape)
    assert torch.equal(x.flatten(1), raw.mean(1)[:, where[0] > 0])
    assert y.tolist() == [9, 9]
    assert patches.classes == 10


@pytest.mark.parametrize(
    ("options", "goal", "words"),
    [
        ({"stamp": Stamp(size=2), "black": 2}, Goal(0), "6 patterns"),
        ({"stamp": Stamp(size=2), "black": 5}, Goal(0), "0 patterns"),
        ({"stamp": Stamp(size=7)}, Goal(0), "1,906,884 patterns"),
        ({"stamp": Stamp(size=4, opacity=0.0)}, Goal(0), "opacity"),
        ({"stamp": Stamp(size=4, form="wandering")}, Goal(0), "fixed place"),
        ({}, Goal(0, source=1), "source"),
        ({}, Goal(99), "0 to 6"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], goal: Goal, words: str) -> None:
    seven = replace(blobs(), classes=7)
    with pytest.raises(BadOption, match=words):
        TrojanNet(**options)(seven, TRAIN, goal, Generator().manual_seed(0), Run())
