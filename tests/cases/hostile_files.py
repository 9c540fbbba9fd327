"""Files that are made to run something, to exhaust their reader, or to be two things at once."""

from __future__ import annotations

import json
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import torch
from tests.cases.case import GIFT, Case
from tests.models import hostile
from tests.models.hostile import Reduced, saved, span, text
from torch import nn

Make = Callable[[Path], object]  # writes the file that it is given

COMMAND = "touch owned"
PYTHON = "open('owned', 'w').close()"
GOOD = hostile.index(hostile.tensor((2, 3), (3, 1), 6))
NUMBERS = {"archive/data/0": bytes(24)}
IMAGES = ("--images", str(GIFT / "clean.npz"))

SAFE = "weights only"
COMMANDS = "dangerous: opening it as usual would run commands"
HOSTILE = "hostile"
CODE = "brings code"
DAMAGED = "damaged"
UNKNOWN = "not understood"


def _both(
    name: str,
    file: str,
    make: Make,
    *,
    safety: str,
    rule: str,
    status: int = 1,
    says: Iterable[str] = (),
    never: Iterable[str] = (),
    seconds: float = 40,
) -> tuple[Case, Case]:
    """The same file before `inspect`, which lists it, and `scan`, which must refuse it, too."""

    def given(*arguments: str, behind: tuple[str, ...] = ()) -> Callable[[Path], list[str]]:
        def build(folder: Path) -> list[str]:
            make(folder / file)
            return [*arguments, file, *behind]

        return build

    wrong = () if rule in ("FS001", "FS004", "FS006", "FS008") else ("Do not use this file",)
    inspected = Case(
        name=name,
        fed=f"inspect of {file}",
        right=f"{rule}, {safety}, exit {status}",
        make=given("inspect"),
        status=(status,),
        says=(safety, rule, *says),
        never=(*never, *wrong),
        seconds=seconds,
        memory=1200,
    )
    scanned = Case(
        name=f"{name}, scanned",
        fed=f"scan of {file}",
        right=f"{rule}, not scanned, exit 2",
        make=given("scan", behind=IMAGES),
        status=(2,),
        says=("NOT SCANNED", *says),
        never=(*never, *wrong, "NO BACKDOOR FOUND"),
        seconds=seconds,
        memory=1200,
    )
    return inspected, scanned


