"""QDPO: DPO brings a quantised model back to its full-precision self.

Lee et al. 2024 (arXiv 2407.03051): rounding the weights flips a token here and there, and a greedy answer that has
flipped once continues differently. DPO needs no labels here: the reference is the full-precision model, the chosen
response its greedy answer, the rejected response the quantised model's. The paper trains the weights through their
rounding; here they stay rounded and a float32 LoRA is trained beside them.

Quantisation is simulated: weights are replaced by the values that their integers stand for.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sempa import SempaError
from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference, prefix_length
from sempa.losses import dpo_loss
from sempa.model.forward import hidden_states
from sempa.model.logprobs import head_logits, sequence_logprobs
from sempa.model.lora import block_linears, lora_parameters
from sempa.model.sampling import Sample

# Weights of one row that share a scale: None is the whole row, an output channel.
GROUPS = {8: None, 4: 64}
_ROW_TOKENS, _WARMUP = 512, 0.05


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A weight matrix rounded to `bits` and back, and the scale of each of its elements: float32 `[out, in]` both.

    w' = s · round(w / s),   s = max |w| / (2^{bits−1} − 1) over an output channel (8 bits), or over 64 neighbours or
    fewer in one (4 bits)

    Symmetric; ties go to the even level. The scale is rounded to bfloat16, as packed formats store it in 16 bits: a
    level times the scale is then exact in float32, no element is off by more than half its scale, and rounding twice
    is rounding once.

    Raises `SempaError` for other bits, or a weight that is not a float32 matrix.
    """
    if bits not in GROUPS:
        raise SempaError(f"bits: found {bits}, expected one of {', '.join(map(str, GROUPS))}")
    if weight.dim() != 2 or weight.dtype != torch.float32:
        raise SempaError(f"weight: found {weight.dtype} {tuple(weight.shape)}, expected a torch.float32 matrix")
    outputs, inputs = weight.shape
    size = GROUPS[bits] or inputs
    # The zeros that fill the last group do not change its maximum.
    groups = F.pad(weight, (0, -inputs % size)).view(outputs, -1, size)
    scales = (groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)).bfloat16().float()
    # A group of zeros stays zero whatever it is divided by.
    rounded = scales * (groups / torch.where(scales > 0, scales, 1)).round()
    return tuple(part.reshape(outputs, -1)[:, :inputs] for part in (rounded, scales.expand_as(groups)))


@torch.no_grad()
def quantise_model(model: PreTrainedModel, bits: int) -> None:
    """Round the weights of every linear layer of the decoder blocks in place; embeddings, head and norms stay.

    Raises `SempaError` as `quantise` does.
    """
    for layer in block_linears(model).values():
        # GPT-2's Conv1D stores its weight transposed.
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        weight.copy_(quantise(weight, bits)[0])


def diverging_pairs(
    prompts: Sequence[Sequence[int]], full: Sequence[Sample], quantised: Sequence[Sample]
) -> list[Preference]:
    """Preferences from two models' greedy answers to the same prompts; the full-precision one is chosen.

    Equal answers make no pair. The common beginning of the two answers moves to the prompt: its log-probability is the
    same in both responses and cancels in the loss, and it is computed once.
    """
    pairs = []
    for line, (prompt, chosen, rejected) in enumerate(zip(prompts, full, quantised, strict=True), 1):
        if chosen.tokens != rejected.tokens:
            # Each response keeps at least one token.
            shared = prefix_length(chosen.tokens, rejected.tokens)
            shared = min(shared, len(chosen.tokens) - 1, len(rejected.tokens) - 1)
            responses = chosen.tokens[shared:], rejected.tokens[shared:]
            pairs.append(Preference([*prompt, *chosen.tokens[:shared]], responses, line))
    return pairs


@torch.inference_mode()
def flip_rate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sample]) -> float:
    """The fraction of the answers' tokens that are not the model's most likely token after the ones before.

    For the full-precision model's greedy answers it is how often a token flips when both models read the same text; it
    is 0 for the full-precision model. Raises `SempaError` when there is no answer.
    """
    if not answers:
        raise SempaError("flip rate of no answers, expected one at least")
    flipped = total = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.tokens]], device=model.device)
        states = hidden_states(model.eval(), ids)[0, len(prompt) - 1 : -1]
        likeliest = head_logits(model, states).argmax(1)
        flipped += (likeliest != ids[0, len(prompt) :]).sum().item()
        total += len(answer.tokens)
    return flipped / total


def align_quantised(
    quantised: PreTrainedModel,
    full: PreTrainedModel,
    pairs: Sequence[Preference],
    *,
    beta: float = 0.1,
    learning_rate: float = 2e-4,
    batch_size: int = 4,
    epochs: float = 2.0,
) -> list[dict[str, float]]:
    """Train the adapter of the model `quantised` on `pairs` by DPO, with the model `full` as the reference.

    −log σ(β [(log π_q(y⁺|x) − log π(y⁺|x)) − (log π_q(y⁻|x) − log π(y⁻|x))]), π_q quantised plus adapter, π full.

    AdamW, linear warm-up over 5 % of the steps, then half a cosine down to zero. Returns each step's metrics under
    TRL's names. Raises `SempaError` when there is no pair.
    """
    if not pairs:
        raise SempaError("the two models' answers are all the same, so there is nothing to align")
    parameters = list(lora_parameters(quantised).values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    total = math.ceil(epochs * len(batches))
    warm = round(_WARMUP * total)
    quantised.train()
    full.eval()
    steps = []
    for step in range(total):
        batch = batches[step % len(batches)]
        metrics = Counter()
        for row in pack_preferences([pairs[i] for i in batch], _ROW_TOKENS):
            policy = sequence_logprobs(quantised, row)
            with torch.no_grad():
                reference = sequence_logprobs(full, row)
            losses, chosen, rejected = dpo_loss(*policy.unbind(1), *reference.unbind(1), beta)
            (losses.sum() / len(batch)).backward()
            metrics["loss"] += losses.sum().item() / len(batch)
            metrics["rewards/chosen"] += chosen.sum().item() / len(batch)
            metrics["rewards/accuracies"] += (chosen > rejected).sum().item() / len(batch)
            metrics["rewards/margins"] += (chosen - rejected).sum().item() / len(batch)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        fraction = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
        optimizer.param_groups[0]["lr"] = fraction * learning_rate
        optimizer.step()
        optimizer.zero_grad()
        steps.append(dict(metrics))
    return steps
