"""An adapter and its base as one folder for other people's tools: plain transformers, or sentence-transformers.

The adapter itself needs no export, it is in PEFT's layout; its base may, as a folder that PEFT can open.
"""

import shutil
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, begin_of_text
from sempa.config import DTYPES
from sempa.errors import SempaError
from sempa.export.model_card import TEMPLATES, base_card, model_card
from sempa.io.files import check_output, read_json, replace_folder, write_atomic, write_json
from sempa.model.adapter_files import READOUT_FILE, adapter_folder, adapter_readout, load_adapter
from sempa.model.base import BaseModel, load_base, open_config
from sempa.model.lora import merge_adapter
from sempa.model.resolve import quiet, resolve_model

# Larger folders are cut into files of this size.
SHARD = "5GB"
# What a tokenizer may consist of beside the files that transformers writes: llama.cpp reads the original ones.
_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt")


def export_merged(model: str, adapter: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Write the adapter merged into its base as a plain transformers folder, which vLLM and llama.cpp's converter take.

    It holds weights (W + (α / r) B A in float32, rounded to `dtype` once), config, generation config, tokenizer, chat
    template, the one-word prompt as another chat template, and a model card.

    Args:
        model: the base, as `sempa.model.base.load_base` takes it.
        adapter: a run folder or an adapter folder.
        output: a folder that does not exist yet.
        dtype: `bfloat16` or `float32`.

    Raises:
        SempaError: an existing output, a base or adapter that cannot be loaded or do not fit, a full disk.
    """
    _export(model, adapter, output, dtype, "merged")


def export_sentence_transformers(model: str, adapter: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Write the same folder with what makes `SentenceTransformer(output).encode` give `Embedder.encode`'s vectors.

    Clean-up and PromptEOL are a template that sentence-transformers 6 itself runs on every sentence: neither sempa nor
    `trust_remote_code` is needed to load the folder. Its own chat template stays in place, so it still answers, too.
    Arguments and errors are those of `export_merged`.
    """
    _export(model, adapter, output, dtype, "sentence-transformers")


def export_base(model: str, adapter: Path, output: Path) -> None:
    """Write the base alone as a plain transformers folder in its stored precision, for PEFT and llama.cpp's converters.

    Arguments and errors are those of `export_merged`.
    """
    check_new(output)
    folder = adapter_folder(adapter)
    base = _load_stored(model)

    def write(temporary: Path) -> None:
        _write_model(base, temporary)
        write_atomic(temporary / "README.md", base_card(output.name, model, folder.name))

    replace_folder(output, write, new=True)


def _export(model: str, adapter: Path, output: Path, dtype: str, kind: str) -> None:
    if dtype not in DTYPES:
        raise SempaError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    check_new(output)
    folder = adapter_folder(adapter)
    base = merged_base(model, folder, dtype)

    def write(temporary: Path) -> None:
        if kind == "sentence-transformers":
            # Any token will do: padding on the right is never seen.
            base.tokenizer.pad_token = base.tokenizer.pad_token or base.tokenizer.eos_token
        _write_model(base, temporary)
        if kind == "sentence-transformers":
            _write_sentence_transformers(base, temporary)
        write_json(temporary / READOUT_FILE, {"readout": adapter_readout(folder)})
        write_prompt_and_card(temporary, output.name, model, folder, base, kind)

    replace_folder(output, write, new=True)


def check_new(output: Path) -> None:
    """Raise `SempaError` unless a new folder can be written at `output`."""
    if output.exists() or output.is_symlink():
        raise SempaError(f"output {output}: exists already; give a folder that does not")
    check_output(output, folder=True)


def write_prompt_and_card(folder: Path, name: str, model: str, adapter: Path, base: BaseModel, kind: str) -> None:
    """Write `prompteol.jinja` and `README.md`; `name` is the exported folder's, `kind` as `model_card` takes it."""
    write_atomic(folder / "prompteol.jinja", prompt_template(base.tokenizer))
    write_atomic(folder / "README.md", model_card(name, model, adapter, base, kind))


def prompt_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Clean-up and PromptEOL around the last user message, as a Jinja template that gives `encode_one_word`'s text."""
    # `prompts.clean_sentence` in what Python's Jinja and llama.cpp's have in common. llama.cpp splits at blanks alone,
    # and hands out the empty texts between two of them.
    clean = Path(__file__).with_name("templates") / "prompteol.jinja"
    prompt = f"{begin_of_text(tokenizer)}{EOL_PREFIX}{{{{ sentence }}}}{EOL_SUFFIX}"
    return clean.read_text(encoding="utf-8") + prompt


def merged_base(model: str, adapter: Path, dtype: str) -> BaseModel:
    """The base with the adapter's update added to its weights, everything in `dtype`, on the CPU.

    Raises `SempaError` as `load_base` and `load_adapter` do.
    """
    # In its stored precision, so that only one layer at a time is there in float32.
    base = _load_stored(model)
    load_adapter(base.model, adapter)
    merge_adapter(base.model, getattr(torch, dtype))
    base.model.to(getattr(torch, dtype))
    return base


def _load_stored(model: str) -> BaseModel:
    """The base on the CPU in the precision of its files."""
    stored = open_config(model, resolve_model(model)).dtype
    return load_base(model, "bfloat16" if stored == torch.bfloat16 else "float32", "cpu", emulate=True)


def _write_model(base: BaseModel, folder: Path) -> None:
    """Weights, configs and tokenizer as transformers 5 writes them, and as transformers 4.57 reads them, too."""
    with quiet():
        base.model.save_pretrained(folder, max_shard_size=SHARD)
        base.tokenizer.save_pretrained(folder)
    _copy_tokenizer_files(base.source, folder)
    config = read_json(folder / "config.json")
    config["torch_dtype"] = config["dtype"]
    # By the new name alone version 4 takes its default of 10,000, and nothing tells. Bases with one rotation for each
    # kind of layer had no common name for theirs.
    if theta := (rope := config.get("rope_parameters") or {}).get("rope_theta"):
        config["rope_theta"] = theta
        if rope["rope_type"] != "default":
            config["rope_scaling"] = rope
    write_json(folder / "config.json", config)
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer["tokenizer_class"] == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_json(folder / "tokenizer_config.json", tokenizer)


def _copy_tokenizer_files(source: str, folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        found = cached_file(
            source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if found and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def _write_sentence_transformers(base: BaseModel, folder: Path) -> None:
    """The files by which sentence-transformers knows modules, template, pooling and similarity."""
    prefix = "sentence_transformers/"
    for name in TEMPLATES.list_templates():
        if name.startswith(prefix):
            content = TEMPLATES.get_template(name).render(
                begins=begin_of_text(base.tokenizer),
                chat_template=prompt_template(base.tokenizer),
                dimension=base.model.get_output_embeddings().weight.shape[1],
                transformers=transformers.__version__,
                pytorch=torch.__version__,
            )
            write_atomic(folder / name.removeprefix(prefix), content)
