"""Rows of files with their lines, streamed: CSV, TSV or JSON lines, plain or gzip; parquet files and datasets folders.

`read_records` takes them all; the content decides the format, not the name. A number in JSON or parquet is
read as its text, as it would be from a table.
"""

import contextlib
import csv
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from sempa.errors import SempaError

STANDARD_INPUT = Path("-")
# How JSON lines begin, and a JSON array or an indented object, which are refused.
LIKE_JSON = r'\s*(\{\s*("|$)|\[\s*(\{|$))'
# For a table of one column, whose rows hold commas and tabs as they like: a character that text does not have.
_NO_DELIMITER = "\x1f"
# Columns that only the published tables of SNLI, MultiNLI, MRPC and STS-B have, where quotation marks are plain
# characters. Other tab-separated files are taken to come from a CSV library, which quotes.
_PLAIN_QUOTES = {"sentence1_parse", "Quality", "genre"}

Names = tuple[str, ...]
"""The columns or fields wanted of each row."""
Record = tuple[int, tuple[str, ...]]
"""The 1-based line that a row begins in (columnar data: its row), and its wanted values."""


def read_records(path: Path, layouts: Sequence[Names]) -> tuple[Names, Iterator[Record]]:
    """The first of `layouts` that the columns, header or first record of the data match, and its rows, streamed.

    Text is read once, front to back, so it may come from a pipe. Raises `SempaError` when no layout matches and, while
    the rows are drawn, for a row that does not fit or a file that can no longer be read.
    """
    if is_columnar(path):
        names = _match(str(path), _column_names(path), layouts)
        return names, _field_records(path, enumerate(_column_rows(path, names), 1), names)
    return line_records(path, numbered_lines(path), layouts)


def line_records(
    path: Path, lines: Iterator[tuple[int, str]], layouts: Sequence[Names]
) -> tuple[Names, Iterator[Record]]:
    """What `read_records` gives of the `numbered_lines` of `path`, all of them; errors are the same."""
    number, first = next((number, text) for number, text in lines if text.strip())
    lines = itertools.chain([(number, first)], lines)
    if first.lstrip().startswith(("{", "[")):
        names = _match(f"{path}:{number}", list(json_object(f"{path}:{number}", first)), layouts)
        rows = ((number, json_object(f"{path}:{number}", text)) for number, text in lines if text.strip())
        return names, _field_records(path, rows, names)
    delimiter = next((mark for mark in "\t,;" if mark in first), _NO_DELIMITER)
    rows = _table_rows(path, number, lines, delimiter, csv.QUOTE_MINIMAL)
    header = [name.strip() for name in next(rows, (number, []))[1]]
    names = _match(f"{path}:{number}", header, layouts)
    if delimiter == "\t" and '"' not in first and _PLAIN_QUOTES & set(header):
        rows = _table_rows(path, number + 1, lines, delimiter, csv.QUOTE_NONE)
    return names, _table_records(path, rows, header, names)


def json_object(place: str, text: str) -> dict:
    """The JSON object in a line; raises `SempaError` that says what was found instead."""
    try:
        # Without the line end: otherwise the parser's error would point to the next line.
        value = json.loads(text.rstrip())
    except (ValueError, RecursionError) as error:
        # A number of five thousand digits raises a plain `ValueError`, without `msg` and `colno`.
        found = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise SempaError(f"{place}: not valid JSON: {found}, expected one object per line") from error
    if not isinstance(value, dict):
        raise SempaError(f"{place}: a JSON {type(value).__name__}, expected one object per line")
    return value


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text, plain or gzip, with 1-based numbers; they keep their ends, and only LF ends a line.

    `path` is a file, a pipe or `-`, standard input; it is opened once and read front to back. Raises `SempaError` for a
    file that is missing, unreadable, empty or blank, not UTF-8 or a broken gzip.
    """
    number, blank = 0, True
    if path == STANDARD_INPUT and sys.stdin is None:
        raise SempaError(f"{path}: standard input is closed")
    try:
        with path.open("rb") if path != STANDARD_INPUT else contextlib.nullcontext(sys.stdin.buffer) as file:
            lines = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
            for number, raw in enumerate(lines, 1):
                text = raw.decode(encoding).removeprefix("\ufeff" if number == 1 else "")
                blank = blank and not text.strip()
                yield number, text
    except UnicodeDecodeError as error:
        raise SempaError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SempaError(f"{path}: gzip data cut short or corrupt after line {number}: {error}") from error
    except FileNotFoundError as error:
        raise SempaError(f"{path}: no such file") from error
    except OSError as error:
        raise SempaError(f"{path}: cannot be read: {error.strerror or error}") from error
    if blank:
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


def import_pyarrow() -> ModuleType:
    """The package with its parquet part; a `SempaError` tells how to install it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SempaError("parquet files and datasets folders need pyarrow: pip install pyarrow") from error
    return pyarrow


