"""Preferences in batches, packed into rows when their step comes: what a step of the loop takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from sempa.batching.packing import PreferenceRow, SentenceRow, pack_preferences, pack_sentence_rows
from sempa.batching.prompts import Preference
from sempa.config import Config


@dataclass(frozen=True)
class Batch:
    """Some preferences in packed rows: paraphrase prompts with their responses, and one-word prompts to embed.

    `rows` and `sentences` are there where the config's objective ranks, or embeds, what the data holds. `texts`
    `[kinds, size]` numbers the embedded texts (sentences, best responses, …), equal ones alike.
    """

    preferences: list[Preference]
    rows: list[PreferenceRow]
    sentences: list[SentenceRow]
    texts: Tensor

    @property
    def ranked(self) -> int:
        """How many examples the preference loss ranks."""
        return sum(len(row.examples) for row in self.rows)

    @property
    def size(self) -> int:
        """How many examples the batch has."""
        return len(self.preferences)

    @property
    def lines(self) -> list[int]:
        """Where in the file the batch's triplets stand."""
        return sorted(preference.line for preference in self.preferences)


class Batches(Sequence[Batch]):
    """Preferences shuffled once into batches of `batch_size`; epochs differ in the order of the batches.

    A batch is packed when it is asked for, to the same rows every time: no more rows are in memory than a step takes.
    """

    def __init__(self, config: Config, preferences: list[Preference]) -> None:
        self.config, self.preferences = config, preferences
        generator = torch.Generator().manual_seed(config.seed)
        self.order = torch.randperm(len(preferences), generator=generator).tolist()

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.config.batch_size)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self.config.batch_size
        return _make_batch(self.config, self.preferences, self.order[start : start + self.config.batch_size])


def rounded_up(fraction: float, count: int) -> int:
    """`fraction · count`, rounded up as written: 1.1 · 110 is 121, though in floating point it lies a little above."""
    return math.ceil(Fraction(str(fraction)) * count)


def _make_batch(config: Config, preferences: list[Preference], members: list[int]) -> Batch:
    sentences, texts = [], torch.empty(0, len(members), dtype=torch.int64)
    if config.contrast:
        # All sentences, then all their best responses, and so on.
        kinds = zip(*(preferences[i].words for i in members), strict=True)
        words = [prompt for kind in kinds for prompt in kind]
        sentences = pack_sentence_rows(words, config.row_tokens)
        numbers: dict[tuple[int, ...], int] = {}
        texts = torch.tensor([numbers.setdefault(tuple(prompt), len(numbers)) for prompt in words])
        texts = texts.view(-1, len(members))
    rows = []
    if config.objective != "none" or config.anchor:
        # Contrast wants many sentences side by side, preference needs few: it costs as much again for each.
        ranked = members[: rounded_up(config.preference_fraction, len(members))]
        rows = pack_preferences(preferences, ranked, config.row_tokens)
    return Batch([preferences[i] for i in members], rows, sentences, texts)
