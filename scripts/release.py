"""Make what a release consists of, and try it: sdist, wheel, bill of materials, checksums.

python scripts/release.py -o dist

The wheel is built twice, in other folders, time zones and file permissions, and must come out the
same to the bit; then it is unpacked into an empty folder, where `gifthorse doctor` must pass.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OURS = uuid.uuid5(uuid.NAMESPACE_URL, "gifthorse/release")
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
# How the second build differs from the first, in what must not matter.
HERE = {"TZ": "UTC", "PYTHONHASHSEED": "0", "UMASK": "022"}
ELSEWHERE = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "UMASK": "077"}


def build(out: Path, world: Mapping[str, str]) -> list[Path]:
    """Build the sdist, and the wheel from it; return both.

    Files carry the time of the last commit, or `SOURCE_DATE_EPOCH` if it is set.

    Raises:
        subprocess.CalledProcessError: If it cannot be built.
    """
    env = {"SOURCE_DATE_EPOCH": epoch(), **os.environ, **world}
    # Not isolated: what builds is pinned by constraints.txt, and nothing is fetched.
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    _run(words, env=env, umask=int(world["UMASK"], 8))
    return sorted(p for p in out.iterdir() if p.name.endswith((".whl", ".tar.gz")))


def epoch() -> str:
    """Return the time of the last commit in seconds, or of a fixed day outside a repository."""
    asked = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or "1767225600"


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def attempt(wheel: Path) -> str:
    """Unpack a wheel into an empty folder and let `gifthorse doctor` try itself; return its words.

    Dependencies are those of the Python that runs this; the package is the wheel's alone.

    Raises:
        subprocess.CalledProcessError: If it cannot be unpacked, or the self-test fails.
    """
    with tempfile.TemporaryDirectory(prefix="gifthorse-release-") as name:
        there = Path(name, "site")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        _run([*pip, "--disable-pip-version-check", "--target", str(there), str(wheel)])
        paths = filter(None, (str(there), os.environ.get("PYTHONPATH")))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NO_COLOR": "1"}
        command = [sys.executable, str(there / "bin" / "gifthorse")]
        version = _run([*command, "--version", "--verbose"], env=env, cwd=name)
        if str(there) not in "".join(version.split()):  # a table folds what is long
            raise ValueError(f"the wheel was not what ran, but:\n{version}")
        return _run([*command, "doctor", "--device", "cpu"], env=env, cwd=name)


def bill(wheel: Path) -> dict[str, Any]:
    """Return a CycloneDX 1.6 bill of what the wheel needs to run, without extras.

    Versions are those that are installed here, which `constraints.txt` pins.
    """
    version = wheel.name.split("-")[1]
    own = {
        **_component("gifthorse", version, "MIT"),
        "type": "application",
        "hashes": [{"alg": "SHA-256", "content": digest(wheel)}],
    }
    needs = _closure(_declared())
    parts = {name: _installed(name) for name in sorted(needs)}
    refs = {name: part["bom-ref"] for name, part in parts.items()}
    edges = {own["bom-ref"]: _names(_declared()), **{refs[n]: needs[n] for n in parts}}
    content = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": list(parts.values()),
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(refs[name] for name in names)}
            for ref, names in edges.items()
        ],
    }
    number = uuid.uuid5(OURS, json.dumps(content, sort_keys=True))
    return {**content, "serialNumber": f"urn:uuid:{number}"}


def _declared() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[str] = tomllib.load(file)["project"]["dependencies"]
    return found


def _closure(lines: list[str]) -> dict[str, list[str]]:
    """Return each package that these requirements lead to, with those that it needs itself."""
    needs: dict[str, list[str]] = {}
    waiting = _names(lines)
    while waiting:
        name = waiting.pop()
        if name not in needs:
            needs[name] = _names(metadata.requires(name) or [])
            waiting += needs[name]
    return needs


def _names(lines: list[str]) -> list[str]:
    """Return the packages that requirements ask for here, without extras."""
    asked = [Requirement(line) for line in lines]
    here = [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return sorted({re.sub(r"[-_.]+", "-", r.name).lower() for r in here})


def _installed(name: str) -> dict[str, Any]:
    about = metadata.metadata(name)
    told = about.get_all("License-Expression") or [""]
    return _component(name, about["Version"], told[0])


def _component(name: str, version: str, license: str) -> dict[str, Any]:
    ref = f"pkg:pypi/{name}@{quote(version)}"
    told = {"licenses": [{"expression": license}]} if license else {}
    return {
        "type": "library",
        "bom-ref": ref,
        "name": name,
        "version": version,
        "purl": ref,
        **told,
    }


def _run(words: list[str], **how: Any) -> str:
    done = subprocess.run(  # noqa: S603 - our interpreter and arguments, no shell
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **how
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
    told: str = done.stdout
    return told


def release(out: Path) -> list[Path]:
    """Make everything, tried, in a folder; return the files.

    Raises:
        ValueError: If two builds differ.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gifthorse-release-") as name:
        again = [digest(path) for path in build(Path(name), ELSEWHERE)]
    made = build(out, HERE)
    for path, other in zip(made, again, strict=True):
        if digest(path) != other:
            raise ValueError(f"{path.name} is not reproducible: {digest(path)} and {other}")
    wheel = next(path for path in made if path.suffix == ".whl")
    print(attempt(wheel))
    sbom = out / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
    sbom.write_text(json.dumps(bill(wheel), indent=1) + "\n", encoding="utf-8")
    sums = out / "SHA256SUMS"
    sums.write_text("".join(f"{digest(p)}  {p.name}\n" for p in (*made, sbom)), encoding="utf-8")
    return [*made, sbom, sums]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "dist", help="an empty folder")
    for path in release(parser.parse_args().out):
        print(f"{path.stat().st_size:>10,}  {digest(path)}  {path.name}")
