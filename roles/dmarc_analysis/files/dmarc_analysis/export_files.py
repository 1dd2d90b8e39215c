"""The files of the export: CSV and Parquet by DuckDB, their check against the originals, their description.

Rows come masked, in any order, into a stage file; they are sorted by all columns, so that the order in which messages
came is gone and the same rows give the same file. The Parquet file is made from the CSV file: one content, two formats.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any

import duckdb

from .export_mask import Mask
from .export_tables import TABLES, Column, Rules

MEMORY = "512MB"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
WORD = re.compile(r"[\w.:-]+")
FIGURE = re.compile(r"[0-9-]+|(sha256:)?[0-9a-f]{64}")


class LeakError(Exception):
    """Something that must not be in the export is in it, or might be."""


class Stage:
    """The masked rows of one table before they are sorted; a context manager."""

    def __init__(self, directory: Path, table: str) -> None:
        self.path = directory / f".{table}.stage"
        self.rows = 0

    def __enter__(self) -> Stage:
        self._file = self.path.open("x", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows."""
        batch = list(rows)
        self._writer.writerows(batch)
        self.rows += len(batch)


def _database(directory: Path) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:")
    for setting, value in (
        ("memory_limit", MEMORY),
        ("threads", "2"),
        ("temp_directory", str(directory / ".spill")),
        ("autoinstall_known_extensions", "false"),
        ("autoload_known_extensions", "false"),
        ("enable_progress_bar", "false"),
    ):
        database.execute(f"SET {setting} = {_text(value)}")
    return database


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _source(path: Path, columns: Sequence[Column], *, header: bool, types: bool = True) -> str:
    given = ", ".join(f"{_text(column.name)}: {_text(column.sql_type if types else 'VARCHAR')}" for column in columns)
    return (
        f"read_csv({_text(str(path))}, columns = {{{given}}}, header = {str(header).lower()}, delim = ',', "
        f"quote = '\"', escape = '\"', auto_detect = false, timestampformat = {_text(TIME_FORMAT)})"
    )


def write(directory: Path, table: str, stage: Stage, large: set[Hashable]) -> None:
    """Make ``table.csv`` and ``table.parquet`` from the stage, which is removed; small groups become empty."""
    columns = TABLES[table][1]
    finished = directory / f"{table}.csv"
    with _database(directory) as database:
        database.execute("CREATE TABLE large (name VARCHAR, value VARCHAR)")
        known = [list(group) for group in large]
        if known:
            database.executemany("INSERT INTO large VALUES (?, ?)", known)
        select = ", ".join(
            f"CASE WHEN CAST({one.name} AS VARCHAR) IN (SELECT value FROM large WHERE name = {_text(one.group)}) "
            f"THEN {one.name} END AS {one.name}"
            if one.group
            else one.name
            for one in columns
        )
        order = ", ".join(f"{number} NULLS FIRST" for number in range(1, len(columns) + 1))
        rows = _source(stage.path, columns, header=False)
        database.execute(
            f"COPY (SELECT {select} FROM {rows} ORDER BY {order}) TO {_text(str(finished))} "
            f"(FORMAT csv, HEADER, DELIMITER ',', TIMESTAMPFORMAT {_text(TIME_FORMAT)})"
        )
        database.execute(
            f"COPY (SELECT * FROM {_source(finished, columns, header=True)}) "
            f"TO {_text(str(directory / f'{table}.parquet'))} (FORMAT parquet, COMPRESSION zstd)"
        )
    stage.path.unlink()


class Check:
    """Reads the finished files back and looks for anything that must not be in them."""

    def __init__(self, directory: Path, mask: Mask) -> None:
        self.directory = directory
        self.originals = mask.originals()
        self.coincidences = 0
        """Addresses that are the mask of one and the original of another: no leak, unavoidable in large exports."""
        self._masked: dict[str, str] = {}
        for original, (masked, _) in mask.addresses.items():
            if masked == original:
                raise LeakError("an address is its own mask under this key; run the export again")
            self._masked[masked] = original
        tokens = set(mask.names.values()) | set(mask.words.values())
        if tokens & self.originals:
            raise LeakError("a name of the period looks like a pseudonym of this key; run the export again")

    def table(self, table: str, rows: int) -> None:
        """Check both files of a table: every value has the form of its column, and the formats say the same."""
        columns = TABLES[table][1]
        csv_rows = _source(self.directory / f"{table}.csv", columns, header=True, types=False)
        parquet_rows = f"read_parquet({_text(str(self.directory / f'{table}.parquet'))})"
        with _database(self.directory) as database:
            for source in (csv_rows, parquet_rows):
                found = database.execute(f"SELECT count(*) FROM {source}").fetchone()
                if not found or found[0] != rows:
                    raise LeakError(f"{table}: {found and found[0]} rows where {rows} were written")
            for column in columns:
                kinds = [set(self._values(database, column, source)) for source in (csv_rows, parquet_rows)]
                if kinds[0] != kinds[1]:
                    raise LeakError(f"{table}: column {column.name} differs between CSV and Parquet")
                for value in kinds[0]:
                    self._value(table, column, value)
        self.coincidences = len(set(self._masked) & self.originals)

    @staticmethod
    def _values(database: duckdb.DuckDBPyConnection, column: Column, source: str) -> Iterator[str]:
        shown = f"CAST({column.name} AS VARCHAR)"
        if column.kind == "datetime" and source.startswith("read_parquet"):
            shown = f"strftime({column.name}, {_text(TIME_FORMAT)})"
        cursor = database.execute(f"SELECT DISTINCT {shown} FROM {source} WHERE {column.name} IS NOT NULL")
        while batch := cursor.fetchmany(10_000):
            for (value,) in batch:
                yield value

    def _value(self, table: str, column: Column, value: str) -> None:
        if column.choices:
            good = value in column.choices
        elif column.kind == "address":
            good = value in self._masked
        elif column.pattern:
            good = re.fullmatch(column.pattern, value) is not None
            # groups hold words of a small, public vocabulary, and a selector may well be called "JP"
            good = good and (bool(column.group) or value not in self.originals)
        else:
            good = re.fullmatch(FORMS[column.kind], value) is not None
        if not good:
            raise LeakError(f"{table}: column {column.name} holds something that is not masked")

    def text(self, path: Path, written: str) -> None:
        """Check a text file: beyond what is written there whatever the data are, it holds figures and no original."""
        words = _words(path.read_text(encoding="utf-8")) - _words(written)
        leaked = {word for word in words if not FIGURE.fullmatch(word)} & {word.lower() for word in self.originals}
        if leaked:
            raise LeakError(f"{path.name} holds {len(leaked)} name(s) or address(es) of the period")


