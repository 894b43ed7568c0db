"""Embeddings as files, by the file's name: NumPy, CSV, safetensors or parquet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sempa.errors import SempaError
from sempa.io.files import replace_atomically
from sempa.io.parquet import column_rows, import_pyarrow
from sempa.io.tensors import read_tensors, write_tensors

TENSOR, COLUMN = "embeddings", "embedding"


def check_vectors_name(path: Path) -> None:
    """Raise `SempaError` unless the name says a format that can be written here: before the work, not after it."""
    if path.suffix not in WRITERS:
        raise SempaError(f"output {path}: expected a name that ends in {', '.join(WRITERS)}")
    if path.suffix == ".parquet":
        import_pyarrow()


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write float32 `[n, D]` atomically: an array, lines of numbers, the tensor `embeddings`, or a list column
    `embedding`.

    Raises `SempaError` for another name, and when the file cannot be written.
    """
    check_vectors_name(path)
    WRITERS[path.suffix](path, vectors)


def read_vectors(path: Path) -> np.ndarray:
    """What `write_vectors` wrote, float32 `[n, D]`; raises `SempaError` when it cannot be read."""
    check_vectors_name(path)
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)
        if TENSOR not in tensors:
            raise SempaError(f"{path}: holds no tensor {TENSOR!r}")
        return tensors[TENSOR].numpy()
    try:
        if path.suffix == ".parquet":
            return np.array([row[COLUMN] for _, row in column_rows(path, [COLUMN])], dtype=np.float32)
        if path.suffix == ".npy":
            # Not `np.load`, which by the first bytes opens zip archives, too.
            with path.open("rb") as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
        return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except Exception as error:  # NumPy reads a header with Python's own parser
        raise SempaError(f"{path}: cannot be read: {error}") from error


def _write_npy(path: Path, vectors: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, vectors, allow_pickle=False)

    replace_atomically(path, write)


def _write_csv(path: Path, vectors: np.ndarray) -> None:
    replace_atomically(path, lambda temporary: np.savetxt(temporary, vectors, "%.9g", delimiter=","))


def _write_safetensors(path: Path, vectors: np.ndarray) -> None:
    write_tensors(path, {TENSOR: torch.from_numpy(vectors)})


def _write_parquet(path: Path, vectors: np.ndarray) -> None:
    pyarrow = import_pyarrow()
    flat = pyarrow.array(vectors.reshape(-1), type=pyarrow.float32())
    column = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pyarrow.table({COLUMN: column})
    replace_atomically(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    ".npy": _write_npy,
    ".csv": _write_csv,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
