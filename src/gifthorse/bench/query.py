"""SQL over the records of a bench, read by DuckDB where they lie; nothing is kept or changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gifthorse.bench.printing import drawn, ruled
from gifthorse.bench.relation import frame
from gifthorse.bench.store import Store
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EVERYTHING = "select * from records order by data, net, attack_label, defense_label, seed, key"
FORMATS = {".parquet": "parquet, compression zstd", ".csv": "csv, header"}
NUMERIC = {"BIGINT", "INTEGER", "HUGEINT", "DOUBLE", "FLOAT"}


@dataclass(frozen=True)
class QueryResult:
    """What a query answers.

    Attributes:
        columns: Their names.
        types: DuckDB's names of their types.
        rows: One tuple a row.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def query(store: Store, sql: str, keys: Collection[str] | None = None) -> QueryResult:
    """Answer one SQL question about a store.

    There is one table, `records`, with a row a record: `key`, `data`, `net`, `seed`, `attack`,
    `attack_label`, `defense`, `defense_family`, `defense_label`, `status`, `error`, `seconds`,
    `started` (UTC), `peak_memory`, every figure that any record has as a column of its own (what
    is not a number is null), and the rest: `command`, and as JSON `words`, `times`, `cell`,
    `figures`, `models`, `versions` and `machine`. Attack and defense are null where there is none.
    The question reaches no other table, no file and no network.

    Args:
        store: Where the records are.
        sql: One `select`, or `describe records`.
        keys: Of the records to read, as of the cells of a plan; None reads all there are.

    Raises:
        UsageError: If DuckDB is not installed, a record is damaged, or the question is wrong.
    """
    with frame(store, keys) as con:
        _lock(con, sql)
        with _in_words():
            answer = con.execute(sql)
            described = answer.description or []
            rows = tuple(answer.fetchall())
    names = tuple(str(column[0]) for column in described)
    return QueryResult(names, tuple(str(column[1]) for column in described), rows)


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
    with frame(store, keys) as con, atomic(path) as file:
        _lock(con, sql, str(file.name))
        with _in_words():
            asked, target = sql.strip().rstrip(";"), _escaped(str(file.name))
            asked = _inert(con, asked) if path.suffix.lower() == ".csv" else asked
            copy = f"copy (\n{asked}\n) to '{target}' (format {form}, use_tmp_file false)"
            done = con.execute(copy).fetchall()
    return int(done[0][0])


def text(result: QueryResult, width: int = 80) -> str:
    """Return an answer as a table, or row by row where the columns do not fit the width."""
    from rich.table import Column, Table
    from rich.text import Text

    shown = [[Text(_shown(value)) for value in row] for row in result.rows]
    table = ruled()
    for name, kind in zip(result.columns, result.types, strict=True):
        table.add_column(Text(name), justify="right" if kind in NUMERIC else "left", no_wrap=True)
    for row in shown:
        table.add_row(*row)
    lines = drawn(table)
    if max(map(len, lines), default=0) > width:
        table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
        for number, row in enumerate(shown, 1):
            table.add_row(f"-- {number} --", "")
            for name, value in zip(result.columns, row, strict=True):
                table.add_row(Text(name), value)
        lines = drawn(table, width)
    count = len(result.rows)
    return "\n".join([*lines, f"{count:,} row{'s' * (count != 1)}"]).strip("\n") + "\n"


def _shown(value: object) -> str:
    """Return a value as text; control characters, which a record may carry, are dropped."""
    if value is None:
        return "-"
    words = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else " " for c in words)


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


def _inert(con: DuckDBPyConnection, sql: str) -> str:
    """Return a question whose texts no spreadsheet computes, as `core.text.cell` makes them."""
    described = con.execute(f"describe (\n{sql}\n)").fetchall()
    kept = []
    for name, kind, *_ in described:
        column = '"' + str(name).replace('"', '""') + '"'
        if kind == "VARCHAR":
            begins = f"regexp_matches({column}, '^[=+@\\t\\r-]')"
            kept.append(
                f"case when {begins} then chr(39) || {column} else {column} end as {column}"
            )
    chosen = ", ".join(kept)
    return f"select * replace ({chosen}) from (\n{sql}\n)" if kept else sql  # noqa: S608


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
