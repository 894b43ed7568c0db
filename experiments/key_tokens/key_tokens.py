"""Key tokens: the tokens of the vocabulary that an embedding is closest to when the language-model head reads it.

Nie et al. 2025, *A Text is Worth Several Tokens* (arXiv 2406.17378): the embeddings of language models point at the
words that matter in their sentence. The logits are E h, with the head's matrix E, the last layer's hidden state h after
the final norm, and the model's own scaling and soft cap.

python experiments/key_tokens/key_tokens.py --adapter RUN/adapter "A man is playing a guitar on the stage."
python experiments/key_tokens/key_tokens.py --adapter RUN/adapter --sts STS/STSBenchmark --splits dev
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sempa import SempaError
from sempa.batching.prompts import as_text, encode_texts
from sempa.cli import Parser
from sempa.commands.common import add_model_arguments, load_embedder
from sempa.data.sts import distinct_sentences, read_sts
from sempa.embedding.embed import embed
from sempa.evaluation.measure import embed_sides
from sempa.io.streams import exit_code
from sempa.model.base import BaseModel
from sempa.model.logprobs import head_logits
from sempa.report.render import number, text_table

TOP = 10
# Enough sentences for a fraction to ±2 %.
_SAMPLE = 500
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


def _texts(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> dict[int, str]:
    """The text of every distinct id, special tokens included."""
    distinct = np.unique(ids).tolist()
    return dict(zip(distinct, tokenizer.batch_decode([[i] for i in distinct]), strict=True))


def word_table(base: BaseModel, sentence: str, sides: dict[str, np.ndarray], top: int) -> str:
    """The key tokens of a sentence on each side (`base`, `aligned`), those of the sentence marked with a star.

    `sides` holds its last-layer embedding `[D]`.
    """
    columns, rows = [""], [["entropy (nats)"], ["in the sentence"], *([str(rank)] for rank in range(1, top + 1))]
    for side, vector in sides.items():
        found = key_tokens(base, [sentence], vector[None], top)
        present = found.by_word[0] | found.by_id[0]
        columns += [side, ""]
        rows[0] += [number(found.entropy[0]), ""]
        rows[1] += [f"{present.sum()} of {top}", ""]
        for row, token, probability, own in zip(rows[2:], found.tokens[0], found.probabilities[0], present):
            shown = json.dumps(token, ensure_ascii=False)
            row += [f"{shown} {'*' if own else ' '}", number(float(probability), ".1%")]
    return text_table(sentence, columns, rows)


def summary_table(base: BaseModel, name: str, sentences: Sequence[str], sides: dict[str, np.ndarray]) -> str:
    """The summary of each side over a regular sample of n sentences; `sides` holds their embeddings `[n, D]`."""
    step = -(-len(sentences) // _SAMPLE)
    sample = sentences[::step]
    summaries = {side: summarise(key_tokens(base, sample, vectors[::step])) for side, vectors in sides.items()}
    rows = [
        [key, *(number(summary[key], ".4f") for summary in summaries.values())]
        for key in next(iter(summaries.values()))
    ]
    return text_table(f"{name}: top {TOP} of {len(sample)} sentences", ["", *summaries], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for each sentence, or one for each similarity task."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--sts", type=Path, metavar="PATH", help="SentEval STS folder, or a file of scored pairs")
    parser.add_argument("--splits", default="dev,trial,test", help="splits of STS-B and SICK (default %(default)s)")
    parser.add_argument("sentences", nargs="*", metavar="sentence", help="sentences, in quotes")
    parser.add_argument("--top", type=int, default=TOP, help="tokens to print (default %(default)s)")
    arguments = parser.parse_args(argv)
    tasks = read_sts(arguments.sts, arguments.splits.split(",")) if arguments.sts else []
    if not (tasks or arguments.sentences):
        raise SempaError("give sentences, or --sts PATH")
    base = load_embedder(arguments, merged=False).base
    sentences = [*arguments.sentences, *distinct_sentences(pair for task in tasks for pair in task.pairs)]
    if arguments.adapter:
        sides = embed_sides(base, sentences)
    else:
        distinct = list(dict.fromkeys(sentences))
        sides = {"base": dict(zip(distinct, embed(base, distinct, progress="embedding")))}
    blocks = []
    for sentence in arguments.sentences:
        own = {side: vectors[sentence] for side, vectors in sides.items()}
        blocks.append(word_table(base, sentence, own, arguments.top))
    for task in tasks:
        sentences = distinct_sentences(task.pairs)
        own = {side: np.stack([vectors[sentence] for sentence in sentences]) for side, vectors in sides.items()}
        blocks.append(summary_table(base, task.name, sentences, own))
    print("\n\n".join(blocks))


if __name__ == "__main__":
    sys.exit(exit_code("key_tokens.py", main))
