"""Plans: what they cross, what they say of a mistake, and the keys of what they lead to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gifthorse.bench.making import draws
from gifthorse.bench.plan import MOST_FILES, PROFILES, BenchPlan, read
from gifthorse.bench.results import opened
from gifthorse.bench.tasks import Cell, Choice, family, judging, spoken, tasks
from gifthorse.core.errors import BadOption, GifthorseError, UnknownMethod, UsageError
from gifthorse.data.packed import PACKED

PLANS = sorted((Path(__file__).parents[2] / "plans").glob("*.toml"))

GRID = """
[[grid]]
data = ["mnist", "gtsrb"]
nets = ["basic"]
attacks = ["badnet", "blended"]
defenses = ["strip", "clp", "mm_bd"]
seeds = [3, 5]
"""


def planned(folder: Path, text: str) -> BenchPlan:
    path = folder / "my.toml"
    path.write_text(text)
    return read(path)


def labels(plan: BenchPlan) -> Counter[tuple[str | None, str | None]]:
    return Counter(
        (c.attack.label if c.attack else None, c.defense.label if c.defense else None)
        for c in plan.cells
    )


def test_a_grid_is_crossed_with_its_twin_and_with_no_defense(tmp_path: Path) -> None:
    plan = planned(tmp_path, GRID)
    assert plan.name == "my"
    pairs = [(a, d) for a in (None, "badnet", "blended") for d in (None, "strip", "clp", "mm_bd")]
    assert labels(plan) == dict.fromkeys(pairs, 4)  # two data sets, two seeds
    assert {c.seed for c in plan.cells} == {3, 5}
    assert {c.data for c in plan.cells} == {"mnist", "gtsrb"}


def test_models_are_made_once_whatever_judges_them(tmp_path: Path) -> None:
    todo = tasks(planned(tmp_path, GRID).cells)
    assert Counter(t.kind for t in todo) == {"train": 4, "implant": 8, "judge": 48}
    place = {t.key: n for n, t in enumerate(todo)}
    assert all(place[parent] < place[t.key] for t in todo for parent in t.after)
    assert {len(t.after) for t in todo if t.kind == "judge"} == {1, 2}


def test_without_twins_only_implants_are_judged(tmp_path: Path) -> None:
    plan = planned(tmp_path, GRID + "twins = false\n")
    assert all(c.attack for c in plan.cells)


def test_a_cell_that_two_grids_have_is_there_once(tmp_path: Path) -> None:
    assert planned(tmp_path, GRID + GRID).cells == planned(tmp_path, GRID).cells


def test_a_method_may_come_twice_with_other_options(tmp_path: Path) -> None:
    text = GRID.replace(
        '"badnet", "blended"', '"badnet", {use = "badnet", as = "dot", set = {"stamp.size" = 1}}'
    )
    plan = planned(tmp_path, text)
    made = {c.attack.label: c.attack.method.stamp.size for c in plan.cells if c.attack}
    assert made == {"badnet": 3, "dot": 1}


def test_options_come_from_profile_then_all_then_one_then_the_pick(tmp_path: Path) -> None:
    (tmp_path / "under.toml").write_text('[options.attack."*"]\n"mixing.rate" = 0.2\n')
    text = (
        'include = ["under.toml"]\nprofile = "smoke"\n[options.attack.badnet.recipe]\nlr = 0.5\n'
        + GRID.replace('"badnet"', '{use = "badnet", set = {"stamp.size" = 4}}')
    )
    made = {c.attack.label: c.attack.method for c in planned(tmp_path, text).cells if c.attack}
    assert (made["badnet"].stamp.size, made["badnet"].recipe.lr) == (4, 0.5)
    assert (made["badnet"].mixing.rate, made["blended"].mixing.rate) == (0.2, 0.2)
    assert made["badnet"].recipe.epochs == made["blended"].recipe.epochs == 8  # the profile's
    assert made["blended"].recipe.lr == 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "crosses nothing"),
        ("grid = 3", "grid"),
        ("[[grid]]\nnets = ['basic']", "grid.0.data: field required"),
        (GRID.replace("attacks", "atacks"), r"no key grid.0.atacks: did you mean attacks\?"),
        ("setings = 1\n" + GRID, r"no key setings: did you mean setting\?"),
        (GRID.replace('"clp"', '{use = "clp", sett = 1}'), "no key grid.0.defenses.1.sett: .*set"),
        (GRID.replace("basic", "basik"), r"no net is called 'basik': did you mean basic\?"),
        (GRID.replace("badnet", "badnit"), r"no attack is called 'badnit': did you mean badnet"),
        (GRID.replace("strip", "stripp"), r"no defense is called 'stripp': did you mean strip\?"),
        ("[setting]\nimges = 3\n" + GRID, r"no option imges: did you mean images\?"),
        ('profile = "smal"\n' + GRID, r"no profile is called 'smal': did you mean"),
        ("[options.atack.badnet]\n" + GRID, r"called 'atack': did you mean attack\?"),
        ("[options.attack.badnt]\n" + GRID, r"called 'badnt': did you mean badnet"),
        ('[options.attack."*"]\nlurn = 3\n' + GRID, "no attack has an option lurn"),
        ("[options.attack.badnet]\nrate = 3\n" + GRID, "no option rate"),
        ('include = ["gone.toml"]\n' + GRID, "gone.toml cannot be read"),
        ('include = ["my.toml"]\n' + GRID, "includes itself"),
        ("name = ", "is no TOML"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(GifthorseError, match=words) as caught:
        planned(tmp_path, text)
    assert isinstance(caught.value, UsageError | BadOption | UnknownMethod)


def test_a_plan_that_many_include_is_read_once(tmp_path: Path) -> None:
    for i in range(30):  # read at each mention, they would be 2^30
        (tmp_path / f"{i}.toml").write_text(f'include = ["{i + 1}.toml", "{i + 1}.toml"]\n')
    (tmp_path / "30.toml").write_text(GRID)
    assert planned(tmp_path, 'include = ["0.toml"]\n') == planned(tmp_path, GRID)


def test_a_name_of_two_families_must_say_which() -> None:
    assert family("strip") == "filter"
    assert family("detector:abs") == "detector"
    with pytest.raises(UnknownMethod, match="family of defenses"):
        family("attack:badnet")


# Keys -----------------------------------------------------------------------------------------


def cell(**changes: object) -> Cell:
    badnet, strip = Choice("attack", "badnet", "badnet"), Choice("filter", "strip", "strip")
    return replace(Cell("mnist", "basic", badnet, strip, 0), **changes)  # type: ignore[arg-type]


def test_a_key_is_of_what_a_result_depends_on() -> None:
    first, setting = judging(cell()), cell().setting
    assert judging(cell()) == first
    assert judging(cell(attack=Choice("attack", "badnet", "another name"))).key == first.key
    # What a default is anyway changes nothing.
    assert judging(cell(attack=Choice("attack", "badnet", "x", (("stamp.size", 3),)))).key == (
        first.key
    )
    other = [
        cell(seed=1),
        cell(data="gtsrb"),
        cell(net="tiny"),
        cell(attack=Choice("attack", "badnet", "badnet", (("stamp.size", 4),))),
        cell(defense=Choice("filter", "strip", "strip", (("partners", 9),))),
        cell(setting=replace(setting, target=1)),
        cell(setting=replace(setting, time_limit=9.0)),
        cell(setting=replace(setting, images=9)),
    ]
    assert len({judging(c).key for c in (cell(), *other)}) == 1 + len(other)


def test_another_defense_leaves_the_model_as_it_is() -> None:
    other = judging(cell(defense=None))
    assert (other.benign, other.implant) == (judging(cell()).benign, judging(cell()).implant)
    # Neither does what only judging depends on.
    longer = cell(setting=replace(cell().setting, time_limit=9.0))
    assert judging(longer).implant == judging(cell()).implant


def test_randomness_is_a_seeds_and_a_purposes_own() -> None:
    def first(c: Cell, purpose: str) -> float:
        return float(torch.rand(1, generator=draws(c, purpose)))

    assert first(cell(), "train") == first(cell(defense=None), "train")
    others = [(cell(), "implant"), (cell(seed=1), "train"), (cell(data="gtsrb"), "train")]
    assert first(cell(), "train") not in [first(*other) for other in others]


def test_a_benign_net_of_ones_own_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    file = tmp_path / "nets/net.safetensors"
    text = '[setting]\nbenign = "nets/net.safetensors"\n' + GRID
    with pytest.raises(UsageError, match=r"benign net .*net.safetensors cannot be read"):
        tasks(planned(tmp_path, text).cells)
    file.write_bytes(b"weights")
    keys = {judging(c).key for c in planned(tmp_path, text).cells}
    assert keys.isdisjoint(judging(c).key for c in planned(tmp_path, GRID).cells)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(b"weights")
    same = planned(tmp_path, text.replace("nets/net", "moved"))
    assert {judging(c).key for c in same.cells} == keys
    assert spoken(same.cells[0])["setting"]["benign"] == "moved.safetensors"


# What is shipped ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_the_plans_that_come_along_can_be_read(path: Path) -> None:
    plan = read(path)
    assert plan.about
    assert len({judging(c).key for c in plan.cells}) == len(plan.cells)
    assert all(cell.data in PACKED or cell.data.startswith("trojai:") for cell in plan.cells)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_fit_every_method(tmp_path: Path, profile: str) -> None:
    assert planned(tmp_path, f'profile = "{profile}"\n' + GRID).cells


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("include = 3", "include takes a list of plans"),
        ("include = [3]", "include takes a list of plans"),
        ('include = ["/dev/zero"]', "is no file, but a folder, a device or a pipe"),
        ('include = ["0.toml"]', rf"my\.toml includes more than {MOST_FILES} plans"),
        ("a = " + "[" * 10_000, "is no TOML"),
        ("a = " + "9" * 5000, "is no TOML"),
        (GRID.replace("[3, 5]", "1_000_000_000"), "crosses 24,000,000,000 cells"),
    ],
)
def test_a_plan_asks_for_no_more_than_anybody_has(tmp_path: Path, text: str, words: str) -> None:
    for i in range(MOST_FILES):
        (tmp_path / f"{i}.toml").write_text(f'include = ["{i + 1}.toml"]')
    (tmp_path / f"{MOST_FILES}.toml").write_text(GRID)
    with pytest.raises(UsageError, match=words):
        planned(tmp_path, text)


@pytest.mark.parametrize("name", ["../..", "a/b", "..", ".hidden", "\x1b[2J", "C:\\x", "x" * 999])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(f"name = {json.dumps(name)}\n{GRID}")
    with pytest.raises(UsageError, match="no name for a folder"):
        opened(path, None)
    assert opened(path, str(tmp_path / "store"))[1].root == str(tmp_path / "store")
