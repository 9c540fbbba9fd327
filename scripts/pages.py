"""What `mkdocs` asks while it builds the site: pages from outside docs/, and where links lead.

make docs
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import gifthorse

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # files of the repository that are pages of the site
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
PICTURE = re.compile(r"(!\[[^\]]*\])\(docs/([^)\s]+)\)")
PROSE_OR_CODE = re.compile(r"((?:^# .*\n)+)|((?:^(?!# ).*\n)+)", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEAD = """\
# Public names

What `import gifthorse as gh` offers; what is promised of it is in [stability](stability.md).
`ATTACKS`, `DETECTORS`, `FILTERS`, `INVERTERS` and `REMEDIES` are dictionaries of
[methods](methods.md) by name; `NETS` and `PRESETS` are what `gifthorse list models` and
`gifthorse list presets` print.
"""


def drawn() -> list[Path]:
    """Return page and pictures of the gallery, if `make gallery` has made them."""
    folder = ROOT / "out" / "gallery"
    page = folder / "gallery.md"
    return [page, *sorted(folder.glob("*.png"))] if page.exists() else []


def on_config(config: Any) -> Any:
    """Put the gallery into the menu, if there is one."""
    if drawn():
        config.nav[0]["Start"].append({"Gallery": "gallery.md"})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/, and the one of public names."""
    from mkdocs.structure.files import File

    for name, page in ELSEWHERE.items():
        words = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=moved(words, "")))
    files.append(File.generated(config, "api.md", content=public_names()))
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        words = tutorial(path.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=words))
    for path in drawn():
        files.append(File.generated(config, path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links of a page that lies in docs/ to the site's pages."""
    if page.file.src_uri in (*ELSEWHERE.values(), "api.md", "gallery.md"):
        return markdown
    return moved(markdown, "docs")


def moved(markdown: str, folder: str) -> str:
    """Return a page's text with its links as they are on the site.

    A link to what is no part of the site becomes its words.

    Args:
        markdown: The page.
        folder: Where it lies in the repository.

    Example:
        >>> moved("[a](../README.md#two) [b](trust.md) [c](../examples)", "docs")
        '[a](overview.md#two) [b](trust.md) c'
        >>> moved("[a](docs/trust.md) [b](LICENSE) [c](#here) [d](https://x.org)", "")
        '[a](trust.md) b [c](#here) [d](https://x.org)'
    """

    def led(found: re.Match[str]) -> str:
        words, link = found.groups()
        if link.startswith(("#", "http:", "https:", "mailto:")):
            return found[0]
        target, mark, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(folder, target))
        there = ELSEWHERE.get(path) or path.removeprefix("docs/")
        on_site = path in ELSEWHERE or (path.startswith("docs/") and "." in path)
        return f"[{words}]({there}{mark}{anchor})" if on_site else words

    parts, end = [], 0
    for fence in [*FENCE.finditer(markdown), None]:
        text = markdown[end : fence.start() if fence else None]
        parts += [PICTURE.sub(r"\1(\2)", LINK.sub(led, text)), fence[0] if fence else ""]
        end = fence.end() if fence else end
    return "".join(parts)


def tutorial(script: str) -> str:
    """Return a script as a page: its docstring, its comments as prose, and its code."""
    _, words, code = script.split('"""', 2)
    title, _, about = words.partition("\n")
    parts = [f"# {title.rstrip('.')}", about.strip()]
    for comment, block in PROSE_OR_CODE.findall(code):
        prose, text = comment.replace("\n# ", "\n").removeprefix("# ").strip(), block.strip("\n")
        parts += [prose, f"```python\n{text}\n```" if text else ""]
    return "\n\n".join(filter(None, parts))


def public_names() -> str:
    """Return a page that has mkdocstrings draw every public name that is no dictionary."""
    parts = [HEAD]
    for name in gifthorse.__all__:
        if not name.isupper():
            found = getattr(gifthorse, name)
            parts.append(
                f"::: {found.__module__}.{found.__qualname__}\n    options:\n"
                f"      heading: gifthorse.{name}\n      toc_label: {name}\n"
            )
    return "\n".join(parts)
