"""What the world does to a run: signals, full disks, little memory, files that change."""

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen, run

import numpy as np
from tests.cases.case import COMMAND, GIFT, QUICK, ROOT, Case

MODEL, IMAGES = str(GIFT / "gift.safetensors"), str(GIFT / "clean.npz")
LONG = ("--detector", "pixel", "--classes", "3-30", "--normalize", "gtsrb")
World = Callable[[Popen[bytes], Path], None]


def _until(there: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.1)


def _searching(folder: Path) -> None:
    """Wait until a scan with --resume state is under way."""
    _until(lambda: any((folder / "state").glob(".*.lock")))
    time.sleep(2)


def _early(number: int, seconds: float) -> World:
    def world(process: Popen[bytes], folder: Path) -> None:
        time.sleep(seconds)
        process.send_signal(number)

    return world


def _in_the_search(*numbers: int) -> World:
    def world(process: Popen[bytes], folder: Path) -> None:
        _searching(folder)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.3)

    return world


def _copied(folder: Path, *more: str) -> list[str]:
    shutil.copy(MODEL, folder / "m.safetensors")
    return ["scan", "m.safetensors", "--images", IMAGES, *LONG, "--resume", "state", *more]


def _goes_on(folder: Path) -> list[str]:
    """Resume with a short limit: the state that was kept must be taken."""
    again = [*COMMAND, *_copied(folder, "--time-limit", "1")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = run(again, cwd=folder, env=environment, capture_output=True, check=False)
    kept = list((folder / "state").glob("*.safetensors"))
    wrong = [] if done.returncode == 3 else [f"resuming exits with {done.returncode}"]
    return wrong + ([] if kept else ["nothing is kept"])


def _append(process: Popen[bytes], folder: Path) -> None:
    _searching(folder)
    with (folder / "m.safetensors").open("ab") as file:
        file.write(b"x")


def _vanish(process: Popen[bytes], folder: Path) -> None:
    _searching(folder)
    shutil.rmtree(folder / "rep")


def _second(process: Popen[bytes], folder: Path) -> None:
    _searching(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    other = run([*COMMAND, *_copied(folder)], cwd=folder, env=environment, stderr=PIPE, check=False)
    (folder / "second").write_text(f"{other.returncode} {other.stderr.decode()}")
    process.send_signal(signal.SIGTERM)


def _refused(folder: Path) -> list[str]:
    said = (folder / "second").read_text() if (folder / "second").exists() else "nothing"
    return [] if said.startswith("4") and "another run" in said else [f"the second said {said}"]


def _packed(folder: Path) -> str:
    with np.load(IMAGES) as stored:
        images, labels = stored["images"], stored["labels"]
    split = np.arange(len(labels)) % 2
    np.savez(folder / "set.npz", images=images, labels=labels, split=split)
    return "set.npz"


def _train(folder: Path) -> list[str]:
    return ["train", "--data", _packed(folder), "--net", "tiny", "-o", "out.safetensors",
            "--set", "epochs=4000", "--resume", "state"]  # fmt: skip


def _attack(folder: Path) -> list[str]:
    return ["attack", "badnet", "--data", _packed(folder), "--net", "tiny", "-o",
            "out.safetensors", "--set", "recipe.epochs=4000", "--resume", "state"]  # fmt: skip


def _trained(number: int) -> World:
    def world(process: Popen[bytes], folder: Path) -> None:
        _until(lambda: any((folder / "state").glob("*.safetensors")))
        process.send_signal(number)

    return world


def _bench(folder: Path) -> list[str]:
    _packed(folder)
    (folder / "p.toml").write_text(
        'profile = "smoke"\n[[grid]]\ndata = ["set.npz"]\nnets = ["tiny"]\n'
        'attacks = ["badnet"]\ndefenses = ["strip"]\nseeds = 9\n'
    )
    return ["bench", "run", "p.toml", "--workers", "2"]


def _named(folder: Path) -> list[str]:
    name = "größe \u202e\x1b[2J.safetensors"
    shutil.copy(MODEL, folder / name)
    return ["inspect", name, "gone \u202e\x1b[31m.pt"]


def _small(folder: Path) -> list[str]:
    return ["scan", MODEL, "--images", IMAGES, *QUICK]


def _unhurt(folder: Path) -> list[str]:
    return [f"{p.name} is left" for p in folder.glob("out*")]


PARTS = ("gifthorse-", "pymp-")  # of a process that could not tidy up: it was killed
EARLY = tuple(
    Case(f"hostile 59: signal {number} after {wait} s", "a signal at start-up or during imports",
         f"exit {128 + number}, no traceback", _small, (128 + number,), world=_early(number, wait),
         never=("Error",))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for wait in (0.5, 1.5, 3.0)
)  # fmt: skip

SEARCH = (
    *(
        Case(f"hostile 59: {name} in the search", "a signal while triggers are searched",
             "the step is ended, the state kept, the command to go on said", _copied,
             (128 + number,), ("the search is kept in state", "Go on with"), seconds=150,
             world=_in_the_search(number), check=_goes_on)
        for name, number in (("SIGINT", 2), ("SIGTERM", 15), ("SIGHUP", 1))
    ),
    Case("hostile 59: SIGTERM twice", "two signals", "stops at once", _copied, (143,), seconds=150,
         world=_in_the_search(15, 15)),
    Case("hostile 51: kill -9 in the search", "kill -9", "nothing half written, no orphan",
         _copied, (-9,), seconds=150, world=_in_the_search(9), spares=PARTS),
    Case("hostile 29", "a file that changes while it is scanned", "no pass for it",
         lambda folder: _copied(folder, "--time-limit", "15"), (1, 2), ("was changed while",),
         seconds=150, world=_append),
    Case("hostile 55", "an output folder that vanishes during the search",
         "the report is kept elsewhere",
         lambda folder: _copied(folder, "--time-limit", "15", "-o", "json=rep/r.json"), (2,),
         ("it is kept in",), seconds=150,
         world=_vanish, spares=("gifthorse-",)),
    Case("hostile 60: two runs on one state", "two scans with one --resume", "the second refuses",
         _copied, (143,), seconds=200, world=_second, check=_refused),
)  # fmt: skip

MAKING = tuple(
    Case(f"world: {what.__name__[1:]} and signal {number}", "a signal while a net is trained",
         "nothing half written, no orphan", what, (status,), seconds=150, world=_trained(number),
         check=_unhurt, spares=PARTS if number == 9 else ())
    for what in (_train, _attack)
    for number, status in ((15, 143), (9, -9))
)  # fmt: skip

REPAIR = tuple(
    Case(f"world: repair and signal {number} after {wait} s", "a signal while a net is repaired",
         "nothing half written, no orphan",
         lambda folder: ["repair", MODEL, "--images", IMAGES, "--normalize", "gtsrb", "-o",
                         "out.safetensors"], (status,), seconds=100, world=_early(number, wait),
         check=_unhurt, spares=PARTS if number == 9 else ())
    for number, status in ((15, 143), (9, -9))
    for wait in (8, 14)
)  # fmt: skip

BENCH = tuple(
    Case(f"hostile 52: bench and signal {number} after {wait} s", "a signal during bench run",
         "no orphan, nothing half written", _bench, (status,), seconds=100,
         world=_early(number, wait), spares=PARTS if number == 9 else ())
    for number, status, wait in ((9, -9, 8), (9, -9, 20), (15, 143, 25), (1, 129, 12))
)  # fmt: skip

RESOURCES = (
    *(
        Case(f"hostile 56: {size} MB", f"RLIMIT_AS of {size} MB", "a sentence, exit 2", _small,
             statuses, ("gifthorse",), limits={resource.RLIMIT_AS: size << 20})
        for size, statuses in ((200, (2,)), (600, (2,)), (1200, (2, 3)))
    ),
    Case("hostile 54: full disk", "no file may have more than 1 kB", "a sentence, exit 2", _small,
         (2,), ("gifthorse: ",), limits={resource.RLIMIT_FSIZE: 1024}),
    Case("hostile 54: full disk for the copy", "no file may have more than 200 kB",
         "a sentence, exit 2", lambda folder: [*_small(folder), "-o", "html=r.html", "-o",
         "json=r.json"], (2,), ("gifthorse: ",), limits={resource.RLIMIT_FSIZE: 200_000}),
    *(
        Case(f"hostile 67: {code or 'LC_ALL=C'}", "names with accents and escapes",
             "readable, inert", _named, (4,), ("weights only",), never=("\x1b", "\u202e"),
             environment={"PYTHONIOENCODING": code} if code else {
                 "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
        for code in ("ascii", "latin-1", "")
    ),
)  # fmt: skip

CASES = (*EARLY, *SEARCH, *MAKING, *REPAIR, *BENCH, *RESOURCES) if sys.platform == "linux" else ()
