"""Every method, and all that it is made of, refuses what the types of its options exclude."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MinLen

from gifthorse.analysis.transfer import Transfer
from gifthorse.attacks import ATTACKS
from gifthorse.bench.tasks import Setting
from gifthorse.core.errors import BadOption
from gifthorse.core.fields import limits
from gifthorse.core.options import vary
from gifthorse.detection import DETECTORS
from gifthorse.filtering import FILTERS
from gifthorse.inversion import INVERTERS
from gifthorse.remedies import REMEDIES
from gifthorse.report.figures.contact_sheet import SheetLayout
from gifthorse.search import RandomAffine
from gifthorse.search.init import PatchInit
from gifthorse.search.k_arm import KArm
from gifthorse.search.schedulers import SuccessiveHalving
from gifthorse.workflows.analyze import TriggerAnalysis
from gifthorse.workflows.sanity import SanityThresholds

REGISTRIES = (ATTACKS, DETECTORS, FILTERS, INVERTERS, REMEDIES)
OTHERS = (
    SanityThresholds(),
    TriggerAnalysis(),
    SuccessiveHalving(),
    KArm(),
    PatchInit(),
    Setting(),
    SheetLayout(),
    Transfer(),
    RandomAffine(),
)


def every_kind() -> dict[str, Any]:
    """An instance of every method's class and of every part of theirs, by name."""
    found: dict[str, Any] = {}
    todo: list[Any] = [*(m for registry in REGISTRIES for m in registry.values()), *OTHERS]
    for thing in todo:
        found.setdefault(type(thing).__name__, thing)
        todo += [v for f in fields(thing) if is_dataclass(v := getattr(thing, f.name))]
    return found


KINDS = every_kind()
SIDES = {Ge: ("ge", 0, -1), Le: ("le", 0, 1), Gt: ("gt", 1, 0), Lt: ("lt", -1, 0)}
LIMITED = [(kind, name) for kind, thing in sorted(KINDS.items()) for name in limits(type(thing))]


