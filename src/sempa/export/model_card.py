"""The README.md of an exported model: what it is, how to use it, what was measured, on what, and what it cannot do."""

import json
import sys
from pathlib import Path

import yaml

from sempa import __version__
from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX
from sempa.batching.tokens import begin_of_text
from sempa.export.prompt_template import TEMPLATE_FILE
from sempa.model.adapter_files import adapter_readout, read_adapter
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.report.run_report import tables
from sempa.report.tables import markdown_table

PAPER = "https://arxiv.org/abs/2601.05075"
# Settings that say something of one machine only.
_OF_ONE_MACHINE = ("model", "device", "output")
_FOLDERS = ("merged", "sentence-transformers")
_USE_MERGED = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")

# Sentence embeddings, with sempa (`pip install .` in a checkout of it):
from sempa import Embedder

vectors = Embedder("{name}").encode(["A man plays a guitar.", "Someone makes music."], normalize=True)
```"""
_USE_SENTENCE_TRANSFORMERS = """\
```python
from sentence_transformers import SentenceTransformer  # 6.0 or later; earlier ones ignore the template

model = SentenceTransformer("{name}")
vectors = model.encode(["A man plays a guitar.", "Someone makes music."], normalize_embeddings=True)
print(vectors[0] @ vectors[1])
```"""
_USE_VLLM = """\
With vLLM:

```
vllm serve {name} --runner pooling --convert embed --pooler-config '{{"pooling_type": "LAST"}}' \\
  --chat-template {name}/{template}
curl localhost:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "A man plays a guitar."}}]}}'
```

llama-server takes a GGUF file, which `sempa export --gguf f16` writes from the same adapter."""
_USE_LLAMA_SERVER = """\
With llama.cpp, whose server fills the prompt in by one request and embeds it by another:

```
llama-server -m {file} --embeddings --pooling last --jinja --chat-template-file {name}/{template}
curl -s localhost:8080/apply-template -d '{{"messages": [{{"role": "user", "content": "A man plays a guitar."}}]}}' |
  jq '{{input: .prompt}}' | curl -s localhost:8080/v1/embeddings -d @-
```

Without `--embeddings`, `--pooling` and `--chat-template-file` it chats."""
_PROMPT = """\
An embedding is the last layer's hidden state at the last token of `{prefix}…{suffix}`; compare two by their cosine. A
server that gets the bare sentence embeds something else, and nothing tells: on STS-B dev a default run's {filled}
falls to {raw}. `{template}` is clean-up and prompt as a chat template, which fills the last user message in."""
# ρ × 100 on STS-B dev with the prompt and without it (docs/integrations.md has the command).
_FILLED, _RAW = 79.6, 45.1
_OTHER_READOUT = """\
Similarity was trained and measured at the readout `{readout}`, which `sempa.Embedder` reads. Other tools cannot: they
read the last hidden state at the same token, which gains less: measure it by `sempa evaluate --readout prompteol`."""
_BASE_CARD = """\
# {name}

{model}, the base of a LoRA adapter, as a plain transformers folder. Nothing of the adapter is in it. Written by sempa
{version}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{name}"), "{adapter}")
```

llama.cpp's converter takes it, too: `python convert_lora_to_gguf.py {adapter} --base {name}`.
"""


def base_card(name: str, model: str, adapter: str) -> str:
    """The card of a base alone; `name` is the exported folder's name, `adapter` the adapter's."""
    return _BASE_CARD.format(name=name, model=_base_name(model), adapter=adapter, version=__version__)


def model_card(name: str, model: str, adapter: Path, base: BaseModel, kind: str) -> str:
    """The card as Markdown with its YAML head; figures come from the `report.json` of the run that holds the adapter.

    `name` is the exported folder's name, `model` the base model's. `base` is what is exported, as `kind`: `merged`,
    `sentence-transformers`, or a GGUF file's `f32`, `f16`, `q8_0` or `lora`.
    """
    report = _report(adapter)
    settings, _ = read_adapter(adapter)
    library = {"merged": "transformers", "sentence-transformers": kind}.get(kind, "gguf")
    head: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": "text-generation" if kind == "merged" else "sentence-similarity",
        "tags": ["sempa", "sentence-similarity", "feature-extraction", "dpo", "lora"],
    }
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists():
        head["base_model"] = model
    prompt = _PROMPT.format(prefix=EOL_PREFIX, suffix=EOL_SUFFIX, template=TEMPLATE_FILE, filled=_FILLED, raw=_RAW)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}",
        f"{Path(report.get('model', model)).name} aligned by SemPA ([arXiv 2601.05075]({PAPER})), "
        f"{_what(model, base, kind)}: a language model that still answers through its chat template, and whose hidden "
        f"state behind a one-word prompt is a sentence embedding. Written by sempa {__version__}.",
        f"## Use\n\n{_usage(name, kind)}",
        f"## The prompt\n\n{prompt}",
        _measured(report, adapter_readout(adapter)),
        _trained(report, settings),
        _limits(report, base, kind),
    ]
    return "\n\n".join(parts) + "\n"


def _base_name(model: str) -> str:
    """A base's name without the folders of one machine."""
    return model if model.count("/") == 1 and not Path(model).exists() else Path(model).name


