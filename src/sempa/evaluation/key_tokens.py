"""Key tokens: the tokens of the vocabulary that an embedding is closest to when the language-model head reads it.

Nie et al. 2025, *A Text is Worth Several Tokens* (arXiv 2406.17378): the embeddings of language models point at the
words that matter in their sentence. The logits are E h, with the head's matrix E, the last layer's hidden state h after
the final norm, and the model's own scaling and soft cap.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sempa.batching.tokens import as_text, encode_texts
from sempa.errors import SempaError
from sempa.model.base import BaseModel
from sempa.model.lm_head import head_logits

TOP = 10
# Enough sentences for a fraction to ±2 %, and some of them to be shown.
_SAMPLE, _EXAMPLES = 500, 5
# Elements of a block of logits.
_CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True, eq=False)
class KeyTokens:
    """The `k` most probable tokens of n embeddings, the best first.

    `ids` int `[n, k]`, their text in `tokens` (a blank before a word included) and their `probabilities`, float32
    `[n, k]`. `entropy`, float32 `[n]`, is −Σ p log p over the whole vocabulary, in nats. `by_id` `[n, k]` says whether
    the token is one of the sentence's own; `by_word` whether it spells one of its words, blanks and case aside, because
    a prompt that ends in a quotation mark asks for `Dog` where the sentence has ` dog`.
    """

    ids: np.ndarray
    tokens: list[list[str]]
    probabilities: np.ndarray
    entropy: np.ndarray
    by_id: np.ndarray
    by_word: np.ndarray


@torch.inference_mode()
def key_tokens(base: BaseModel, sentences: Sequence[str], vectors: np.ndarray, top: int = TOP) -> KeyTokens:
    """The `top` tokens of each of n sentences' embeddings `[n, D]`, and the entropy over the vocabulary.

    Raises `SempaError` when `top` is not from 1 to the size of the vocabulary.
    """
    model = base.model.eval()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if not 1 <= top <= vocabulary:
        raise SempaError(f"top: found {top}, expected 1 to {vocabulary}, the size of the vocabulary")
    ids = np.empty((len(vectors), top), dtype=np.int64)
    probabilities = np.empty((len(vectors), top), dtype=np.float32)
    entropy = np.empty(len(vectors), dtype=np.float32)
    rows = max(1, _CHUNK_ELEMENTS // vocabulary)
    for begin in range(0, len(vectors), rows):
        chunk = slice(begin, begin + rows)
        hidden = torch.from_numpy(vectors[chunk]).to(model.device, model.dtype)
        distribution = head_logits(model, hidden).softmax(-1)
        best = distribution.topk(top, dim=-1)
        ids[chunk], probabilities[chunk] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        entropy[chunk] = torch.special.entr(distribution).sum(-1).cpu().numpy()
    text = _texts(base.tokenizer, ids)
    by_id, by_word = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
    texts = encode_texts(base.tokenizer, [as_text(base.tokenizer, sentence) for sentence in sentences])
    for row, (sentence, own) in enumerate(zip(sentences, texts, strict=True)):
        by_id[row] = np.isin(ids[row], own)
        words = set(re.findall(r"\w+", sentence.lower()))
        by_word[row] = [text[i].strip().lower() in words for i in ids[row]]
    return KeyTokens(ids, [[text[i] for i in row] for row in ids.tolist()], probabilities, entropy, by_id, by_word)


def summarise(tokens: KeyTokens) -> dict:
    """Means over the sentences, as plain numbers.

    `share_by_id`, `share_by_word`: the fraction of the top k tokens that are present in the sentence. `hit_by_id`
    (Hit@k of the paper, § 3) and `hit_by_word`: the fraction of sentences with at least one. `entropy` in nats.
    """
    return {
        "share_by_id": float(tokens.by_id.mean()),
        "share_by_word": float(tokens.by_word.mean()),
        "hit_by_id": float(tokens.by_id.any(1).mean()),
        "hit_by_word": float(tokens.by_word.any(1).mean()),
        "entropy": float(tokens.entropy.mean(dtype=np.float64)),
    }


def compare_key_tokens(base: BaseModel, sentences: Sequence[str], sides: dict[str, np.ndarray]) -> dict:
    """The summary of each side (`base`, `aligned`) over a regular sample of the sentences, and a few examples.

    `sides` holds last-layer embeddings `[n, D]` of the n sentences.
    """
    step = -(-len(sentences) // _SAMPLE)
    sample = sentences[::step]
    read = {side: key_tokens(base, sample, vectors[::step]) for side, vectors in sides.items()}
    examples = [
        {"sentence": sample[i], **{side: tokens.tokens[i] for side, tokens in read.items()}}
        for i in range(0, len(sample), -(-len(sample) // _EXAMPLES))
    ]
    summaries = {side: summarise(tokens) for side, tokens in read.items()}
    return {"sentences": len(sample), "top": TOP, **summaries, "examples": examples}


def _texts(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> dict[int, str]:
    """The text of every distinct id, special tokens included."""
    distinct = np.unique(ids).tolist()
    return dict(zip(distinct, tokenizer.batch_decode([[i] for i in distinct]), strict=True))