def _match(place: str, found: list[str], layouts: Sequence[Names]) -> Names:
    """The first layout whose names are all among the columns or fields that were found."""
    for names in layouts:
        if set(names) <= set(found):
            return names
    shown = ", ".join(f"'{name}'" for name in found) or "none"
    raise SempaError(f"{place}: found the columns {shown:.400}, expected {' or '.join(map(', '.join, layouts))}")


def _field_records(path: Path, rows: Iterator[tuple[int, dict]], names: Names) -> Iterator[Record]:
    for number, row in rows:
        values = []
        for name in names:
            if name not in row:
                raise SempaError(f"{path}:{number}: no field {name}")
            # NaN, which pandas writes for a cell without a value, does not equal itself.
            value = "" if row[name] is None or row[name] != row[name] else row[name]
            if not isinstance(value, str | int | float):
                raise SempaError(f"{path}:{number}: {name} is a {type(value).__name__}, expected text")
            values.append(str(value))
        try:
            # A lone surrogate passes the JSON parser, but no tokenizer.
            "".join(values).encode()
        except UnicodeEncodeError as error:
            raise SempaError(f"{path}:{number}: {error}") from error
        yield number, tuple(values)


def _table_rows(
    path: Path, first: int, lines: Iterator[tuple[int, str]], delimiter: str, quoting: int
) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank with the line that each begins in; `first` is the number of the first line."""
    # A field may be a long text; without a limit an open quotation mark would take the whole file.
    csv.field_size_limit(1 << 24)
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, quoting=quoting, strict=True)
    begin = first
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = first + reader.line_num
    except csv.Error as error:
        advice = "is a quotation mark left open, or not doubled inside a field?"
        raise SempaError(f"{path}:{begin}: {error}; {advice}") from error


def _table_records(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: list[str], names: Names
) -> Iterator[Record]:
    """Records of a table's rows; a row may lack trailing columns that are not wanted, as some of SNLI's do."""
    places = [header.index(name) for name in names]
    for number, row in rows:
        if not max(places) < len(row) <= len(header):
            raise SempaError(f"{path}:{number}: {many(len(row), 'column')}, expected {len(header)}")
        yield number, tuple(row[place] for place in places)


def _column_names(path: Path) -> list[str]:
    pyarrow, file = import_pyarrow(), next(iter(column_files(path)), None)
    if file is None:
        raise SempaError(f"{path}: is a folder without parquet files, and none that datasets saved")
    with _explained(file):
        if file.suffix == ".arrow":
            return pyarrow.ipc.open_stream(str(file)).schema.names
        return pyarrow.parquet.read_schema(file).names


def _column_rows(path: Path, names: Names) -> Iterator[dict]:
    """The rows of columnar data, with these columns alone: others may hold whole documents or vectors."""
    pyarrow = import_pyarrow()
    for file in column_files(path):
        with _explained(file):
            if file.suffix == ".arrow":
                batches = (batch.select(names) for batch in pyarrow.ipc.open_stream(str(file)))
            else:
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024, columns=list(names))
            for batch in batches:
                yield from batch.to_pylist()


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file, or one that lacks a column, into a `SempaError`."""
    try:
        yield
    except (OSError, KeyError, UnicodeDecodeError, import_pyarrow().ArrowException) as error:
        raise SempaError(f"{file}: cannot be read as columns: {str(error).splitlines()[0]}") from error


def column_files(path: Path) -> list[Path]:
    """The files that make up columnar data, in their order; raises `SempaError` for a folder of several splits."""
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        raise SempaError(f"{path}: holds several splits; name the folder of one")
    files = sorted(path.glob("data-*.arrow")) or sorted(path.glob("*.parquet"))
    split = re.compile(r"(?:train|valid(?:ation)?|dev|test)(?![a-z])|.*?(?=-\d+-of-)")
    splits = sorted({match[0] for file in files if (match := split.match(file.name))})
    if len(splits) > 1:
        raise SempaError(f"{path}: holds the splits {', '.join(splits)}; name the files of one")
    return files
