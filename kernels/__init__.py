"""The hot spots in plain PyTorch: log-probabilities and divergences of tokens, and attention inside packed rows."""

from sempa.kernels.packed_attention import Families, make_families, packed_attention
from sempa.kernels.rms_norm import rms_norm
from sempa.kernels.token_kl import token_kl
from sempa.kernels.token_logprobs import token_logprobs

__all__ = ["Families", "make_families", "packed_attention", "rms_norm", "token_kl", "token_logprobs"]
