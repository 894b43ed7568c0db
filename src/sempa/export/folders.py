"""An adapter and its base as one folder for other people's tools: plain transformers, or sentence-transformers.

The adapter itself needs no export: `RUN/adapter` is in PEFT's layout.
"""

import importlib.metadata
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, begin_of_text
from sempa.config import DTYPES
from sempa.errors import SempaError
from sempa.export.model_card import model_card
from sempa.io.files import check_output, replace_folder, write_atomic, write_json
from sempa.model.adapter_files import adapter_folder, load_adapter
from sempa.model.base import BaseModel, load_base, open_config
from sempa.model.lora import merge_adapter
from sempa.model.resolve import quiet, resolve_model

# Larger folders are cut into files of this size.
SHARD = "5GB"
# What a tokenizer may consist of beside the files that transformers writes: llama.cpp reads the original ones.
_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt")
# `prompts.clean_sentence` in the language of chat templates, which sentence-transformers runs on every sentence.
_CLEAN = """\
{%- set sentence = messages[-1]['content'].split() | join(' ') -%}
{%- if sentence and sentence[-1] not in ".?\\"'" -%}{%- set sentence = sentence ~ '.' -%}{%- endif -%}
{%- set sentence = sentence | replace('"', "'") -%}
{%- if sentence.endswith('?') -%}{%- set sentence = sentence[:-1] ~ '.' -%}{%- endif -%}
"""


def export_merged(model: str, adapter: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Write the adapter merged into its base as a plain transformers folder, which vLLM and llama.cpp's converter take.

    It holds weights (W + (α / r) B A in float32, rounded to `dtype` once), config, generation config, tokenizer, chat
    template and a model card.

    Args:
        model: the base, as `sempa.model.base.load_base` takes it.
        adapter: a run folder or an adapter folder.
        output: a folder that does not exist yet.
        dtype: `bfloat16` or `float32`.

    Raises:
        SempaError: an existing output, a base or adapter that cannot be loaded or do not fit, a full disk.
    """
    _export(model, adapter, output, dtype, for_sentence_transformers=False)


def export_sentence_transformers(model: str, adapter: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Write the same folder with what makes `SentenceTransformer(output).encode` give `Embedder.encode`'s vectors.

    Clean-up and PromptEOL are a template that sentence-transformers 6 itself runs on every sentence: neither sempa nor
    `trust_remote_code` is needed to load the folder. Its own chat template stays in place, so it still answers, too.
    Arguments and errors are those of `export_merged`.
    """
    _export(model, adapter, output, dtype, for_sentence_transformers=True)


def _export(model: str, adapter: Path, output: Path, dtype: str, *, for_sentence_transformers: bool) -> None:
    if dtype not in DTYPES:
        raise SempaError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    if output.exists() or output.is_symlink():
        raise SempaError(f"output {output}: exists already; give a folder that does not")
    check_output(output, folder=True)
    folder = adapter_folder(adapter)
    base = merged_base(model, folder, dtype)
    card = model_card(output.name, model, folder, base, for_sentence_transformers=for_sentence_transformers)

    def write(temporary: Path) -> None:
        with quiet():
            base.model.save_pretrained(temporary, max_shard_size=SHARD)
            base.tokenizer.save_pretrained(temporary)
        _copy_tokenizer_files(base.source, temporary)
        if for_sentence_transformers:
            _write_sentence_transformers(base, temporary)
        write_atomic(temporary / "README.md", card)

    replace_folder(output, write, new=True)


def merged_base(model: str, adapter: Path, dtype: str) -> BaseModel:
    """The base with the adapter's update added to its weights, everything in `dtype`, on the CPU.

    Raises `SempaError` as `load_base` and `load_adapter` do.
    """
    # In its stored precision, so that only one layer at a time is there in float32.
    stored = open_config(model, resolve_model(model)).dtype
    base = load_base(model, "bfloat16" if stored == torch.bfloat16 else "float32", "cpu", emulate=True)
    load_adapter(base.model, adapter)
    merge_adapter(base.model, getattr(torch, dtype))
    base.model.to(getattr(torch, dtype))
    return base


def sentence_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Clean-up and PromptEOL as a Jinja template: `[{"content": sentence}]` → the text of `encode_one_word`."""
    return f"{_CLEAN}{begin_of_text(tokenizer)}{EOL_PREFIX}{{{{ sentence }}}}{EOL_SUFFIX}"


def _copy_tokenizer_files(source: str, folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        found = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if found and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def _write_sentence_transformers(base: BaseModel, folder: Path) -> None:
    """The files by which sentence-transformers knows modules, template, pooling and similarity."""
    package = "sentence_transformers"
    read = {"method": "forward", "method_output_name": "last_hidden_state"}
    text: dict[str, object] = {"padding_side": "right"}
    template: dict[str, object] = {"chat_template": sentence_template(base.tokenizer)}
    # A control token in a sentence is text. Where the prompt itself begins with one, only the newer option can do that,
    # which tokenizes the text on either side by itself.
    if begin_of_text(base.tokenizer):
        template["sanitize_control_tokens"] = True
    else:
        text["split_special_tokens"] = True
    if base.tokenizer.pad_token is None:
        # Any token will do: padding on the right is never seen.
        base.tokenizer.pad_token = base.tokenizer.eos_token
        base.tokenizer.save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.{package[:-1]}.modules.pooling.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": read, "message": {**read, "format": "flat"}},
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"text": text, "chat_template": template},
        },
    )
    dimension = base.model.get_output_embeddings().weight.shape[1]
    pooling = {"embedding_dimension": dimension, "pooling_mode": "lasttoken", "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    versions = {"sentence_transformers": "6.0.0", "transformers": importlib.metadata.version("transformers")}
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": {**versions, "pytorch": torch.__version__},
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
