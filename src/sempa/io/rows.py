"""Rows of files with their lines, streamed: CSV, TSV or JSON lines, plain or gzip; parquet files and datasets folders.

`read_records` takes them all; the content decides the format, not the name.
"""

import contextlib
import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sempa.errors import SempaError

STANDARD_INPUT = Path("-")
# For a table of one column, whose rows hold commas and tabs as they like: a character that text does not have.
_NO_DELIMITER = "\x1f"

Values = tuple[str, ...]
Record = tuple[int, Values]
"""The 1-based line that a row begins in (columnar data: its row), and its wanted values."""


@dataclass(frozen=True)
class Layout:
    """The columns or fields wanted of each row.

    `tabs_quote`: whether its tab-separated files use quotes; `number_last`: whether the last may be a number.
    """

    names: tuple[str, ...]
    tabs_quote: bool
    number_last: bool = True


def read_records(path: Path, layouts: Sequence[Layout]) -> tuple[Layout, Iterator[Record]]:
    """Which of `layouts` the data has, by its columns, header or first record, and its rows, streamed.

    Text is read once, front to back, so it may come from a pipe. Raises `SempaError` when the data has none of the
    layouts and, while the rows are drawn, for a row that does not fit and when the file cannot be read on.
    """
    if is_columnar(path):
        layout = _match(str(path), _column_names(path), layouts)
        return layout, _field_records(path, column_rows(path, layout.names), layout)
    return line_records(path, numbered_lines(path), layouts)


def line_records(
    path: Path, lines: Iterator[tuple[int, str]], layouts: Sequence[Layout]
) -> tuple[Layout, Iterator[Record]]:
    """What `read_records` gives of the `numbered_lines` of `path`, all of them; errors are the same."""
    number, first = next(((number, text) for number, text in lines if text.strip()), (0, ""))
    if not first:
        raise SempaError(f"{path}: holds blank lines only, expected {_names(layouts)}")
    place = f"{path}:{number}"
    lines = itertools.chain([(number, first)], lines)
    if first.lstrip()[0] in "{[":
        try:
            layout = _match(place, list(json_object(first)), layouts)
        except ValueError as error:
            raise SempaError(f"{place}: {error}") from error
        return layout, _field_records(path, ((number, text) for number, text in lines if text.strip()), layout)
    delimiter = next((mark for mark in "\t," if mark in first), _NO_DELIMITER)
    rows = _quoted_rows(path, number, lines, delimiter)
    header = [name.strip() for name in next(rows)[1]]
    layout = _match(place, header, layouts)
    if layout.tabs_quote or delimiter != "\t":
        return layout, _table_records(path, rows, header, layout, len(header))
    rows = ((number, text.rstrip("\r\n").split("\t")) for number, text in lines if text.strip())
    # In the official tables some rows stop short of the columns for further annotators' labels.
    return layout, _table_records(path, rows, header, layout, max(map(header.index, layout.names)) + 1)


