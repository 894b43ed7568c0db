"""The objectives, each a pure function of log-probabilities that returns one loss per example."""

from sempa.losses.dpo import dpo_loss

__all__ = ["dpo_loss"]
