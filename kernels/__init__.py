"""The hot spots in plain PyTorch: whatever runs over the vocabulary, and attention inside packed rows."""

from sempa.kernels.packed_attention import Families, make_families, packed_attention
from sempa.kernels.rms_norm import rms_norm
from sempa.kernels.sparse_code import SparseCode, decode, sparse_code
from sempa.kernels.token_kl import token_kl
from sempa.kernels.token_logprobs import token_logprobs

__all__ = [
    "Families",
    "SparseCode",
    "decode",
    "make_families",
    "packed_attention",
    "rms_norm",
    "sparse_code",
    "token_kl",
    "token_logprobs",
]
