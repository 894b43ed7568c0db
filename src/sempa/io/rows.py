"""Rows of files as records with their lines, streamed: CSV, TSV or JSON lines, plain or gzip; parquet and datasets."""

import contextlib
import csv
import difflib
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sempa.errors import SempaError
from sempa.io.parquet import MAGIC, column_names, column_rows, is_columnar

LONGEST_ROW = 1_000_000
# For a table of one column, whose rows hold commas and tabs as they like: a character that text does not have.
_NO_DELIMITER = "\x1f"
STANDARD_INPUT = Path("-")

Values = tuple[str, ...]
Record = tuple[int, Values | str]
"""The 1-based line a row begins in (columnar data: its row), and its wanted values, or the reason why it has none."""


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

    The content decides, not the name: CSV, TSV, JSON lines, a parquet file, a folder of those, a folder that `datasets`
    saved. Text is read once, front to back, so it may come from a pipe. Raises `SempaError` when the data has none of
    the layouts and, while the rows are drawn, when the file cannot be read on.
    """
    if is_columnar(path):
        layout = _match(str(path), "columns", column_names(path), layouts)
        return layout, _field_records(column_rows(path, layout.names), layout)
    return line_records(path, numbered_lines(path), layouts)


def line_records(
    path: Path, lines: Iterator[tuple[int, str]], layouts: Sequence[Layout]
) -> tuple[Layout, Iterator[Record]]:
    """What `read_records` gives of the `numbered_lines` of `path`, all of them; errors are the same."""
    number, first = next(((number, text) for number, text in lines if text.strip()), (0, ""))
    if not first:
        raise SempaError(f"{path}: holds blank lines only, expected {_names(layouts)}")
    place = f"{path}:{number}"
    if first.lstrip()[0] in "{[":
        try:
            layout = _match(place, "fields", list(json_object(first)), layouts)
        except ValueError as error:
            raise SempaError(f"{place}: the first record is {error}; JSON needs one object a line here") from error
        return layout, _json_records(itertools.chain([(number, first)], lines), layout)
    delimiter = next((mark for mark in "\t," if mark in first), _NO_DELIMITER)
    try:
        header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    except csv.Error as error:
        raise SempaError(f"{place}: no header of {_names(layouts)}: {error}") from error
    layout = _match(place, "columns", header, layouts)
    if layout.tabs_quote or delimiter != "\t":
        rows = _quoted_rows(path, lines, delimiter)
        return layout, _table_records(rows, header, layout, len(header))
    rows = ((number, text.rstrip("\r\n").split("\t")) for number, text in lines if text.strip())
    # In the official tables some rows stop short of the columns for further annotators' labels.
    return layout, _table_records(rows, header, layout, max(map(header.index, layout.names)) + 1)


def has_fields(first: str, name: str) -> bool:
    """Whether a file's first line says that a field `name` follows: a JSON value, or a table's header with that name.

    A header has two columns at least and no blanks around their names: "Call, text, or write." is a sentence.
    """
    text = first.strip()
    if text[:1] in ("{", "["):
        try:
            value = json.loads(text)
            # A line "[1]" is a sentence still.
            return isinstance(value, dict) or any(isinstance(item, dict | str) for item in value)
        except RecursionError:
            return True
        except ValueError:
            # An object that is cut short, or one value over several lines; but not "[Music] A band plays."
            return text in ("{", "[") or text.startswith(('{"', "[{"))
    delimiter = "\t" if "\t" in text else ","
    try:
        names = next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error:
        return False
    return len(names) > 1 and name in names and all(one == one.strip() for one in names)


def _names(layouts: Sequence[Layout]) -> str:
    return " or ".join(", ".join(layout.names) for layout in layouts)


def _match(place: str, kind: str, found: list[str], layouts: Sequence[Layout]) -> Layout:
    for layout in layouts:
        if set(layout.names) <= set(found):
            if twins := [name for name in layout.names if found.count(name) > 1]:
                raise SempaError(f"{place}: found {found.count(twins[0])} {kind} {twins[0]!r}, expected one")
            return layout
    shown = (", ".join(f"'{name:.40}'" for name in found[:8]) or "none") + (", …" if len(found) > 8 else "")
    missing = dict.fromkeys(name for layout in layouts for name in layout.names if name not in found)
    near = {name: difflib.get_close_matches(name, found, 1) for name in missing}
    hints = ", ".join(f"'{match[0]}' for {name}" for name, match in near.items() if match)
    raise SempaError(
        f"{place}: found the {kind} {shown}, expected {_names(layouts)}{f'; nearest: {hints}' if hints else ''}"
    )


def json_object(text: str) -> dict:
    """The object in a line; a `ValueError` says what else it is."""
    try:
        # Without its end, or the parser would speak of the line after.
        value = json.loads(text.rstrip(), object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object")
    return value


def _without_twins(fields: list[tuple[str, object]]) -> dict[str, object]:
    """The fields of a JSON object; the parser itself would take the last of two equal names without a word."""
    found = dict(fields)
    if len(found) < len(fields):
        seen: set[str] = set()
        twin = next(name for name, _ in fields if name in seen or seen.add(name))
        raise ValueError(f"an object with the field {twin!r:.60} twice")
    return found


def _json_records(lines: Iterator[tuple[int, str]], layout: Layout) -> Iterator[Record]:
    return _field_records(((number, text) for number, text in lines if text.strip()), layout)


def _field_records(rows: Iterator[tuple[int, str | dict]], layout: Layout) -> Iterator[Record]:
    """Records of rows that are JSON text, or its content already."""
    for number, row in rows:
        try:
            yield number, _field_values(json_object(row) if isinstance(row, str) else row, layout)
        except ValueError as error:
            yield number, str(error)


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
    rows: Iterator[tuple[int, list[str] | str]], header: list[str], layout: Layout, least: int
) -> Iterator[Record]:
    places = [header.index(name) for name in layout.names]
    width = len(header)
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
        elif least <= len(row) <= width:
            yield number, tuple(row[place] for place in places)
        else:
            yield number, f"{many(len(row), 'column')}, expected {width}"


def _quoted_rows(path: Path, lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Rows by RFC 4180 with the line each begins in; in place of a row with stray quotes, what is wrong with it."""
    begin = size = 0
    ended = False

    def feed() -> Iterator[str]:
        nonlocal begin, size, ended
        for number, text in lines:
            begin = begin if size else number
            size += len(text)
            if size > LONGEST_ROW:
                raise open_quote()
            yield text
        ended = True

    def open_quote() -> SempaError:
        return SempaError(f"{path}:{begin}: the row that begins here does not end; is a quotation mark left open?")

    # Python's own limit is 131,072 characters a field.
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        size = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if ended:
                raise open_quote() from error
            yield begin, f"stray quotation mark or line end ({str(error).split(' - ')[0]})"
        else:
            if row:
                yield begin, row


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text, plain or gzip, with 1-based numbers; they keep their ends, and only LF ends a line.

    `path` is a file, a pipe or `-`, standard input; it is opened once and read front to back.

    Raises `SempaError` for a file that is missing, a folder, unreadable, empty, binary, not UTF-8 or a broken gzip, and
    for a line of more than a million bytes.
    """
    number = offset = 0
    if path == STANDARD_INPUT and sys.stdin is None:
        raise SempaError(f"{path}: standard input is closed")
    try:
        with path.open("rb") if path != STANDARD_INPUT else contextlib.nullcontext(sys.stdin.buffer) as file:
            beginning = file.peek(len(MAGIC))
            if beginning.startswith(MAGIC):
                raise SempaError(f"{path}: is a parquet file, expected text here (in a pipe everywhere)")
            zipped = beginning.startswith(b"\x1f\x8b")
            with gzip.GzipFile(fileobj=file) if zipped else contextlib.nullcontext(file) as stream:
                while raw := stream.readline(LONGEST_ROW + 1):
                    number += 1
                    if b"\0" in raw:
                        raise SempaError(f"{path}:{number}: a NUL byte (binary or UTF-16?), expected UTF-8 text")
                    if len(raw) > LONGEST_ROW:
                        raise SempaError(f"{path}:{number}: over {LONGEST_ROW:,} bytes long, expected one row a line")
                    text = raw.decode(encoding)
                    yield number, text.removeprefix("\ufeff") if number == 1 else text
                    offset += len(raw)
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02X} at offset {offset + error.start:,}"
        raise SempaError(f"{path}:{number}: not UTF-8 ({where}), expected UTF-8 text") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SempaError(f"{path}: gzip data cut short or corrupt after line {number}: {error}") from error
    except IsADirectoryError as error:
        raise SempaError(f"{path}: is a folder, expected a file") from error
    except FileNotFoundError as error:
        raise SempaError(f"{path}: no such file") from error
    except OSError as error:
        raise SempaError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not number:
        raise SempaError(f"{path}: the file is empty")


def many(count: int, noun: str) -> str:
    """A count with its noun, in the plural where it is due: `1 row`, `1,200 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
