"""Rows of columnar data, streamed by pyarrow: a parquet file, a folder of them, or a folder that `datasets` saved."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sempa.errors import SempaError

MAGIC = b"PAR1"
_BATCH_ROWS = 4096


def is_columnar(path: Path) -> bool:
    """Whether it is a folder or, by its first bytes, a parquet file."""
    if path.is_dir():
        return True
    # What can be read only once, such as a pipe, is left to its reader; so is what cannot be read at all.
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def import_pyarrow() -> ModuleType:
    """The package with its parquet part; a `SempaError` tells how to install it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SempaError(
            "parquet files and datasets folders need pyarrow; install it with: pip install pyarrow"
        ) from error
    return pyarrow


def column_names(path: Path) -> list[str]:
    """The columns of the data.

    Raises `SempaError` when pyarrow is missing, for a folder of several splits or of none, and for a damaged file.
    """
    pyarrow, file = import_pyarrow(), _files(path)[0]
    with _explained(file, pyarrow):
        if file.suffix == ".arrow":
            return pyarrow.ipc.open_stream(str(file)).schema.names
        return pyarrow.parquet.read_schema(file).names


def column_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict]]:
    """The number of each row, from 1, and its values in the columns `names`; errors are those of `column_names`."""
    return enumerate(itertools.chain.from_iterable(_rows(file, list(names)) for file in _files(path)), 1)


def _rows(file: Path, names: list[str]) -> Iterator[dict]:
    pyarrow = import_pyarrow()
    with _explained(file, pyarrow):
        if file.suffix == ".arrow":
            batches = (batch.select(names) for batch in pyarrow.ipc.open_stream(str(file)))
        else:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=names)
        for batch in batches:
            yield from batch.to_pylist()


def _files(path: Path) -> list[Path]:
    """The files that make up the data, in their order."""
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _listed(path / "dataset_dict.json", "splits", str)
        raise SempaError(f"{path}: holds the splits {', '.join(splits)}; name the folder of one")
    if (path / "state.json").is_file():
        # By the last part of each name, so that nothing outside the folder is opened.
        files = _listed(path / "state.json", "_data_files", lambda file: path / Path(file["filename"]).name)
    else:
        files = sorted(path.glob("*.parquet"))
        splits = sorted({file.name.partition("-")[0] for file in files if "-of-" in file.name})
        if len(splits) > 1:
            raise SempaError(f"{path}: holds the splits {', '.join(splits)}; name the files of one")
    if not files:
        raise SempaError(f"{path}: is a folder without parquet files and without a state.json of datasets")
    return files


def _listed(file: Path, key: str, take: Callable[[Any], Any]) -> list:
    """What `take` makes of each entry of the list `key` in a JSON file of `datasets`."""
    try:
        return list(map(take, json.loads(file.read_text(encoding="utf-8"))[key]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SempaError(f"{file}: is not what datasets writes ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def _explained(file: Path, pyarrow: ModuleType) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise SempaError(f"{file}: cannot be read as columns: {str(error).splitlines()[0]}") from error
