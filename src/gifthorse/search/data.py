"""The images of every arm, and the net that judges stamped ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import NotApplicable
from gifthorse.core.memory import VALUES, fitting, footprint, room
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Logits, Samples, Subject
from gifthorse.data.gallery import balanced
from gifthorse.data.samples import near, whole
from gifthorse.models.folding import frozen
from gifthorse.search.hooks import HookedModel
from gifthorse.search.losses import Step
from gifthorse.search.objective import Objective, SearchConfig
from gifthorse.search.parametrizations.masks import Parts

log = logging.getLogger("gifthorse")
SEEN = 64  # images on which 16 bits are tried
HALVINGS = 4  # of the images that go forward and back at once, before memory is given up


class SearchData:
    """What a search acts on: images an arm may use, a frozen net, a generator an arm.

    Attributes:
        pool: All images, `(N, C, H, W)`.
        target: Target of every arm, `(A,)`.
        index: Images that each arm may use, padded by repetition, `(A, n)`.
        count: How many of them are no padding, `(A,)`.
        paired: Whether every arm has a source, so that all its images are of one class.
        rngs: One generator an arm, so that no arm's path depends on the company it steps in.
        batch: Images that an arm sees in a step, the same for all arms.
        abreast: Images that go forward and back at once, of all arms together.
        steps: Steps in a round, the same for all arms: a pass over the images of the usual arm.
        image_steps: Images that went forward and back; forward alone counts a half.
    """

    def __init__(
        self,
        subject: Subject,
        clean: Samples,
        goals: Sequence[Goal],
        rng: Generator,
        objective: Objective,
        config: SearchConfig,
    ) -> None:
        self.objective, self.config, self.form = objective, config, objective.form
        # A folded layer no longer says what it said in the net as it came.
        self.pool, self._labels = whole(near(clean, subject))
        net = frozen(subject.net, self.pool, fold=not objective.layer)
        self._net = HookedModel(net, objective.layer)
        self._bf16 = config.bf16 and self._net.halves(self.pool[:SEEN])
        self.device = self.pool.device
        self.index, self.count = usable(self._labels, goals, config.max_images)
        usual = int(self.count.median())  # one class with few images holds no other arm back
        self.batch = min(config.batch, usual)
        self.steps = max(min(usual // self.batch, config.steps or usual), config.min_steps)
        self.abreast = self._room()
        self.target = torch.tensor([g.target for g in goals], device=self.device)
        self.paired = all(g.source is not None for g in goals)
        self.rngs = [spawn(rng) for _ in goals]
        self.image_steps, self._halved = 0.0, 0

    def ask(self, x: Tensor) -> Logits:
        """Return logits `(N, K)` for whoever looks for a start; counted as forward alone."""
        self.image_steps += len(x) / 2
        parts = x.split(fitting(x, self.config.max_batch))
        return torch.cat([self._net(part, bf16=self._bf16) for part in parts])

    def forward(self, parts: Parts, arms: Tensor, index: Tensor, *, exact: bool = False) -> Step:
        """Stamp the images of an index `(a, B)` and ask the net.

        Args:
            parts: Decoded triggers, one row an arm.
            arms: Which arms they are, `(a,)`.
            index: Images of the pool, `(a, B)`.
            exact: In float32 and without random changes of the images.
        """
        scene, view = self.objective.input_transform, self.objective.stamped_transform
        rngs = [self.rngs[a] for a in arms.tolist()] if scene or view else []
        x = self.pool[index]
        if scene is not None and not exact:
            x = scene(x, rngs)
        stamped = self.form.stamp(parts, x)
        seen = view(stamped, rngs) if view is not None and not exact else stamped
        logits = self._forward(seen, bf16=self._bf16 and not exact)  # (a, B, K)
        features = self._net.seen(index.shape)

        def again(more: Tensor) -> Logits:
            self.image_steps += more.shape[0] * more.shape[1]
            return self._forward(more, bf16=self._bf16)

        target, labels = self.target[arms], self._labels[index]
        return Step(x, labels, stamped, logits, target, arms, parts, again, features)

    def verify(self, parts: Parts, arms: Tensor) -> Tensor:
        """Return the success of finished triggers on all images of their arms, `(a,)`."""
        out, n = [], self.index.shape[1]
        for rows in torch.arange(len(arms)).split(max(1, self.abreast // n)):
            some, own, hits = arms[rows], tuple(p[rows] for p in parts), []
            for index in self.index[some].split(max(1, self.abreast // len(rows)), dim=1):
                stamped = self.form.stamp(own, self.pool[index])
                hits.append(self._forward(stamped).argmax(-1) == self.target[some, None])
            hit = torch.cat(hits, 1) & self.valid(some)
            out.append(hit.sum(1) / self.count[some])
            self.image_steps += hit.numel() / 2
        return torch.cat(out)

    def shrink(self, arms: int) -> bool:
        """Let half as many arms go at once as were too many; return whether that is possible."""
        if self._halved >= HALVINGS or arms < 2:
            return False
        self._halved, self.abreast = self._halved + 1, arms // 2 * self.batch
        log.warning("out of memory: going on with %d images at once", self.abreast)
        return True

    def valid(self, arms: Tensor) -> Tensor:
        """Return which places of the index are no padding, `(a, n)` bool."""
        return torch.arange(self.index.shape[1], device=self.device) < self.count[arms, None]

    def batches(self, arms: Tensor) -> Iterator[Tensor]:
        """Yield full batches of image indices `(a, B)`, a fresh order for each arm and pass."""
        rows = arms.tolist()
        left = {arm: self.index.new_empty(0) for arm in rows}
        for _ in range(self.steps):
            for arm in rows:
                if not len(left[arm]):
                    left[arm] = self._order(arm)
            yield torch.stack([left[arm][: self.batch] for arm in rows])
            left = {arm: rest[self.batch :] for arm, rest in left.items()}

    def _order(self, arm: int) -> Tensor:
        """Return the images of an arm in a fresh order, whole batches of them.

        An arm with fewer than a batch sees some of them twice in a step.
        """
        count, rng = int(self.count[arm]), self.rngs[arm]
        passes = [torch.randperm(count, generator=rng) for _ in range(-(-self.batch // count))]
        order = torch.cat(passes)
        whole = max(1, count // self.batch) * self.batch
        return self.index[arm][order[:whole].to(self.device)]

    def _room(self) -> int:
        """Return how many images memory has room for, with what the net keeps of each."""
        if self.pool[0].numel() * self.config.max_batch <= VALUES:  # small images: no question
            return self.config.max_batch
        each = footprint(self._net.net, self.pool[:1])
        return max(1, min(self.config.max_batch, room(self.device) // each))

    def _forward(self, x: Tensor, *, bf16: bool = False) -> Logits:
        a, b = x.shape[:2]
        return self._net(x.flatten(0, 1), bf16=bf16).view(a, b, -1)


def usable(y: Tensor, goals: Sequence[Goal], most: int = 0) -> tuple[Tensor, Tensor]:
    """Return, for each goal, the images it may use, padded by repetition, and their number.

    Args:
        y: Labels `(N,)`.
        goals: What the images are to be turned into.
        most: How many images a goal gets, as even over the classes as can be; 0 for all.
    """
    rows = []
    for goal in goals:
        keep = goal.applies_to(y)
        index = keep.nonzero().flatten()
        if not len(index):
            who = "any other class" if goal.source is None else f"class {goal.source}"
            raise NotApplicable(
                f"no clean image of {who} to search a trigger for class {goal.target} with: "
                "add images of more classes"
            )
        some = balanced(y[index].cpu().numpy(), most or None)
        rows.append(index[torch.from_numpy(some).to(y.device)])
    count = torch.tensor([len(r) for r in rows], device=y.device)
    longest = int(count.max())
    padded = [r.repeat(-(-longest // len(r)))[:longest] for r in rows]
    return torch.stack(padded), count
