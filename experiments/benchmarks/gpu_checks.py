"""Correctness on the device: packed rows, the log-probability kernel, and the gradients of a step."""

from dataclasses import replace
from functools import partial

import torch
from gpu_setting import DPO, Setting, caption_batch, dtype_name, kernel_inputs
from shapes import empty_model
from torch import Tensor
from training import ALPHA, RANK
from transformers import LlamaConfig, PreTrainedModel

from sempa.batching.packing import pack_texts
from sempa.kernels import token_logprobs
from sempa.model.forward import hidden_states, row_states
from sempa.model.layers import checkpoint_blocks
from sempa.model.lora import adapter_disabled, add_lora, lora_parameters
from sempa.training.base_samples import BaseSample
from sempa.training.step import backward, contrast_loss, preference_loss, retention_loss

ALL_LOSSES = replace(DPO, anchor=0.5, contrast=1.0, retention=10.0, row_tokens=256)


def check_packing(s: Setting) -> list[dict]:
    """The states of a packed row beside those of its sequences in rows of their own."""
    rows = []
    for dtype in s.dtypes:
        model = _few_blocks(s, dtype)
        row = caption_batch(s, DPO, 8).preference_rows[0].packed
        tokens, places = row.separate()
        with torch.no_grad():
            packed = row_states(model, row)
            separate = hidden_states(model, tokens.to(s.device)).flatten(0, 1)[places.to(s.device)]
        rows.append(_verdict("packed row, states", dtype, [packed], [separate]))
    return rows


def check_kernel(s: Setting) -> list[dict]:
    """Log-probabilities and their gradient beside float64's, from the same rounded numbers."""
    rows, (n, d, v) = [], s.kernel_sizes[0]
    for dtype in s.dtypes:
        hidden, weight, targets = kernel_inputs(s, dtype, min(n, 256), d, v)
        exact = hidden.detach().double().requires_grad_()
        expected = (exact @ weight.double().T).log_softmax(1).gather(1, targets[:, None])[:, 0]
        found = token_logprobs(hidden, weight, targets)
        gradients = (torch.autograd.grad(value.sum(), x)[0] for value, x in ((found, hidden), (expected, exact)))
        rows.append(_verdict("log-probabilities", dtype, [found], [expected]))
        rows.append(_verdict("their gradient", dtype, *([gradient] for gradient in gradients)))
    return rows


def check_gradients(s: Setting) -> list[dict]:
    """The gradient of all three losses on the device beside the CPU's in float64, which tests compare with autograd."""
    rows = []
    for dtype in s.dtypes:
        expected = _step_gradients(s, _few_blocks(s, dtype, "cpu").double())
        for recomputed in (False, True):
            model = _few_blocks(s, dtype)
            if recomputed:
                checkpoint_blocks(model)
            what = f"gradient of a step{', recomputed' * recomputed}"
            rows.append(_verdict(what, dtype, _step_gradients(s, model), expected))
    return rows


def _step_gradients(s: Setting, model: PreTrainedModel) -> list[Tensor]:
    batch = caption_batch(s, ALL_LOSSES, 8)
    packed = pack_texts([preference.one_word[0] for preference in batch.preferences], 128)[0]
    with torch.no_grad(), adapter_disabled(model):
        sample = BaseSample(packed, row_states(model, packed))
    losses = [partial(preference_loss, ALL_LOSSES, model, row, batch.ranked) for row in batch.preference_rows]
    losses.append(partial(contrast_loss, ALL_LOSSES, model, batch.sentence_rows, batch.text_ids))
    losses.append(partial(retention_loss, ALL_LOSSES, model, sample))
    parameters = list(lora_parameters(model).values())
    backward(model, losses, parameters, in_order=True)
    return [parameter.grad for parameter in parameters]


def _few_blocks(s: Setting, dtype: torch.dtype, device: str | None = None) -> PreTrainedModel:
    """Two blocks of the first shape with an adapter that is nowhere zero: equal numbers on every device."""
    torch.manual_seed(0)
    shape = LlamaConfig(**s.shapes["1 B"].to_dict() | {"num_hidden_layers": 2, "vocab_size": len(s.tokenizer)})
    model = empty_model(shape, torch.float32, "cpu").to(dtype).to(device or s.device).eval()
    add_lora(model, RANK, ALPHA)
    generator = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(model).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5 / 4)
    return model


def _verdict(what: str, dtype: torch.dtype, found: list[Tensor], expected: list[Tensor]) -> dict:
    """Relative error in norm; rounding stays far below the root of the dtype's precision, a fault far above."""
    a, b = (torch.cat([x.detach().double().flatten().cpu() for x in side]) for side in (found, expected))
    error, limit = ((a - b).norm() / b.norm()).item(), torch.finfo(dtype).eps ** 0.5
    return {"what": what, "dtype": dtype_name(dtype), "relative error": error, "limit": limit, "passes": error < limit}
