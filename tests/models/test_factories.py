"""Nets from a stranger's own file: dataclasses, neighbors, arguments, and what it raises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from gifthorse.core.errors import BadOption
from gifthorse.models.architectures import build

NET = "    return nn.Sequential(nn.Flatten(), nn.Linear(12, {}))\n"


def ends(net: nn.Module) -> tuple[int, int]:
    (layer,) = (m for m in net.modules() if isinstance(m, nn.Linear))
    return layer.out_features, layer.in_features


def written(folder: Path, body: str, name: str = "own.py") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"from __future__ import annotations\nfrom torch import nn\n{body}")
    return f"{path}:net"


@pytest.mark.parametrize(
    "name", ["num_classes", "n_classes", "classes", "nclass", "nb_classes", "numClasses", "n_cls"]
)
def test_the_number_of_classes_goes_by_many_names(tmp_path: Path, name: str) -> None:
    arch = written(tmp_path, f"def net({name}):\n{NET.format(name)}")
    assert ends(build(arch, 7))[0] == 7


def test_wrappers_of_torch_are_taken_off(tmp_path: Path) -> None:
    body = f"def inner():\n{NET.format(3)}def net():\n    return nn.DataParallel(inner())\n"
    arch = written(tmp_path, body)
    assert list(build(arch, 3).state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("layer", ["nn.LazyLinear(3)", "nn.Linear(12, 3, device='meta')"])
def test_a_net_without_numbers_is_refused(tmp_path: Path, layer: str) -> None:
    arch = written(tmp_path, f"def net():\n    return nn.Sequential({layer})\n")
    with pytest.raises(BadOption, match=r"without numbers in 0\.weight"):
        build(arch, 3)


def test_what_is_passed_on_is_called_as_most_call_it(tmp_path: Path) -> None:
    arch = written(
        tmp_path,
        f"def inner(num_classes=10):\n{NET.format('num_classes')}"
        "def net(pretrained=False, **kwargs):\n    return inner(**kwargs)\n",
    )
    assert ends(build(arch, 7))[0] == 7


def test_a_dataclass_with_postponed_annotations_finds_its_module(tmp_path: Path) -> None:
    body = "from dataclasses import dataclass\n@dataclass\nclass Config:\n    width: int = 12\n"
    arch = written(tmp_path, f"{body}def net():\n{NET.format(5)}")
    assert ends(build(arch, 7)) == (5, 12)


@pytest.mark.parametrize(
    ("line", "package"),
    [("from layers_near import head", False), ("from .layers_near import head", False),
     ("from .layers_near import head", True), ("import layers_near as m; head = m.head", False)],
)  # fmt: skip
def test_a_file_imports_its_neighbors(tmp_path: Path, line: str, package: bool) -> None:
    folder = tmp_path / f"place{package:d}{len(line)}"
    folder.mkdir()
    if package:
        (folder / "__init__.py").touch()
    written(folder, "head = nn.Linear(12, 5)\n", "layers_near.py")
    arch = written(folder, f"{line}\ndef net():\n    return nn.Sequential(nn.Flatten(), head)\n")
    before = list(sys.path)
    assert ends(build(arch, 7)) == (5, 12)
    assert sys.path == before
    sys.modules.pop("layers_near", None)


def test_a_module_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, f"def net():\n{NET.format(5)}", "nets_here.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert ends(build("nets_here:net", 7)) == (5, 12)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys\nsys.exit(0)\n", r"cannot import .* it called exit\(0\)"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(own.py, line 3\)"),
        ("def net(:\n", "SyntaxError"),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def net():\n    raise SystemExit\n", r"could not make a net: it called exit\(None\)"),
        ("def net():\n    return [][0]\n", "IndexError"),
        ("def net():\n    return net()\n", "RecursionError"),
        ("def net(width, depth):\n    pass\n", "needs width, depth, which is not known here"),
        ("def net():\n    return 3\n", r"made a int; expected a torch\.nn\.Module"),
        ("other = 3\n", "has no function 'net'"),
    ],
)
def test_whatever_it_does_wrong_is_one_sentence(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(BadOption, match=words):
        build(written(tmp_path, body), 7)


def test_a_function_of_the_system_is_no_net() -> None:
    with pytest.raises(BadOption, match="needs command"):
        build("os:system", 7)


def test_a_net_itself_will_do(tmp_path: Path) -> None:
    assert ends(build(written(tmp_path, "net = nn.Linear(12, 5)\n"), 7)) == (5, 12)
