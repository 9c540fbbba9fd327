"""SQL over the records of a bench, read by DuckDB where they lie; nothing is kept or changed."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gifthorse.bench.store import Store
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EVERYTHING = "select * from records order by data, net, attack_label, defense_label, seed, key"
CHUNK = 10_000  # records that are held as text at once
FORMATS = {".parquet": "parquet, compression zstd", ".csv": "csv, header"}

# What of a record becomes columns; a figure that is called like one of these gets `figure_` before.
SHAPE = {
    "key": "VARCHAR",
    "cell": {
        "data": "VARCHAR",
        "net": "VARCHAR",
        "seed": "BIGINT",
        "attack": {"name": "VARCHAR", "label": "VARCHAR"},
        "defense": {"family": "VARCHAR", "name": "VARCHAR", "label": "VARCHAR"},
    },
    "status": "VARCHAR",
    "error": "VARCHAR",
    "times": {"seconds": "DOUBLE", "started": "VARCHAR", "peak_memory": "BIGINT"},
    "command": "VARCHAR",
    "figures": "JSON",
    "words": "JSON",
}
NUMERIC = {"BIGINT", "INTEGER", "HUGEINT", "DOUBLE", "FLOAT"}
FIXED = {
    "key": "r.key",
    "data": "r.cell.data",
    "net": "r.cell.net",
    "seed": "r.cell.seed",
    "attack": "r.cell.attack.name",
    "attack_label": "r.cell.attack.label",
    "defense": "r.cell.defense.name",
    "defense_family": "r.cell.defense.family",
    "defense_label": "r.cell.defense.label",
    "status": "r.status",
    "error": "r.error",
    "seconds": "r.times.seconds",
    "started": "timezone('UTC', try_cast(r.times.started as timestamptz))",
    "peak_memory": "r.times.peak_memory",
}
JSONS = {
    "command": "r.command",
    "words": "r.words",
    "times": "times",
    "cell": "cell",
    "figures": "r.figures",
}


@dataclass(frozen=True)
class Result:
    """What a query answers.

    Attributes:
        columns: Their names.
        types: DuckDB's names of their types.
        rows: One tuple a row.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def query(store: Store, sql: str, keys: Collection[str] | None = None) -> Result:
    """Answer one SQL question about a store.

    There is one table, `records`, with a row a record: `key`, `data`, `net`, `seed`, `attack`,
    `attack_label`, `defense`, `defense_family`, `defense_label`, `status`, `error`, `seconds`,
    `started` (UTC), `peak_memory`, every figure that any record has as a column of its own (what
    is not a number is null), and the rest: `command`, and as JSON `words`, `times`, `cell` and
    `figures`. Attack and defense are null where there is none. The question reaches no other
    table, no file and no network.

    Args:
        store: Where the records are.
        sql: One `select`, or `describe records`.
        keys: Of the records to read, as of the cells of a plan; None reads all there are.

    Raises:
        UsageError: If DuckDB is not installed, a record is damaged, or the question is wrong.
    """
    with _opened(store, keys) as con:
        _lock(con, sql)
        with _in_words():
            answer = con.execute(sql)
            described = answer.description or []
            rows = tuple(answer.fetchall())
    names = tuple(str(column[0]) for column in described)
    return Result(names, tuple(str(column[1]) for column in described), rows)


def export(
    store: Store, path: Path, sql: str = EVERYTHING, keys: Collection[str] | None = None
) -> int:
    """Write the answer to a question, or all records, to a file; return how many rows it has.

    Args:
        store: Where the records are.
        path: A file that ends in `.parquet` or `.csv`.
        sql: The question, as `query` takes it.
        keys: As `query` takes them.

    Raises:
        UsageError: As of `query`; if the file is of another kind, or cannot be written.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"records are exported to .parquet or .csv; got {path.name}")
    with _opened(store, keys) as con, atomic(path) as file:
        _lock(con, sql, str(file.name))
        with _in_words():
            asked, target = sql.strip().rstrip(";"), _escaped(str(file.name))
            copy = f"copy (\n{asked}\n) to '{target}' (format {form}, use_tmp_file false)"
            done = con.execute(copy).fetchall()
    return int(done[0][0])


def text(result: Result, width: int = 80) -> str:
    """Return an answer as a table, or row by row where the columns do not fit the width."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    out = io.StringIO()
    plain = Console(file=out, width=width, color_system=None, legacy_windows=False)
    shown = [[_shown(value) for value in row] for row in result.rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, kind in zip(result.columns, result.types, strict=True):
        table.add_column(Text(name), justify="right" if kind in NUMERIC else "left", no_wrap=True)
    for row in shown:
        table.add_row(*map(Text, row))
    if plain.measure(table, options=plain.options.update(width=10_000)).maximum > width:
        table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
        for number, row in enumerate(shown, 1):
            table.add_row(f"-- {number} --", "")
            for name, value in zip(result.columns, row, strict=True):
                table.add_row(Text(name), Text(value))
    plain.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    count = len(result.rows)
    return "\n".join([*lines, f"{count:,} row{'s' * (count != 1)}"]).strip("\n") + "\n"


def _shown(value: object) -> str:
    """Return a value as text; control characters, which a record may carry, are dropped."""
    if value is None:
        return "-"
    words = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else " " for c in words)