def json_object(text: str) -> dict:
    """The object in a line; a `ValueError` says what else it is."""
    try:
        # Without its end, or the parser would speak of the line after.
        value = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}, expected an object a line") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object a line")
    return value


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text, plain or gzip, with 1-based numbers; they keep their ends, and only LF ends a line.

    `path` is a file, a pipe or `-`, standard input; it is opened once and read front to back. Raises `SempaError` for a
    file that is missing, unreadable, empty, not UTF-8 or a broken gzip.
    """
    number = 0
    try:
        with path.open("rb") if path != STANDARD_INPUT else contextlib.nullcontext(sys.stdin.buffer) as file:
            lines = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
            for number, raw in enumerate(lines, 1):
                text = raw.decode(encoding)
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise SempaError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SempaError(f"{path}: gzip data cut short or corrupt after line {number}: {error}") from error
    except FileNotFoundError as error:
        raise SempaError(f"{path}: no such file") from error
    except OSError as error:
        raise SempaError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not number:
        raise SempaError(f"{path}: the file is empty")


def many(count: int, noun: str) -> str:
    """A count with its noun, in the plural where it is due: `1 row`, `1,200 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def is_columnar(path: Path) -> bool:
    """Whether it is a folder or, by its first bytes, a parquet file."""
    if path.is_file():
        with contextlib.suppress(OSError), path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    return path.is_dir()


def column_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict]]:
    """The number of each row of columnar data, from 1, and its values in the columns `names`.

    Raises `SempaError` when pyarrow is missing, for a folder of several splits or of none, and for a damaged file.
    """
    pyarrow, number = import_pyarrow(), itertools.count(1)
    for file in _column_files(path):
        with _explained(file):
            if file.suffix == ".arrow":
                batches = (batch.select(names) for batch in pyarrow.ipc.open_stream(str(file)))
            else:
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(columns=list(names))
            for batch in batches:
                yield from ((next(number), row) for row in batch.to_pylist())


def import_pyarrow() -> ModuleType:
    """The package with its parquet part; a `SempaError` tells how to install it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SempaError(
            "parquet files and datasets folders need pyarrow; install it with: pip install pyarrow"
        ) from error
    return pyarrow


def _names(layouts: Sequence[Layout]) -> str:
    return " or ".join(", ".join(layout.names) for layout in layouts)


def _match(place: str, found: list[str], layouts: Sequence[Layout]) -> Layout:
    """The first layout whose names are all among the columns or fields that were found."""
    for layout in layouts:
        if set(layout.names) <= set(found):
            return layout
    shown = ", ".join(f"'{name:.40}'" for name in found[:8]) + (", …" if len(found) > 8 else "")
    raise SempaError(f"{place}: found the columns {shown or 'none'}, expected {_names(layouts)}")


def _field_records(path: Path, rows: Iterator[tuple[int, str | dict]], layout: Layout) -> Iterator[Record]:
    """Records of rows that are JSON text, or its content already."""
    for number, row in rows:
        try:
            yield number, _field_values(json_object(row) if isinstance(row, str) else row, layout)
        except ValueError as error:
            raise SempaError(f"{path}:{number}: {error}") from error


def _field_values(found: dict, layout: Layout) -> Values:
    values = []
    for name in layout.names:
        if name not in found:
            raise ValueError(f"no field {name}")
        value = "" if found[name] is None else found[name]
        if layout.number_last and name == layout.names[-1] and isinstance(value, int | float):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"{name} is a {type(value).__name__}, expected text")
        # Half a surrogate pair passes the JSON parser, but no tokenizer.
        value.encode()
        values.append(value)
    return tuple(values)


def _table_records(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: list[str], layout: Layout, least: int
) -> Iterator[Record]:
    """Records of a table's rows, each of `least` cells or more and at most one for each column."""
    places = [header.index(name) for name in layout.names]
    for number, row in rows:
        if not least <= len(row) <= len(header):
            raise SempaError(f"{path}:{number}: {many(len(row), 'column')}, expected {len(header)}")
        yield number, tuple(row[place] for place in places)


def _quoted_rows(
    path: Path, first: int, lines: Iterator[tuple[int, str]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Rows by RFC 4180 with the line that each begins in; `first` is the number of the first line."""
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    begin = first
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = first + reader.line_num
    except csv.Error as error:
        raise SempaError(
            f"{path}:{begin}: {error}; is a quotation mark left open, or not doubled inside a field?"
        ) from error


def _column_names(path: Path) -> list[str]:
    pyarrow, file = import_pyarrow(), _column_files(path)[0]
    with _explained(file):
        if file.suffix == ".arrow":
            return pyarrow.ipc.open_stream(str(file)).schema.names
        return pyarrow.parquet.read_schema(file).names


def _column_files(path: Path) -> list[Path]:
    """The files that make up columnar data, in their order."""
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        raise SempaError(f"{path}: holds several splits; name the folder of one")
    files = sorted(path.glob("data-*.arrow")) or sorted(path.glob("*.parquet"))
    if not files:
        raise SempaError(f"{path}: is a folder without parquet files, and none that datasets saved")
    splits = sorted({file.name.partition("-")[0] for file in files if "-of-" in file.name})
    if len(splits) > 1:
        raise SempaError(f"{path}: holds the splits {', '.join(splits)}; name the files of one")
    return files


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, UnicodeDecodeError, import_pyarrow().ArrowException) as error:
        raise SempaError(f"{file}: cannot be read as columns: {str(error).splitlines()[0]}") from error
