"""Embeddings as files, by the file's name: NumPy, CSV, safetensors or parquet."""

import io
from pathlib import Path

import numpy as np
import torch

from sempa.errors import SempaError
from sempa.io.files import read_tensors, write_atomic, write_tensors
from sempa.io.rows import import_pyarrow

TENSOR, COLUMN = "embeddings", "embedding"
SUFFIXES = (".npy", ".csv", ".safetensors", ".parquet")


def check_vectors_name(path: Path) -> None:
    """Raise `SempaError` unless the name says a format that can be written here: before the work, not after it."""
    if path.suffix not in SUFFIXES:
        raise SempaError(f"output {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        import_pyarrow()


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """Write float32 `[n, D]` atomically: an array, lines of numbers, tensor `embeddings` or list column `embedding`.

    Raises `SempaError` for another name, and when the file cannot be written.
    """
    check_vectors_name(path)
    if path.suffix == ".safetensors":
        write_tensors(path, {TENSOR: torch.from_numpy(vectors)})
        return
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, vectors, allow_pickle=False)
    elif path.suffix == ".csv":
        np.savetxt(buffer, vectors, "%.9g", delimiter=",")
    else:
        pyarrow = import_pyarrow()
        flat = pyarrow.array(vectors.reshape(-1), type=pyarrow.float32())
        column = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        pyarrow.parquet.write_table(pyarrow.table({COLUMN: column}), buffer)
    write_atomic(path, buffer.getvalue())


def read_vectors(path: Path) -> np.ndarray:
    """What `write_vectors` wrote, float32 `[n, D]`; raises `SempaError` when it cannot be read."""
    check_vectors_name(path)
    try:
        match path.suffix:
            case ".safetensors":
                return read_tensors(path)[TENSOR].numpy()
            case ".npy":
                # Not `np.load`, which by the first bytes opens zip archives, too.
                with path.open("rb") as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
            case ".csv":
                return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
            case _:
                column = import_pyarrow().parquet.read_table(path, columns=[COLUMN])[COLUMN].combine_chunks()
                return column.flatten().to_numpy().reshape(-1, column.type.list_size)
    except SempaError:
        raise
    except Exception as error:  # NumPy reads a header with Python's own parser
        raise SempaError(f"{path}: cannot be read: {error}") from error
