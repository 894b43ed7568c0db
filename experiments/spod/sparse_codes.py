"""Sparse sentence embeddings: a few tokens of the model's own vocabulary, each with a weight, as SciPy CSR rows.

Each dimension is a token: an inverted index can hold the vectors, and a person can read them. The code is that of
`sempa.kernels.sparse_code`, scaled by least squares: α a_v with α = ⟨ĥ, h⟩ / ‖ĥ‖², so that α ĥ, ĥ = Σ a_v e_v, is as
near to the embedding h as it can be. The factor follows from the sentence alone, is not trained and changes no cosine.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix, save_npz
from torch import Tensor

from sempa import SempaError
from sempa.embedding.embed import embed
from sempa.io.files import write_atomic
from sempa.kernels import decode, sparse_code, token_directions
from sempa.model.base import BaseModel


def encode_sparse(
    base: BaseModel, sentences: Sequence[str], k: int, batch_size: int = 32, show_progress: bool = False
) -> csr_matrix:
    """k-sparse PromptEOL embeddings of `sentences` by a model with its adapter, if it has one: float32 `[n, V]`.

    They are read from the last layer, the head's input. Raises `SempaError` as `embed` does, and for k below 1 or above
    the vocabulary.
    """
    head = base.model.get_output_embeddings().weight
    if not 1 <= k <= len(head):
        raise SempaError(f"k: found {k}, expected 1 to the vocabulary's {len(head):,}")
    vectors = torch.from_numpy(embed(base, sentences, batch_size, progress="embedding" if show_progress else ""))
    return sparse_embeddings(vectors.to(head.device), head, k)


@torch.inference_mode()
def sparse_embeddings(vectors: Tensor, head: Tensor, k: int) -> csr_matrix:
    """The scaled codes of embeddings `[n, D]` over output embeddings `[V, D]`: float32 `[n, V]`."""
    tokens = token_directions(head)
    values, indices, _ = sparse_code(vectors, tokens, k)
    decoded = decode(values, indices, tokens)
    scale = (decoded * vectors).sum(1) / decoded.square().sum(1).clamp_min(torch.finfo(decoded.dtype).tiny)
    return to_csr(values * scale[:, None], indices, len(head))


def to_csr(values: Tensor, indices: Tensor, vocabulary: int) -> csr_matrix:
    """Codes `[n, k]` as a float32 CSR matrix `[n, vocabulary]` with sorted columns and no stored zeros.

    Raises `ValueError` for shapes that differ and indices outside the vocabulary.
    """
    if values.shape != indices.shape or values.ndim != 2:
        raise ValueError(f"to_csr needs values and indices [n, k], found {tuple(values.shape)} {tuple(indices.shape)}")
    count, k = values.shape
    data, columns = (x.detach().cpu().numpy().ravel() for x in (values.float(), indices))
    if len(columns) and not (columns.min() >= 0 and columns.max() < vocabulary):
        raise ValueError(f"to_csr needs indices in [0, {vocabulary}), found {columns.min()} to {columns.max()}")
    codes = csr_matrix((data, columns.astype(np.int32), np.arange(count + 1) * k), shape=(count, vocabulary))
    codes.eliminate_zeros()
    codes.sort_indices()
    return codes


def write_codes(path: Path, codes: csr_matrix) -> None:
    """Write codes atomically for `scipy.sparse.load_npz`; raises `SempaError` when the file cannot be written."""
    buffer = io.BytesIO()
    save_npz(buffer, codes)
    write_atomic(path, buffer.getvalue())


def sparse_cosines(first: csr_matrix, second: csr_matrix) -> np.ndarray:
    """The cosine of each row of `first` with the same row of `second`, float64 `[n]`; 0 where a row is empty."""
    first, second = (codes.astype(np.float64) for codes in (first, second))
    dots, a, b = (
        np.asarray(x.multiply(y).sum(axis=1)).ravel() for x, y in ((first, second), (first, first), (second, second))
    )
    return dots / np.maximum(np.sqrt(a) * np.sqrt(b), np.finfo(np.float64).tiny)


def stored_bytes(codes: csr_matrix) -> int:
    """Bytes of the three arrays of a CSR matrix: about 8 per non-zero entry and 4 per row."""
    return codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
