"""Smaller vectors: fewer numbers, and fewer bits a number."""

import numpy as np
import torch
from torch import Tensor

from sempa.errors import SempaError

PRECISIONS = ("float32", "int8", "binary")
# Rows of the head that are float64 at one time.
_ROWS = 8192


@torch.no_grad()
def middle_directions(head: Tensor) -> np.ndarray:
    """The right-singular vectors of an unembedding matrix `[V, D]`, middle of the spectrum first: float32 `[D, D]`.

    Column k is the direction whose rank by singular value is the k-th nearest to the middle. The edges of the spectrum
    are where a language model writes its frequent tokens (EmbedFilter, arXiv 2606.07502), so the first columns say most
    about a sentence. Signs are fixed: two machines get the same columns.
    """
    # Metal has no float64.
    gram = sum(rows.double().T @ rows.double() for rows in head.cpu().split(_ROWS))
    directions = torch.linalg.eigh(gram).eigenvectors
    width = len(directions)
    directions = directions[:, (torch.arange(width) - (width - 1) / 2).abs().argsort(stable=True)]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return (directions * largest.sign()).float().numpy()


def check_compression(dim: int | None, precision: str, width: int) -> None:
    """Raise `SempaError` unless vectors of `width` numbers can keep `dim` of them (None: all) at a precision."""
    if dim is not None and not (isinstance(dim, int | np.integer) and 1 <= dim <= width):
        raise SempaError(f"dim: found {dim!r}, expected a whole number from 1 to {width:,}")
    if precision not in PRECISIONS:
        raise SempaError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if precision == "binary" and (kept := dim or width) % 8:
        raise SempaError(f"precision: binary packs 8 numbers into a byte, but the vectors have {kept:,}")


def quantise(vectors: np.ndarray, precision: str) -> np.ndarray:
    """Float32 `[n, D]` as they are, as int8 `[n, D]`, or `binary`: uint8 `[n, D / 8]`, a bit for each number above 0.

    An int8 vector is the float's times 127 over its own largest entry: its cosines are the float's to rounding, and its
    length says nothing. Bits are compared by their Hamming distance.
    """
    if precision == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=np.finfo(np.float32).tiny)
        return np.rint(127 * (vectors / largest)).astype(np.int8)
    return np.packbits(vectors > 0, axis=1) if precision == "binary" else vectors


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cosine of each row of `[n, D]` with each of `[m, D]`, or of single vectors `[D]`: float32 `[n, m]`.

    uint8 is taken for `quantise`'s bits, each +1 or −1: their cosine is 1 − 2 × Hamming distance / D. A zero vector has
    cosine 0 with all.
    """
    first, second = (unit(_numbers(np.atleast_2d(vectors))) for vectors in (first, second))
    return first @ second.T


def unit(vectors: np.ndarray) -> np.ndarray:
    """Float32 `[n, D]` divided by their Euclidean lengths; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _numbers(vectors: np.ndarray) -> np.ndarray:
    signs = 2.0 * np.unpackbits(vectors, axis=1) - 1 if vectors.dtype == np.uint8 else vectors
    return signs.astype(np.float32)
