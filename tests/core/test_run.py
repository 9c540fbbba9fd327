"""What surrounds a run: its limits, and the file that it can go on from."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.toys import blob_images, blobs
from torch import Generator, Tensor

from gifthorse.core.errors import UsageError
from gifthorse.core.run import Run, fingerprint
from gifthorse.core.types import Samples, Subject
from gifthorse.data.samples import InMemory
from gifthorse.search import SearchConfig

STATE = {
    "ints": torch.tensor([3, -1]),
    "flags": torch.tensor([[True], [False]]),
    "doubles": torch.tensor([0.1, float("inf")], dtype=torch.float64),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "scan.state"


# Limits ------------------------------------------------------------------------------------------


def test_without_limits_a_run_never_has_to_stop() -> None:
    run = Run()
    run.report(1, 2, "to nobody")
    run.charge(1e12)
    run.save(STATE)
    assert run.stop_reason == ""
    assert run.load() is None
    assert run.image_steps == 1e12


def test_a_run_must_stop_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = Run(seconds=60)
    assert run.stop_reason == ""
    now[0] = 159.9
    assert run.stop_reason == ""
    now[0] = 160.0
    assert run.stop_reason == "the time limit of 60 s is reached"


def test_a_run_must_stop_when_its_budget_is_spent() -> None:
    run = Run(budget=1500)
    run.charge(1000)
    run.charge(499.5)
    assert (run.image_steps, run.stop_reason) == (1499.5, "")
    run.charge(0.5)
    assert run.stop_reason == "the budget of 1,500 image-steps is spent"


def test_whoever_watches_is_told() -> None:
    heard: list[tuple[int, int, str]] = []
    run = Run(lambda done, total, words: heard.append((done, total, words)))
    run.report(3, 10, "3 of 10 done")
    assert heard == [(3, 10, "3 of 10 done")]


def test_views_of_a_run_count_together() -> None:
    run = Run(budget=10)
    keyed(run).checkpoint("search").charge(6)
    run.unkept.charge(4)
    assert run.image_steps == 10
    assert keyed(run).stop_reason == run.stop_reason != ""


def test_a_part_charges_the_whole_and_stops_with_it() -> None:
    whole = Run(budget=10)
    first, second = whole.part(), whole.part()
    assert whole.parts == [first, second]
    first.charge(7)
    assert (first.image_steps, second.image_steps, whole.image_steps) == (7, 0, 7)
    second.charge(3)
    assert first.stop_reason == second.stop_reason == whole.stop_reason


def test_a_part_is_not_stopped_before_the_whole_did_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Run(seconds=0)
    part = whole.part()
    assert whole.stop_reason
    assert part.stop_reason == ""  # else a run with a short limit would never get on
    part.charge(1)
    assert part.stop_reason
    monkeypatch.setattr(whole, "seconds", None)
    assert part.stop_reason  # once told to stop, a part has stopped


# The file ----------------------------------------------------------------------------------------


def keyed(run: Run, method: object = "one") -> Run:
    return run.keyed(method, blobs(), blob_images(2), Generator().manual_seed(0))


def kept(store: Path) -> Run:
    run = keyed(Run(store=store))
    run.save(STATE)
    return run


def equal(a: Mapping[str, Tensor] | None, b: Mapping[str, Tensor]) -> bool:
    assert a is not None
    alike = all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in b)
    return a.keys() == b.keys() and alike


def test_what_is_kept_comes_back_as_it_was(store: Path) -> None:
    kept(store)
    assert equal(keyed(Run(store=store)).load(), STATE)
    assert [p.name for p in store.parent.iterdir()] == [store.name]  # and nothing beside it


def test_a_state_of_strides_comes_back_too(store: Path) -> None:
    grid = torch.arange(12.0).view(3, 4)
    state = {"turned": grid.T, "part": grid[:, 1:3]}
    keyed(Run(store=store)).save(state)
    assert equal(keyed(Run(store=store)).load(), state)


def test_the_last_state_counts(store: Path) -> None:
    run = kept(store)
    newer = {k: v + v for k, v in STATE.items()}
    run.save(newer)
    assert equal(keyed(run).load(), newer)


def test_nothing_was_kept_yet(store: Path) -> None:
    assert keyed(Run(store=store)).load() is None


def test_a_view_that_keeps_nothing_leaves_the_file(store: Path) -> None:
    run = kept(store)
    run.unkept.save({})
    assert run.unkept.load() is None
    assert equal(keyed(run).load(), STATE)


def test_work_of_the_interrupted_run_counts_in_the_budget(store: Path) -> None:
    first = keyed(Run(store=store, budget=100))
    first.charge(70)
    first.save(STATE)
    second = keyed(Run(store=store, budget=100))
    assert second.image_steps == 70
    assert not second.stop_reason
    second.charge(30)
    assert second.stop_reason


def test_the_state_of_another_run_is_refused(store: Path) -> None:
    kept(store)
    run = Run(store=store)
    with pytest.raises(UsageError, match=r"scan\.state keeps another run: of another model"):
        keyed(run, "two")
    assert run.image_steps == 0
    assert equal(keyed(run).load(), STATE)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_damaged_file_is_refused(store: Path, cut: int) -> None:
    kept(store)
    store.write_bytes(store.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"scan\.state cannot be continued .*delete it"):
        keyed(Run(store=store))


@pytest.mark.parametrize("change", ["shape", "nan", "missing", "number", "steps", "digest", "pipe"])
def test_a_state_that_was_changed_is_refused(store: Path, change: str) -> None:
    kept(store)
    with safe_open(store, "pt") as file:
        claims = file.metadata()
    slots = load_file(store)
    state = torch.load(io.BytesIO(slots["run"].numpy().tobytes()), weights_only=True)
    state["ints"] = {"shape": torch.zeros(9), "nan": torch.tensor([torch.nan] * 2)}.get(change, 3)
    if change == "missing":
        del state["ints"]
    if change in ("shape", "nan", "missing", "number"):
        torch.save(state, out := io.BytesIO())
        slots["run"] = torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)
    save_file(slots, store, claims | {"steps": {"image_steps": "soon"}}.get(change, {}))
    if change == "digest":
        del claims["sha256"]
        save_file(slots, store, claims)
    if change == "pipe":
        store.unlink()
        os.mkfifo(store)
    with pytest.raises(UsageError, match=r"cannot be continued|is no file"):
        keyed(Run(store=store))


@pytest.mark.parametrize("content", [b"not a state at all", b"\xff" * 64])
def test_another_file_is_refused_and_stays(store: Path, content: bytes) -> None:
    store.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be continued"):
        keyed(Run(store=store))
    assert store.read_bytes() == content


def test_a_state_that_cannot_be_written_leaves_the_old_one(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(store)
    before = store.read_bytes()
    with pytest.raises(UsageError, match="cannot write"):
        keyed(Run(store=store.parent / "gone" / "scan.state")).save(STATE)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*scan\.state: no space left"):
        run.save({k: v + v for k, v in STATE.items()})
    assert store.read_bytes() == before
    assert [p.name for p in store.parent.iterdir()] == [store.name]


# The name of a run -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """Stands for a detector with options, some of them nested."""

    bar: float = 0.9
    config: SearchConfig = SearchConfig()


def name(
    method: object = Method(),
    subject: Subject | None = None,
    clean: Samples | None = None,
    seed: int = 0,
) -> str:
    rng = Generator().manual_seed(seed)
    return fingerprint(method, subject or blobs(), clean or blob_images(2), rng)


def test_the_same_run_has_the_same_name() -> None:
    assert name() == name()
    rng = Generator().manual_seed(0)
    before = rng.get_state()
    fingerprint(Method(), blobs(), blob_images(2), rng)
    assert torch.equal(rng.get_state(), before)  # to look is not to draw


def test_where_the_model_came_from_does_not_count() -> None:
    subject = blobs()
    moved = replace(subject, origin=replace(subject.origin, path="elsewhere", sha256="00"))
    assert name(subject=moved) == name()


def test_another_option_seed_weight_or_image_is_another_run() -> None:
    data = blob_images(2)
    pixels, labels = data.images.clone(), data.labels.clone()
    pixels[3, 0, 5, 5] ^= 1
    labels[3] = (labels[3] + 1) % data.classes
    weight, buffer = blobs(), blobs()
    with torch.no_grad():
        next(weight.net.parameters()).view(-1)[7] += 1e-6
    running = dict(buffer.net.named_buffers())
    next(b for k, b in running.items() if k.endswith("running_var"))[0] += 1e-6
    names = [
        name(),
        name(Method(bar=0.95)),
        name(Method(config=SearchConfig(lr=0.2))),
        name(seed=1),
        name(subject=weight),
        name(subject=buffer),
        name(clean=InMemory(pixels, data.labels, data.classes)),
        name(clean=InMemory(data.images, labels, data.classes)),
        name(clean=InMemory(data.images[:-1], data.labels[:-1], data.classes)),
    ]
    assert len(set(names)) == len(names)


def test_a_generator_that_has_moved_on_names_another_run() -> None:
    rng = Generator().manual_seed(0)
    torch.rand(1, generator=rng)
    assert fingerprint(Method(), blobs(), blob_images(2), rng) != name()
