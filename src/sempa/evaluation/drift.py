"""How much of the language model is left: perplexity, KL and agreement with the base, and greedy answers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from sempa.batching.prompts import common_prefix
from sempa.errors import SempaError
from sempa.evaluation.eval_texts import Scored
from sempa.model.base import BaseModel
from sempa.model.forward import hidden_states
from sempa.model.lm_head import head_logits
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import sample

# Tokens that run side by side, padding included: enough to fill the matrix products.
BATCH_TOKENS = 2048
# Logits held at one time, in elements: two models' float32 logits of whole passages would be large.
CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Retention:
    """What a text's tokens say about base and aligned model: perplexities, KL(base ‖ aligned) in nats per token.

    `agreement`: the share of tokens for which both would choose the same next token.
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


@torch.inference_mode()
def measure_retention(
    model: PreTrainedModel, sequences: Sequence[Scored], text: str, progress: tqdm | None = None
) -> Retention:
    """Compare the model with its adapter off and on, exactly over the whole vocabulary.

    `progress` advances by one for every sequence. Raises `SempaError` when there is no token to score.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    count = sum(len(one.targets) for one in sequences)
    if not count:
        raise SempaError(f"{text}: no token to score; a text needs two tokens at least")
    for batch in _batches(sequences):
        longest = len(batch[0].tokens)
        # Padding on the right is never seen: a causal model's token looks back only. Any id will do for it.
        tokens = torch.tensor([one.tokens + [0] * (longest - len(one.tokens)) for one in batch], device=model.device)
        places = [(row, target) for row, one in enumerate(batch) for target in one.targets]
        rows, targets = torch.tensor(places, dtype=torch.int64, device=model.device).view(-1, 2).unbind(1)
        with adapter_disabled(model):
            before = hidden_states(model, tokens)[rows, targets - 1]
        after = hidden_states(model, tokens)[rows, targets - 1]
        totals += _compare(model, before, after, tokens[rows, targets])
        if progress is not None:
            progress.update(len(batch))
    base, aligned, kl, agreement = (totals / count).tolist()
    return Retention(text, count, math.exp(base), math.exp(aligned), kl, agreement)


def generate(base: BaseModel, prompt: str, max_new_tokens: int) -> str:
    """The model's greedy answer to a user's prompt through the chat template."""
    ((answer,),) = sample(base, [prompt], max_new_tokens=max_new_tokens, temperature=0)
    return answer.text


def generate_side_by_side(
    base: BaseModel, prompts: Sequence[str], max_new_tokens: int, progress: tqdm | None = None
) -> list[dict[str, str | float]]:
    """For each prompt the greedy answers with the adapter off and on, under `prompt`, `base` and `aligned`.

    `kept` is the share of the base's answer, in tokens, before the first that differs. `progress` advances by one for
    every answer.
    """
    options = {"max_new_tokens": max_new_tokens, "temperature": 0, "progress": progress}
    with adapter_disabled(base.model):
        before = sample(base, prompts, **options)
    after = sample(base, prompts, **options)
    return [
        {
            "prompt": prompt,
            "base": one.text,
            "aligned": two.text,
            "kept": common_prefix(one.tokens, two.tokens) / len(one.tokens),
        }
        for prompt, (one,), (two,) in zip(prompts, before, after, strict=True)
    ]


def _batches(sequences: Sequence[Scored]) -> Iterator[list[Scored]]:
    """Sequences of like length side by side, longest first, at most `BATCH_TOKENS` tokens with their padding."""
    batch: list[Scored] = []
    for one in sorted(sequences, key=lambda one: -len(one.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def _compare(model: PreTrainedModel, before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """Sums over tokens: NLL of base and aligned, KL(base ‖ aligned), and equal first choices; float64 `[4]`."""
    totals = torch.zeros(4, dtype=torch.float64)
    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    for begin in range(0, len(targets), rows):
        chunk = slice(begin, begin + rows)
        base, aligned = (head_logits(model, hidden[chunk]).log_softmax(-1) for hidden in (before, after))
        chosen = targets[chunk, None]
        totals[0] -= base.gather(1, chosen).cpu().double().sum().item()
        totals[1] -= aligned.gather(1, chosen).cpu().double().sum().item()
        totals[2] += (base.exp() * (base - aligned)).sum(1).cpu().double().sum().item()
        totals[3] += (base.argmax(1) == aligned.argmax(1)).sum().item()
    return totals
