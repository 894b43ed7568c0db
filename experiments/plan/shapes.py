"""Models without weights and rows without text: what a training run computes on, in shape and size alone."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from sempa import SempaError
from sempa.batching.packing import PackedRow, pack_preferences
from sempa.batching.prompts import Preference
from sempa.model.base import attention_kind, open_config
from sempa.model.resolve import first_line, quiet, resolve_model

# Shapes of the paper's two models, whose repositories ask for a licence before they hand out a config.
_SHAPES = {
    "meta-llama/Llama-2-7b-chat-hf": {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": 32},
    "meta-llama/Meta-Llama-3-8B-Instruct": {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
}
# Tokens of a triplet in a packed row: prompt and responses, instructions shared (SmolLM2's tokenizer on SNLI).
PROMPT_TOKENS, RESPONSE_TOKENS, SHARED_TOKENS = 29, 10, 28


def model_config(name: str) -> PreTrainedConfig:
    """The config of a model that need not be at hand if it is one of the paper's two; else as `open_config`."""
    if name in _SHAPES:
        common = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}
        return LlamaConfig(**common, **_SHAPES[name])
    with quiet():
        return open_config(name, resolve_model(name))


def empty_model(shape: PreTrainedConfig, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """A frozen model with random weights, or none on the meta device, that attends as `load_base` would let it."""
    attention = attention_kind(shape)
    with torch.device(device), quiet():
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=attention)
    model.takes_block_mask = attention is not None
    return model.requires_grad_(False)


@contextlib.contextmanager
def explain_failures(name: str) -> Iterator[None]:
    """Inside, whatever an unusual architecture's own code raises becomes a `SempaError` that names the model."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SempaError(f"model {name!r}: cannot be planned: {first_line(error)}") from error


def example_row(row_tokens: int) -> PackedRow:
    """A packed row of about `row_tokens` tokens, of triplets as long as SNLI's are with SmolLM2's tokenizer."""
    example = Preference([0] * (SHARED_TOKENS + PROMPT_TOKENS), ([0] * RESPONSE_TOKENS,) * 2)
    # All but the shared instructions differ, or the prompts would be one.
    count = max(1, row_tokens // (PROMPT_TOKENS + 2 * (RESPONSE_TOKENS - 1)))
    examples = [
        replace(example, prompt=[0] * SHARED_TOKENS + [1 + i % 7] * PROMPT_TOKENS) for i in range(max(2, count))
    ]
    return pack_preferences(examples, 1 << 40)[0].packed
