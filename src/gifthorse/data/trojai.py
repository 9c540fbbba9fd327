"""A data set of traffic signs at roadsides, made from a seed: no file is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Labels
from gifthorse.data.gallery import Gallery, digest
from gifthorse.data.samples import InMemory
from gifthorse.data.scenes import PLACES, Place, backgrounds, blurred, fog, rain
from gifthorse.data.signs import draw_signs

CHUNK = 128  # images made at a time; another number gives other images
LUMA = (0.299, 0.587, 0.114)
DISTANCE = 3.0  # of the eye from a sign, in halves of its side
VIEWS = [(yaw, pitch) for yaw in (-25, -12, 0, 12, 25) for pitch in (-15, 0, 15)]  # degrees


@dataclass(frozen=True, eq=False)
class World:
    """What all images of a data set have in common.

    Attributes:
        signs: Signs `(K, 4, side, side)`, see `draw_signs`.
        names: What they are called.
        place: Name of the place in `PLACES`.
        low: Least share of the image that the square around a sign has.
        high: Largest.
        fog: Share of images with fog.
        rain: Share of images with rain.
        core: Side of the square in the middle of images that signs cover, in pixels.
    """

    signs: Tensor
    names: tuple[str, ...]
    place: str
    low: float
    high: float
    fog: float
    rain: float
    core: int

    @property
    def scene(self) -> Place:
        """The place."""
        return PLACES[self.place]


def make_signs(
    seed: int,
    *,
    classes: int = 10,
    train: int = 400,
    test: int = 100,
    side: int = 64,
    crop: int = 56,
    core: int = 8,
) -> tuple[Gallery, Gallery]:
    """Return training and test images of a set of traffic signs.

    Each image is a sign, seen from one of `VIEWS`, at a place of its own before a background of its
    own, sometimes in fog or rain. The seed decides on signs, place and weather, too; the same seed
    gives the same pixels.

    Args:
        seed: What everything is drawn from.
        classes: How many signs, 2 to `signs.MOST_SIGNS`.
        train: Training images a class.
        test: Test images a class.
        side: Height and width that images are drawn with.
        crop: Height and width of what is kept of their middle.
        core: Side of a square in the middle of images that lies on the sign, so that a trigger that
            is stamped there does, too; even, at most `side / 8`. 0 lets signs lie anywhere.

    Returns:
        Galleries, labels in turn. Their extra `mask` says which pixels are of the sign,
        `(N, 1, crop, crop)` bool.

    Raises:
        BadOption: If a number does not fit.

    Source: `trojai-round-generation`, round 2: area of signs, brightness, blur and weather.
    Differs: no photographs and no drawings, see `draw_signs` and `backgrounds`; 64 pixels cut to 56
    for 256 cut to 224; signs cover the middle unless `core` is 0; brightness changes by at most
    0.6 to 1.1.

    Example:
        >>> train, test = make_signs(7, classes=5, train=4, test=2)
        >>> train.samples.images.shape, test.samples.labels.tolist()
        (torch.Size([20, 3, 56, 56]), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])
    """
    if not 0 < crop <= side or side < 32 or (side - crop) % 2:
        raise BadOption(f"side must be 32 or more, crop below by an even number: {side}, {crop}")
    if not 0 <= core <= side // 8 or core % 2 or side % 2:
        raise BadOption(f"core must be even, 0 to {side // 8} for even sides {side}; got {core}")
    if min(train, test) < 1:
        raise BadOption(f"train and test must be at least 1 image a class; got {train}, {test}")
    rng = Generator().manual_seed(seed)
    source = f"trojai:{seed}" + (f"@{crop}" if crop != 56 else "")
    world = _world(classes, side, core, spawn(rng))
    first, second = (
        _gallery(world, each, crop, f"{source}:{name}", spawn(rng))
        for name, each in (("train", train), ("test", test))
    )
    return first, second


def framed(crop: int) -> dict[str, int]:
    """Return the options of `make_signs` for images of some side, in its own proportions.

    Raises:
        BadOption: If the side is odd or too small to draw a sign in.
    """
    margin = crop // 14 // 2 * 2  # 4 pixels on each side of 56, an even number in all
    side = crop + 2 * margin
    if crop % 2 or side < 32:
        raise BadOption(f"the side of drawn images must be even, and 28 or more; got {crop}")
    return {"side": side, "crop": crop, "core": side // 8 // 2 * 2}


def _world(classes: int, side: int, core: int, rng: Generator) -> World:
    signs, names = draw_signs(classes, side, spawn(rng))
    low, high = sorted((20 + torch.randperm(60, generator=rng)[:2]).tolist())
    place = list(PLACES)[int(torch.randint(len(PLACES), (1,), generator=rng))]
    # The inverse of the distribution function of Beta(1, 10).
    weather = 1 - (1 - torch.rand(2, generator=rng, dtype=torch.float64)) ** 0.1
    foggy, rainy = weather.tolist()
    return World(signs, names, place, low / 100, high / 100, foggy, rainy, core)


def _gallery(world: World, each: int, crop: int, source: str, rng: Generator) -> Gallery:
    classes, _, side, _ = world.signs.shape
    labels = torch.arange(classes).repeat(each)
    images = torch.empty(len(labels), 3, crop, crop, dtype=torch.uint8)
    masks = torch.empty(len(labels), 1, crop, crop, dtype=torch.bool)
    kept = slice((side - crop) // 2, (side + crop) // 2)
    for part in torch.arange(len(labels)).split(CHUNK):
        x, mask = _photographed(world, labels[part], rng)
        images[part] = (x[:, :, kept, kept] * 255).round().to(torch.uint8)
        masks[part] = mask[:, :, kept, kept]
    note = (
        f"signs drawn from a seed: {world.place}, square around a sign {world.low:.0%} to "
        f"{world.high:.0%} of the image, fog in {world.fog:.0%}, rain in {world.rain:.0%} of images"
    )
    return Gallery(
        InMemory(images, labels, classes),
        "packed",
        class_names=world.names,
        notes=(note,),
        source=source,
        sha256=digest(images, labels),
        extras={"mask": masks},
    )


def _photographed(world: World, labels: Labels, rng: Generator) -> tuple[Images, Tensor]:
    """Return images `(N, 3, side, side)` in [0, 1] and where their signs are, bool."""
    n, side = len(labels), world.signs.shape[-1]
    scene = backgrounds(world.scene, n, side, rng)
    sign = _placed(world, labels, rng)
    color, opacity = sign[:, :3], sign[:, 3:]
    x = (color * _exposure(color, opacity, scene)).minimum(opacity) + (1 - opacity) * scene
    soft = torch.randint(2, (n, 1, 1, 1), generator=rng)
    x = blurred(x, 0.8 * soft, radius=1)  # 0.8 is what OpenCV takes for a kernel of 3
    for share, weather in ((world.fog, fog), (world.rain, rain)):
        hit = torch.rand(n, generator=rng) < share
        if bool(hit.any()):
            x[hit] = weather(x[hit], rng)
    return x.clamp(0, 1), opacity > 0.5


def _exposure(color: Tensor, opacity: Tensor, scene: Images) -> Tensor:
    """Return what signs are made brighter by, `(N, 1, 1, 1)`: more if they stand out already."""
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    own = (color * luma).sum((1, 2, 3)) / opacity.sum((1, 2, 3))
    behind = (scene * luma).sum(1).square().mean((1, 2)).sqrt()
    return ((own - behind).abs() * 255 / 35.6).clamp(0.6, 1.1).view(-1, 1, 1, 1)


# Where signs are ------------------------------------------------------------------------------


def _view(yaw: float, pitch: float) -> Tensor:
    """Return how places in the picture are mapped to places on a sign that is turned, `(3, 3)`."""
    a, b = math.radians(yaw), math.radians(pitch)
    turned = torch.tensor(
        [
            [math.cos(a), 0.0, 0.0],
            [math.sin(a) * math.sin(b), math.cos(b), 0.0],
            [math.sin(a) * math.cos(b) / DISTANCE, -math.sin(b) / DISTANCE, 1.0],
        ],
        dtype=torch.float64,
    )
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)], dtype=torch.float64)
    seen = corners @ turned.T
    most = (seen[:, :2] / seen[:, 2:]).abs().max()
    turned[:2] /= most  # the sign keeps to its square
    back: Tensor = torch.linalg.inv(turned)
    return back.float()


_VIEWS = torch.stack([_view(*angles) for angles in VIEWS])


def _placed(world: World, labels: Labels, rng: Generator) -> Tensor:
    """Return signs `(N, 4, side, side)`, turned, scaled, and moved to places of their own."""
    n, side, core = len(labels), world.signs.shape[-1], world.core
    area = world.low + (world.high - world.low) * torch.rand(n, generator=rng)
    scale = area.sqrt()
    view = _VIEWS[torch.randint(len(_VIEWS), (n,), generator=rng)]
    line = (torch.arange(2 * side) + 0.5) / side - 1
    down, right = torch.meshgrid(line, line, indexing="ij")
    plane = torch.stack([right, down, torch.ones_like(down)], -1).view(-1, 3)
    own = plane @ (view / torch.stack([scale, scale, torch.ones(n)], -1)[:, None, :]).mT
    grid = (own[..., :2] / own[..., 2:]).view(n, 2 * side, 2 * side, 2)
    fine = F.grid_sample(world.signs[labels], grid, mode="bilinear", align_corners=False)
    sign = F.avg_pool2d(fine, 2)
    # Windows of the sign that could come to lie in the middle, if it is to stay in the picture.
    solid = sign[:, 3:] > 0.99
    places = F.avg_pool2d(solid.float(), core, 1)[:, 0] > 0.999 if core else solid[:, 0] | True
    middle = (places.shape[-1] - 1) // 2
    far = (torch.arange(places.shape[-1]) - middle).abs() <= (side * (1 - scale) / 2)[:, None]
    places = places & far[:, :, None] & far[:, None, :]
    score = (1 + torch.rand(places.shape, generator=rng)) * places
    best = score.flatten(1).argmax(1)
    move = middle - torch.stack([best // places.shape[-1], best % places.shape[-1]])
    rows, cols = ((torch.arange(side) - m[:, None]) % side for m in move)
    each = torch.arange(n)[:, None, None]
    return sign.permute(0, 2, 3, 1)[each, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
