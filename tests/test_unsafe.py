"""Nothing in the package can run what a file says: read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gifthorse"
FILES = sorted(SOURCE.rglob("*.py"))

# Calls by their last names, or by their full ones.
FORBIDDEN = {
    *("eval", "exec", "__import__", "os.system", "os.popen", "subprocess.getoutput", "execfile"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load"),
    *("marshal.load", "marshal.loads", "cloudpickle.load", "cloudpickle.loads", "shelve.open"),
    *("torch.jit.load", "torch.export.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load"),
    *("runpy.run_path", "runpy.run_module", "code.interact", "jsonpickle.decode"),
}
# Flags by the value that they must have where they are given; `torch.load` must give its one.
FLAGS = {"weights_only": "True", "allow_pickle": "False", "shell": "False"}


def faults(tree: ast.AST) -> Iterator[str]:
    """What a source does that opens a way to run what a file says."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            front = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {a.asname or a.name: front + a.name for a in node.names}
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        first, _, rest = called.partition(".")
        full = names.get(first, first) + (f".{rest}" if rest else "")
        if full in FORBIDDEN:
            yield f"{node.lineno}: {full}"
        flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
        yield from (
            f"{node.lineno}: {full}({flag}={flags[flag]})"
            for flag, right in FLAGS.items()
            if flag in flags and flags[flag] != right
        )
        if full == "torch.load" and "weights_only" not in flags:
            yield f"{node.lineno}: torch.load without weights_only"
        if full in ("numpy.load", "np.load") and "allow_pickle" not in flags:
            yield f"{node.lineno}: {full} without allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_unsafe_way_to_open_a_file_exists(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "from pickle import loads as read\nread(b)",
        "import pickle as p\np.load(f)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "eval(t)",
        "import os\nos.system(t)",
        "from os import system\nsystem(t)",
        "import subprocess\nsubprocess.run(t, shell=True)",
    ],
)
def test_unsafe_ways_are_found(text: str) -> None:
    assert len(list(faults(ast.parse(text)))) == 1
