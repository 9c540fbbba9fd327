"""The vocabulary of the package: aliases, protocols and frozen records, no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run

Images: TypeAlias = Tensor  # (N, C, H, W) float32 in [0, 1]
Labels: TypeAlias = Tensor  # (N,) int64
Logits: TypeAlias = Tensor  # (N, K) float32
Batch: TypeAlias = tuple[Images, Labels]
Shape: TypeAlias = tuple[int, int, int]  # C, H, W
ProgressCallback: TypeAlias = Callable[[int, int, str], None]  # steps done, steps in all, words

Label: TypeAlias = Literal[
    "BACKDOORED", "SUSPICIOUS", "NO BACKDOOR FOUND", "INCONCLUSIVE", "NOT SCANNED", "ERROR"
]
Severity: TypeAlias = Literal["CRITICAL", "HIGH", "MEDIUM", "LOW", "INFO"]


# 1. Data --------------------------------------------------------------------------------------


class Samples(Protocol):
    """Labeled images with random access by an index vector."""

    @property
    def shape(self) -> Shape:
        """Channels, height and width of every image."""
        ...

    @property
    def classes(self) -> int:
        """How many classes the labels may name."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def __getitem__(self, index: Tensor, /) -> Batch:
        """Images `(B, C, H, W)` in [0, 1] and labels `(B,)` for an index vector `(B,)`."""
        ...


# 2. The classifier under study ----------------------------------------------------------------


@dataclass(frozen=True)
class Signer:
    """Whose signature of a model was verified.

    Attributes:
        key: SHA-256 of the public key, as PEM, in hex.
        signature: Name of the file with the signature.
        files: How many files it covers; every one is as it was signed.
    """

    key: str
    signature: str
    files: int

    @property
    def words(self) -> str:
        """The same as a sentence."""
        files = "the file" if self.files == 1 else f"all {self.files:,} files"
        matches = "matches" if self.files == 1 else "match"
        return (
            f"signed by the holder of the key SHA-256 {self.key}; {files} that {self.signature} "
            f"covers {matches}"
        )


@dataclass(frozen=True)
class Origin:
    """Where a model came from and how it was opened.

    Attributes:
        path: The file as the user named it; empty for a net made in memory.
        sha256: Hex digest of the file's bytes.
        bytes: Size of the file.
        format: `safetensors`, `pytorch` (zip or legacy state dict) or `memory`.
        arch: Name that `gifthorse.models.build` understands, e.g. `resnet20`.
        how: How the architecture was found: `named with --arch`, `guessed from 122 tensors`.
        tensors: Number of tensors in the file.
        params: Number of their elements that are parameters of the net.
        dtypes: Their data types, sorted, as in `float32`.
        notes: What was done on the way: wrappers opened, prefixes stripped, casts.
        metadata: The file's own claims, text only; never trusted, shown escaped.
        signer: Whose signature was verified; None if none was.
    """

    path: str = ""
    sha256: str = ""
    bytes: int = 0
    format: str = "memory"
    arch: str = ""
    how: str = ""
    tensors: int = 0
    params: int = 0
    dtypes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    signer: Signer | None = None


