"""Readouts: from a language model's hidden states to a sentence embedding, each beside its paper's equation."""

from sempa.readouts.echo import echo
from sempa.readouts.pooling import last, mean, weighted_mean
from sempa.readouts.prompt import Prompt
from sempa.readouts.prompteol import prompteol, prompteol_icl

PROMPTS = {
    "mean": mean,
    "weighted-mean": weighted_mean,
    "last": last,
    "echo": echo,
    "prompteol": prompteol,
    "prompteol-icl": prompteol_icl,
}
READOUTS = tuple(PROMPTS)

__all__ = ["PROMPTS", "READOUTS", "Prompt"]
