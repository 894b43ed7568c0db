"""Training objectives, one pure function a file: tensors of sentence log-probabilities in, per-example losses out."""

from sempa.losses.anchor import nll_per_token
from sempa.losses.dpo import dpo_loss

__all__ = ["dpo_loss", "nll_per_token"]
