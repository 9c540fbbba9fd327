"""Readers: what they may do, how they end, and what is believed of what they say."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gifthorse.core.errors import BadImages, UnreadableModel, UnsafeModel, UsageError
from gifthorse.core.isolated import kernel, readers, transport
from gifthorse.core.isolated.confinement import Limits, refuse

SMALL = Limits(256 << 20, 10.0)
Said = tuple[Any, list[Tensor]]


def ask(function: Callable[..., Said], *arguments: object, limits: Limits = SMALL) -> Said:
    return readers.call(function, arguments, what="the file", error=UnreadableModel, limits=limits)


# 1. Answers -----------------------------------------------------------------------------------


def tensors_of_all_kinds() -> Said:
    return {"é": [1, None, 2.5]}, [
        torch.arange(6.0).view(2, 3).t(),
        torch.tensor(True),
        torch.zeros(0, 3),
        torch.ones(3, dtype=torch.bfloat16),
    ]


def test_values_and_tensors_come_back() -> None:
    value, tensors = ask(tensors_of_all_kinds)
    want, made = tensors_of_all_kinds()
    assert value == want
    for tensor, like in zip(tensors, made, strict=True):
        assert tensor.dtype == like.dtype
        assert tensor.equal(like)
    tensors[0][0, 0] = 7  # its memory is the caller's own


def raises(kind: str, words: str) -> Said:
    raise {"unsafe": UnsafeModel, "usage": UsageError, "value": ValueError}[kind](words)


def test_errors_keep_their_kind() -> None:
    with pytest.raises(UnsafeModel, match="a net"):
        ask(raises, "unsafe", "a net")
    with pytest.raises(UsageError, match="a flag"):
        ask(raises, "usage", "a flag")
    with pytest.raises(UnreadableModel, match="cannot be read: ValueError: no") as caught:
        ask(raises, "value", "no")
    assert caught.value.rule == "FS003"


@pytest.mark.parametrize(
    ("told", "tensors"),
    [
        (b"", b""),
        (b"{", b""),
        (b"[]", b""),
        (b'{"value": 1}', b""),
        (b"[" * 100_000, b""),
        (json.dumps({"value": 1, "tensors": [["float32", [3], 0]]}).encode(), bytes(8)),
        (json.dumps({"value": 1, "tensors": [["float32", [-1], 0]]}).encode(), bytes(8)),
        (json.dumps({"value": 1, "tensors": [["float32", [2], -8]]}).encode(), bytes(8)),
        (json.dumps({"value": 1, "tensors": [["object", [1], 0]]}).encode(), bytes(8)),
        (json.dumps({"value": 1, "tensors": [["float32", [2**40, 2**40], 0]]}).encode(), b""),
    ],
)
def test_malformed_answers_are_not_believed(told: bytes, tensors: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(tensors + told + len(told).to_bytes(8, "little"))
        with pytest.raises(transport.BrokenAnswer):
            transport.read(file)


def test_an_answer_cut_off_anywhere_is_not_believed() -> None:
    whole = BytesIO()
    transport.write(whole, [1, 2], [torch.ones(3)])
    for end in range(len(whole.getvalue())):
        with tempfile.TemporaryFile() as file:
            file.write(whole.getvalue()[:end])
            with pytest.raises(transport.BrokenAnswer):
                transport.read(file)


# 2. Ends --------------------------------------------------------------------------------------


def sleeps() -> Said:
    time.sleep(60)
    return None, []


def spins() -> Said:
    while True:
        pass


def grows() -> Said:
    return len([bytearray(1 << 20) for _ in range(2000)]), []


def grows_in_torch() -> Said:
    return None, [torch.ones(2000, 1 << 20)]


def unfolds() -> Said:
    value: Any = ()
    for _ in range(200_000):
        value = (value,)
    return hash(value), []


def nests() -> Said:
    return nests()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (sleeps, r"longer than 0\.4 seconds"),
        (grows, "more memory than allowed"),
        (grows_in_torch, "more memory than allowed"),
        (unfolds, "SIGSEGV"),
        (nests, "nested too deeply"),
    ],
)
def test_what_exhausts_its_reader_is_a_finding(function: Callable[..., Said], words: str) -> None:
    limits = Limits(256 << 20, 0.1 if function is sleeps else 10)
    with pytest.raises(UnreadableModel, match=f"exhausts its reader: .*{words}") as caught:
        ask(function, limits=limits)
    assert caught.value.rule == "FS004"
    assert ask(tensors_of_all_kinds)[0]  # the next reader is not harmed


def test_processor_time_is_limited() -> None:
    with pytest.raises(UnreadableModel, match=r"exhausts its reader"):
        ask(spins, limits=Limits(256 << 20, 0.2))


PARENT = """
import sys, threading
sys.path[:0] = {path!r}
from tests.core.test_isolated import ask, sleeps, SMALL
from gifthorse.core.isolated import readers
from gifthorse.core.isolated.confinement import Limits
threading.Timer(0.0, ask, [sleeps], dict(limits=Limits(1 << 28, 60))).start()
while not readers._servers: pass
print(readers._servers[0].process.pid, flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_readers_end_with_their_caller(number: int, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(path=[str(root), str(root / "src")])],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        deadline = time.monotonic() + 30
        while not (below := children(server)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert below
        process.send_signal(number)
    while any(alive(pid) for pid in (server, *below)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in (server, *below))
    assert os.listdir(tmp_path) == []


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupted_call_leaves_no_server_out_of_step() -> None:
    assert ask(tensors_of_all_kinds)[0]
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        ask(sleeps)
    assert ask(tensors_of_all_kinds)[0]


def test_a_server_that_is_gone_is_started_again() -> None:
    assert ask(tensors_of_all_kinds)[0]
    readers._servers[0].process.kill()
    readers._servers[0].process.wait()
    assert ask(tensors_of_all_kinds)[0]


# 3. Rights ------------------------------------------------------------------------------------

ACTS: dict[str, Callable[[str], object]] = {
    "write": lambda p: Path(p, "new").write_text("x"),
    "append": lambda p: os.open(Path(p, "old"), os.O_APPEND | os.O_WRONLY),
    "os.open": lambda p: os.open(Path(p, "new"), os.O_WRONLY | os.O_CREAT),
    "truncate": lambda p: os.truncate(Path(p, "old"), 0),
    "mkdir": lambda p: os.mkdir(Path(p, "new")),
    "rmdir": lambda p: os.rmdir(Path(p, "folder")),
    "remove": lambda p: os.remove(Path(p, "old")),
    "rename": lambda p: os.rename(Path(p, "old"), Path(p, "new")),
    "replace": lambda p: os.replace(Path(p, "old"), Path(p, "new")),
    "link": lambda p: os.link(Path(p, "old"), Path(p, "new")),
    "symlink": lambda p: os.symlink(Path(p, "old"), Path(p, "new")),
    "mkfifo": lambda p: os.mkfifo(Path(p, "new")),
    "chmod": lambda p: os.chmod(Path(p, "old"), 0o777),
    "chown": lambda p: os.chown(Path(p, "old"), os.getuid(), os.getgid()),
    "utime": lambda p: os.utime(Path(p, "old")),
    "setxattr": lambda p: os.setxattr(Path(p, "old"), "user.x", b"x"),
    "rmtree": lambda p: shutil.rmtree(Path(p, "folder")),
    "copy": lambda p: shutil.copy(Path(p, "old"), Path(p, "new")),
    "read": lambda p: Path(p, "old").read_text(),
    "socket": lambda _: socket.socket(),
    "connect": lambda _: socket.create_connection(("127.0.0.1", 9), 1),
    "system": lambda p: os.system(f"touch {p}/new"),
    "popen": lambda p: subprocess.run(["touch", f"{p}/new"], check=False),
    "exec": lambda _: os.execv("/bin/true", ["true"]),
    "fork": lambda _: os.fork(),
    "spawn": lambda p: os.posix_spawn("/usr/bin/touch", ["touch", f"{p}/new"], {}),
    "kill": lambda _: os.kill(os.getppid(), 0),
    "pthread_kill": lambda _: signal.pthread_kill(threading.get_ident(), 0),
    "dlopen": lambda _: ctypes.CDLL("libm.so.6"),
    "setrlimit": lambda _: __import__("resource").setrlimit(4, (1, 1)),
}
BY_HOOK_ALONE = {"dlopen", "pthread_kill", "setrlimit"}


def does(act: str, place: str) -> Said:
    ACTS[act](place)
    return "done", []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "old").write_text("x")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize("act", ACTS)
def test_a_reader_may_do_nothing_but_read(act: str, place: Path) -> None:
    with pytest.raises(UnreadableModel, match="PermissionError"):
        ask(does, act, str(place))
    assert {path.name for path in place.iterdir()} == {"old", "folder"}
    assert (place / "old").read_text() == "x"


def reads(path: str) -> Said:
    return Path(path).read_text(), []


def test_it_reads_what_it_was_given(place: Path) -> None:
    given = {"what": "it", "error": BadImages, "limits": SMALL}
    for readable in ([str(place)], [str(place / "old")]):
        found = readers.call(reads, [str(place / "old")], readable=readable, **given)  # type: ignore[arg-type]
        assert found[0] == "x"
    (place / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadImages, match="PermissionError"):
        readers.call(reads, [str(place / "link")], readable=[str(place)], **given)  # type: ignore[arg-type]


KERNEL = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
import tests.core.test_isolated as t
from gifthorse.core.isolated import kernel
assert kernel.{call}
for act in {acts!r}:
    try:
        t.ACTS[act]({place!r})
    except OSError:
        continue
    print("allowed:", act)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux")
@pytest.mark.parametrize("what", ["landlock", "seccomp"])
def test_the_kernel_refuses_as_well_without_the_hook(what: str, place: Path) -> None:
    if what == "landlock" and not _has_landlock():
        pytest.skip("this kernel has no Landlock")
    beyond = {"chmod", "chown", "utime", "setxattr", "fork", "kill", "socket", "system", "popen"}
    ours = BY_HOOK_ALONE | (beyond if what == "landlock" else {"read", "pthread_kill"})
    acts = [act for act in ACTS if act not in ours | {"system", "rmtree"}]
    root = Path(__file__).parents[2]
    call = {"landlock": "landlock([])", "seccomp": "seccomp()"}[what]
    path = [str(root), str(root / "src")]
    text = KERNEL.format(path=path, call=call, acts=acts, place=str(place))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.stdout == "", done.stdout
    assert done.returncode == 0, done.stderr
    assert {path.name for path in place.iterdir()} == {"old", "folder"}


def _has_landlock() -> bool:
    assert kernel._LIBC is not None
    return int(kernel._LIBC.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), 1)) > 0


def test_readers_get_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert not {"SECRET", "PYTHONPATH", "USER", "HOME"} & set(readers.environment())


def test_the_hook_lets_importing_and_reading_pass() -> None:
    refuse("import", ("json", None), ())
    refuse("open", ("/etc/passwd", "r", os.O_RDONLY), ("/etc",))
    refuse("open", (3, "r", os.O_RDONLY), ())
    for event, args in (
        ("open", ("/etc/passwd", "r", os.O_RDONLY)),
        ("open", ("/etcetera", "w", os.O_WRONLY)),
        ("ctypes.dlopen", ("x",)),
        ("anything.new", ()),
    ):
        with pytest.raises(PermissionError):
            refuse(event, args, ("/etc/x", "/etce"))
