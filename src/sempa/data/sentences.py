"""Sentences to embed: the lines of a text, or a field of JSON lines, a table or columnar data."""

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

from sempa.errors import SempaError
from sempa.io.parquet import is_columnar
from sempa.io.rows import Layout, has_fields, line_records, many, numbered_lines, read_records

DEFAULT_FIELD = "text"
# Names that promise fields, whatever the first line looks like.
_WITH_FIELDS = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")


def read_sentences(path: Path, field: str | None = None, *, skip_empty: bool = False) -> Iterator[tuple[int, str]]:
    """The sentences of a file, a pipe or (`-`) standard input with the lines they begin in, streamed.

    A `field` that is given must be there. Without one the content decides: parquet data, folders that `datasets` saved,
    JSON lines, and tables whose header has a column `text` and another, give their field `text`. Any other text is one
    sentence per line, but a name that ends in `.csv`, `.tsv`, `.tab`, `.jsonl` or `.ndjson` (`.gz` or not) promises
    fields, too.

    Raises `SempaError` with file and line for an empty sentence, a row without the field and what is not UTF-8 text,
    and for an empty file. With `skip_empty` empty sentences are left out, with a warning at the end that counts them.
    """
    layout = Layout((field or DEFAULT_FIELD,), tabs_quote=True, number_last=False)
    if is_columnar(path):
        _, records = read_records(path, [layout])
    else:
        lines = numbered_lines(path)
        first = next(lines)
        lines = itertools.chain([first], lines)
        promised = field is not None or path.name.lower().removesuffix(".gz").endswith(_WITH_FIELDS)
        if promised or has_fields(first[1], DEFAULT_FIELD):
            _, records = line_records(path, lines, [layout])
        else:
            records = ((number, (line.rstrip("\r\n"),)) for number, line in lines)
    empty: list[int] = []
    for number, values in records:
        if isinstance(values, str):
            raise SempaError(f"{path}:{number}: {values}")
        if values[0].strip():
            yield number, values[0]
        elif skip_empty:
            empty.append(number)
        else:
            raise SempaError(f"{path}:{number}: is empty, expected one sentence per line")
    if empty:
        warnings.warn(f"{path}: {many(len(empty), 'empty sentence')} left out, first in line {empty[0]}", stacklevel=2)
