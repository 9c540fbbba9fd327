"""What the bytes of a model file say before anything in it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO
from zipfile import ZipFile

from gifthorse.core.errors import UnreadableModel, UnsafeModel
from gifthorse.core.types import Finding, Severity
from gifthorse.models.graphs.graph import Graph
from gifthorse.models.reading import archives, keras_files, legacy, onnx_files
from gifthorse.models.reading.blocks import without_code
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.files import ENDINGS, size_of, sniff_stream
from gifthorse.models.reading.headers import header
from gifthorse.models.reading.opcodes import Trace, trace
from gifthorse.models.reading.pickles import Contents, Layer, weights
from gifthorse.models.reading.ratings import (
    WHAT_TO_DO,
    Import,
    brought,
    objects_alone,
    refuse_code,
    refuse_danger,
    what_code,
)
from gifthorse.models.reading.stance import GRAVITY
from gifthorse.models.reading.strangers import (
    HEAD,
    INDEX,
    PAGE,
    POINTER,
    UNPACK,
    listed,
    stranger,
    zipped,
)

SWELL = 16  # how often larger than its file a checkpoint may be once written out in full
SLACK = 64 << 20
INERT = "inert"  # the reader for files whose pickles bring code
CALLS = 100  # different ones that are listed
NAMED = 8  # that are named in words

SEVERITIES: Mapping[str, Severity] = {"FS001": "CRITICAL", "FS007": "LOW"}  # all others HIGH

_PROTOCOL = 5  # the newest of the pickle format that Python knows
_CODE = {
    "torchscript": "a TorchScript program",
    "pt2": "a torch.export program",
}
_TAIL = (1 << 16) + 22  # bytes of a file in which zip readers look for the end of an archive
_ZIPPED = ("pytorch", "torchscript", "pt2", "keras", "zip", "empty")


@dataclass(frozen=True)
class Survey:
    """What the bytes of a file say, with nothing in it run.

    Attributes:
        kind: As of `sniff`.
        findings: What speaks against opening it.
        imports: Names that its pickles ask for.
        entries: Leaves of the checkpoint, as far as they can be listed.
        metadata: Cleaned texts of a safetensors header.
        records: Names of a zip's records.
        full: Bytes of all tensors once written out in full.
        inert: Whether its pickles ask for more than tensors, so that they are read by their opcodes
            and nothing that they name is imported or called.
        layers: What the stubs of its modules show.
        calls: What a careless loader would run, and how often; the 100 most frequent.
        graph: The net as the file itself describes it; None where it holds tensors alone.
        beside: Name of a file of the same folder that holds numbers of its tensors; empty if none.
    """

    kind: str
    findings: tuple[Finding, ...] = ()
    imports: tuple[Import, ...] = ()
    entries: tuple[CheckpointEntry, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    full: int = 0
    inert: bool = False
    layers: tuple[Layer, ...] = ()
    calls: Mapping[str, int] = field(default_factory=dict)
    graph: Graph | None = None
    beside: str = ""

    @property
    def reader(self) -> str:
        """Which reader of `child.tensors` is for it: its kind, or `INERT`."""
        return INERT if self.inert else self.kind


def survey(stream: IO[bytes], name: str) -> Survey:
    """Read all that an open file's bytes tell; nothing is run or unpickled, no numbers inflated.

    Args:
        stream: The file.
        name: Its name, for the ending alone.
    """
    size, ending = size_of(stream), Path(name).suffix.lower()
    kind = "unknown"
    try:
        kind = sniff_stream(stream, size, ending)
        found = _surveyed(stream, size, kind)
    except UnreadableModel as error:
        found = Survey(kind, (finding(error),))
    usual = ENDINGS.get(found.kind)
    if usual and ending and ending not in usual:
        text = f"the name ends in {shown(ending)!r}, but the content is {found.kind}"
        note = finding(UnreadableModel(text, rule="FS007"))
        found = replace(found, findings=(*found.findings, note))
    return found


def _surveyed(stream: IO[bytes], size: int, kind: str) -> Survey:
    try:
        found = _SURVEYS[kind](stream, size, kind)
    except UnreadableModel as error:
        found = Survey(kind, (finding(error),))
    if kind in _ZIPPED:
        return found
    return replace(found, findings=(*found.findings, *_second_face(stream, size, kind)))


def finding(error: UnreadableModel) -> Finding:
    """Turn an error into what a report shows."""
    rule = error.rule or "FS003"
    return Finding(rule, SEVERITIES.get(rule, "HIGH"), 1.0, str(error))


def refusal(found: Survey) -> UnreadableModel | None:
    """Return the gravest reason not to open a surveyed file; None if it may be opened."""
    grave = [f for f in found.findings if f.severity in ("CRITICAL", "HIGH")]
    if not grave:
        return None
    worst = min(grave, key=lambda f: GRAVITY.index(f.rule))
    kind = UnsafeModel if worst.rule in ("FS001", "FS002") else UnreadableModel
    mismatch = [f.message for f in found.findings if f.rule == "FS007"]
    return kind("; ".join((worst.message, *mismatch)), rule=worst.rule)


def _second_face(stream: IO[bytes], size: int, kind: str) -> tuple[Finding, ...]:
    """Return what else a file is: by its end a zip archive, by its beginning a pickle.

    An archive that holds other files as they are, such as a tar, may end like one of them.
    """
    stream.seek(0)
    if UNPACK in stranger(stream.read(HEAD)):
        return ()
    found = []
    if _ends_as_zip(stream, size):
        text = "a zip archive is hidden at the end of a file of another kind"
        found.append(finding(UnreadableModel(text, rule="FS008")))
    if kind in ("safetensors", "onnx"):
        stream.seek(0)
        names, _ = archives.hidden(stream, "the file")
        found += _caught(lambda: refuse_code(tuple(names)))
        if found and names:
            text = f"the file is {kind} to one reader and a pickle to another"
            found.append(finding(UnreadableModel(text, rule="FS008")))
    return tuple(found)


def _ends_as_zip(stream: IO[bytes], size: int) -> bool:
    """Whether a reader that looks for a zip archive from its end finds one."""
    stream.seek(max(0, size - _TAIL))
    tail = stream.read(_TAIL)
    at = tail.rfind(archives.END)
    while at >= 0:
        if archives.is_end(tail[at:], size - len(tail) + at):
            return True
        at = tail.rfind(archives.END, 0, at)
    return False


def _caught(*checks: Callable[[], object]) -> tuple[Finding, ...]:
    """Run independent checks and return what they object to."""
    found = []
    for check in checks:
        try:
            check()
        except UnreadableModel as error:
            found.append(finding(error))
    return tuple(found)


def _survey_zip(stream: IO[bytes], size: int, kind: str) -> Survey:
    with archives.directory(stream, size) as archive:
        infos = archive.infolist()
        records = tuple(shown(i.orig_filename) for i in infos[:1000])
        found = _imports(archive)
        findings = found.findings + _caught(lambda: archives.check_names(infos))
        if kind in ("pytorch", "torchscript") and archives.index_name(archive):
            findings += _caught(lambda: archives.check_layout(stream, archive, size))
            # Only a plain layout makes sure that summing up inflates nothing.
            findings = findings or _caught(lambda: archives.check_sums(archive))
        else:
            findings += (finding(_program(kind, archive)),)
        found = replace(found, kind=kind, findings=findings, records=records)
        return found if findings else _listed(found, partial(archives.index, archive), size)


def _imports(archive: ZipFile) -> Survey:
    found: tuple[Import, ...] = ()
    try:
        found = archives.pickled(archive)
        refuse_danger(found)
    except UnreadableModel as error:
        return Survey("", (finding(error),), found)
    return Survey("", (), found)


def _listed(
    found: Survey, read: Callable[[Callable[[Trace, str], Contents]], Contents], size: int
) -> Survey:
    """Add what an index lists, or the reason why it is refused."""
    code = _brings(found)
    try:
        listed = read(without_code if code else weights)
        if listed.largest > SWELL * size + SLACK:
            raise UnreadableModel(
                f"its tensors would take {listed.largest:,} bytes written out, from a file of "
                f"{size:,}: a bomb, or tensors expanded from one number; save them contiguous",
                rule="FS004",
            )
        if code and all(entry.shape is None for entry in listed.entries):
            raise UnsafeModel(f"the file {code}. {WHAT_TO_DO}", rule="FS002")
    except UnreadableModel as error:
        return replace(found, findings=(*found.findings, finding(error)))
    found = replace(found, entries=listed.entries, full=listed.largest)
    if not code:
        return found
    calls = {shown(name): count for name, count in list(listed.calls.items())[:CALLS]}
    found = replace(found, inert=True, layers=listed.layers, calls=calls)
    return replace(found, findings=(*found.findings, _unjudged(code, found)))


def _brings(found: Survey) -> str:
    """Say what a file brings beside weights; empty if nothing."""
    if found.kind in _CODE:
        return f"is {_CODE[found.kind]}, which brings its own code"
    return brought(found.imports)


def _unjudged(code: str, found: Survey) -> Finding:
    """Return what a report says of code that was left alone."""
    if objects_alone(found.imports) and found.kind not in _CODE:
        return Finding("FS002", "LOW", 1.0, f"read without making them: the file {code}")
    programs = [name for name in found.records if name.endswith(".py")]
    what = f"{_CODE[found.kind]} of {len(programs)} code files" if programs else None
    told = [f"{name} ({count})" for name, count in found.calls.items()][:NAMED]
    more = f" and {len(found.calls) - NAMED} more" if len(found.calls) > NAMED else ""
    words = (
        f"read without running its code; the code itself was not judged: the file "
        f"holds {what or what_code(found.imports)}. "
        f"A careless loader would have run {', '.join(told) or 'code'}{more}"
    )
    return Finding("FS002", "MEDIUM", 1.0, words)


def _program(kind: str, archive: ZipFile) -> UnreadableModel:
    if kind not in _CODE:
        return _named(*zipped(archive))
    return UnsafeModel(
        f"the file is {_CODE[kind]}: it brings its own code, so it is not run. {WHAT_TO_DO}",
        rule="FS002",
    )


def _named(what: str, advice: str) -> UnreadableModel:
    if what in (PAGE, POINTER):
        text = f"the file is not a model: it is {what}: {advice}"
        return UnreadableModel(text, rule="FS003")
    return UnreadableModel(
        f"the file is {what}, not a safetensors file or a state dict written by torch.save: "
        f"{advice}",
        rule="FS009",
    )


def _survey_legacy(stream: IO[bytes], size: int, _: str) -> Survey:
    """Survey what torch.save wrote before version 1.6: five pickles, then the numbers."""
    stream.seek(0)
    data = stream.read(archives.PICKLE)
    names, _count = archives.chained(data, "the file")
    found = Survey("legacy", imports=tuple(dict.fromkeys(names)))
    findings = _caught(lambda: refuse_danger(found.imports))
    first = trace(BytesIO(data))
    if not findings and first.result != legacy.MAGIC:
        findings = _caught(lambda: refuse_code(found.imports)) or (finding(_other_pickle(first)),)
    if findings:
        return replace(found, findings=findings)
    return _listed(found, lambda read: legacy.index(stream, size, read)[0], size)


def _other_pickle(first: Trace) -> UnreadableModel:
    if first.protocol > _PROTOCOL:
        return UnreadableModel(
            f"the file is a pickle of protocol {first.protocol}, newer than any that is known "
            "here: save it again with torch.save's default, best as safetensors",
            rule="FS009",
        )
    return first.fault or _foreign_pickle()


def _foreign_pickle() -> UnsafeModel:
    text = f"the file is a pickle that torch.save did not write. {WHAT_TO_DO}"
    return UnsafeModel(text, rule="FS002")


def _survey_safetensors(stream: IO[bytes], size: int, _: str) -> Survey:
    found = header(stream, size)
    return Survey("safetensors", (), (), found.entries, found.metadata, full=size)


def _survey_onnx(stream: IO[bytes], _size: int, kind: str) -> Survey:
    told = onnx_files.parse(stream)
    found = Survey(kind, entries=told.entries, metadata=told.metadata, full=told.full)
    return replace(found, graph=told.graph, beside=told.beside)


def _survey_keras(stream: IO[bytes], size: int, kind: str) -> Survey:
    told = keras_files.parse(stream, kind)
    if told.full > SWELL * size + SLACK:
        raise UnreadableModel(
            f"its tensors would take {told.full:,} bytes written out, from a file of {size:,}: a "
            "bomb; save them without compression",
            rule="FS004",
        )
    found = Survey(kind, entries=told.entries, metadata=told.metadata, full=told.full)
    return replace(found, graph=told.graph)


def _survey_empty(_stream: IO[bytes], _size: int, kind: str) -> Survey:
    text = "the file is empty: the download failed, or nothing was saved"
    return Survey(kind, (finding(UnreadableModel(text, rule="FS003")),))


def _survey_unknown(stream: IO[bytes], size: int, kind: str) -> Survey:
    stream.seek(0)
    head = stream.read(HEAD)
    what, advice = stranger(head)
    stream.seek(0)
    if not what and head.lstrip()[:1] in (b"{", b"["):
        what, advice = listed(stream.read(INDEX))
        stream.seek(0)
    if what:
        return Survey(kind, (finding(_named(what, advice)),))
    names, _ = archives.hidden(stream, "the file")
    findings = _caught(lambda: refuse_code(tuple(names)))
    stream.seek(0)
    if not findings and size <= archives.PICKLE and trace(stream).fault is None:
        whole = stream.tell() == size
        findings = (finding(_foreign_pickle()),) if whole else ()
    text = "the file is not a model; expected safetensors or a state dict written by torch.save"
    error = UnreadableModel(text, rule="FS003")
    return Survey("legacy" if findings else kind, findings or (finding(error),), tuple(names))


_SURVEYS: Mapping[str, Callable[[IO[bytes], int, str], Survey]] = {
    "safetensors": _survey_safetensors,
    "legacy": _survey_legacy,
    "onnx": _survey_onnx,
    "keras": _survey_keras,
    "hdf5": _survey_keras,
    "empty": _survey_empty,
    "unknown": _survey_unknown,
    **dict.fromkeys(("pytorch", "torchscript", "pt2", "zip"), _survey_zip),
}
