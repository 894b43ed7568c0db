"""An adapter and its base as one folder for other people's tools: transformers, sentence-transformers, llama.cpp.

The adapter itself needs no export, it is in PEFT's layout; its base may, as a folder that PEFT can open.
"""

import shutil
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, begin_of_text
from sempa.errors import SempaError
from sempa.export.gguf import KINDS, check_llama, write_gguf
from sempa.export.model_card import TEMPLATES, model_card
from sempa.io.files import check_output, read_json, replace_folder, write_atomic, write_json
from sempa.model.adapter_files import READOUT_FILE, adapter_folder, adapter_readout, load_adapter
from sempa.model.base import BaseModel, load_base, open_config
from sempa.model.lora import merge_adapter
from sempa.model.resolve import quiet, resolve_model

# Larger folders are cut into files of this size.
SHARD = "5GB"
# What a tokenizer may consist of beside the files that transformers writes: llama.cpp reads the original ones.
_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt")


def export_folder(model: str, adapter: Path, output: Path, kind: str, dtype: str = "bfloat16") -> None:
    """Write an adapter and its base as a new folder, with a model card and, as a chat template, the one-word prompt.

    Args:
        model: the base, as `sempa.model.base.load_base` takes it.
        adapter: a run folder or an adapter folder.
        output: a folder that does not exist yet.
        kind: one of
            `merged`: a plain transformers folder of the weights W + (α / r) B A, summed in float32 and rounded once,
            which vLLM and llama.cpp's converter take;
            `sentence-transformers`: the same, with the files that make `SentenceTransformer(output).encode` give
            `Embedder.encode`'s vectors. Clean-up and PromptEOL are a template that sentence-transformers 6 itself runs
            on every sentence: neither sempa nor `trust_remote_code` is needed;
            `f32`, `f16`, `q8_0`, `lora`: `NAME-KIND.gguf`, as `sempa.export.gguf` writes it;
            `base`: the base alone in its stored precision, for PEFT and llama.cpp's converters.
        dtype: `bfloat16` or `float32`, of a merged folder.

    Raises:
        SempaError: an existing output, a base or adapter that cannot be loaded or do not fit, a full disk.
    """
    if output.exists() or output.is_symlink():
        raise SempaError(f"output {output}: exists already; give a folder that does not")
    check_output(output, folder=True)
    folder = adapter_folder(adapter)
    config = open_config(model, resolve_model(model))
    if kind in KINDS:
        check_llama(model, config, kind)
    # In its stored precision, so that only one layer at a time is there in float32.
    base = load_base(model, "bfloat16" if config.dtype == torch.bfloat16 else "float32", "cpu", emulate=True)
    if kind != "base":
        load_adapter(base.model, folder)
    if kind not in ("base", "lora"):
        merged_dtype = torch.float32 if kind in KINDS else getattr(torch, dtype)
        merge_adapter(base.model, merged_dtype)
        base.model.to(merged_dtype)

    def write(temporary: Path) -> None:
        if kind in KINDS:
            write_gguf(temporary / f"{output.name}-{kind}.gguf", base, output.name, kind)
        else:
            _write_transformers(base, temporary)
        if kind == "sentence-transformers":
            _write_sentence_transformers(base, temporary)
        if kind in ("merged", "sentence-transformers"):
            write_json(temporary / READOUT_FILE, {"readout": adapter_readout(folder)})
        if kind != "base":
            write_atomic(temporary / "prompteol.jinja", prompt_template(base.tokenizer))
        write_atomic(temporary / "README.md", model_card(output.name, model, folder, base, kind))

    replace_folder(output, write, new=True)


def prompt_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Clean-up and PromptEOL around the last user message, as a Jinja template that gives `encode_one_word`'s text."""
    # `prompts.clean_sentence` in what Python's Jinja and llama.cpp's have in common. llama.cpp splits at blanks alone,
    # and hands out the empty texts between two of them.
    clean = Path(__file__).with_name("templates") / "prompteol.jinja"
    prompt = f"{begin_of_text(tokenizer)}{EOL_PREFIX}{{{{ sentence }}}}{EOL_SUFFIX}"
    return clean.read_text(encoding="utf-8") + prompt


def _write_transformers(base: BaseModel, folder: Path) -> None:
    """Weights, configs and tokenizer as transformers 5 writes them, and as transformers 4.57 reads them, too."""
    with quiet():
        base.model.save_pretrained(folder, max_shard_size=SHARD)
        base.tokenizer.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        found = cached_file(
            base.source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found and not (folder / name).exists():
            shutil.copyfile(found, folder / name)
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
