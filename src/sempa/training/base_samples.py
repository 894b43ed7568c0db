"""Neutral text that holds a policy to its base: the base model's own words, sampled once and kept.

What a model says by itself is the text that it is most at home in, and costs no file. It is drawn behind questions of
many kinds and behind mere openings, so that conversation and running text are both there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sempa.batching.packing import Row, pack_texts
from sempa.batching.prompts import encode_plain, encode_texts, render_prompt
from sempa.errors import SempaError
from sempa.io.files import cache_folder, fingerprint
from sempa.io.progress import bar
from sempa.io.tensors import read_tensors, write_tensors
from sempa.model.base import BaseModel, evaluating, row_states, weights_fingerprint
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import sample
from sempa.training.processes import ALONE, World, any_sharing

QUESTIONS = (
    "How do I bake bread?",
    "Explain how a computer works.",
    "Write a short story about a lost key.",
    "What is the capital of France, and why is it famous?",
    "Write a Python function that sorts a list.",
    "Give me three tips for better sleep.",
    "A train travels 60 miles in 2 hours. How fast is it?",
    "Write an email that asks for a day off.",
    "Why is the sky blue?",
    "Summarise the causes of the First World War.",
    "Describe your favourite season.",
    "Translate 'good morning' into Spanish.",
    "What should I cook for dinner tonight?",
    "Write a poem about the sea.",
    "How does photosynthesis work?",
    "List five countries in Africa.",
    "What is a mortgage?",
    "Tom has 12 apples and gives away 5. How many are left? Explain.",
    "How can I learn to play the guitar?",
    "Write a product description for a lamp.",
    "What is the meaning of democracy?",
    "Explain gravity to a child.",
    "Plan a weekend in London.",
    "Write a dialogue between two friends.",
    "How do vaccines protect us?",
    "What are the rules of chess?",
    "Write an SQL query that counts users.",
    "My computer is slow. What can I do?",
    "Tell me about the history of paper.",
    "What makes a good leader?",
    "Write a letter to a landlord about a leak.",
    "How do I change a tyre?",
)
OPENINGS = (
    *("The", "In", "A", "When", "It", "Many", "During", "For", "This", "She"),
    *("He", "They", "On", "One", "After", "As", "#", "import", "We", "If"),
)
# Answers to a question, continuations of an opening, and the longest of either, in tokens.
ANSWERS, CONTINUATIONS, LONGEST = 2, 1, 64


class NeutralText:
    """Packed rows of neutral text and the base's hidden states on them, each row computed on first use."""

    def __init__(self, base: BaseModel, sequences: Sequence[Sequence[int]], row_tokens: int) -> None:
        self.model = base.model
        self.rows = pack_texts(sequences, row_tokens)
        self.known: dict[int, Tensor] = {}

    def row(self, step: int) -> Row:
        """The row of a step."""
        return self.rows[step % len(self.rows)]

    @torch.no_grad()
    def states(self, step: int) -> Tensor:
        """The base's last hidden states on the row of a step, `[length, D]`."""
        number = step % len(self.rows)
        if number not in self.known:
            with evaluating(self.model), adapter_disabled(self.model):
                self.known[number] = row_states(self.model, self.rows[number])
        return self.known[number]


def neutral_texts(base: BaseModel, world: World = ALONE, seed: int = 0) -> list[list[int]]:
    """Token ids of the base's own words, drawn at temperature 1 on first use, then read from the cache folder.

    With a sharded base all processes draw when one of them finds nothing to read.
    """
    drawn_from = (QUESTIONS, OPENINGS, ANSWERS, CONTINUATIONS, LONGEST)
    key = fingerprint(weights_fingerprint(base), base.model.dtype, drawn_from, seed)
    path = cache_folder() / "neutral" / f"{key}.safetensors"
    kept = _read(path)
    if not any_sharing(kept is None, world, base.model.device):
        return kept
    questions = encode_texts(base.tokenizer, [render_prompt(base.tokenizer, text) for text in QUESTIONS])
    openings = encode_plain(base.tokenizer, OPENINGS)
    prompts = [ids for part, n in ((questions, ANSWERS), (openings, CONTINUATIONS)) for ids in part for _ in range(n)]
    with bar(len(prompts), "the base's own words", "text") as progress:
        # All side by side: many rows of one product cost little more than few.
        drawn = sample(
            base, prompts, 1, LONGEST, seed=seed, reference_share=1.0, batch_size=len(prompts), progress=progress
        )
    texts = [ids + answer.tokens for ids, (answer,) in zip(prompts, drawn, strict=True)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [texts[i] for i in order]
    tokens = torch.tensor([token for text in texts for token in text])
    write_tensors(path, {"tokens": tokens, "lengths": torch.tensor([len(text) for text in texts])})
    return texts


def _read(path: Path) -> list[list[int]] | None:
    try:
        kept = read_tensors(path)
        return [ids.tolist() for ids in kept["tokens"].split(kept["lengths"].tolist())]
    except (SempaError, KeyError, RuntimeError):
        # Missing or damaged: it costs the sampling again.
        return None
