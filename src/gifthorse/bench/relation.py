"""All records of a bench as one relation, read by DuckDB where they lie; nothing is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gifthorse.bench.store import SCHEMA, Store
from gifthorse.core.errors import UsageError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger("gifthorse")

CHUNK = 10_000  # records that are held as text at once

# Where the columns stand in a record, and their types; a figure that is called like one of these
# gets `figure_` before. Figures come between the first and the last.
_COLUMNS = {
    "key": ("$.key", "varchar"),
    "data": ("$.cell.data", "varchar"),
    "net": ("$.cell.net", "varchar"),
    "seed": ("$.cell.seed", "bigint"),
    "attack": ("$.cell.attack.name", "varchar"),
    "attack_label": ("$.cell.attack.label", "varchar"),
    "defense": ("$.cell.defense.name", "varchar"),
    "defense_family": ("$.cell.defense.family", "varchar"),
    "defense_label": ("$.cell.defense.label", "varchar"),
    "status": ("$.status", "varchar"),
    "error": ("$.error", "varchar"),
    "seconds": ("$.times.seconds", "double"),
    "started": ("$.times.started", "timestamptz"),
    "peak_memory": ("$.times.peak_memory", "bigint"),
}
_REST = {"command": ("$.command", "varchar")} | {
    name: (f"$.{name}", "json")
    for name in ("words", "times", "cell", "figures", "models", "versions", "machine")
}
_EVERY = _COLUMNS | _REST

_NUMBER = """
create temp macro number(said) as case
    when json_type(said) not in ('VARCHAR', 'ARRAY', 'OBJECT', 'NULL')
        and abs(try_cast(said as double)) < 1e300 then try_cast(said as double) end
"""


@contextmanager
def frame(store: Store, keys: Collection[str] | None = None) -> Iterator[DuckDBPyConnection]:
    """Lend a database in memory whose one table, `records`, has a row a record; see `query`.

    Args:
        store: Where the records are.
        keys: Of the records to read, in the order of the rows; None reads all there are.

    Raises:
        UsageError: If DuckDB is not installed, or a record is damaged.
    """
    try:
        import duckdb  # late: an extra, and slow
    except ImportError as error:
        line = "pip install 'gifthorse[bench]'"
        raise UsageError(f"records are read by DuckDB, which is not installed: {line}") from error

    # Neither extensions from the network nor variables of this program that are called like tables.
    closed = ("autoinstall_known_extensions", "autoload_known_extensions")
    config: dict[str, Any] = dict.fromkeys((*closed, "python_enable_replacements"), "false")
    with duckdb.connect(":memory:", config=config) as con:
        try:
            _fill(con, store, keys)
            _widen(con)
        except (duckdb.Error, UnicodeDecodeError) as error:
            for _ in store.records():  # says which record is damaged
                continue
            raise UsageError(f"the records of {store.root} cannot be read: {error}") from error
        con.execute(_NUMBER)
        yield con


def _fill(con: DuckDBPyConnection, store: Store, keys: Collection[str] | None) -> None:
    """Fill a table with this version's records, of each what `_SHAPE` names, in chunks."""
    import numpy as np

    read = 0
    files = {Path(name).stem: name for name in store.names("records") if name.endswith(".json")}
    names = [files[key] for key in dict.fromkeys(files if keys is None else keys) if key in files]
    paths = [path for path, _ in _EVERY.values()]
    for start in range(0, max(1, len(names)), CHUNK):
        found = [store.read(name) for name in names[start : start + CHUNK]]
        texts = [content.decode() for content in found if content is not None]
        con.register("chunk", {"text": np.array(texts, dtype=object)})
        how = "insert into raw" if start else "create table raw as"
        said = "select json_extract_string(text, $1) as said from chunk"
        ours = "where coalesce(json_extract_string(text, '$.schema'), $2) = $2"  # or damaged
        con.execute(f"{how} {said} {ours}", [paths, str(SCHEMA)])
        con.unregister("chunk")
        read += len(texts)
    kept = con.execute("select count(*) from raw").fetchone()
    if others := read - (kept[0] if kept else 0):
        log.warning(
            "%s keeps %d records that another version of gifthorse wrote; they are left out here: "
            "run the bench again to have their cells judged anew",
            store.root,
            others,
        )


def _widen(con: DuckDBPyConnection) -> None:
    """Make the table `records`: a column for everything fixed and for every figure there is."""
    import duckdb

    places = {name: f"said[{n}]" for n, name in enumerate(_EVERY, 1)}
    typed = {name: f"try_cast({places[name]} as {kind})" for name, (_, kind) in _EVERY.items()}
    for name in (name for name, (_, kind) in _REST.items() if kind == "json"):
        typed[name] = f"case json_type({typed[name]}) when 'OBJECT' then {typed[name]} end"
    typed["started"] = f"timezone('UTC', {typed['started']})"
    found = con.execute(
        f"select distinct unnest(json_keys({places['figures']})) from raw"  # noqa: S608 - ours
    ).fetchall()
    # Column names have no case: of two that are alike the first has it, both are in `figures`.
    columns = {}
    for (name,) in sorted(found, reverse=True):
        column = f"figure_{name}" if name.casefold() in _EVERY else name
        columns[column.casefold()] = (name, column)
    figures = sorted(columns.values())
    wanted = [f"{typed[name]} as {name}" for name in _COLUMNS]
    wanted += [f"f.{_quoted(name)} as {_quoted(column)}" for name, column in figures]
    wanted += [f"{typed[name]} as {name}" for name in _REST]
    shape = json.dumps({name: "DOUBLE" for name, _ in figures} or {"none": "DOUBLE"})
    con.execute(
        f"create table records as select {', '.join(wanted)} from "  # noqa: S608 - ours or quoted
        f"(select *, json_transform({places['figures']}, ?) as f from raw)",
        [shape],
    )
    con.execute("drop table raw")
    for wrong, words in (
        ("not coalesce(regexp_full_match(key, '[0-9a-f]{8,64}'), false)",
         "have no key: a record's key must be hexadecimal digits"),
        ("seed is null", "name no cell: delete them, and resume"),
    ):  # fmt: skip
        bad = con.execute(f"select key from records where {wrong}").fetchall()  # noqa: S608 - ours
        if bad:
            raise duckdb.DataError(f"{len(bad)} {words}; got {bad[0][0]!r:.80}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
