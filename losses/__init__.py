"""Training objectives, one pure function a file: tensors of sentence log-probabilities in, per-example losses out."""

from sempa.losses.anchor import nll_per_token
from sempa.losses.dpo import dpo_loss
from sempa.losses.infonce import infonce_loss, positive_first
from sempa.losses.plackett_luce import plackett_luce_loss

__all__ = ["dpo_loss", "infonce_loss", "nll_per_token", "plackett_luce_loss", "positive_first"]
