"""Language-model drift: perplexity, KL divergence and agreement against the base, and greedy answers side by side."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sempa.batching.prompts import prefix_length
from sempa.errors import SempaError
from sempa.evaluation.eval_texts import EvalText, ScoredTokens, encode_eval_texts
from sempa.evaluation.statistics import standard_error
from sempa.io.progress import bar
from sempa.model.base import BaseModel
from sempa.model.forward import context_length, hidden_states
from sempa.model.logprobs import head_logits
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import sample
from sempa.model.threads import parallel_map

# Longer windows cost attention time by their square and hardly change a perplexity.
LONGEST_WINDOW = 2048
# Elements of a block of logits. The float32 logits of two models for whole passages would be large.
CHUNK_ELEMENTS = 1 << 22


def measure_drift(base: BaseModel, texts: dict[str, list[EvalText]]) -> list[dict]:
    """How the aligned model differs from its base on each of the named texts, as rows of a report.

    Raises `SempaError` for a text without a token to score, and a chat template that cannot be rendered.
    """
    window = min(context_length(base.model), LONGEST_WINDOW)
    sequences = {name: encode_eval_texts(base.tokenizer, own, window) for name, own in texts.items()}
    return [token_drift(base.model, own, name) for name, own in sequences.items()]


@torch.inference_mode()
def token_drift(model: PreTrainedModel, sequences: Sequence[ScoredTokens], text: str) -> dict[str, str | float]:
    """The drift on the targets of the sequences, exact over the whole vocabulary; `text` is their name.

    `tokens` counts the targets; `change` is the relative change from `base_perplexity` to `aligned_perplexity`: 0.02 is
    2 % worse; `change_stderr` is its standard error over the sequences, NaN for one alone; `kl` is KL(base ‖ aligned)
    in nats per token; `agreement` the fraction of tokens for which both models would choose the same next token. Raises
    `SempaError` when there is no target.
    """
    sizes = torch.tensor([len(one.tokens) - one.first for one in sequences], dtype=torch.float64)
    count = int(sizes.sum())
    if not count:
        raise SempaError(f"{text}: no token to score; a text needs at least two tokens")
    sums = torch.empty(len(sequences), 4, dtype=torch.float64)
    with bar(len(sequences), text, "text") as progress:
        for place, found in enumerate(parallel_map(model, partial(_sums, model), sequences)):
            sums[place] = found
            progress.update()
    base_nll, aligned_nll, kl, agreement = (sums.sum(0) / count).tolist()
    perplexities = {"base_perplexity": math.exp(base_nll), "aligned_perplexity": math.exp(aligned_nll)}
    nll_change = aligned_nll - base_nll
    # A ratio estimator's (Cochran 1977, § 2.11): the tokens of a sequence are no independent draws.
    residuals = sums[:, 1] - sums[:, 0] - nll_change * sizes
    error = standard_error(residuals.numpy()) * len(sequences) / count
    changes = {"change": math.expm1(nll_change), "change_stderr": math.exp(nll_change) * error}
    return {"text": text, "tokens": count, **perplexities, **changes, "kl": kl, "agreement": agreement}


def generate_side_by_side(base: BaseModel, prompts: Sequence[str], max_new_tokens: int) -> list[dict[str, str | float]]:
    """For each prompt the greedy answers with the adapter off and on, under `prompt`, `base` and `aligned`.

    `unchanged` is the fraction of the base's answer, in tokens, before the first token that differs.
    """
    options = {"max_new_tokens": max_new_tokens, "temperature": 0, "progress": "answers"}
    with adapter_disabled(base.model):
        before = sample(base, prompts, **options)
    after = sample(base, prompts, **options)
    rows = []
    for prompt, (base_answer,), (answer,) in zip(prompts, before, after, strict=True):
        unchanged = prefix_length(base_answer.tokens, answer.tokens) / len(base_answer.tokens)
        rows.append({"prompt": prompt, "base": base_answer.text, "aligned": answer.text, "unchanged": unchanged})
    return rows


def _sums(model: PreTrainedModel, sequence: ScoredTokens) -> Tensor:
    """Sums over targets of −log π of base and aligned, KL(base ‖ aligned), and equal first choices: float64 `[4]`."""
    tokens, first = torch.tensor(sequence.tokens, device=model.device), sequence.first
    with adapter_disabled(model):
        before = hidden_states(model, tokens[None])[0, first - 1 : -1]
    after = hidden_states(model, tokens[None])[0, first - 1 : -1]
    totals = torch.zeros(4, dtype=torch.float64)
    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    for hidden_base, hidden_aligned, chosen in zip(before.split(rows), after.split(rows), tokens[first:].split(rows)):
        base, aligned = (head_logits(model, hidden).log_softmax(-1) for hidden in (hidden_base, hidden_aligned))
        per_token = (
            -base.gather(1, chosen[:, None]),
            -aligned.gather(1, chosen[:, None]),
            (base.exp() * (base - aligned)).sum(1),
            base.argmax(1) == aligned.argmax(1),
        )
        totals += torch.stack([one.cpu().double().sum() for one in per_token])
    return totals
