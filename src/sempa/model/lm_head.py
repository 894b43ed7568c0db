"""From a hidden state to next-token logits: the head, and what some architectures put around it."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


def head_parts(model: PreTrainedModel) -> dict[str, Tensor | float | None]:
    """`weight`, `bias` and `softcap` of a model's head, as the functions of `sempa.kernels` take them."""
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return {"weight": head.weight, "bias": getattr(head, "bias", None), "softcap": softcap}


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Next-token logits `[…, V]` of hidden states `[…, D]` after the final norm: float32, scaled and soft-capped."""
    logits = model.get_output_embeddings()(scale_for_head(model, hidden)).float()
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def scale_for_head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the constant that some architectures put on their logits (Granite divides, Cohere multiplies)."""
    if divisor := getattr(model.config, "logits_scaling", None):
        return hidden / divisor
    if factor := getattr(model.config, "logit_scale", None):
        return hidden * factor
    return hidden
