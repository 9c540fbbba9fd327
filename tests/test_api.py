"""The public face: sorted, complete, shown in use, quick to import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import gifthorse

INIT = Path(gifthorse.__file__)


def test_the_public_names_are_sorted_few_and_there() -> None:
    names = gifthorse.__all__
    assert names == sorted(names, key=lambda n: (not n.isupper(), n[0].islower(), n))
    assert len(names) == len(set(names)) <= 25
    assert set(names) == set(gifthorse._HOMES)
    for name in names:
        assert getattr(gifthorse, name) is not None
    assert set(names) <= set(dir(gifthorse))


def test_every_public_name_is_shown_in_use() -> None:
    words = ast.get_docstring(ast.parse(INIT.read_text())) or ""
    shown = "\n".join(line for line in words.splitlines() if ">>>" in line)
    for name in gifthorse.__all__:
        assert re.search(rf"\bgh\.{name}\b", shown), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(gifthorse, "nothing_of_the_kind")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import gifthorse, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
