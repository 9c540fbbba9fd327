"""Figures are PNGs of the right size, the same bytes twice, and show the numbers given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from gifthorse.core.errors import ShapeMismatch, UsageError
from gifthorse.core.metrics import rate
from gifthorse.core.types import Rate
from gifthorse.report.figures import comparison as figures
from gifthorse.report.figures.drawing import COLORS, MISSING, Share, median_track
from gifthorse.report.json import write_json

NAMES = tuple("abcd")
viridis = colormaps["viridis"]


def pairs(scale: float, seed: int) -> torch.Tensor:
    grid = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) * scale
    return grid.fill_diagonal_(math.nan)


def heat_maps(path: Path, shift: float = 0.0) -> None:
    maps = {"NC": pairs(0.5, 0) + shift, "Pixel": pairs(0.9, 1)}
    figures.heat_maps(path, maps, names=NAMES, title="Success", compare=("NC", "Pixel"))


def sizes(path: Path, shift: float = 0.0) -> None:
    maps = {"NC": pairs(500, 0) + 20 + 50 * shift, "Pixel": pairs(60, 1) + 5}
    figures.heat_maps(path, maps, names=NAMES, title="Size", kind="size", compare=("NC", "Pixel"))


def curves(path: Path, shift: float = 0.0) -> None:
    runs: dict[str, list[list[tuple[float, float]]]] = {
        "NC": [[(1e3, 900.0), (1e4, 300.0)], [(2e3, 800.0), (9e3, 200.0 + 100 * shift)]],
        "Pixel": [[(1e3, 700.0), (5e3, 40.0)], []],
        "never": [[]],
    }
    figures.curves(path, runs, title="Size against work")


def landscapes(path: Path, shift: float = 0.0) -> None:
    axis = torch.linspace(-1, 1, 11)
    bowl = axis[:, None] ** 2 + (axis[None] - shift) ** 2
    figures.landscapes(path, {"NC": bowl, "flat": torch.ones(11, 11)}, title="Loss")


def histogram(path: Path, shift: float = 0.0) -> None:
    few = torch.tensor([[0.0] * 90 + [0.7] * 10, [0.0] * 95 + [0.9] * 5])
    values = {"NC": torch.linspace(0, 1, 100) ** 3, "Pixel": few}
    success: dict[str, dict[int, Share]] = {
        "NC": {1: 0.1, 10: 0.4 + shift},
        "Pixel": {1: rate(torch.tensor([True, False]))},
    }
    figures.histogram(path, values, success, title="Masks")


def robust_bars(path: Path, shift: float = 0.0) -> None:
    rows: dict[str, dict[str, Share]] = {
        "NC": {"normal": Rate(0.8, 0.7, 0.9, 50), "rotate 1 deg": 0.2 + shift},
        "Pixel": {"normal": 0.9, "average": 0.5},
    }
    figures.robust_bars(path, rows, title="Robustness")


DRAWN = [heat_maps, sizes, curves, landscapes, histogram, robust_bars]
drawn = pytest.mark.parametrize("draw", DRAWN, ids=lambda f: f.__name__)
Draw = Callable[..., None]


def colors(path: Path) -> Tensor:
    """The dots of the picture, `(height, width, 3)`, 0 to 255."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).int()


def dots(path: Path, color: Sequence[float]) -> Tensor:
    """Which dots of the picture have this color, `(height, width)` bool."""
    wanted = torch.tensor([round(255 * c) for c in color[:3]])
    return (colors(path) - wanted).abs().amax(-1) <= 1


def area(path: Path, color: Sequence[float]) -> int:
    """How many they are."""
    return int(dots(path, color).sum())


@drawn
def test_a_figure_is_a_whole_png_eight_inches_wide(draw: Draw, tmp_path: Path) -> None:
    draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        image.verify()
        assert image.format == "PNG"
        assert image.width == 1600
        assert 600 <= image.height <= 1400
        assert "Software" not in image.info
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]  # no part left behind
    ink = (colors(tmp_path / "figure.png") < 250).any(-1)
    assert ink.float().mean() > 0.02
    assert not torch.cat([ink[0], ink[-1], ink[:, 0], ink[:, -1]]).any()  # nothing is cut off


