"""The numerical kernels, in plain PyTorch: what training spends its memory and time on."""

from sempa.kernels.token_logprobs import token_logprobs

__all__ = ["token_logprobs"]
