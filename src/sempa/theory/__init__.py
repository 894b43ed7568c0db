"""The theory behind SemPA as statements that a program can check: what holds, to what precision, and what does not."""

from sempa.theory import choice, information, one_word, optimum, ranking, sphere

ALL = (
    *ranking.STATEMENTS,
    *choice.STATEMENTS,
    *optimum.STATEMENTS,
    *information.STATEMENTS,
    *sphere.STATEMENTS,
    *one_word.STATEMENTS,
)
"""Every statement that needs no model, in the order of docs/theory.md."""

__all__ = ["ALL"]
