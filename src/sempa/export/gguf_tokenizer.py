"""A tokenizer as the keys of a GGUF file, so that llama.cpp cuts a text into the same tokens."""

import json

import gguf
from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import begin_of_text
from sempa.errors import SempaError

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


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Add vocabulary, merges, special tokens and chat template; `rows` is the number of the model's token embeddings.

    Raises `SempaError` unless it is a byte-level BPE tokenizer that cuts words as GPT-2, SmolLM or Llama 3 does.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    pre = _pre_tokenizer(found)
    if pre is None:
        raise SempaError(
            "gguf: the base's tokenizer is not a byte-level BPE that cuts words as GPT-2, SmolLM or Llama 3 does; use "
            "llama.cpp's converter, which knows more (and needs the package sentencepiece): sempa export --merge RUN "
            "FOLDER, then python convert_hf_to_gguf.py FOLDER"
        )
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
    for kind in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
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