def _write(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def _zip(index: bytes, records: dict[str, bytes] | None = None, **options: int) -> Make:
    beside = NUMBERS if records is None else records
    return lambda path: hostile.torch_zip(path, index, beside, **options)


def _tensors(header: object, data: bytes = b"", *, length: int = -1) -> Make:
    return lambda path: hostile.safetensors(path, header, data, length=length)


# 1. Ways to run something ---------------------------------------------------------------------


def called(module: str, name: str, *texts: str) -> bytes:
    """Opcodes that call a function with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, texts)) + b"tR"


def stacked(module: str, name: str, *texts: str) -> bytes:
    """The same with the name from the stack, as protocol 4 has it; it may have dots."""
    return text(module) + text(name) + b"\x93(" + b"".join(map(text, texts)) + b"tR"


# One name of each family of advisories on scanners of pickles, and what it would be called with.
WAYS: dict[str, bytes] = {
    "os.system": called("os", "system", COMMAND),
    "posix.system": called("posix", "system", COMMAND),
    "nt.system": called("nt", "system", COMMAND),
    "os.popen": called("os", "popen", COMMAND),
    "subprocess.getoutput": called("subprocess", "getoutput", COMMAND),
    "subprocess.Popen": called("subprocess", "Popen", "touch", "owned"),
    "builtins.eval": called("builtins", "eval", PYTHON),
    "builtins.exec": called("builtins", "exec", PYTHON),
    "builtins.compile": called("builtins", "compile", PYTHON, "x", "exec"),
    "builtins.__import__": called("builtins", "__import__", "owned"),
    "builtins.open": called("builtins", "open", "owned", "w"),
    "builtins.getattr": called("builtins", "getattr", "a", "b"),
    "Python 2": called("__builtin__", "eval", PYTHON),
    "runpy": called("runpy", "run_path", "owned.py"),
    "importlib": called("importlib", "import_module", "owned"),
    "code": called("code", "InteractiveInterpreter"),
    "pty": called("pty", "spawn", COMMAND),
    "socket": called("socket", "create_connection", "localhost"),
    "ctypes": called("ctypes", "CDLL", "owned.so"),
    "shutil": called("shutil", "copyfile", "file.pt", "owned"),
    "webbrowser": called("webbrowser", "open", "file:owned"),
    "bdb": stacked("bdb", "Bdb.run", PYTHON),
    "pdb": called("pdb", "run", PYTHON),
    "timeit": called("timeit", "timeit", PYTHON),
    "cProfile": called("cProfile", "runctx", PYTHON),
    "profile": stacked("profile", "Profile.run", PYTHON),
    "trace": stacked("trace", "Trace.run", PYTHON),
    "doctest": called("doctest", "debug_script", PYTHON),
    "pydoc": called("pydoc", "pipepager", "x", COMMAND),
    "idlelib": stacked("idlelib.run", "Executive.runcode", PYTHON),
    "lib2to3": stacked("lib2to3.pgen2.grammar", "Grammar.loads", "x"),
    "ensurepip": called("ensurepip", "_run_pip", "x"),
    "pip": called("pip", "main", "install"),
    "venv": called("venv", "create", "owned"),
    "uuid": called("uuid", "_get_command_stdout", "touch", "owned"),
    "distutils": called("distutils.file_util", "write_file", "owned"),
    "asyncio": stacked("asyncio.unix_events", "_UnixSubprocessTransport._start", COMMAND),
    "imaplib": called("imaplib", "IMAP4_stream", COMMAND),
    "ssl": called("ssl", "get_server_certificate", "localhost"),
    "logging": called("logging", "FileHandler", "owned"),
    "pkgutil": called("pkgutil", "resolve_name", "os.system"),
    "functools.reduce": called("functools", "reduce", "x"),
    "attrgetter": called("operator", "attrgetter", "system"),
    "methodcaller": called("operator", "methodcaller", "system", COMMAND),
    "types": called("types", "FunctionType", "x"),
    "typing": called("typing", "get_type_hints", PYTHON),
    "dataclasses": called("dataclasses", "make_dataclass", "x"),
    "pickle": called("pickle", "loads", "x"),
    "marshal": called("marshal", "loads", "x"),
    "dill": called("dill", "loads", "x"),
    "joblib": called("joblib", "load", "owned"),
    "requests": called("requests", "get", "http://localhost"),
    "torch.hub": called("torch.hub", "load", "owned"),
    "torch.load": called("torch.serialization", "load", "owned"),
    "torch storage": called("torch.storage", "_load_from_bytes", "x"),
    "torch._inductor": called("torch._inductor.codecache", "compile_file", "x"),
    "torch._dynamo": stacked("torch._dynamo.guards", "GuardBuilder.get", PYTHON),
    "torch.jit": called("torch.jit.unsupported_tensor_ops", "execWrapper", PYTHON),
    "torch.utils": called("torch.utils.collect_env", "run", COMMAND),
    "torch.fx": called("torch.fx.graph_module", "reduce_graph_module", "x"),
    "torch.ops": called("torch.ops", "load_library", "owned.so"),
    "numpy.testing": called("numpy.testing._private.utils", "runstring", PYTHON),
    "numpy.f2py": called("numpy.f2py.crackfortran", "getlincoef", PYTHON),
    "through pathlib": stacked("pathlib", "os.system", COMMAND),
    "through argparse": stacked("argparse", "_os.system", COMMAND),
    "through torch": stacked("torch", "os.system", COMMAND),
    "a helper of nobody": stacked("my_nets", "tools.os.popen", COMMAND),
    "extension": b"\x82\x05" + text(COMMAND) + b"\x85R",
    "instance": b"(" + text(COMMAND) + b"ios\nsystem\n",
    "object": b"(cos\nsystem\n" + text(COMMAND) + b"o",
    "new object": b"cos\nsystem\n" + text(COMMAND) + b"\x85\x81",
    "partial": b"cfunctools\npartial\ncos\nsystem\n" + text(COMMAND) + b"\x86R)R",
    "a name of parts": text("system")
    + b"q\x00"
    + text("os")
    + b"h\x00\x93"
    + text(COMMAND)
    + b"\x85R",
}
RUN = WAYS["os.system"]

# The places in which a pickle may stand, each around the same call.
_FRAMED = b"\x80\x04\x95" + (len(RUN) + 1).to_bytes(8, "little") + RUN + b"."
PLACES: dict[str, tuple[str, Make]] = {
    "plain pickle": ("a.pkl", _write(b"\x80\x02" + RUN + b".")),
    "protocol 0": ("a.pkl", _write(RUN + b".")),
    "protocol 4, framed": ("a.pkl", _write(_FRAMED)),
    "a number first": ("a.pkl", _write(b"M\x01\x000" + RUN + b".")),
    "a text first": ("a.bin", _write(b"S'x'\n0" + RUN + b".")),
    "many thrown away first": ("a.bin", _write(b"N0" * 5000 + RUN + b".")),
    "a long text first": ("a.bin", _write(text("x" * 200_000) + b"0" + RUN + b".")),
    "an image by its name": ("a.png", _write(b"]0" + RUN + b".")),
    "safetensors by its name": ("a.safetensors", _write(b"\x80\x02" + RUN + b".")),
    "second pickle of a chain": ("a.pkl", _write(b"\x80\x02N.\x80\x02" + RUN + b".")),
    "legacy, first pickle": (
        "a.pt",
        _write(b"\x80\x02" + RUN + b"." + saved({}, _use_new_zipfile_serialization=False)),
    ),
    "legacy, state dict": (
        "a.pt",
        _write(
            saved({"fc.weight": torch.zeros(2, 3)}, _use_new_zipfile_serialization=False).replace(
                b"K\x00K\x02K\x03\x86", b"K\x00" + RUN + b"0K\x02K\x03\x86", 1
            )
        ),
    ),
    "data.pkl": ("a.pt", _zip(b"\x80\x02" + RUN + b".")),
    "data.pkl, thrown away": ("a.pt", _zip(b"\x80\x02" + RUN + b"0" + GOOD[2:])),
    "nested dict": ("a.pt", _zip(b"\x80\x02}X\x01\0\0\0a}X\x01\0\0\0b" + RUN + b"ss.")),
    "a key": ("a.pt", _zip(b"\x80\x02}" + RUN + b"K\x01s.")),
    "a state": ("a.pt", _zip(b"\x80\x02ccollections\nOrderedDict\n)R" + RUN + b"b.")),
    "arguments of a tensor": (
        "a.pt",
        _zip(hostile.index(b"ctorch._utils\n_rebuild_tensor_v2\n(" + RUN + b"tR")),
    ),
    "second pickle": ("a.pt", _zip(GOOD, {**NUMBERS, "archive/extra.pkl": RUN + b"."})),
    "a record": ("a.pt", _zip(GOOD, {**NUMBERS, "archive/data/1": RUN + b"."})),
    "a record, a number first": (
        "a.pt",
        _zip(GOOD, {**NUMBERS, "archive/data/1": b"M\x01\x000" + RUN + b"."}),
    ),
    "a record, far behind": (
        "a.pt",
        _zip(GOOD, {**NUMBERS, "archive/data/1": text("x" * 100_000) + b"0" + RUN + b"."}),
    ),
    "version": ("a.pt", _zip(GOOD, {**NUMBERS, "archive/byteorder": RUN + b"."})),
    "behind data.pkl": ("a.pt", _zip(GOOD + b"\x80\x02" + RUN + b".")),
    "broken tail": ("a.pkl", _write(b"\x80\x02" + RUN + b"\xff\xff")),
    "behind a fault": ("a.pkl", _write(b"\x80\x02\xff" + RUN + b".")),
    "cut off": ("a.pkl", _write(b"\x80\x02" + RUN)),
    "without arguments yet": ("a.pt", _zip(b"\x80\x02cos\nsystem\n")),
    "a program": ("a.pt", lambda path: _with_code(path)),
}


def _with_code(path: Path) -> None:
    """A TorchScript file with one more pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/extra.pkl", RUN + b".")


def _runs() -> Iterable[Case]:
    for name, way in WAYS.items():
        inspected, _ = _both(
            f"hostile 7: {name}",
            "file.pt",
            _zip(b"\x80\x04" + way + b"."),
            safety=COMMANDS,
            rule="FS001",
        )
        yield inspected
    for name, (file, make) in PLACES.items():
        yield from _both(f"hostile 6: {name}", file, make, safety=COMMANDS, rule="FS001")


# 2. Two files in one --------------------------------------------------------------------------


def _state(path: Path) -> bytes:
    hostile.torch_zip(path, GOOD, NUMBERS)
    data = path.read_bytes()
    path.unlink()
    return data


def _behind(front: bytes) -> Make:
    return lambda path: path.write_bytes(front + _state(path))


def _in_slack(path: Path) -> None:
    """A safetensors file whose last tensor is a zip archive."""
    inside = _state(path)
    hostile.safetensors(path, {"w": span(0, len(inside), (len(inside),), "U8")}, inside)


def _pickled_header(path: Path) -> None:
    """A safetensors file whose length begins a text of a pickle that ends among the numbers."""
    size, code = 0x156, b"\n0" + RUN + b"."  # V: a text up to the next line
    header = json.dumps({"w": span(0, len(code), (len(code),), "U8")}).encode().ljust(size)
    hostile.safetensors(path, header, code)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
_TWO: dict[str, tuple[str, Make]] = {
    "a zip behind a PNG": ("a.png", _behind(PNG)),
    "a zip behind a JPEG": ("a.pt", _behind(b"\xff\xd8\xff\xe0" + bytes(100))),
    "a zip behind text": ("a.pt", _behind(b"hello\n")),
    "a zip behind a pickle": ("a.pt", _behind(b"\x80\x02N.")),
    "a zip as a tensor": ("a.safetensors", _in_slack),
    "a zip behind safetensors": (
        "a.safetensors",
        lambda path: path.write_bytes(
            hostile.safetensors(path, {"w": span(0, 4, (1,))}, bytes(4)).read_bytes() + _state(path)
        ),
    ),
    "a zip behind ONNX": ("a.onnx", _behind(b"\x08\x07\x12\x07pytorch")),
    "a zip within a zip": (
        "a.pt",
        lambda path: path.write_bytes(_state(path) + _state(path)),
    ),
}


def _polyglots() -> Iterable[Case]:
    for name, (file, make) in _TWO.items():
        yield from _both(f"hostile 25: {name}", file, make, safety=HOSTILE, rule="FS008")


# 3. Bombs -------------------------------------------------------------------------------------


def _many(count: int, name: str) -> Make:
    def make(path: Path) -> None:
        header = {name.format(i): span(4 * i, 4 * i + 4, (1,)) for i in range(count)}
        hostile.safetensors(path, header, bytes(4 * count))

    return make


def _listed(count: int, name: str) -> Make:
    """The same, pickled."""

    def make(path: Path) -> None:
        one = hostile.tensor((2, 3), (3, 1), 6)
        items = b"".join(text(name.format(i)) + one for i in range(count))
        hostile.torch_zip(path, b"\x80\x02}(" + items + b"u.", NUMBERS)

    return make


BUSY = b"\x80\x02" + b"]0" * 499_000 + b"}."
_HUGE = 10**5000
_LONG = _HUGE.to_bytes(_HUGE.bit_length() // 8 + 1, "little")
LONG4 = b"\x8b" + len(_LONG).to_bytes(4, "little") + _LONG

BOMBS: dict[str, tuple[str, Make, str, str, int]] = {
    "15: stride 0": (
        "a.pt",
        _zip(hostile.index(hostile.tensor((10**6, 10**6), (0, 0), 1)), {"archive/data/0": bytes(4)}),
        "FS004", HOSTILE, 1,
    ),
    "16: deflated": (
        "a.pt",
        _zip(
            hostile.index(hostile.tensor((5_000_000,), (1,), 5_000_000)),
            {"archive/data/0": bytes(20_000_000)},
            method=zipfile.ZIP_DEFLATED,
        ),
        "FS004", HOSTILE, 1,
    ),
    "18: a million names": ("a.safetensors", _many(1_000_000, "n{}"), "FS004", HOSTILE, 1),
    "18: nested 500,000 deep": ("a.pt", _zip(b"\x80\x02)" + b"\x85" * 500_000 + b"."), "FS004", HOSTILE, 1),
    "18: nested by sharing": (
        "a.pt",
        _zip(
            b"\x80\x02]("
            + b"".join(
                (b"]" if k == 0 else b"h" + bytes([k - 1])) + b"\x85" * 90 + b"q" + bytes([k])
                for k in range(100)
            )
            + b"e."
        ),
        "FS004", HOSTILE, 1,
    ),
    "19: billion laughs": ("a.pt", _zip(hostile.laughs(30)), "FS004", HOSTILE, 1),
    "19: doubled": ("a.pt", _zip(hostile.doubled(60)), "FS004", HOSTILE, 1),
    "19: a shared tuple, hashed": (
        "a.pt",
        _zip(hostile.index(b"cnumpy\ndtype\n)" + b"2\x86" * 95 + b"\x85R")),
        "FS004", HOSTILE, 1,
    ),
    "19: a shared tuple as a key": (
        "a.pt",
        _zip(b"\x80\x02})" + b"2\x86" * 95 + b"K\x01s."),
        "FS004", HOSTILE, 1,
    ),
    "19: eight pickles": (
        "a.pt",
        lambda path: hostile.torch_zip(path, BUSY, {f"archive/{i}.pkl": BUSY for i in range(7)}),
        "FS004", HOSTILE, 1,
    ),
    "19: records like pickles": (
        "a.pt",
        lambda path: hostile.torch_zip(
            path, GOOD, {**NUMBERS, **{f"archive/data/{i}": b"(" * 1000 for i in range(1, 5000)}}
        ),
        "FS004", HOSTILE, 1,
    ),
    "19: long names from the memo": (
        "a.pt",
        _zip(
            b"\x80\x02" + text("a" * 10**6) + b"q\x00" + text("b") + b"q\x010"
            + b"h\x00h\x01\x930" * 5000 + b"}."
        ),
        "FS001", COMMANDS, 1,
    ),
    "integer of 5,000 digits": (
        "a.pt", _zip(b"\x80\x02}I" + b"9" * 5000 + b"\nK\x01s."), "FS004", HOSTILE, 1,
    ),
    "integer of 5,000 digits, binary": (
        "a.pt", _zip(b"\x80\x02}" + LONG4 + b"K\x01s."), "FS004", HOSTILE, 1,
    ),
    "integer of 5,000 digits as a size": (
        "a.safetensors",
        _tensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'),
        "FS003", DAMAGED, 2,
    ),
}  # fmt: skip


def _bombs() -> Iterable[Case]:
    for name, (file, make, rule, safety, status) in BOMBS.items():
        title = f"hostile {name}"
        yield from _both(title, file, make, safety=safety, rule=rule, status=status, seconds=20)


def _large(name: str, file: str, make: Make) -> Case:
    """A file that is long and honest: it is listed in little time."""

    def build(folder: Path) -> list[str]:
        make(folder / file)
        return ["inspect", file]

    return Case(
        name=name, fed=f"inspect of {file}", right="listed, exit 0 or a refusal", make=build,
        status=(0, 1), seconds=20, memory=1200,
    )  # fmt: skip


LARGE = (
    _large("hostile 18: 20,000 tensors", "a.safetensors", _many(20_000, "layer{}.weight")),
    _large("hostile 18: 20,000 tensors, pickled", "a.pt", _listed(20_000, "layer{}.weight")),
    _large("hostile 18: one long prefix", "a.safetensors", _many(25_000, "module." * 100 + "n{}")),
    _large("hostile 18: one long prefix, pickled", "a.pt", _listed(20_000, "x." * 100 + "n{}")),
    _large("hostile 18: whole names differ", "a.safetensors", _many(40_000, "a{0}.b{0}.c{0}")),
)


# 4. Damaged, deceitful, malformed -------------------------------------------------------------

ONE = {"w": span(0, 4, (1,))}
TWICE = (
    b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)


def _cut(share: float) -> Make:
    data = saved({"fc.weight": torch.zeros(20, 3)})
    return _write(data[: int(len(data) * share)])


def _flipped(path: Path) -> None:
    data = bytearray(saved({"fc.weight": torch.arange(600.0).view(20, 30)}))
    at = data.index(torch.arange(600.0).numpy().tobytes()[400:480])
    data[at] ^= 1
    path.write_bytes(data)


def _named(*names: str) -> Make:
    return _zip(GOOD, {**NUMBERS, **dict.fromkeys(names, b"x")})


FILES: dict[str, tuple[str, Make, str, str, int, str]] = {
    "2: empty": ("a.pt", _write(b""), "FS003", DAMAGED, 2, "empty"),
    "3: text": ("a.pt", _write(b"hello"), "FS003", DAMAGED, 2, "not a model"),
    "3: one byte": ("a.pt", _write(b"\x08"), "FS003", DAMAGED, 2, "not a model"),
    "4: cut at 30 %": ("a.pt", _cut(0.3), "FS003", DAMAGED, 2, "truncated"),
    "4: cut at 95 %": ("a.pt", _cut(0.95), "FS003", DAMAGED, 2, "truncated"),
    "5: a flipped bit": ("a.pt", _flipped, "FS003", DAMAGED, 2, "checksum"),
    "11: whole module": ("a.pt", _write(saved(nn.Linear(2, 2))), "FS002", CODE, 1, "whole pickled"),
    "17: record too short": (
        "a.pt", _zip(GOOD, {"archive/data/0": bytes(20)}), "FS003", DAMAGED, 2, "24 bytes",
    ),
    "17: record too long": (
        "a.pt", _zip(GOOD, {"archive/data/0": bytes(28)}), "FS003", DAMAGED, 2, "24 bytes",
    ),
    "20: length": ("a.safetensors", _tensors(ONE, length=2**40), "FS003", DAMAGED, 2, "claims"),
    "20: not UTF-8": ("a.safetensors", _tensors(b'{"\xff":1}'), "FS003", DAMAGED, 2, "UTF-8"),
    "20: overlap": (
        "a.safetensors",
        _tensors({"w": span(0, 8, (2,)), "v": span(4, 12, (2,))}, bytes(12)),
        "FS003", DAMAGED, 2, "overlap",
    ),
    "20: overflow": (
        "a.safetensors", _tensors({"w": span(0, 4, (2**62, 4))}), "FS003", DAMAGED, 2, "shape",
    ),
    "20: overflow with a zero": (
        "a.safetensors", _tensors({"w": span(0, 0, (2**40, 2**40, 0))}), "FS003", DAMAGED, 2, "shape",
    ),
    "20: half a surrogate": (
        "a.safetensors",
        _tensors(b'{"__metadata__":{"a":"\\ud800"},' + json.dumps(ONE).encode()[1:], bytes(4)),
        "FS003", DAMAGED, 2, "JSON",
    ),
    "20: a header that begins with a space": (
        "a.safetensors", _tensors(b" " + json.dumps(ONE).encode(), bytes(4)), "FS003", DAMAGED, 2,
        "JSON",
    ),
    "20: NaN in the metadata": (
        "a.safetensors",
        _tensors(b'{"__metadata__":{"a":NaN},' + json.dumps(ONE).encode()[1:], bytes(4)),
        "FS003", DAMAGED, 2, "JSON",
    ),
    "21: names twice": ("a.safetensors", _tensors(TWICE, bytes(4)), "FS003", DAMAGED, 2, "twice"),
    "23: a path out": ("a.pt", _named("archive/../../x"), "FS006", HOSTILE, 1, "forbidden name"),
    "23: absolute": ("a.pt", _named("/etc/x"), "FS006", HOSTILE, 1, "forbidden name"),
    "23: colliding": ("a.pt", _named("archive/Version"), "FS006", HOSTILE, 1, "forbidden name"),
    "23: escapes in a name": ("a.pt", _named("archive/\x1b[2J"), "FS006", HOSTILE, 1, "forbidden"),
    "24: newer version": (
        "a.pt", lambda path: _versioned(path, b"99\n"), "FS009", UNKNOWN, 2, "version",
    ),
    "24: order of bytes": (
        "a.pt", _zip(GOOD, {**NUMBERS, "archive/byteorder": b"middle"}), "FS009", UNKNOWN, 2, "order",
    ),
}  # fmt: skip


def _versioned(path: Path, version: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", GOOD), ("version", version), ("data/0", bytes(24))):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _files() -> Iterable[Case]:
    for name, (file, make, rule, safety, status, words) in FILES.items():
        yield from _both(
            f"hostile {name}", file, make, safety=safety, rule=rule, status=status, says=(words,)
        )


def _tar(path: Path) -> None:
    data = saved({"fc.weight": torch.zeros(2, 3)})
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = len(data)
        archive.addfile(info, BytesIO(data))


def _reduced(path: Path) -> None:
    import os

    path.write_bytes(pickle.dumps({"a": [Reduced(os.system, COMMAND)]}, protocol=5))


CASES = (
    *_runs(),
    *_both("hostile 6: by pickle itself", "a.bin", _reduced, safety=COMMANDS, rule="FS001"),
    *_polyglots(),
    *_both(
        "hostile 25: a pickle that is also safetensors", "a.safetensors", _pickled_header,
        safety=COMMANDS, rule="FS008",
    ),
    *_both(
        "hostile 25: a tar is no polyglot", "weights.tar", _tar, safety=UNKNOWN, rule="FS009",
        status=2, says=("a tar archive", "unpack"), never=("polyglot", "hidden"),
    ),
    *_bombs(),
    *LARGE,
    *_files(),
)  # fmt: skip
