"""The two hot spots in plain PyTorch: log-probabilities of given tokens, and attention inside packed rows."""

from sempa.kernels.packed_attention import Families, make_families, packed_attention
from sempa.kernels.token_logprobs import token_logprobs

__all__ = ["Families", "make_families", "packed_attention", "token_logprobs"]