# Reading --------------------------------------------------------------------------------------


@contextmanager
def _opened(store: Store, keys: Collection[str] | None) -> Iterator[DuckDBPyConnection]:
    """Lend a database in memory that has the table `records`."""
    try:
        import duckdb  # late: an extra, and slow
    except ImportError as error:
        line = "pip install 'gifthorse[bench]'"
        raise UsageError(f"queries need DuckDB, which is not installed: {line}") from error

    # Neither extensions from the network nor variables of this program that are called like tables.
    closed = ("autoinstall_known_extensions", "autoload_known_extensions")
    config: dict[str, Any] = dict.fromkeys((*closed, "python_enable_replacements"), "false")
    with duckdb.connect(":memory:", config=config) as con:
        try:
            _read(con, store, keys)
            _widen(con)
        except (duckdb.Error, UnicodeDecodeError) as error:
            for _ in store.records():  # says which record is damaged
                continue
            raise UsageError(f"the records of {store.root} cannot be read: {error}") from error
        yield con


def _read(con: DuckDBPyConnection, store: Store, keys: Collection[str] | None) -> None:
    """Fill a table with the records, of each what `SHAPE` names, in chunks."""
    import duckdb
    import numpy as np

    names = [name for name in store.names("records") if name.endswith(".json")]
    if keys is not None:
        wanted = set(keys)
        names = [name for name in names if Path(name).stem in wanted]
    shape = json.dumps(SHAPE)
    for start in range(0, max(1, len(names)), CHUNK):
        found = [store.read(name) for name in names[start : start + CHUNK]]
        texts = [content.decode() for content in found if content is not None]
        con.register("chunk", {"text": np.array(texts, dtype=object)})
        how = "insert into raw" if start else "create table raw as"
        con.execute(
            f"{how} select json_transform(text, ?) as r, text->'$.cell' as cell, "  # noqa: S608
            "text->'$.times' as times from chunk",
            [shape],
        )
        con.unregister("chunk")
    (bad,) = con.execute("select count(*) from raw where r.key is null").fetchall()[0]
    if bad:
        raise duckdb.DataError(f"{bad} have no key")


def _widen(con: DuckDBPyConnection) -> None:
    """Make the table `records`: a column for everything fixed and for every figure there is."""
    found = con.execute("select distinct unnest(json_keys(r.figures)) from raw").fetchall()
    fixed = {name.casefold() for name in (*FIXED, *JSONS)}
    # Column names have no case: of two that are alike the first has it, both are in `figures`.
    columns = {}
    for (name,) in sorted(found, reverse=True):
        column = f"figure_{name}" if name.casefold() in fixed else name
        columns[column.casefold()] = (name, column)
    figures = sorted(columns.values())
    wanted = ", ".join(f"{source} as {name}" for name, source in FIXED.items())
    wanted += "".join(f", f.{_quoted(name)} as {_quoted(column)}" for name, column in figures)
    wanted += "".join(f", {source} as {name}" for name, source in JSONS.items())
    shape = json.dumps({name: "DOUBLE" for name, _ in figures} or {"none": "DOUBLE"})
    con.execute(
        f"create table records as select {wanted} from "  # noqa: S608 - names are ours or quoted
        "(select *, json_transform(r.figures, ?) as f from raw)",
        [shape],
    )
    con.execute("drop table raw")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _lock(con: DuckDBPyConnection, sql: str, path: str = "") -> None:
    """Close a database to all files but one, and raise unless a text is one question.

    Raises:
        UsageError: If it is anything but one statement that reads.
    """
    if path:
        con.execute(f"set allowed_paths = ['{_escaped(path)}']")
    con.execute("set enable_external_access = false")
    con.execute("set lock_configuration = true")
    with _in_words():
        kinds = [statement.type.name for statement in con.extract_statements(sql)]
    if kinds != ["SELECT"]:
        said = ", ".join(kinds) or "nothing"
        raise UsageError(f"a bench is asked with one select, nothing is changed; got {said}")


def _escaped(path: str) -> str:
    return path.replace("'", "''")


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn an error of DuckDB into one of ours."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise UsageError(f"the question cannot be answered: {error}") from error