def edges(hint: Any) -> tuple[list[Any], list[Any]]:
    """Values at the edge of what a type allows, and values beyond."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return list(inner), ["no such word", None]
    if origin in (Union, UnionType):
        good, bad = edges(next(arm for arm in inner if arm is not NoneType))
        return [None, *good], [v for v in bad if v is not None]
    if origin is tuple:
        good, bad = edges(inner[0])
        return [(), *((v,) for v in good)], [(*good[:1], v) for v in bad]
    if origin is Annotated:
        return narrowed(edges(inner[0]), inner[1:], 1 if inner[0] is int else 1e-9)
    return [], ["text", None, *([math.nan] if hint is float else [])]


def narrowed(
    wide: tuple[list[Any], list[Any]], asked: Iterable[Any], step: float
) -> tuple[list[Any], list[Any]]:
    """Edges with what stands in an `Annotated`."""
    good, bad = wide
    for bound in (b for m in asked for b in (m if isinstance(m, GroupedMetadata) else [m])):
        if bound == MinLen(1):
            good, bad = good[1:], [*bad, ()]
            continue
        name, inward, outward = SIDES[type(bound)]
        good.append(getattr(bound, name) + inward * step)
        bad.append(getattr(bound, name) + outward * step)
    return good, bad


@pytest.mark.parametrize(("kind", "name"), LIMITED)
def test_an_option_takes_what_its_type_allows_and_nothing_else(kind: str, name: str) -> None:
    thing = KINDS[kind]
    hint = get_type_hints(type(thing), include_extras=True)[name]
    good, bad = edges(hint)
    assert good
    assert bad
    for value in good:
        try:
            assert getattr(replace(thing, **{name: value}), name) == value
        except BadOption as error:  # it must fit other options as well
            refused = str(error)
            assert not refused.startswith("option ")
    words = f"option {name} of {kind} must be {limits(type(thing))[name]}"
    for value in bad:
        with pytest.raises(BadOption) as caught:
            replace(thing, **{name: value})
        assert str(caught.value).startswith(words)
        assert str(caught.value).endswith(f"; got {value!r}")


# What was asked of options before their types said it, lest a type lose its limits unnoticed.
REFUSED = """\
ABE weight=-1.0 lr=0.0 passes=0 plain=1.5
ActivationClustering dims=0 share=0.0 silhouette=1.5 silhouette=-1.5
AdversarialRetraining steps=-1 size=0.0 eps=8.0
AgainstABS weight=-1.0 count=0 each=0 samples=1
AgainstAR steps=-1 size=0.0 radius=0.0
AgainstMP width=0 noise=-1.0
AgainstSTRIP copies=-1.0 entropy=-1.0
ANP steps=0 batch=1 ascents=0 eps=-0.1 lr=-0.1 weight=1.5 momentum=1.5 max_drop=1.5 share=0.0
Blended opacity=0.0 opacity=-0.1 opacity=1.1 opacity=NaN
Blind wait=-1 every=0 rounds=0 images=0
CLP u=-1.0 u=NaN
TriggerAnalysis pairs=0 mapped=0 shown=0 q=0 draws=0 permutations=0
DownUp ratio=0.0 ratio=1.0 ratio=1.5
Ensemble partners=0 weights=[] weights=[0.5,1.5]
FTSAM rho=-1.0
Fidelity opacity="half" weight=-1.0 patience=-1 efficacy=0.0 efficacy=1.0
FinePruning ratio=-0.1 ratio=1.1 tolerance=-0.1 tolerance=1.1 step=0.0 step=1.1
Hardening every=-1 later=0 each=0 falls=-1 largest=1.5 share=-0.1 drop=2.0 held=0.0 held=1.0
IBAU rounds=0 terms=-1 batch=0 decay=-1.0 lr=0.0 ascent=0.0 inner=0.0 bound=0.0 share=1.5 share=0.0
Inner start="here" optimizer="sgd" lr=0.0 steps=-1
InputAware lr=0.0 diversity=-1.0 opacity=0.0 opacity=1.1
Instagram filter="gothem"
Invisible eps=0.0 delta_lr=0.0 start=-1 steps=-1 stages=0
Keep share=-0.1 share=1.0
LabelConsistent eps=0.0 eps=2.0 stride=0.0 stride=2.0 steps=0
Latent samples=0 passes=0 weight=-1.0 refresh_every=-1 lr=0.0 labels="all_to_all"
Masking epochs=0 lr=0.0 diversity=-1.0 weight=-1.0 density=-0.1 density=1.5
Mixing rate=0.0 rate=1.0 rate=1.5 rate=NaN
NAD epochs=-1 weights=[] weights=[-1.0] power=0.0
NEO sizes=[] sizes=[0] stride=-1 places=0 clusters=0 most=0 images=0
Natural images=0
Outline sides=2 sides=13 size=2 opacity=-0.1 opacity=1.1
Projection width=0 noise=-1.0
ReflectionPatch candidates=0 selected=0 rounds=0 judge=0
Refool candidates=0 selected=0 rounds=0 judge=0 ghosts=-0.1 ghosts=1.5
STRIP partners=0 weight=-0.1 weight=1.1
NeuronExcitation rule="frequent" count=0 steps=0 threshold=-1.0 lr=0.0
SheetLayout columns=0 line=0 scale=-1 gap=-1 gain=-1.0 gain=NaN
Sig strength=0.0 strength=1.5 frequency=0
Sizes fit=0.0 fit=1.0 calibration=0.0 calibration=1.0 most=-1.0 most=1.0 least=0
Smoothing copies=0 sigma=-0.1
SpectralSignatures expected=0.0 expected=1.0 multiplier=0.0
Stamp opacity=-0.1 opacity=1.1 form="round"
EvalConfig pairs=0 stamped=0.6 stamped=0.0 repeats=4
Transfer hidden=0
TrojanNet black=0 influence=0.0 influence=1.0 amplify=0.0 temperature=0.0 labels="all_to_all"
Unlearning share=0.0 share=1.5 threshold=0.0
WaNet cells=1 strength=-1.0 noise=-0.1
"""


@pytest.mark.parametrize("line", REFUSED.splitlines())
def test_what_made_no_sense_is_still_refused(line: str) -> None:
    kind, *pairs = line.split()
    for pair in pairs:
        name, _, text = pair.partition("=")
        value = json.loads(text)
        with pytest.raises(BadOption, match=f"option {name} of {kind} (must|cannot) be"):
            vary(KINDS[kind], {name: tuple(value) if isinstance(value, list) else value})


def test_none_of_what_takes_limits_was_forgotten() -> None:
    assert {line.split()[0] for line in REFUSED.splitlines()} <= set(KINDS)
    assert len(LIMITED) > 250
