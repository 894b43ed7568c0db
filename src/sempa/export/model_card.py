"""The README.md of an exported model: what it is, how to use it, what was measured, on what, and what it cannot do."""

import json
import sys
from pathlib import Path

import yaml

from sempa import __version__
from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX
from sempa.batching.tokens import begin_of_text
from sempa.model.adapter_files import read_adapter
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.report.run_report import tables
from sempa.report.tables import markdown_table

PAPER = "https://arxiv.org/abs/2601.05075"
# Settings that say something of one machine only.
_OF_ONE_MACHINE = ("model", "device", "output")
_USE_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")

# Sentence embeddings, with `pip install sempa`:
from sempa import Embedder

vectors = Embedder("{name}").encode(["A man plays a guitar.", "Someone makes music."], normalize=True)"""
_USE_SENTENCE_TRANSFORMERS = """\
from sentence_transformers import SentenceTransformer  # 6.0 or later; earlier ones ignore the template

model = SentenceTransformer("{name}")
vectors = model.encode(["A man plays a guitar.", "Someone makes music."], normalize_embeddings=True)
print(vectors[0] @ vectors[1])"""


def model_card(name: str, model: str, adapter: Path, merged: BaseModel, *, for_sentence_transformers: bool) -> str:
    """The card as Markdown with its YAML head; figures come from the `report.json` of the run that holds the adapter.

    `name` is the exported folder's name, `model` the base model's, `merged` what is exported.
    """
    report, dtype = _report(adapter), str(merged.model.dtype).removeprefix("torch.")
    settings, _ = read_adapter(adapter)
    library = "sentence-transformers" if for_sentence_transformers else "transformers"
    head: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": "sentence-similarity" if for_sentence_transformers else "text-generation",
        "tags": ["sempa", "sentence-similarity", "feature-extraction", "dpo", "lora"],
    }
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists():
        head["base_model"] = model
    usage = (_USE_SENTENCE_TRANSFORMERS if for_sentence_transformers else _USE_MERGED).format(name=name)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}",
        f"{Path(report.get('model', model)).name} aligned by SemPA ([arXiv 2601.05075]({PAPER})), with the adapter "
        "merged: a language model that still answers through its chat template, and whose hidden state behind a "
        f"one-word prompt is a sentence embedding. Written by sempa {__version__}, weights in {dtype}.",
        f"## Use\n\n```python\n{usage}\n```",
        f"An embedding is the last layer's hidden state at the last token of `{EOL_PREFIX}…{EOL_SUFFIX}`; compare two "
        "by their cosine.",
        _measured(report),
        _trained(report, settings),
        _limits(report, merged, for_sentence_transformers),
    ]
    return "\n\n".join(parts) + "\n"


def _report(adapter: Path) -> dict:
    try:
        return json.loads((adapter.parent / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # An adapter from elsewhere has no report, and a card without figures is still a card.
        return {}


def _measured(report: dict) -> str:
    blocks = [markdown_table(*table) for table in tables(report)]
    if not blocks:
        return "## Measured\n\nNothing: no report lay beside the adapter."
    blocks.append(f"Measured by the training run itself, before the merge, {_machine(report)}; base: without adapter.")
    return "\n\n".join(["## Measured", *blocks])


def _machine(report: dict) -> str:
    machine = report.get("machine") or {}
    device = machine.get("cpu") if machine.get("device") == "cpu" else machine.get("device")
    return f"in {(report.get('config') or {}).get('dtype', 'an unknown dtype')} on {device or 'an unknown machine'}"


def _trained(report: dict, settings: dict) -> str:
    training, config = report.get("training") or {}, report.get("config") or {}
    # Of a path, the file's name only.
    rows = [[key, Path(str(value)).name] for key, value in config.items() if key not in _OF_ONE_MACHINE and value != ""]
    if not rows:
        rows = [["LoRA rank", str(settings["r"])], ["LoRA alpha", f"{settings['lora_alpha']:g}"]]
    data = "Unknown: no report lay beside the adapter."
    if training:
        source = Path(training["source"]).name
        data = (
            f"{training['used']:,} preference triplets (sentence, entailment, contradiction) from {source}, "
            f"{training['held_out']:,} held out, {training['steps']:,} steps, the adapter of step "
            f"{training['best_step']:,} kept."
        )
    return f"## Training data and settings\n\n{data}\n\n" + markdown_table("", ["setting", "value"], rows)


def _limits(report: dict, merged: BaseModel, for_sentence_transformers: bool) -> str:
    limits = [
        "The figures above are of this run's data; for your own, measure on your own.",
        "Similarity is that of meaning as natural-language inference has it, learnt from pairs in the language of the "
        "training triplets; topics, long documents and other languages were not trained.",
        "Before the prompt is filled, a full stop is put behind a sentence without an end, a final question mark "
        "becomes a full stop, and double quotes become single ones: what differs in these alone is embedded alike.",
        "What the base model gets wrong, and what its licence forbids, holds for this one too.",
    ]
    if (context := context_length(merged.model)) < sys.maxsize:
        cut = " (the sentence is cut, the prompt's end kept)" if for_sentence_transformers else ""
        limits.append(f"Prompt and sentence together may have {context:,} tokens{cut}.")
    limits.append(_control_tokens(merged, for_sentence_transformers))
    if changes := [row for row in report.get("retention") or [] if row.get("change") is not None]:
        worst = max(changes, key=lambda row: row["change"])
        limits.append(f"Language modelling changed: perplexity on {worst['text']} by {100 * worst['change']:+.1f} %.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _control_tokens(merged: BaseModel, for_sentence_transformers: bool) -> str:
    example = merged.tokenizer.eos_token or merged.tokenizer.bos_token
    if not for_sentence_transformers:
        return (
            f"Other tools read a control token in a text, such as `{example}`, as that token; sempa reads it as text."
        )
    if begin_of_text(merged.tokenizer):
        return (
            f"`{example}` and its like in a sentence are read as text by transformers 5.23 or later; the text around "
            "them may be cut into other tokens than by sempa."
        )
    return f"`{example}` and its like in a sentence are read as text."
