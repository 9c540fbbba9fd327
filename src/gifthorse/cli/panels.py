"""Options in groups below `--help`: what goes in, what is done with it, what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any

from typer.core import TyperCommand
from typer.models import CommandInfo

# By the name of a parameter, which means the same in every command that has it.
_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "Model": "arch base model net part signer_key",
        "Images": "class_order data images input_size limit no_images normalize per_class split "
        "train_limit",
        "What is known": "against calibration kind place scan trigger truth",
        "Method": "all_pairs benign changes class_pairs classes detector distances fpr method "
        "most options points preset rounds self_test share source target",
        "Limits and machine": "budget device resume seed time_limit",
        "Many at once": "address cpus executor from_list gpus jobs memory only retry workers",
        "Records": "store",
        "Output": "dry_run exit_zero fail_on figure form interval name out output output_format "
        "papers report width",
        "Help": "help",
    }
)
PANELS: Mapping[str, str] = MappingProxyType(
    {name: panel for panel, names in _NAMES.items() for name in names.split()}
)


class Grouped(TyperCommand):
    """A command whose help shows its options in groups, in plain text as everything else is."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group that the command has an option of."""
        for title, rows in _sections(self.get_params(ctx), ctx):
            with formatter.section(title):
                formatter.write_dl(rows)


def _sections(parameters: Iterable[Any], context: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return titles with the lines below them, in the order of the table."""
    order = ("Arguments", *_NAMES)
    shown = [(_panel(p), p.get_help_record(context)) for p in parameters]
    rows = sorted((row for row in shown if row[1]), key=lambda row: order.index(row[0]))
    return [(t, [line for _, line in group]) for t, group in groupby(rows, key=lambda row: row[0])]


def _panel(parameter: Any) -> str:
    return "Arguments" if parameter.param_type_name == "argument" else PANELS[parameter.name]


def group(commands: Iterable[CommandInfo]) -> None:
    """Have the options of commands shown in groups."""
    for command in commands:
        command.cls = Grouped
