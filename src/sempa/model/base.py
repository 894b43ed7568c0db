"""Decoder-only base models: loaded, checked on a few tokens, and identified by a fingerprint."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.packing import PackedRow
from sempa.config import DTYPES
from sempa.errors import SempaError
from sempa.io.files import fingerprint
from sempa.io.origin import processor
from sempa.model.forward import ATTENTION, hidden_states
from sempa.model.logprobs import head_logits
from sempa.model.resolve import first_line, load_pretrained, resolve_model

# What a decoder-only checkpoint calls itself; BERT can be *loaded* as a causal model, but would embed nonsense.
_CAUSAL_NAMES = ("ForCausalLM", "LMHeadModel")
_NO_PART_OF_THE_MODEL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model, its tokenizer, and the folder or hub id that transformers can open."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_base(name: str, dtype: str = "auto", device: str | None = None) -> BaseModel:
    """Load a causal language model in evaluation mode, with every parameter frozen.

    `name` is `smollm2-135m` (embedded), a folder, a `.gguf` file or a hub id; `device` is by default CUDA when there is
    one, else the CPU; `dtype` is `bfloat16`, `float32` or `auto`, the faster of the two there (`faster_dtype`).

    Raises `SempaError` for a missing package, path or weights, a model that sempa cannot run (encoder-only, recurrent,
    with code of its own), a tokenizer of another model or without a fast form, and an unknown dtype or device.
    """
    if dtype not in DTYPES:
        raise SempaError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    target = pick_device(device)
    source = resolve_model(name)
    attention = attention_kind(open_config(name, source))
    precision = getattr(torch, faster_dtype(target) if dtype == "auto" else dtype)
    model, tokenizer = load_pretrained(name, source, dtype=precision, attn_implementation=attention)
    if not tokenizer.is_fast:
        raise SempaError(f"model {name!r}: {type(tokenizer).__name__} has no fast form, which sempa needs")
    model.requires_grad_(False)
    base = BaseModel(model.to(target).eval(), tokenizer, source)
    check_vocabulary(base)
    model.takes_block_mask = check_forward(model) and attention is not None
    return base


def faster_dtype(device: torch.device) -> str:
    """`bfloat16`, or `float32` on GPUs before Ampere, and CPUs without AMX, AMD's AVX-512 or ARM's BF16."""
    if device.type != "cpu":
        # GPUs before Ampere compute bfloat16 in float32.
        emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "float32" if emulated else "bfloat16"
    # Intel's AVX-512 multiplies bfloat16 at half of float32's rate; AMX, which some virtual machines hide, does not.
    slow = "Intel" in processor() and not torch.cpu._is_amx_tile_supported()
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if native and not slow else "float32"


def weights_fingerprint(base: BaseModel) -> str:
    """A short digest of the base's weights, config and tokenizer, to key what is computed from them."""
    weights = hashlib.sha256()
    for name, parameter in base.model.named_parameters():
        if "lora_" not in name:
            # Under an adapter a layer's own weight stands one step deeper.
            name = name.replace(".base.", ".")
            weights.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            weights.update(parameter.detach().flatten().cpu().view(torch.uint8).numpy())
    # The same weights under another rotation, window or soft cap are another model; a name or a version is no part.
    config = {key: value for key, value in base.model.config.to_dict().items() if key not in _NO_PART_OF_THE_MODEL}
    # Token ids of a text tell tokenizers of one vocabulary apart by their begin-of-text, normaliser or merges.
    vocabulary = sorted(base.tokenizer.get_vocab().items()), base.tokenizer("Two dogs' café.")["input_ids"]
    return fingerprint(weights.hexdigest(), config, base.tokenizer.chat_template, vocabulary)


