"""What folders of static pages share: templates, the look, data for scripts, files kept as is."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from gifthorse.core.atomic import atomic


def write_page(path: Path, content: str) -> Path:
    """Write a file unless it is there with the same content; return its path."""
    raw = content.encode()
    if not path.is_file() or path.read_bytes() != raw:
        with atomic(path) as file:
            file.write(raw)
    return path


def embedded(data: object) -> str:
    """Return data as JSON that may stand in a script element: no character of it ends one."""
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def page(package: str, template: str, **values: Any) -> str:
    """Return a page from a template in the folder `pages` of a package."""
    return _environment(package).get_template(template).render(**values)


def part(package: str, name: str) -> str:
    """Return the text of a file in the folder `pages` of a package."""
    return files(package).joinpath("pages", name).read_text(encoding="utf-8")


@cache
def look() -> str:
    """Return the style of reports, and what pages of tables and maps have beyond it."""
    source = files("gifthorse.report").joinpath("look.html").read_text(encoding="utf-8")
    own: Any = (
        _environment("gifthorse.report")
        .from_string(source.partition("{% endset %}")[0] + "{% endset %}")
        .module
    )
    return str(own.css) + part("gifthorse.report", "board.css")


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: part(package, name)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = _soft
    return environment


def _soft(name: str) -> Markup:
    """Return a name that may be broken where its parts meet."""
    return Markup("<wbr>").join(re.split(r"(?<=[_.:/-])", str(name)))
