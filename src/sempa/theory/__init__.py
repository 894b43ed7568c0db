"""The theory behind SemPA as statements that a program can check: what holds, to what precision, and what does not."""

from sempa.theory import choice, information, one_word, optimum, ranking, sphere
from sempa.theory.statement import Statement

_PARTS = (ranking, choice, optimum, information, sphere, one_word)
ALL = tuple(found for part in _PARTS for found in vars(part).values() if isinstance(found, Statement))
"""Every statement that needs no model."""
