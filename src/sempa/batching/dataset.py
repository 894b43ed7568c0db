"""From a config to token ids: training and held-out preferences, with an account of what was skipped."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import Preference, encode_triplet
from sempa.config import CAPTIONS, RANKINGS, Config
from sempa.data.captions import caption_triplets
from sempa.data.examples import Triplet
from sempa.data.triplets import read_triplets
from sempa.errors import SempaError

# Tokens of a conversation, as published.
MAX_LENGTH = 1024


@dataclass(frozen=True)
class Dataset:
    """Preferences as token ids, and lines for the log and the report on where they came from."""

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
        triplets, counts = read_triplets(Path(config.triplets), combinations=config.combinations)
        train, held_out = hold_out(triplets, config.held_out, config.seed)
        train = train[: config.triplet_limit or None]
        notes = [counts.describe()]
    if config.objective in RANKINGS:
        ranked = [[triplet for triplet in part if triplet.neutral] for part in (train, held_out)]
        if not ranked[0]:
            raise SempaError(
                f"triplets {config.triplets}: objective {config.objective} compares entailment, neutral and "
                "contradiction, but there is no neutral sentence (labelled NLI has them: sentence1, sentence2, "
                "gold_label); objectives dpo, conservative-dpo and ipo do without"
            )
        if lost := len(train) + len(held_out) - sum(map(len, ranked)):
            notes.append(f"left out {lost:,} triplets without a neutral sentence")
        train, held_out = ranked
    encoded = [_encode(tokenizer, part, config, longest) for part in (train, held_out)]
    too_long = [skipped for _, skipped in encoded]
    for skipped in filter(None, too_long):
        notes.append(f"skipped {len(skipped)} triplets of more than {longest:,} tokens, first {skipped[0]}")
    if not encoded[0][0]:
        raise SempaError(
            f"triplets {config.triplets}: none is left to train on; all {len(train)} have more than {longest:,} tokens"
            if train
            else f"triplets {config.triplets}: all are held out; lower held_out = {config.held_out}"
        )
    return Dataset(encoded[0][0], encoded[1][0], sum(map(len, too_long)), notes)


def hold_out(triplets: list[Triplet], count: int, seed: int) -> tuple[list[Triplet], list[Triplet]]:
    """Set about `count` triplets aside (never more than a fifth), all of a premise together, and shuffle the rest."""
    order = torch.randperm(len(triplets), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(count, len(triplets) // 5)
    premises = {triplets[i].sentence for i in order[:count]}
    train = [triplets[i] for i in order if triplets[i].sentence not in premises]
    return train, [triplets[i] for i in order if triplets[i].sentence in premises]


def _encode(
    tokenizer: PreTrainedTokenizerBase, triplets: list[Triplet], config: Config, limit: int
) -> tuple[list[Preference], list[str]]:
    encoded: list[Preference] = []
    skipped: list[str] = []
    for triplet in triplets:
        ranking, words = config.objective in RANKINGS, config.contrast > 0
        preference = encode_triplet(tokenizer, triplet, ranking=ranking, words=words)
        prompt, longest = len(preference.prompt), max(map(len, preference.responses))
        if prompt + longest <= limit:
            encoded.append(preference)
        else:
            what = "prompt alone" if prompt >= limit else "prompt and response"
            skipped.append(f"on line {triplet.line} ({what}: {prompt if prompt >= limit else prompt + longest} tokens)")
    return encoded, skipped
