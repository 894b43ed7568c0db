"""Samples of the base model's own text, which the retention loss holds the policy to.

A model's own samples show what it does well, and need no data file. They answer questions of many kinds and continue
short openings, so that they cover both conversation and running text.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sempa.batching.packing import PackedRow, pack_texts
from sempa.batching.prompts import encode_plain
from sempa.errors import SempaError
from sempa.io.files import cache_folder, fingerprint, read_tensors, write_tensors
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.forward import row_states
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import encode_prompts, sample
from sempa.model.threads import parallel_map

QUESTIONS, OPENINGS = (
    tuple(Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines())
    for name in ("questions.txt", "openings.txt")
)
# Answers to a question (an opening has one continuation), and the longest of either, in tokens.
ANSWERS, LONGEST = 2, 64
# The texts of every fourth prompt are kept out of training, to measure the divergence on (`kl_budget`).
HELD_OUT_EVERY = 4
# Tokens of a packed row: one row is compared in each step.
ROW_TOKENS = 128
SEED = 1


@dataclass(frozen=True, eq=False)
class BaseSample:
    """A packed row of sampled texts, and the base's last hidden states on it, `[length, D]`."""

    packed: PackedRow
    hidden: Tensor


@torch.no_grad()
def base_samples(base: BaseModel, held_out: bool = False) -> list[BaseSample]:
    """`sample_texts` in some sixty packed rows with the base's hidden states; each training step takes the next row."""
    packed = pack_texts(sample_texts(base, held_out), ROW_TOKENS)
    # Packing sorts by length, which would put the long conversations first and running text last.
    rows = [packed[i] for i in torch.randperm(len(packed), generator=torch.Generator().manual_seed(SEED))]
    with adapter_disabled(base.model):
        states = parallel_map(base.model, lambda row: row_states(base.model, row), rows)
        return [BaseSample(row, hidden) for row, hidden in zip(rows, states, strict=True)]


def sample_texts(base: BaseModel, held_out: bool = False) -> list[list[int]]:
    """Token ids of the base's own text, drawn at temperature 1 on first use, then read from the cache folder.

    With `held_out`, the texts of every fourth prompt, never trained on; without, those of all others.
    """
    drawn_from = (QUESTIONS, OPENINGS, ANSWERS, LONGEST)
    key = fingerprint(weights_fingerprint(base), base.model.dtype, drawn_from, SEED)
    path = cache_folder() / "base_samples" / f"{key}.safetensors"
    # Each text's prompt, by its number among questions and openings.
    numbers = [number for number in range(len(QUESTIONS)) for _ in range(ANSWERS)]
    numbers += range(len(QUESTIONS), len(QUESTIONS) + len(OPENINGS))
    try:
        cached = read_tensors(path)
        found = cached["tokens"].split(cached["lengths"].tolist())
        texts = [ids.tolist() for _, ids in zip(numbers, found, strict=True)]
    except (SempaError, KeyError, RuntimeError, ValueError):  # missing, damaged or another user's
        texts = _draw(base)
        tokens = torch.tensor([token for text in texts for token in text])
        try:
            write_tensors(path, {"tokens": tokens, "lengths": torch.tensor([len(text) for text in texts])})
        except SempaError as error:
            warnings.warn(f"{error}; the samples are drawn anew next time", stacklevel=2)
    pairs = zip(numbers, texts, strict=True)
    return [text for number, text in pairs if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]


def _draw(base: BaseModel) -> list[list[int]]:
    """Each question's texts, then each opening's: the prompt's token ids and the sampled ones."""
    prompts = [ids for ids in encode_prompts(base, QUESTIONS, LONGEST) for _ in range(ANSWERS)]
    prompts += encode_plain(base.tokenizer, OPENINGS)
    with adapter_disabled(base.model):
        # All side by side: many rows of one product cost little more than few.
        options = {"batch_size": len(prompts), "progress": "samples of the base model"}
        drawn = sample(base, prompts, 1, LONGEST, seed=SEED, **options)
    return [ids + answer.tokens for ids, (answer,) in zip(prompts, drawn, strict=True)]
