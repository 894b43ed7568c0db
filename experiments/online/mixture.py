"""Samples from the geometric mixture of policy and reference, mixed token by token."""

import contextlib
import functools
from collections.abc import Sequence

import torch

from sempa import SempaError
from sempa.model.base import BaseModel
from sempa.model.logprobs import head_logits
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import Sample, choose, encode_prompts, end_tokens


@torch.no_grad()
def sample_mixture(
    base: BaseModel,
    prompts: Sequence[str | Sequence[int]],
    n: int = 1,
    max_new_tokens: int = 64,
    seed: int = 0,
    reference_fraction: float = 0.5,
) -> list[list[Sample]]:
    """Sample `n` answers to each prompt at temperature 1: `result[prompt][k]`, all side by side.

    Each token comes from π ∝ π_θ^{1−λ} π_ref^λ with λ = `reference_fraction`, the policy being the adapter on and the
    reference the adapter off (IPO-MD, Calandriello et al. 2024, arXiv 2403.08635). A sample's `logprobs` are those of
    the mixture. λ = 0 gives the draws of `sempa.model.sampling.sample`, λ = 1 those of the reference.

    Raises `SempaError` for λ outside 0 to 1, and for prompts that `sample` refuses.
    """
    if not 0 <= reference_fraction <= 1:
        raise SempaError(f"reference_fraction: found {reference_fraction}, expected 0 (policy) to 1 (reference)")
    model, device = base.model.eval(), base.model.device
    sequences = [ids for ids in encode_prompts(base, prompts, max_new_tokens) for _ in range(n)]
    draws = torch.rand(
        len(sequences), max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    ends = torch.tensor(end_tokens(base), dtype=torch.int64, device=device)
    width = max(map(len, sequences))
    tokens = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in sequences], device=device)
    seen = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=device)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    policy, reference = contextlib.nullcontext, functools.partial(adapter_disabled, model)
    sides = [
        (weight, side) for weight, side in ((1 - reference_fraction, policy), (reference_fraction, reference)) if weight
    ]
    caches = [None] * len(sides)
    new, chosen, logprobs = tokens, [], []
    ended = torch.zeros(len(sequences), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        mixture = 0.0
        for place, (weight, side) in enumerate(sides):
            with side():
                output = model.base_model(
                    input_ids=new,
                    attention_mask=seen,
                    position_ids=positions,
                    past_key_values=caches[place],
                    use_cache=True,
                )
            caches[place] = output.past_key_values
            mixture = mixture + weight * head_logits(model, output.last_hidden_state[:, -1]).log_softmax(1)
        mixture = mixture.log_softmax(1)
        token = choose(mixture, draws[:, step], temperature=1.0, top_p=1.0)
        chosen.append(token)
        logprobs.append(mixture.gather(1, token[:, None])[:, 0])
        ended |= torch.isin(token, ends)
        if ended.all():
            break
        # A row that has ended is continued with the others and cut below.
        new, positions = token[:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(sequences), 1)], 1)
    samples = []
    for ids, values in zip(torch.stack(chosen, 1).tolist(), torch.stack(logprobs, 1).float().cpu()):
        length = next((place + 1 for place, token in enumerate(ids) if token in ends.tolist()), len(ids))
        ended = ids[length - 1] in ends.tolist()
        text = base.tokenizer.decode(ids[: length - ended], skip_special_tokens=True).strip()
        samples.append(Sample(ids[:length], values[:length], text, ended))
    return [samples[start : start + n] for start in range(0, len(samples), n)]
