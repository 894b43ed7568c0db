"""The hot spots in plain PyTorch: whatever runs over the vocabulary, and attention inside packed rows."""

from sempa.kernels.packed_attention import PrefixGroup, make_prefix_group, packed_attention
from sempa.kernels.sparse_code import SparseCode, TokenDirections, decode, sparse_code, token_directions
from sempa.kernels.token_kl import token_kl
from sempa.kernels.token_logprobs import token_logprobs

__all__ = [
    "PrefixGroup",
    "SparseCode",
    "TokenDirections",
    "decode",
    "make_prefix_group",
    "packed_attention",
    "sparse_code",
    "token_directions",
    "token_kl",
    "token_logprobs",
]
