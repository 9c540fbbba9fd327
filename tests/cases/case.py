"""One situation, the command that meets it, and how it is judged."""

import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from gifthorse.cli.app import main; main()")
GIFT = ROOT / "examples" / "gift"
QUICK = (
    "--detector",
    "pixel_quick",
    "--set",
    "inverter.config.rounds=2",
    "--set",
    "inverter.config.min_rounds=1",
)
TRACES = ("Traceback (most recent call last)", "Segmentation fault", "core dumped")


@dataclass(frozen=True)
class Case:
    """One situation.

    Attributes:
        name: What the source calls it, such as `faults 1a` or `hostile 17`.
        fed: What is given to the tool, in words.
        right: What is right, in words.
        make: Builds the input in an empty folder and returns the arguments of `gifthorse`; the
            command runs in that folder.
        status: Exit statuses that are right. 1 means a finding and nothing else.
        says: Texts of which each must be printed, to stdout or stderr, whatever the line ends.
        never: Texts that must not be printed; tracebacks never are.
        seconds: The longest it may take.
        memory: The most memory in MB that any one process may have resident.
        leaves: Names in the folder that must exist afterwards.
        marker: A file that hostile code would write; its presence fails every case.
        world: What happens to the process while it runs, such as a signal; in a thread.
        environment: Further variables of the command.
        limits: Resource limits of the command, by `resource.RLIMIT_...`.
        check: Returns what else is wrong in the folder afterwards.
        spares: Beginnings of names that may stay in the temporary folder.
    """

    name: str
    fed: str
    right: str
    make: Callable[[Path], list[str]]
    status: tuple[int, ...]
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    seconds: float = 60.0
    memory: int = 2000
    leaves: tuple[str, ...] = ()
    marker: str = "owned"
    world: Callable[[Popen[bytes], Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    check: Callable[[Path], Iterable[str]] = lambda folder: ()
    spares: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a case did: its exit status, its text, seconds and peak memory of a process in MB."""

    status: int
    text: str
    seconds: float
    memory: int
    wrong: tuple[str, ...]


def play(case: Case) -> Outcome:
    """Run a case in a process of its own and judge it; `wrong` is empty where all is right."""
    with tempfile.TemporaryDirectory() as name:
        folder, spare = Path(name) / "case", Path(name) / "tmp"
        folder.mkdir()
        spare.mkdir()
        arguments = case.make(folder)
        start = time.monotonic()
        status, text, memory = _run(case, arguments, folder, spare)
        seconds = time.monotonic() - start
        wrong = _judge(case, folder, spare, status, " ".join(text.split()))
        wrong += [f"took {seconds:.0f} s"] if seconds > case.seconds else []
        wrong += [f"needed {memory} MB"] if memory > case.memory else []
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        return Outcome(status, text, seconds, memory, tuple(wrong))


def _limit(limits: Mapping[int, int]) -> None:
    for what, value in limits.items():
        resource.setrlimit(what, (value, value))


def _run(case: Case, arguments: list[str], folder: Path, spare: Path) -> tuple[int, str, int]:
    """Exit status (minus the signal, if one ended it), all text, and the peak memory in MB."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(spare),
        "OMP_NUM_THREADS": "1", "COLUMNS": "100",
        "TORCHINDUCTOR_CACHE_DIR": str(spare.parent / "inductor"), **case.environment,
    }  # fmt: skip
    with (spare.parent / "printed").open("w+b") as printed:
        process = Popen(
            [*COMMAND, *arguments], cwd=folder, env=environment, stdin=DEVNULL,
            stdout=printed, stderr=STDOUT, start_new_session=True,
            preexec_fn=partial(_limit, case.limits),
        )  # fmt: skip
        watch = threading.Timer(2 * case.seconds, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        if case.world is not None:
            threading.Thread(target=case.world, args=(process, folder), daemon=True).start()
        _, ended, used = os.wait4(process.pid, 0)
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(ended)
        printed.seek(0)
        text = printed.read().decode(errors="backslashreplace")
    return process.returncode, text, used.ru_maxrss // 1024


def _orphans(spare: Path) -> list[str]:
    """Return the command lines of processes that outlive the command; they have seconds to end."""
    for _ in range(20):
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(spare).encode() in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_text().replace("\0", " ")[:80])
        if not found:
            return []
        time.sleep(0.5)
    return found


def _judge(case: Case, folder: Path, spare: Path, status: int, text: str) -> list[str]:
    wrong = [] if status in case.status else [f"exit {status}"]
    wrong += [f"does not say {words!r}" for words in case.says if words not in text]
    wrong += [f"says {words!r}" for words in (*case.never, *TRACES) if words in text]
    wrong += [f"{name} is missing" for name in case.leaves if not (folder / name).exists()]
    wrong += ["hostile code ran"] if (folder / case.marker).exists() else []
    left = [path.name for path in spare.iterdir() if not path.name.startswith(case.spares or "/")]
    wrong += [f"left {name} in the temporary folder" for name in left]
    wrong += case.check(folder)
    wrong += [f"{name} is half written" for name in map(str, folder.rglob("*.part"))]
    wrong += [f"{words} still runs" for words in _orphans(spare)]
    return wrong