def _words(text: str) -> set[str]:
    return {word.strip(".:-").lower() for word in WORD.findall(text)}


FORMS = {
    "integer": r"[0-9]+",
    "boolean": r"true|false",
    "date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "datetime": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00:00Z",
}


def _field(column: Column, rules: Rules) -> dict[str, Any]:
    field: dict[str, Any] = {
        "name": column.name,
        "type": "string" if column.kind == "address" else column.kind,
        "description": column.about,
        "masking": rules.text(column.masking),
    }
    if column.kind == "datetime":
        field["format"] = TIME_FORMAT
    if column.choices:
        field["constraints"] = {"enum": list(column.choices)}
    elif column.pattern:
        field["constraints"] = {"pattern": f"^{column.pattern}$"}
    return field


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": path.name, "bytes": path.stat().st_size, "hash": f"sha256:{digest}"}


def describe(
    directory: Path, template: str, rules: Rules, counts: dict[str, int], about: dict[str, Any], coincidences: int
) -> None:
    """Write ``datapackage.json`` (Data Package, version 2) and ``README.md``."""
    resources: list[dict[str, Any]] = []
    for table, rows in counts.items():
        title, columns = TABLES[table]
        schema = {"fields": [_field(column, rules) for column in columns], "missingValues": [""]}
        resources.append(
            {"name": table, "description": title, **_file(directory / f"{table}.csv"), "format": "csv",
             "mediatype": "text/csv", "encoding": "utf-8", "rows": rows, "schema": schema}
        )  # fmt: skip
        resources.append(
            {"name": f"{table}-parquet", "description": f"The same rows as in {table}.csv.",
             **_file(directory / f"{table}.parquet"), "format": "parquet",
             "mediatype": "application/vnd.apache.parquet", "rows": rows}
        )  # fmt: skip
    package = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json",
        "name": f"dmarc-{about['from']}-{about['to']}",
        "title": "DMARC events and aggregate reports, anonymised",
        "created": about["created"],
        "licenses": [{"name": about["licence"]}],
        "period": {"from": about["from"], "to": about["to"]},
        "anonymisation": {
            "addresses": "Crypto-PAn (AES-128), IPv4 and IPv6, separate keys",
            "names": "HMAC-SHA-256, 64 bits",
            "key": about["key"],
            "fingerprint": about["fingerprint"],
            "hours": rules.hours,
            "k": rules.k,
            "small": rules.small,
            "coincidences": coincidences,
        },
        "leftOut": about["left_out"],
        "resources": resources,
    }
    text = json.dumps(package, indent=2, ensure_ascii=False) + "\n"
    (directory / "datapackage.json").write_text(text, encoding="utf-8")
    tables = "\n".join(_markdown(table, counts[table], rules) for table in counts)
    files = "\n".join(f"| {one['path']} | {one['rows']} | {one['bytes']} | {one['hash'][7:]} |" for one in resources)
    numbers = {"hours": rules.hours, "k": rules.k, "small": rules.small, "below": rules.small - 1}
    readme = Template(template).substitute(
        numbers, begin=about["from"], end=about["to"], licence=about["licence"], key=about["key"],
        fingerprint=about["fingerprint"] or "none", left_out=about["left_out"], tables=tables, files=files,
        coincidences=coincidences,
    )  # fmt: skip
    (directory / "README.md").write_text(readme, encoding="utf-8")


def _markdown(table: str, rows: int, rules: Rules) -> str:
    title, columns = TABLES[table]
    lines = [f"## {table} ({rows} rows)", "", title, "", "| column | type | what it holds | masking |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for column in columns:
        values = f" One of {', '.join(column.choices)}." if column.choices else ""
        lines.append(f"| {column.name} | {column.kind} | {column.about}{values} | {rules.text(column.masking)} |")
    return "\n".join([*lines, ""])


def vocabulary(template: str, about: dict[str, Any]) -> str:
    """All words that the two text files hold whatever the data are."""
    words = [template, Path(__file__).read_text(encoding="utf-8"), about["key"], about["created"]]
    words += [about["from"], about["to"], f"dmarc-{about['from']}-{about['to']}"]
    for table, (title, columns) in TABLES.items():
        words += [table, f"{table}-parquet {table}.csv {table}.parquet {title}"]
        for one in columns:
            words += [one.name, one.kind, one.about, one.masking, f"^{one.pattern}$", *one.choices]
    return " ".join(words)