@dataclass(frozen=True)
class Subject:
    """A classifier on raw pixels: normalization is the first layer of `net`."""

    net: nn.Module
    shape: Shape
    classes: int
    origin: Origin = Origin()

    @property
    def device(self) -> torch.device:
        """Where the net is: that of its first parameter or buffer, the CPU without any."""
        tensors = chain(self.net.parameters(), self.net.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Subject:
        """Move the net itself to a device and return the same subject."""
        self.net.to(device)
        return self

    def __call__(self, x: Images, /) -> Logits:
        """Return logits `(N, K)` for images `(N, C, H, W)` in [0, 1]."""
        logits: Tensor = self.net(x)
        return logits


# 3. Triggers and goals ------------------------------------------------------------------------


class Trigger(Protocol):
    """Anything that stamps images."""

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `x`, same shape, in [0, 1]."""
        ...

    def shuffled(self, rng: Generator, /) -> Trigger:
        """A control of the same size: the same changes at shuffled places."""
        ...

    def render(self) -> tuple[Tensor, Tensor]:
        """What to show: pattern `(C, H, W)` in [0, 1] and strength `(1, H, W)` in [0, 1]."""
        ...


@dataclass(frozen=True)
class Goal:
    """What a backdoor does: images of `source` (None: of any other class) come out as `target`."""

    target: int
    source: int | None = None

    def applies_to(self, labels: Labels) -> Tensor:
        """Return which images of these labels are to be sent to the target, `(N,)` bool.

        Example:
            >>> import torch
            >>> Goal(1).applies_to(torch.tensor([0, 1, 2])).tolist()
            [True, False, True]
        """
        return labels != self.target if self.source is None else labels == self.source

    @property
    def tag(self) -> str:
        """The goal as part of a name of a file or a tensor.

        Example:
            >>> Goal(5, 0).tag, Goal(5).tag
            ('0-to-5', 'all-to-5')
        """
        return f"{'all' if self.source is None else self.source}-to-{self.target}"


# 4. Attacks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Implant:
    """A backdoored subject with the truth about it; `poisoned` are `(P,)` training indices."""

    subject: Subject
    trigger: Trigger
    goal: Goal
    poisoned: Tensor | None = None


class Attack(Protocol):
    """Makes a backdoored test model."""

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return an implant; `victim` and `train` stay as they were.

        An attack that was interrupted goes on from what the run kept of it.
        """
        ...


# 5. Inversion ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """The best trigger an inverter found for one goal.

    Attributes:
        goal: What the trigger was searched for.
        trigger: The trigger after all post-processing.
        size: Its size in the inverter's own measure, in pixels; `H * W` if not feasible.
        asr: Attack success on the generation images, of the stored trigger, in [0, 1].
        rounds: Search rounds this goal was given.
        feasible: Whether any trigger met the success bar.
    """

    goal: Goal
    trigger: Trigger
    size: float
    asr: float
    rounds: int
    feasible: bool = True


@dataclass(frozen=True, eq=False)
class Progress:
    """How every arm of an inversion did in its last round; all tensors `(A,)`.

    Attributes:
        rounds: Rounds that the arm was given, int64.
        success: Share of images sent to the target in its last round, in [0, 1].
        penalty: The size penalty of its last round; infinite before the first.
        size: Size of its best trigger, `H * W` without one.
        turned: Whether the weight of size has moved both up and down, bool.
    """

    rounds: Tensor
    success: Tensor
    penalty: Tensor
    size: Tensor
    turned: Tensor


class Inversion(Protocol):
    """A running inversion with one arm a goal."""

    def step(self, arms: Tensor, /) -> None:
        """RunRecord one round for these arms, `(a,)` int64."""
        ...

    @property
    def done(self) -> Tensor:
        """Which arms need no further round, `(A,)` bool."""
        ...

    @property
    def progress(self) -> Progress:
        """How every arm did in its last round."""
        ...

    @property
    def image_steps(self) -> float:
        """Images that went forward and back through the net so far; forward alone: a half."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the inversion goes on from, by name."""
        ...

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned."""
        ...

    @property
    def best(self) -> tuple[Candidate, ...]:
        """One candidate an arm."""
        ...


@runtime_checkable
class WithStart(Protocol):
    """An inversion with work to do before its first round, such as a sweep of whole images."""

    def start(self) -> Iterator[str]:
        """Do what is left of it in portions; say after each how far it is, in words."""
        ...


class Inverter(Protocol):
    """Searches the smallest trigger for each goal."""

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion over `goals` that nobody has stepped yet."""
        ...


# 6. Verdicts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """A share of trials with its 95 % binomial interval; all in [0, 1]."""

    value: float
    low: float
    high: float
    trials: int


@dataclass(frozen=True)
class Confirmation:
    """A recovered trigger on images that the search did not use, beside a random control.

    Attributes:
        asr: Share of unseen images that the trigger sends to the goal.
        control: The same for random triggers of the same footprint.
        no_trigger: The same with no trigger at all: how often clean images land there anyway.
    """

    asr: Rate
    control: Rate
    no_trigger: Rate


@dataclass(frozen=True)
class Arm:
    """One row of a detector's table: size in pixels; `index` is what `score` is made of."""

    goal: Goal
    size: float
    asr: float
    index: float
    feasible: bool
    rounds: int


@dataclass(frozen=True)
class Finding:
    """Something a person should know.

    Attributes:
        rule: Stable code, e.g. `BD001`.
        severity: CRITICAL to INFO.
        score: The statistic behind it.
        message: One sentence in words.
        goal: The backdoor's goal, where there is one.
        confirmation: The recovered trigger on unseen images, where there is one.
        evidence: Arrays and figures to draw: `pattern` (C, H, W), `mask` (1, H, W), `before` and
            `after` (n, C, H, W), `before_label` and `after_label` (n,), floats by name; `packed`,
            the trigger as the bytes of a text; `looks_before` and `looks_after` (n, H, W), where
            the net looks.
    """

    rule: str
    severity: Severity
    score: float
    message: str
    goal: Goal | None = None
    confirmation: Confirmation | None = None
    evidence: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What one detector says; `score` at or above `threshold` speaks for a backdoor.

    Attributes:
        method: Registry name of the detector.
        score: The detector's statistic for the whole model.
        threshold: Where suspicion starts.
        label: `BACKDOORED`, `SUSPICIOUS`, `NO BACKDOOR FOUND` or `INCONCLUSIVE`.
        findings: What stood out, confirmed or not.
        arms: The table of all goals tried.
        coverage: The goals that were searched or looked at.
        seconds: Wall time.
        image_steps: Images that went forward and back through the net; forward alone: a half.
        statistics: Further figures by name (anomaly index, size ratio, median size ...).
        settings: The detector's options as text, by dotted name.
    """

    method: str
    score: float
    threshold: float
    label: Label
    findings: tuple[Finding, ...] = ()
    arms: tuple[Arm, ...] = ()
    coverage: tuple[Goal, ...] = ()
    seconds: float = 0.0
    image_steps: float = 0.0
    statistics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


class Detector(Protocol):
    """Says whether a model is backdoored, from the model and clean images alone."""

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return a verdict; `subject` and `clean` stay as they were.

        A detector that the run stops early returns what it has, never a clean verdict.
        """
        ...


# 7. What else a defense can do ----------------------------------------------------------------


class Filter(Protocol):
    """Says of single images whether they carry a trigger."""

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` for each suspect, in order; higher is worse.

        A filter sees images and, in training-set mode, their labels; never the trigger, the target
        or which suspects are stamped. Everything given stays as it was.
        """
        ...


class Remedy(Protocol):
    """Makes a safer classifier: other weights, or inputs that are reformed first."""

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the safer classifier; `subject` and `clean` stay as they were."""
        ...


@dataclass(frozen=True)
class Normalization:
    """What a net expects its pixels to be turned into first: `(x * scale - mean) / std`.

    Attributes:
        name: `none`, `cifar10`, `imagenet` ... or `custom`.
        mean: One number a channel, on the 0-1 scale.
        std: One number a channel, on the 0-1 scale.
        scale: 1 for pixels in 0-1, 255 for nets trained on 0-255 without mean and std.
        bgr: Whether the net reads blue first.
    """

    name: str = "none"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    bgr: bool = False


@dataclass(frozen=True)
class Tried:
    """One row of the normalization table: accuracy on the clean images, mean top probability."""

    normalization: Normalization
    accuracy: Rate
    confidence: float


@dataclass(frozen=True)
class Preparation:
    """The clean images and the sanity of the model on them.

    Attributes:
        source: Where the images came from.
        images: How many were read.
        per_class: Images of each class, `(K,)` counts.
        labels_from: `folders`, `file`, `npz`, `packed` or `model` (pseudo-labels).
        class_names: Names by class number; may be empty.
        shape: What the net was fed.
        normalization: What was chosen.
        how: Why it was chosen: `--normalize`, `file metadata`, `best of 12 tried`.
        tried: The table of candidates, best first.
        accuracy: Clean accuracy under the chosen normalization.
        notes: What was converted, resized or skipped.
        sha256: Digest of the pixels and labels used.
    """

    source: str
    images: int
    per_class: tuple[int, ...]
    labels_from: str
    class_names: tuple[str, ...]
    shape: Shape
    normalization: Normalization
    how: str
    tried: tuple[Tried, ...]
    accuracy: Rate
    notes: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Confidence:
    """A calibrated probability that the model is backdoored, its interval and its source."""

    value: float
    low: float
    high: float
    calibration: str


@dataclass(frozen=True)
class FamilyChance:
    """The calibrated probability that the model has a backdoor of one family of triggers."""

    family: str
    confidence: Confidence


@dataclass(frozen=True)
class RunRecord:
    """How a report came about: exact command, seed, device, time, versions."""

    command: str
    seed: int
    device: str
    seconds: float
    started: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything a reader of a scan needs, ready to be drawn.

    Attributes:
        label: The verdict on the file.
        reason: One or two sentences in words that say why.
        origin: The file and how it was opened.
        preparation: Images, normalization and sanity; None if the scan never got that far.
        verdicts: One a detector.
        checks: Findings that are not a detector's: sanity, file safety.
        not_covered: What was not looked for.
        next_steps: What to do now.
        confidence: None means uncalibrated.
        run: Command, seed, device, time and versions.
        families: The probability of each family of triggers, where several detectors were read
            together; likeliest first.
    """

    label: Label
    reason: str
    origin: Origin
    preparation: Preparation | None
    verdicts: tuple[Verdict, ...]
    checks: tuple[Finding, ...]
    not_covered: tuple[str, ...]
    next_steps: tuple[str, ...]
    confidence: Confidence | None
    run: RunRecord = RunRecord("", 0, "cpu", 0.0, "")
    families: tuple[FamilyChance, ...] = ()