def check_vocabulary(base: BaseModel) -> None:
    """Raise `SempaError` when the tokenizer gives ids that the model has no embedding for: it is another model's."""
    tokenizer, rows = base.tokenizer, base.model.get_input_embeddings().weight.shape[0]
    # Added tokens that neither text nor template needs, such as padding, may do without an embedding.
    unused = {token for token in tokenizer.get_added_vocab() if token not in str(tokenizer.chat_template)}
    unused -= {tokenizer.bos_token, tokenizer.eos_token}
    largest = max(number for token, number in tokenizer.get_vocab().items() if token not in unused)
    if largest >= rows:
        found = f"the tokenizer's largest id is {largest:,} and the model has {rows:,} token embeddings"
        raise SempaError(f"{base.source}: {found}; they are of different models, or the embeddings were not resized")


@torch.no_grad()
def check_forward(model: PreTrainedModel) -> bool:
    """Run nine tokens in three ways; returns whether a packed row gives what separate sequences give.

    Equal means within the square root of the dtype's epsilon: rounding stays far below it, a token that sees what it
    should not lands far above it. Raises `SempaError` when hidden states depend on later tokens, when logits are not
    what `head_logits` makes of them, or when they are not finite.
    """
    name = f"{model.name_or_path}: {type(model).__name__}"
    ids = [(7 + 13 * i) % model.get_input_embeddings().weight.shape[0] for i in range(9)]
    start, answer, other = ids[:3], ids[3:7], ids[7:]
    row = PackedRow()
    row.add_behind_prefix([start + other, start + answer])
    try:
        logits = model(torch.tensor([start + answer], device=model.device), use_cache=False).logits[0].float()
        states = hidden_states(model, torch.tensor([start + answer + other], device=model.device))[0, : logits.shape[0]]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise SempaError(f"{name} cannot be run: {first_line(error)}") from error
    if not states.isfinite().all():
        raise SempaError(f"{name} has hidden states that are not finite; are the weights damaged?")
    if not _close(head_logits(model, states), logits, model.dtype):
        found = f"{name} has logits that are not its head applied to the last hidden states of a causal pass"
        raise SempaError(f"{found}; sempa needs a causal model with a plain head")
    try:
        packed = hidden_states(model, **row.inputs(model.device))[0, -len(answer) :]
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return _close(packed, states[-len(answer) :], model.dtype)


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    errors = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    # The median, because rounding may send one token of a mixture of experts to another expert.
    return bool(errors.median() <= torch.finfo(dtype).eps ** 0.5)


def open_config(name: str, source: str) -> PreTrainedConfig:
    """The config of a decoder-only attention model; raises `SempaError` that says what it is instead."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        architectures = config.architectures or [config.model_type]
        found = ", ".join(architectures)
    except Exception as error:  # whatever a value of the wrong type or size makes transformers raise
        where = "" if Path(source).is_dir() else " (no such folder, and the model hub did not deliver it)"
        if "trust_remote_code" in str(error):
            where = ": it comes with code of its own, which sempa does not run"
        raise SempaError(f"model {name!r}: cannot be opened{where}: {first_line(error)}") from error
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if architecture is None or (config.architectures and not any(a.endswith(_CAUSAL_NAMES) for a in architectures)):
        raise SempaError(f"model {name!r}: is {found}, not a decoder-only language model (…ForCausalLM)")
    if architecture._is_stateful or "conv" in (getattr(config, "layer_types", None) or ()):
        found = f"{found}, with recurrent or linear-attention layers"
        raise SempaError(f"model {name!r}: is {found}; SemPA needs attention in each")
    return config


def attention_kind(config: PreTrainedConfig) -> str | None:
    """The attention to load: sempa's, or transformers' `eager`; None for the few architectures that fix their own."""
    architecture = AutoModelForCausalLM._model_mapping[type(config)]
    if not architecture._supports_attention_backend:
        return None
    # Soft-capped scores (Gemma 2) and attention sinks (gpt-oss) exist in transformers' eager implementation only.
    eager = not architecture._supports_sdpa or getattr(config, "attn_logit_softcapping", None)
    return "eager" if eager else ATTENTION


def pick_device(device: str | None) -> torch.device:
    """The device of that name, or CUDA when there is one, else the CPU; raises `SempaError` for an unavailable one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise SempaError(f"device: {device!r} cannot be used here: {first_line(error)}") from error
    return target