@drawn
def test_same_data_same_bytes_whatever_the_users_style(draw: Draw, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 20.0, "savefig.dpi": 50}):
        draw(tmp_path / "b.png")
        assert mpl.rcParams["font.size"] == 20.0  # and the user's style is left alone
    draw(tmp_path / "c.png", 0.25)
    same, again, other = ((tmp_path / f"{n}.png").read_bytes() for n in "abc")
    assert same == again
    assert same != other


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    import sys

    before = "matplotlib.pyplot" in sys.modules
    heat_maps(tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_cell_has_the_color_of_its_number(tmp_path: Path) -> None:
    names = [str(i) for i in range(40)]  # too many for numbers in the cells
    half = torch.ones(40, 40)
    half[:20] = 0
    figures.heat_maps(tmp_path / "a.png", {"NC": half}, names=names, title="")
    low, high = (area(tmp_path / "a.png", viridis(v)) for v in (0.0, 1.0))
    assert min(low, high) > 40_000
    assert low == pytest.approx(high, rel=0.03)
    rows = [dots(tmp_path / "a.png", viridis(v)).nonzero()[:, 0].median() for v in (0.0, 1.0)]
    assert rows[0] < rows[1]  # the first source class is on top


def test_missing_pairs_are_gray_and_do_not_count(tmp_path: Path) -> None:
    names = [str(i) for i in range(40)]
    grid = torch.full((40, 40), torch.nan)
    grid[0] = 0.5
    figures.heat_maps(tmp_path / "a.png", {"NC": grid}, names=names, title="")
    gray, half = (area(tmp_path / "a.png", c) for c in (to_rgb(MISSING), viridis(0.5)))
    assert gray / half == pytest.approx(39, rel=0.15)


def test_a_bar_is_as_high_as_its_rate(tmp_path: Path) -> None:
    figures.robust_bars(tmp_path / "a.png", {"NC": {"one": 1.0, "two": 0.0}}, title="")
    figures.robust_bars(tmp_path / "b.png", {"NC": {"one": 0.25, "two": 0.25}}, title="")
    whole, half = (area(tmp_path / f"{n}.png", to_rgb(COLORS[0])) for n in "ab")
    assert half == pytest.approx(whole / 2, rel=0.05)


def test_a_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(4, 4\).*got \(4, 3\)"):
        figures.heat_maps(tmp_path / "a.png", {"NC": torch.ones(4, 3)}, names=NAMES, title="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        robust_bars(tmp_path / "none" / "a.png")
    with pytest.raises(UsageError, match="cannot write"):
        write_json(tmp_path / "none" / "a.json", {})


def test_the_median_is_numpys_where_all_runs_have_a_trigger() -> None:
    rng = np.random.default_rng(0)
    tracks = [
        torch.tensor(np.stack([np.sort(rng.integers(0, 50, 9)), rng.random(9)])) for _ in range(5)
    ]
    steps, middle = median_track(tracks, 5)
    for step, value in zip(steps.tolist(), middle.tolist(), strict=True):
        held = [[s for at, s in t.T.tolist() if at <= step] for t in tracks]
        expected = np.median([h[-1] if h else math.inf for h in held])
        assert value == expected
    assert median_track(tracks, 11)[1].isinf().all()  # most runs never found one


def test_json_holds_tensors_rates_and_missing_numbers(tmp_path: Path) -> None:
    data = {
        "map": torch.tensor([[math.nan, 0.5]]),
        3: Rate(0.5, 0.25, 0.75, 8),
        "runs": [(1, math.inf), ()],
        "text": "plane",
        "path": Path("a/b"),
        "none": None,
    }
    write_json(tmp_path / "a.json", data)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "map": [[None, 0.5]],
        "3": {"value": 0.5, "low": 0.25, "high": 0.75, "trials": 8},
        "runs": [[1, None], []],
        "text": "plane",
        "path": "a/b",
        "none": None,
    }
    write_json(tmp_path / "b.json", data)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
