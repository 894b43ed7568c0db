"""Sentences to embed: the lines of a text, or a field of JSON lines, a table or columnar data."""

import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from sempa.errors import SempaError
from sempa.io.rows import LIKE_JSON, is_columnar, line_records, many, numbered_lines, read_records

_WITH_FIELDS = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson")


def read_sentences(path: Path, field: str | None = None, *, skip_empty: bool = False) -> Iterator[tuple[int, str]]:
    """The sentences of a file, a pipe or (`-`) standard input with the lines they begin in, streamed.

    They are the `field` of that name where one is given, else the field `text` of parquet data, of folders that
    `datasets` saved, of JSON lines, and of tables by their name (`.csv`, `.tsv`, …; `.gz` or not). Any other text is
    one sentence per line.

    Raises `SempaError` with file and line for an empty sentence, a row without the field and what is not UTF-8 text,
    and for an empty file. With `skip_empty` empty sentences are left out, with a warning at the end that counts them.
    """
    layouts = [(field or "text",)]
    if is_columnar(path):
        _, records = read_records(path, layouts)
    else:
        lines = numbered_lines(path)
        first = next(lines)
        lines = itertools.chain([first], lines)
        named = path.name.lower().removesuffix(".gz").endswith(_WITH_FIELDS)
        if field is not None or named or re.match(LIKE_JSON, first[1]):
            _, records = line_records(path, lines, layouts)
        else:
            records = ((number, (line.rstrip("\r\n"),)) for number, line in lines)
    empty: list[int] = []
    for number, (sentence,) in records:
        if sentence.strip():
            yield number, sentence
        elif skip_empty:
            empty.append(number)
        else:
            raise SempaError(f"{path}:{number}: is empty, expected one sentence per line")
    if empty:
        warnings.warn(f"{path}: {many(len(empty), 'empty sentence')} left out, first in line {empty[0]}", stacklevel=2)
