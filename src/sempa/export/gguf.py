"""GGUF files for llama.cpp: the merged model, or the adapter alone for a base that is a GGUF file already.

Plain Llamas only; llama.cpp's own converter, which takes the other exports, knows every architecture.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sempa.batching.prompts import begin_of_text
from sempa.errors import SempaError
from sempa.export.folders import check_new, merged_base, write_prompt_and_card
from sempa.io.files import replace_folder
from sempa.model.adapter_files import adapter_folder, load_adapter
from sempa.model.base import BaseModel, load_base, open_config
from sempa.model.lora import lora_layers
from sempa.model.resolve import resolve_model

# The type of the matrices, how `general.file_type` calls a file of them, and how far a matrix may be from the one that
# was written, relative to its norm: rounding to 11 bits, or to 8 bits of the largest number in 32.
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32, 0.0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, 2**-11),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 2**-6),
}
KINDS = (*_TYPES, "lora")
# Static rotations: one factor for each frequency, which a tensor of its own can hold.
_ROPES = ("default", "linear", "llama3")

_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
# How a text is cut before byte-pair encoding: llama.cpp's name for it, and the steps of the tokenizers library. The
# last of them knows `ignore_merges`, too: a word that is in the vocabulary is taken whole.
_PRE_TOKENIZERS = {
    "gpt-2": ([_BYTES | {"use_regex": True}], False),
    "smollm": ([_DIGITS, _BYTES | {"use_regex": True}], False),
    "llama-bpe": ([_SPLIT, _BYTES | {"use_regex": False}], True),
}


def export_gguf(model: str, adapter: Path, output: Path, kind: str) -> None:
    """Write a folder with `NAME-KIND.gguf` for llama.cpp, `prompteol.jinja` and a model card.

    The file is read back and compared before the folder gets its name.

    Args:
        model: the base, as `sempa.model.base.load_base` takes it: a plain Llama (SmolLM2, Llama 3 and their like).
        adapter: a run folder or an adapter folder.
        output: a folder that does not exist yet.
        kind: `f32`, `f16` or `q8_0`, the merged model with matrices of this type, with vectors in float32, tokenizer,
            chat template and pooling by the last token; or `lora`, the adapter alone.

    Raises:
        SempaError: an unknown kind, an existing output, another architecture or tokenizer (the sentence names the
            converter's command), a base or adapter that cannot be loaded or do not fit, a full disk.
    """
    if kind not in KINDS:
        raise SempaError(f"gguf: found {kind!r}, expected one of {', '.join(KINDS)}")
    check_new(output)
    folder = adapter_folder(adapter)
    _check_llama(model, open_config(model, resolve_model(model)), kind)
    if kind == "lora":
        base = load_base(model, "float32", "cpu")
        load_adapter(base.model, folder)
    else:
        base = merged_base(model, folder, "float32")

    def write(temporary: Path) -> None:
        path = temporary / f"{output.name}-{kind}.gguf"
        if kind == "lora":
            _write_adapter(path, base)
        else:
            _write_model(path, base, output.name, kind)
        write_prompt_and_card(temporary, output.name, model, folder, base, kind)

    replace_folder(output, write, new=True)


def _check_llama(model: str, config: PreTrainedConfig, kind: str) -> None:
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    # Mistral and others differ in what a file of the architecture `llama` has no place for.
    plain = config.model_type == "llama" and config.hidden_act == "silu"
    if plain and rope in _ROPES and not (config.attention_bias or config.mlp_bias):
        return
    raise _unwritable(f"model {model!r}: is {config.model_type}, rotated by {rope!r}", kind)


def _unwritable(found: str, kind: str) -> SempaError:
    command = "sempa export --merge RUN FOLDER, then python convert_hf_to_gguf.py FOLDER"
    if kind == "lora":
        command = "sempa export --base RUN FOLDER, then python convert_lora_to_gguf.py RUN/adapter --base FOLDER"
    return SempaError(
        f"{found}, and sempa writes GGUF files of plain Llamas only; use llama.cpp's converter (it needs the package "
        f"sentencepiece): {command}"
    )


def _write_model(path: Path, base: BaseModel, name: str, kind: str) -> None:
    config, weights = base.model.config, _model_weights(base)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(_TYPES[kind][1])
    if kind == "q8_0":
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
    rows = len(weights["token_embd.weight"])
    writer.add_vocab_size(rows)
    _add_tokenizer(writer, base.tokenizer, rows, kind)
    _write_weights(path, writer, weights, kind)


def _write_adapter(path: Path, base: BaseModel) -> None:
    layer = next(iter(lora_layers(base.model).values()))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, layer.scale * layer.lora_A.shape[0])
    _write_weights(path, writer, _adapter_weights(base), "f32")


def _model_weights(base: BaseModel) -> dict[str, Tensor]:
    """llama.cpp's names → weights, matrices `[out, in]`."""
    config, names, weights = base.model.config, _names(base), {}
    for name, weight in base.model.state_dict().items():
        # Without a head of its own the file's embeddings are the head.
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
    for name, layer in lora_layers(base.model).items():
        target = names[f"{name}.weight"]
        weights[f"{target}.lora_a"] = layer.lora_A.detach()
        weights[f"{target}.lora_b"] = _rotary_order(name, layer.lora_B.detach(), base.model.config)
    return weights


def _names(base: BaseModel) -> dict[str, str]:
    """transformers' names of a Llama's weights → llama.cpp's."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, base.model.config.num_hidden_layers)
    plain = (name.replace(".base.", ".") for name in base.model.state_dict() if "lora_" not in name)
    return {name: names.get_name(name, (".weight",)) for name in plain}


def _rotary_order(name: str, weight: Tensor, config: PreTrainedConfig) -> Tensor:
    """Rows of queries and keys in llama.cpp's order: it rotates neighbours, transformers the two halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in name.split(".") if part in heads), None)
    if count is None:
        return weight
    return weight.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write_weights(path: Path, writer: gguf.GGUFWriter, weights: Mapping[str, Tensor], kind: str) -> None:
    """Write the header and the tensors, one after another to save memory, and read them back.

    Raises `SempaError` where a tensor that was read is further from its weights than rounding.
    """
    matrix_type, _, rounding = _TYPES[kind]
    types = {
        name: matrix_type if weight.dim() == 2 else gguf.GGMLQuantizationType.F32 for name, weight in weights.items()
    }
    for name, weight in weights.items():
        size = math.prod(gguf.quant_shape_to_byte_shape(weight.shape, types[name]))
        writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), size, raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in weights.items():
        writer.write_tensor_data(gguf.quantize(weight.float().contiguous().numpy(), types[name]))
    writer.close()
    for tensor in gguf.GGUFReader(path).tensors:
        expected = weights[tensor.name].float().numpy()
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        if np.linalg.norm(found - expected) > rounding * np.linalg.norm(expected):
            raise SempaError(f"gguf: {tensor.name} could not be written as {kind}: read back, it is not what it was")


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, kind: str) -> None:
    """Add vocabulary, merges, special tokens and chat template; `rows` is the number of the model's token embeddings.

    Raises `SempaError` unless it is a byte-level BPE tokenizer that cuts words as GPT-2, SmolLM or Llama 3 does.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    pre = _pre_tokenizer(found)
    if pre is None:
        raise _unwritable("gguf: the base's tokenizer is no byte-level BPE of GPT-2, SmolLM or Llama 3", kind)
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [gguf.TokenType.UNUSED] * rows
    added = tokenizer.added_tokens_decoder
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
        if number in added:
            types[number] = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Older tokenizer files hold a merge as one text.
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]])
    for role in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(bool(begin_of_text(tokenizer)))
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.get_chat_template())


def _pre_tokenizer(found: dict) -> str | None:
    """llama.cpp's name for the way this tokenizer cuts a text into words; None where it has none here."""
    model, cut = found.get("model") or {}, found.get("pre_tokenizer") or {}
    if model.get("type") != "BPE" or found.get("normalizer") or model.get("byte_fallback") or model.get("dropout"):
        return None
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in cut.get("pretokenizers", [cut])]
    # An older file leaves these out where they are true or false, respectively.
    steps = [{"use_regex": True} | step if step.get("type") == "ByteLevel" else step for step in steps]
    known = (steps, bool(model.get("ignore_merges")))
    return next((name for name, kind in _PRE_TOKENIZERS.items() if kind == known), None)
