"""Language-model drift: perplexity, KL divergence and agreement against the base, and greedy answers side by side."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from sempa.batching.prompts import common_prefix
from sempa.errors import SempaError
from sempa.evaluation.eval_texts import EvalText, ScoredTokens, encode_eval_texts
from sempa.io.progress import bar
from sempa.model.base import BaseModel
from sempa.model.forward import context_length, hidden_states
from sempa.model.lm_head import head_logits
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import sample

# Longer windows cost attention time by their square and hardly change a perplexity.
LONGEST_WINDOW = 2048
# Tokens of a batch, padding included: enough to fill the matrix products.
BATCH_TOKENS = 2048
# Elements of a block of logits. The float32 logits of two models for whole passages would be large.
CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Drift:
    """How the aligned model differs from its base on the tokens of one text.

    `kl` is KL(base ‖ aligned) in nats per token; `agreement` the fraction of tokens for which both models would choose
    the same next token.
    """

    text: str
    tokens: int
    base_perplexity: float
    aligned_perplexity: float
    kl: float
    agreement: float

    @property
    def change(self) -> float:
        """The relative change of perplexity: 0.02 is 2 % worse."""
        return self.aligned_perplexity / self.base_perplexity - 1


def measure_drift(base: BaseModel, texts: dict[str, list[EvalText]]) -> list[dict]:
    """The drift on each of the named texts, as rows of a report: the fields of `Drift` and `change`.

    Raises `SempaError` for a text without a token to score, and a chat template that cannot be rendered.
    """
    window = min(context_length(base.model), LONGEST_WINDOW)
    rows = []
    for name, own in texts.items():
        sequences = encode_eval_texts(base.tokenizer, own, window)
        with bar(len(sequences), name, "text") as progress:
            drift = token_drift(base.model, sequences, name, progress)
        rows.append({**dataclasses.asdict(drift), "change": drift.change})
    return rows


@torch.inference_mode()
def token_drift(
    model: PreTrainedModel, sequences: Sequence[ScoredTokens], text: str, progress: tqdm | None = None
) -> Drift:
    """The drift on the targets of the sequences, exact over the whole vocabulary; `text` is their name.

    `progress` advances by one for every sequence. Raises `SempaError` when there is no target.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    count = sum(len(one.targets) for one in sequences)
    if not count:
        raise SempaError(f"{text}: no token to score; a text needs at least two tokens")
    for batch in _batches(sequences):
        longest = len(batch[0].tokens)
        # Padding stands on the right, where a causal model never looks. Any id will do for it.
        tokens = torch.tensor([one.tokens + [0] * (longest - len(one.tokens)) for one in batch], device=model.device)
        places = [(row, target) for row, one in enumerate(batch) for target in one.targets]
        rows, targets = torch.tensor(places, device=model.device).unbind(1)
        with adapter_disabled(model):
            before = hidden_states(model, tokens)[rows, targets - 1]
        after = hidden_states(model, tokens)[rows, targets - 1]
        totals += _sums(model, before, after, tokens[rows, targets])
        if progress is not None:
            progress.update(len(batch))
    base_nll, aligned_nll, kl, agreement = (totals / count).tolist()
    return Drift(text, count, math.exp(base_nll), math.exp(aligned_nll), kl, agreement)


def generate_side_by_side(base: BaseModel, prompts: Sequence[str], max_new_tokens: int) -> list[dict[str, str | float]]:
    """For each prompt the greedy answers with the adapter off and on, under `prompt`, `base` and `aligned`.

    `unchanged` is the fraction of the base's answer, in tokens, before the first token that differs.
    """
    options = {"max_new_tokens": max_new_tokens, "temperature": 0}
    with bar(2 * len(prompts), "answers", "answer") as progress:
        with adapter_disabled(base.model):
            before = sample(base, prompts, progress=progress, **options)
        after = sample(base, prompts, progress=progress, **options)
    return [
        {
            "prompt": prompt,
            "base": base_answer.text,
            "aligned": answer.text,
            "unchanged": common_prefix(base_answer.tokens, answer.tokens) / len(base_answer.tokens),
        }
        for prompt, (base_answer,), (answer,) in zip(prompts, before, after, strict=True)
    ]


def _batches(sequences: Sequence[ScoredTokens]) -> Iterator[list[ScoredTokens]]:
    """Sequences of similar length together, longest first, at most `BATCH_TOKENS` tokens with their padding."""
    batch: list[ScoredTokens] = []
    # A sequence without targets has nothing to score.
    for one in sorted((one for one in sequences if one.targets), key=lambda one: -len(one.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def _sums(model: PreTrainedModel, before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """Sums over tokens of both models' negative log-likelihoods, of KL(base ‖ aligned) and of equal first choices.

    `before` and `after` `[tokens, D]` are the hidden states that predict `targets` `[tokens]`; float64 `[4]`.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    for hidden_base, hidden_aligned, chosen in zip(before.split(rows), after.split(rows), targets.split(rows)):
        base, aligned = (head_logits(model, hidden).log_softmax(-1) for hidden in (hidden_base, hidden_aligned))
        totals[0] -= base.gather(1, chosen[:, None]).cpu().double().sum()
        totals[1] -= aligned.gather(1, chosen[:, None]).cpu().double().sum()
        totals[2] += (base.exp() * (base - aligned)).sum(1).cpu().double().sum()
        totals[3] += (base.argmax(1) == aligned.argmax(1)).sum().cpu()
    return totals
