"""An adapter and its base as one folder for other people's tools: transformers, sentence-transformers, llama.cpp.

The adapter itself is in PEFT's layout and needs no export; its base may, as a folder that PEFT can open.
"""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, begin_of_text
from sempa.errors import SempaError
from sempa.export.gguf import KINDS, check_llama, write_gguf
from sempa.export.model_card import TEMPLATES, model_card
from sempa.io.files import check_output, read_json, write_atomic, write_folder, write_json
from sempa.model.adapter_files import READOUT_FILE, adapter_folder, adapter_readout, load_adapter
from sempa.model.base import BaseModel, load_base, open_config
from sempa.model.lora import merge_adapter
from sempa.model.resolve import find_file, quiet, resolve_model

# Larger weights are split into files of this size.
SHARD = "5GB"
# Tokenizer files that transformers may not write again; llama.cpp's converter reads the original ones.
_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "merges.txt", "vocab.txt")


def export_folder(model: str, adapter: Path, output: Path, kind: str, dtype: str = "bfloat16") -> None:
    """Write an adapter and its base as a new folder, with a model card and, as a chat template, the one-word prompt.

    `model` is the base, as `sempa.model.base.load_base` takes it, `adapter` a run folder or an adapter folder, `output`
    a folder that does not exist yet, `dtype` (`bfloat16` or `float32`) that of a merged folder, and `kind` one of

    * `merged`: a plain transformers folder of the weights W + (α / r) B A, summed in float32 and rounded once, which
      vLLM and llama.cpp's converter take;
    * `sentence-transformers`: the same, with the files that make `SentenceTransformer(output).encode` give
      `Embedder.encode`'s vectors. Clean-up and PromptEOL are a template that sentence-transformers 6 itself runs on
      every sentence: neither sempa nor `trust_remote_code` is needed;
    * `f32`, `f16`, `q8_0`, `lora`: `NAME-KIND.gguf`, as `sempa.export.gguf` writes it;
    * `base`: the base alone, in bfloat16 where it is stored so, else in float32, for PEFT and llama.cpp's converters.

    Raises `SempaError` for an existing output, a base or adapter that cannot be loaded or do not fit, and a full disk.
    """
    if output.exists() or output.is_symlink():
        raise SempaError(f"output {output}: exists already; give a folder that does not")
    check_output(output, folder=True)
    folder = adapter_folder(adapter)
    config = open_config(model, resolve_model(model))
    if kind in KINDS:
        check_llama(model, config, kind)
    # In bfloat16 where it is stored so: then only one layer at a time is there in float32.
    base = load_base(model, "bfloat16" if config.dtype == torch.bfloat16 else "float32", "cpu")
    if kind != "base":
        load_adapter(base.model, folder)
    if kind not in ("base", "lora"):
        merged_dtype = torch.float32 if kind in KINDS else getattr(torch, dtype)
        merge_adapter(base.model, merged_dtype)
        # A model in bfloat16 may hold what has to stay in float32 (DeepSeek-V3's biases of its experts).
        if base.model.dtype != merged_dtype:
            base.model.to(merged_dtype)

    if kind == "sentence-transformers":
        # sentence-transformers batches, so it needs a padding token with an embedding: any, as padding is on the right.
        pad, rows = base.tokenizer.pad_token_id, len(base.model.get_input_embeddings().weight)
        if pad is None or pad >= rows:
            base.tokenizer.pad_token = base.tokenizer.eos_token

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

    write_folder(output, write)


def prompt_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Clean-up and PromptEOL around the last user message, as a Jinja template that gives `encode_one_word`'s text."""
    # `prompts.clean_sentence` in the Jinja that Python and llama.cpp have in common. llama.cpp splits at single blanks
    # only, so two in a row leave an empty text between them.
    clean = Path(__file__).with_name("templates") / "prompteol.jinja"
    prompt = f"{begin_of_text(tokenizer)}{EOL_PREFIX}{{{{ sentence }}}}{EOL_SUFFIX}"
    return clean.read_text(encoding="utf-8") + prompt


def _write_transformers(base: BaseModel, folder: Path) -> None:
    """Weights, configs and tokenizer, readable by transformers 5 and by transformers 4.57."""
    with quiet():
        base.model.save_pretrained(folder, max_shard_size=SHARD)
        base.tokenizer.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (found := find_file(base.source, name)) and not (folder / name).exists():
            shutil.copyfile(found, folder / name)
    config = read_json(folder / "config.json")
    config["torch_dtype"] = config["dtype"]
    # Version 4 does not know `rope_parameters`; without these keys it silently takes θ = 10,000, and for Phi-2 half of
    # each head. Bases that rotate differently in each kind of layer never had a common key.
    rope = config.get("rope_parameters") or {}
    config |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    write_json(folder / "config.json", config)
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer["tokenizer_class"] == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    write_json(folder / "tokenizer_config.json", tokenizer)


def _write_sentence_transformers(base: BaseModel, folder: Path) -> None:
    """The files that tell sentence-transformers the modules, template, pooling and similarity."""
    prefix = "sentence_transformers/"
    for name in TEMPLATES.list_templates(filter_func=lambda name: name.startswith(prefix)):
        content = TEMPLATES.get_template(name).render(
            begins=begin_of_text(base.tokenizer),
            chat_template=prompt_template(base.tokenizer),
            dimension=base.model.get_output_embeddings().weight.shape[1],
        )
        write_atomic(folder / name.removeprefix(prefix), content)