def _what(model: str, base: BaseModel, kind: str) -> str:
    if kind == "lora":
        return f"the adapter alone, to be put on a GGUF file of {_base_name(model)}"
    merged = "with the adapter merged, weights in "
    return merged + (str(base.model.dtype).removeprefix("torch.") if kind in _FOLDERS else kind)


def _usage(name: str, kind: str) -> str:
    names = {"name": name, "template": TEMPLATE_FILE, "file": f"{name}/{name}-{kind}.gguf"}
    if kind == "lora":
        names["file"] = f"BASE.gguf --lora {names['file']}"
    if kind not in _FOLDERS:
        return _USE_LLAMA_SERVER.format(**names)
    use = _USE_MERGED if kind == "merged" else _USE_SENTENCE_TRANSFORMERS
    return f"{use}\n\n{_USE_VLLM}".format(**names)


def _report(adapter: Path) -> dict:
    try:
        return json.loads((adapter.parent / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # An adapter from elsewhere has no report, and a card without figures is still a card.
        return {}


def _measured(report: dict, readout: str) -> str:
    blocks = [markdown_table(*table) for table in tables(report)]
    if not blocks:
        return "## Measured\n\nNothing: no report lay beside the adapter."
    blocks.append(f"Measured by the training run itself, before the merge, {_machine(report)}; base: without adapter.")
    if readout != "prompteol":
        blocks.append(_OTHER_READOUT.format(readout=readout))
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


def _limits(report: dict, base: BaseModel, kind: str) -> str:
    limits = [
        "The figures above are of this run's data; for your own, measure on your own.",
        "Similarity is that of meaning as natural-language inference has it, learnt from pairs in the language of the "
        "training triplets; topics, long documents and other languages were not trained.",
        "Before the prompt is filled, a full stop is put behind a sentence without an end, a final question mark "
        "becomes a full stop, and double quotes become single ones: what differs in these alone is embedded alike.",
        "What the base model gets wrong, and what its licence forbids, holds for this one too.",
    ]
    if (context := context_length(base.model)) < sys.maxsize:
        cut = " (the sentence is cut, the prompt's end kept)" if kind == "sentence-transformers" else ""
        limits.append(f"Prompt and sentence together may have {context:,} tokens{cut}.")
    limits.append(_control_tokens(base, kind))
    if changes := [row for row in report.get("retention") or [] if row.get("change") is not None]:
        worst = max(changes, key=lambda row: row["change"])
        limits.append(f"Language modelling changed: perplexity on {worst['text']} by {100 * worst['change']:+.1f} %.")
    return "## Limits\n\n" + "\n".join(f"* {limit}" for limit in limits)


def _control_tokens(base: BaseModel, kind: str) -> str:
    example = base.tokenizer.eos_token or base.tokenizer.bos_token
    if kind != "sentence-transformers":
        return (
            f"Other tools read a control token in a text, such as `{example}`, as that token; sempa reads it as text."
        )
    if begin_of_text(base.tokenizer):
        return (
            f"`{example}` and its like in a sentence are read as text by transformers 5.23 or later; the text around "
            "them may be cut into other tokens than by sempa."
        )
    return f"`{example}` and its like in a sentence are read as text."
