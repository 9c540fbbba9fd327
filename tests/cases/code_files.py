"""Files that are made to run something when they are opened as usual: none leaves its marker."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from tests.cases.hostile_files import (
    COMMAND,
    COMMANDS,
    GOOD,
    NUMBERS,
    RUN,
    Make,
    Right,
    both,
    write,
    zipped,
)
from tests.models import hostile
from tests.models.hostile import Reduced, saved, text
from torch import nn

PYTHON = "open('owned', 'w').close()"


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

# The places in which a pickle may stand, each around the same call.
_FRAMED = b"\x80\x04\x95" + (len(RUN) + 1).to_bytes(8, "little") + RUN + b"."
PLACES: dict[str, tuple[str, Make]] = {
    "plain pickle": ("a.pkl", write(b"\x80\x02" + RUN + b".")),
    "protocol 0": ("a.pkl", write(RUN + b".")),
    "protocol 4, framed": ("a.pkl", write(_FRAMED)),
    "a number first": ("a.pkl", write(b"M\x01\x000" + RUN + b".")),
    "a text first": ("a.bin", write(b"S'x'\n0" + RUN + b".")),
    "many thrown away first": ("a.bin", write(b"N0" * 5000 + RUN + b".")),
    "a long text first": ("a.bin", write(text("x" * 200_000) + b"0" + RUN + b".")),
    "an image by its name": ("a.png", write(b"]0" + RUN + b".")),
    "safetensors by its name": ("a.safetensors", write(b"\x80\x02" + RUN + b".")),
    "second pickle of a chain": ("a.pkl", write(b"\x80\x02N.\x80\x02" + RUN + b".")),
    "legacy, first pickle": (
        "a.pt",
        write(b"\x80\x02" + RUN + b"." + saved({}, _use_new_zipfile_serialization=False)),
    ),
    "legacy, state dict": (
        "a.pt",
        write(
            saved({"fc.weight": torch.zeros(2, 3)}, _use_new_zipfile_serialization=False).replace(
                b"K\x00K\x02K\x03\x86", b"K\x00" + RUN + b"0K\x02K\x03\x86", 1
            )
        ),
    ),
    "data.pkl": ("a.pt", zipped(b"\x80\x02" + RUN + b".")),
    "data.pkl, thrown away": ("a.pt", zipped(b"\x80\x02" + RUN + b"0" + GOOD[2:])),
    "nested dict": ("a.pt", zipped(b"\x80\x02}X\x01\0\0\0a}X\x01\0\0\0b" + RUN + b"ss.")),
    "a key": ("a.pt", zipped(b"\x80\x02}" + RUN + b"K\x01s.")),
    "a state": ("a.pt", zipped(b"\x80\x02ccollections\nOrderedDict\n)R" + RUN + b"b.")),
    "arguments of a tensor": (
        "a.pt",
        zipped(hostile.index(b"ctorch._utils\n_rebuild_tensor_v2\n(" + RUN + b"tR")),
    ),
    "second pickle": ("a.pt", zipped(GOOD, {**NUMBERS, "archive/extra.pkl": RUN + b"."})),
    "a record": ("a.pt", zipped(GOOD, {**NUMBERS, "archive/data/1": RUN + b"."})),
    "a record, a number first": (
        "a.pt",
        zipped(GOOD, {**NUMBERS, "archive/data/1": b"M\x01\x000" + RUN + b"."}),
    ),
    "a record, far behind": (
        "a.pt",
        zipped(GOOD, {**NUMBERS, "archive/data/1": text("x" * 100_000) + b"0" + RUN + b"."}),
    ),
    "version": ("a.pt", zipped(GOOD, {**NUMBERS, "archive/byteorder": RUN + b"."})),
    "behind data.pkl": ("a.pt", zipped(GOOD + b"\x80\x02" + RUN + b".")),
    "broken tail": ("a.pkl", write(b"\x80\x02" + RUN + b"\xff\xff")),
    "behind a fault": ("a.pkl", write(b"\x80\x02\xff" + RUN + b".")),
    "cut off": ("a.pkl", write(b"\x80\x02" + RUN)),
    "without arguments yet": ("a.pt", zipped(b"\x80\x02cos\nsystem\n")),
    "a program": ("a.pt", lambda path: _with_code(path)),
}


def _with_code(path: Path) -> None:
    """A TorchScript file with one more pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/extra.pkl", RUN + b".")


def _reduced(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [Reduced(os.system, COMMAND)]}, protocol=5))


CASES = (
    *(
        both(
            f"hostile 7: {name}", "a.pt", zipped(b"\x80\x04" + way + b"."), Right(COMMANDS, "FS001")
        )[0]
        for name, way in WAYS.items()
    ),
    *(
        case
        for name, (file, make) in PLACES.items()
        for case in both(f"hostile 6: {name}", file, make, Right(COMMANDS, "FS001"))
    ),
    *both("hostile 6: by pickle itself", "a.bin", _reduced, Right(COMMANDS, "FS001")),
)
