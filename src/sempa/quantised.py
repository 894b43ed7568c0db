"""A quantised model held to its full-precision self: where their answers part, the full-precision one is preferred.

QDPO (Lee et al. 2024, arXiv 2407.03051): a rounded model flips a token here and there, and an answer that has flipped
once goes its own way. DPO mends that with the full-precision model as the reference and pairs that nobody has to
label: chosen is its output, rejected the quantised model's. The paper trains the weights through their rounding; here
they stay rounded and LoRA is trained beside them.

Quantisation is simulated: weights are replaced by the values that their integers stand for. torchao 0.18 was tried
with torch 2.13 on a CPU: its int4 weights ask for a further package there, and neither they nor its int8 ones go
through the products of `sempa.model.lora`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sempa.batching.batches import Batches, rounded_up
from sempa.batching.packing import PreferenceRow
from sempa.batching.prompts import Preference, common_prefix
from sempa.config import ONLINE, Config
from sempa.errors import SempaError
from sempa.model.base import BaseModel, hidden_states
from sempa.model.lm_head import head_logits
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import block_linears, lora_parameters
from sempa.model.sampling import Sample
from sempa.training.loop import Fixed, train_step
from sempa.training.processes import ALONE

# Weights of one row that share a scale: None is the whole row, an output channel.
GROUPS = {8: None, 4: 64}


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A weight matrix rounded to `bits` and back, and the scale of each of its elements: float32 `[out, in]` both.

    w' = s · round(w / s),   s = max |w| / (2^{bits−1} − 1) over an output channel (8 bits), or over 64 neighbours or
    fewer of one (4 bits)

    Symmetric, a tie to the even level. The scale is kept in bfloat16, as packed formats keep it in 16 bits: a level
    times the scale is then exact in float32, no element is off by more than half its scale, and what is rounded once
    stays as it is.

    Raises `SempaError` for other bits, or a weight that is not a float32 matrix.
    """
    if bits not in GROUPS:
        raise SempaError(f"bits: found {bits}, expected one of {', '.join(map(str, GROUPS))}")
    if weight.dim() != 2 or weight.dtype != torch.float32:
        raise SempaError(f"weight: found {weight.dtype} {tuple(weight.shape)}, expected a torch.float32 matrix")
    outputs, inputs = weight.shape
    size = GROUPS[bits] or inputs
    # Zeros that fill the last group up change no maximum.
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
        # GPT-2's Conv1D keeps its weight transposed.
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        weight.copy_(quantise(weight, bits)[0])


def diverging_pairs(
    prompts: Sequence[Sequence[int]], full: Sequence[Sample], quantised: Sequence[Sample]
) -> list[Preference]:
    """Preferences from two models' greedy answers to the same prompts: the full-precision one's is chosen.

    Equal answers make no pair. What both say before they part is given to the prompt: its log-probability is the same
    in both responses, so the loss does not know the difference, and it is computed once.
    """
    pairs = []
    for line, (prompt, one, other) in enumerate(zip(prompts, full, quantised, strict=True), 1):
        if one.tokens != other.tokens:
            # Something of either answer stays its own.
            shared = min(common_prefix(one.tokens, other.tokens), len(one.tokens) - 1, len(other.tokens) - 1)
            responses = one.tokens[shared:], other.tokens[shared:]
            pairs.append(Preference([*prompt, *one.tokens[:shared]], responses, line))
    return pairs


@torch.inference_mode()
def flip_rate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sample]) -> float:
    """The share of the answers' tokens that are not the model's first choice after the tokens before them.

    With the full-precision model's greedy answers that is how often a token flips while both read the same: 0 for that
    model itself. Raises `SempaError` when there is no answer.
    """
    if not answers:
        raise SempaError("flip rate of no answers, expected one at least")
    flipped = total = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.tokens]], device=model.device)
        states = hidden_states(model.eval(), ids)[0, len(prompt) - 1 : -1]
        chosen = head_logits(model, states).argmax(1)
        flipped += (chosen != ids[0, len(prompt) :]).sum().item()
        total += len(answer.tokens)
    return flipped / total


def align_quantised(
    config: Config, base: BaseModel, full: PreTrainedModel, pairs: list[Preference]
) -> list[dict[str, float]]:
    """Train the adapter that the quantised `base` holds on `pairs`, against the full-precision model as the reference.

    −log σ(β [(log π_q(y⁺|x) − log π(y⁺|x)) − (log π_q(y⁻|x) − log π(y⁻|x))]), π_q quantised plus adapter, π full.

    Of `config` it takes objective and optimiser; the reference's log-probabilities are computed once. Returns every
    step's metrics under TRL's names. Raises `SempaError` when there is no pair, the config asks for other terms, or the
    loss is not finite.
    """
    if config.contrast or config.retention or config.sparse or config.objective in ONLINE:
        raise SempaError(
            "QDPO ranks ready pairs only: contrast, retention and sparse must be 0, and the objective not online"
        )
    if not pairs:
        raise SempaError("the two models' answers are all the same, so there is nothing to align")
    parameters = lora_parameters(base.model).values()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = Batches(config, pairs)
    with torch.no_grad():
        known = {row.examples: sequence_logprobs(full.eval(), row) for batch in batches for row in batch.rows}

    def reference(row: PreferenceRow) -> Tensor:
        return known[row.examples]

    total = rounded_up(config.epochs, len(batches))
    fixed = Fixed(reference)
    return [
        train_step(config, base, optimizer, fixed, batches[step % len(batches)], step, total, ALONE)
        for step in range(total)
    ]
