"""GGUF files for llama.cpp: the merged model, or the adapter alone for a base that is a GGUF file already.

Plain Llamas only (SmolLM2, Llama 3 and their like). For other architectures llama.cpp's own converter reads the merged
or the base export.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sempa.batching.prompts import begin_of_text
from sempa.errors import SempaError
from sempa.model.base import BaseModel
from sempa.model.lora import lora_layers

# The type of the matrices, what `general.file_type` calls a file of them, and how far rounding may move a matrix,
# relative to its norm: 11 bits, or 8 bits of the largest number in 32. Vectors are always float32.
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32, 0.0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, 2**-11),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 2**-6),
}
KINDS = (*_TYPES, "lora")

_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
# How a text is cut before byte-pair encoding: llama.cpp's name for it, the steps of the tokenizers library, and its
# `ignore_merges`: whether a word that is in the vocabulary is taken whole.
_PRE_TOKENIZERS = {
    "gpt-2": ([_BYTES | {"use_regex": True}], False),
    "smollm": ([_DIGITS, _BYTES | {"use_regex": True}], False),
    "llama-bpe": ([_SPLIT, _BYTES | {"use_regex": False}], True),
}


def check_llama(model: str, config: PreTrainedConfig, kind: str) -> None:
    """Raise `SempaError`, which names the converter's command, for a base that is no plain Llama."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    # Mistral and others differ in what a file of the architecture `llama` has no place for.
    plain = config.model_type == "llama" and config.hidden_act == "silu"
    # Static rotations: a factor for each frequency describes them, and a GGUF file has a tensor for these factors.
    if not plain or rope not in ("default", "linear", "llama3") or config.attention_bias or config.mlp_bias:
        raise _unwritable(f"model {model!r}: is {config.model_type}, rotated by {rope!r}", kind)


def write_gguf(path: Path, base: BaseModel, name: str, kind: str) -> None:
    """Write the base's weights with tokenizer, chat template and pooling by the last token, or its adapter alone.

    Matrices are of the type `kind`, `f32`, `f16` or `q8_0`; `lora` is the adapter, in float32. The file is read back:
    raises `SempaError` when a weight differs by more than rounding and, with the converter's command, for a tokenizer
    that sempa cannot write.
    """
    writer = gguf.GGUFWriter(path, "llama")
    if kind == "lora":
        layer = next(iter(lora_layers(base.model).values()))
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, layer.scale * layer.lora_A.shape[0])
        weights, (matrix_type, _, rounding) = _adapter_weights(base), _TYPES["f32"]
    else:
        weights = _model_weights(base)
        matrix_type, file_type, rounding = _TYPES[kind]
        writer.add_name(name)
        writer.add_file_type(file_type)
        _add_config(writer, base.model.config)
        _add_tokenizer(writer, base.tokenizer, len(weights["token_embd.weight"]), kind)
    for tensor, weight in weights.items():
        own_type = matrix_type if weight.dim() == 2 else gguf.GGMLQuantizationType.F32
        if own_type == gguf.GGMLQuantizationType.Q8_0 and weight.shape[1] % 32:
            own_type = gguf.GGMLQuantizationType.F16  # as llama.cpp's converter does: a block has 32 numbers
        data = gguf.quantize(weight.float().contiguous().numpy(), own_type)
        writer.add_tensor(tensor, data, raw_dtype=own_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for tensor in gguf.GGUFReader(path).tensors:
        written = weights[tensor.name].float().numpy()
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(written.shape)
        if np.linalg.norm(found - written) > rounding * np.linalg.norm(written):
            raise SempaError(f"gguf: {tensor.name} could not be written as {kind}: read back, it is not what it was")


def _unwritable(found: str, kind: str) -> SempaError:
    command = "sempa export --merge RUN FOLDER, then python convert_hf_to_gguf.py FOLDER"
    if kind == "lora":
        command = "sempa export --base RUN FOLDER, then python convert_lora_to_gguf.py RUN/adapter --base FOLDER"
    advice = "use llama.cpp's converter (it needs the package sentencepiece)"
    return SempaError(f"{found}, and sempa writes GGUF files of plain Llamas only; {advice}: {command}")


def _add_config(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_pooling_type(gguf.PoolingType.LAST)


def _model_weights(base: BaseModel) -> dict[str, Tensor]:
    """llama.cpp's names → weights, matrices `[out, in]`."""
    config, names, weights = base.model.config, _names(base), {}
    for name, weight in base.model.state_dict().items():
        # In a file without a head the embeddings are the head.
        if not (name == "lm_head.weight" and config.tie_word_embeddings):
            weights[names[name]] = _rotary_order(name, weight, config)
    theta, width = config.rope_parameters["rope_theta"], config.head_dim
    plain = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    factors = plain / base.model.model.rotary_emb.inv_freq.double()
    if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
        weights["rope_freqs.weight"] = factors.float()
    return weights


def _adapter_weights(base: BaseModel) -> dict[str, Tensor]:
    """llama.cpp's names → A `[r, in]` and B `[out, r]` of every adapted layer."""
    names, weights = _names(base), {}
    for module, layer in lora_layers(base.model).items():
        name = f"{module}.weight"
        weights[f"{names[name]}.lora_a"] = layer.lora_A.detach()
        weights[f"{names[name]}.lora_b"] = _rotary_order(name, layer.lora_B.detach(), base.model.config)
    return weights


def _names(base: BaseModel) -> dict[str, str]:
    """transformers' names of a Llama's weights → llama.cpp's."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, base.model.config.num_hidden_layers)
    plain = (name.replace(".base.", ".") for name in base.model.state_dict() if "lora_" not in name)
    return {name: names.get_name(name, (".weight",)) for name in plain}


def _rotary_order(name: str, weight: Tensor, config: PreTrainedConfig) -> Tensor:
    """Rows of queries and keys in llama.cpp's order: it rotates neighbours, transformers the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else weight


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, kind: str) -> None:
    """Add vocabulary, merges, special tokens and chat template; `rows` is the number of the model's token embeddings.

    Raises `SempaError` unless it is a byte-level BPE tokenizer that cuts words as GPT-2, SmolLM or Llama 3 does.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = found.get("pre_tokenizer") or {}
    # Whether offsets include a blank makes no difference to the tokens.
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in cut.get("pretokenizers", [cut])]
    known = (steps, bool(found["model"].get("ignore_merges")))
    names = [name for name, cuts in _PRE_TOKENIZERS.items() if cuts == known]
    if not names or found["normalizer"]:
        raise _unwritable("gguf: the base's tokenizer is no byte-level BPE of GPT-2, SmolLM or Llama 3", kind)
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [gguf.TokenType.UNUSED] * rows
    added = tokenizer.added_tokens_decoder
    for token, number in tokenizer.get_vocab().items():
        if number < rows:  # a padding token may do without an embedding
            tokens[number], types[number] = token, gguf.TokenType.NORMAL
            if number in added:
                types[number] = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(names[0])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in found["model"]["merges"]])
    for role in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{role}_token_id")
        if number is not None and number < rows:
            getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(bool(begin_of_text(tokenizer)))
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.get_chat_template())
