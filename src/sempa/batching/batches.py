"""From a config to what a step of the loop takes: preferences as token ids, in batches of packed rows."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sempa.batching.packing import PreferenceRow, SentenceRow, pack_preferences, pack_sentence_rows
from sempa.batching.prompts import Preference, encode_triplet, end_of_turn
from sempa.config import CAPTIONS, RANKINGS, Config
from sempa.data.triplets import Triplet, caption_triplets, read_triplets
from sempa.errors import SempaError
from sempa.io.progress import bar
from sempa.io.rows import many

# Tokens of a conversation, as published.
MAX_LENGTH = 1024


@dataclass(frozen=True)
class Dataset:
    """Training and held-out preferences as token ids, and lines for the log and the report on what was left out."""

    train: list[Preference]
    held_out: list[Preference]
    too_long: int
    notes: list[str]


def load_dataset(config: Config, tokenizer: PreTrainedTokenizerBase, longest: int = MAX_LENGTH) -> Dataset:
    """Read the triplets, set some aside by premise, encode them, and skip conversations of over `longest` tokens.

    Raises `SempaError` for an unusable file, or when nothing is left to train on.
    """
    if config.triplets == CAPTIONS:
        train = caption_triplets("train", config.triplet_limit or None, config.seed)
        held_out = caption_triplets("heldout", config.held_out, config.seed)
        notes = [f"{len(train):,} built-in triplets"]
    else:
        triplets, note = read_triplets(config.triplets, combinations=config.combinations)
        train, held_out = hold_out(triplets, config.held_out, config.seed)
        train = train[: config.triplet_limit or None]
        notes = [note]
    if end_of_turn(tokenizer) is None:
        notes.append("no token ends an answer, so training does not teach where to stop")
    ranking = config.objective in RANKINGS
    parts = [[triplet for triplet in part if triplet.neutral or not ranking] for part in (train, held_out)]
    if lacking := len(train) + len(held_out) - sum(map(len, parts)):
        found = f"left out {many(lacking, 'triplet')} without a neutral sentence, which {config.objective} ranks"
        notes.append(f"{found} (labelled NLI has them: sentence1, sentence2, gold_label; objective=dpo needs none)")
    encoded, longer = ([], []), []
    with bar(sum(map(len, parts)), "tokenizing", "triplet") as shown:
        for part, kept in zip(parts, encoded, strict=True):
            for triplet in part:
                preference = encode_triplet(tokenizer, triplet, ranking=ranking, one_word=config.contrast > 0)
                size = len(preference.prompt) + max(map(len, preference.responses))
                if size <= longest:
                    kept.append(preference)
                else:
                    longer.append((triplet.line, f"on line {triplet.line} ({size:,} tokens)"))
                shown.update()
    if longer:
        notes.append(f"skipped {many(len(longer), 'triplet')} of more than {longest:,} tokens, first {min(longer)[1]}")
    if not encoded[0]:
        raise SempaError(f"triplets {config.triplets}: none is left to train on: {'; '.join(notes)}")
    return Dataset(*encoded, len(longer), notes)


def hold_out(triplets: list[Triplet], count: int, seed: int) -> tuple[list[Triplet], list[Triplet]]:
    """Set about `count` triplets aside (never more than a fifth), all of a premise together, and shuffle the rest."""
    order = torch.randperm(len(triplets), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled, premises, held = [triplets[i] for i in order], set(), 0
    for premise, size in Counter(triplet.sentence for triplet in shuffled).items():
        if held < count and held + size <= len(triplets) // 5:
            premises.add(premise)
            held += size
    train = [triplet for triplet in shuffled if triplet.sentence not in premises]
    return train, [triplet for triplet in shuffled if triplet.sentence in premises]


@dataclass(frozen=True)
class Batch:
    """Some preferences in packed rows: paraphrase prompts with their responses, and one-word prompts to embed.

    `preference_rows` is empty where no loss reads responses, `sentence_rows` where `contrast` is 0. `text_ids`
    `[3, size]` int64 numbers the embedded texts (sentences, best and worst responses); equal texts share a number.
    """

    preferences: list[Preference]
    preference_rows: list[PreferenceRow]
    sentence_rows: list[SentenceRow]
    text_ids: Tensor

    @property
    def ranked(self) -> int:
        """How many examples have their responses read."""
        return sum(len(row.examples) for row in self.preference_rows)


def steps_per_epoch(config: Config, preferences: Sequence[Preference]) -> int:
    """How many batches hold every preference once."""
    return math.ceil(len(preferences) / config.batch_size)


def make_batch(config: Config, preferences: Sequence[Preference], step: int, processes: int = 1) -> Batch:
    """Pack the batch of a training step, counted from 0; every epoch shuffles the preferences anew.

    Each of `processes` gets equally many rows where examples suffice. Equal arguments give equal rows, so that a
    resumed run takes the steps that an unbroken one would.
    """
    epoch, place = divmod(step, steps_per_epoch(config, preferences))
    order = torch.randperm(len(preferences), generator=torch.Generator().manual_seed(config.seed + epoch))
    members = order[place * config.batch_size : (place + 1) * config.batch_size].tolist()
    preferences = [preferences[i] for i in members]
    sentence_rows, text_ids = [], torch.empty(0, len(preferences), dtype=torch.int64)
    if config.contrast:
        # All sentences, then all their best responses, then the worst.
        prompts = [prompt for kind in zip(*(p.one_word for p in preferences), strict=True) for prompt in kind]
        sentence_rows = pack_sentence_rows(prompts, config.row_tokens, processes)
        numbers = {tuple(prompt): number for number, prompt in enumerate(prompts)}
        text_ids = torch.tensor([numbers[tuple(prompt)] for prompt in prompts]).view(-1, len(preferences))
    preference_rows = []
    if config.reads_responses:
        # Ranking a triplet costs as much as contrasting it, and contrast gains from the negatives of a large batch.
        ranked = rounded_up(config.preference_fraction, len(preferences))
        preference_rows = pack_preferences(preferences[:ranked], config.row_tokens, processes)
    return Batch(preferences, preference_rows, sentence_rows, text_ids)


def rounded_up(fraction: float, count: int) -> int:
    """`fraction · count`, rounded up as written: 1.1 · 110 is 121, though in floating point it lies a little above."""
    return math.ceil(Fraction(str(fraction)) * count)
