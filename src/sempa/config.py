"""One flat YAML file per experiment, every key checked; `key=value` on the command line overrides it."""

import dataclasses
import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from sempa.errors import SempaError

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("auto", "bfloat16", "float32")
CAPTIONS = "captions"
RANKINGS = ("plackett-luce", "plackett-luce-top1")
OBJECTIVES = ("dpo", "conservative-dpo", "ipo", *RANKINGS, "none")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run's result. The defaults are the default recipe; a file holds what differs."""

    # The base model: an alias, a folder, a .gguf file or a hub id; the dtype of its frozen weights, where
    # "auto" is the faster on the device; "" picks the device.
    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = ""
    # A triplet file, or "captions" (built in); whether labelled NLI gives every entailment × contradiction of a premise
    # or one triplet per premise; how many triplets at most (0: all); about how many to set aside for the report.
    triplets: str = CAPTIONS
    combinations: bool = False
    triplet_limit: int = 0
    held_out: int = 60
    # For development score and report: a folder or file of scored pairs, and a file of GSM8K problems.
    sts_dir: str = ""
    gsm8k: str = ""
    output: str = "runs/sempa"
    seed: int = 0
    # The preference loss by name, its weight, the fraction of a batch that it ranks, and β of the implicit reward; the
    # weight of the chosen sentence's NLL per token.
    objective: str = "dpo"
    preference: float = 0.5
    preference_fraction: float = 0.125
    beta: float = 0.1
    anchor: float = 0.0
    # How the one-word prompt is read, by the contrast and by the evaluation: "attention-sum" or "prompteol".
    readout: str = "attention-sum"
    # The weight of InfoNCE on embeddings, among all texts of a batch, its temperature τ, and the standard deviation of
    # noise on the token embeddings, in units of their root mean square.
    contrast: float = 1.0
    temperature: float = 0.02
    noise: float = 0.0
    # The weight of KL(base ‖ policy) per token on samples of the base model.
    retention: float = 5.0
    # The largest KL(base ‖ policy) of the saved adapter, in nats per token of held-out samples of the base, prompts
    # included: the adapter is scaled down to fit (0: no limit).
    kl_budget: float = 0.015
    # LoRA on every linear layer of the blocks.
    lora_rank: int = 8
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    # AdamW; the rate warms up, then falls to zero along a cosine.
    learning_rate: float = 1e-3
    epochs: float = 1.0
    batch_size: int = 16
    weight_decay: float = 0.0
    beta2: float = 0.999
    # Tokens per packed row; whether decoder blocks are recomputed in the backward pass to save memory.
    row_tokens: int = 1024
    checkpoint_activations: bool = False
    # Steps between evaluations; each scores `dev_pairs` development pairs, saves a checkpoint, keeps the best adapter.
    eval_every: int = 20
    dev_pairs: int = 100

    @property
    def reads_responses(self) -> bool:
        """Whether a loss reads the responses to the paraphrase prompt: preference, anchor or both."""
        return self.anchor > 0 or (self.preference > 0 and self.objective != "none")


# What a value may be, in the error's words, with its test and the keys it holds for.
_RANGES = {
    "at least 0": (
        lambda x: 0 <= x < math.inf,
        ("preference", "anchor", "contrast", "noise", "retention", "kl_budget", "weight_decay"),
    ),
    "at least 1": (lambda x: x >= 1, ("batch_size", "row_tokens", "eval_every", "lora_rank")),
    "at least 2": (lambda x: x >= 2, ("dev_pairs",)),
    "above 0": (lambda x: 0 < x < math.inf, ("beta", "temperature", "lora_alpha", "learning_rate", "epochs")),
    "above 0, at most 1": (lambda x: 0 < x <= 1, ("preference_fraction",)),
    "from 0 to below 1": (lambda x: 0 <= x < 1, ("lora_dropout", "beta2")),
    "from 0 to below 2,147,483,648": (lambda x: 0 <= x < 2**31, ("triplet_limit", "held_out", "seed")),
    "a name or a path": (bool, ("model", "triplets", "output")),
}
_CHOICES = {"objective": OBJECTIVES, "readout": ("prompteol", "attention-sum"), "dtype": DTYPES}
_EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file of `Config`'s keys and lay `key=value` overrides over it.

    Raises `SempaError` for an unreadable file, an override without `=`, an unknown key (naming the nearest), a repeated
    key, a wrong type, a value out of range, and settings that leave nothing to learn.
    """
    texts = _read_yaml(path)
    source = dict.fromkeys(texts, str(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SempaError(f"argument {override!r}: expected key=value")
        texts[key], source[key] = text, "command line"
    config = Config(**{key: _value(key, text, source[key]) for key, text in texts.items()})
    if not (config.contrast or config.reads_responses):
        raise SempaError(f"{path}: objective, anchor and contrast are all off, so there is nothing to learn")
    return config


def dump_config(config: Config) -> str:
    """The YAML text of a config, keys in their documented order."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, str]:
    """Every value as it is written: a key's type decides what it means, not YAML (to which `1e-4` is text, `010` 8)."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise SempaError(f"config {path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SempaError(f"config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SempaError(f"config {path}: is not valid YAML: {' '.join(str(error).split())}") from error
    texts: dict[str, str] = {}
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise SempaError(f"config {path}: expected lines of `key: value`")
    for key, value in root.value if root else ():
        line = key.start_mark.line + 1
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise SempaError(f"config {path}: line {line}: expected `key: value` with one plain value")
        if key.value in texts:
            raise SempaError(f"config {path}: line {line}: key {key.value!r} appears twice")
        texts[key.value] = value.value
    return texts


def _value(key: str, text: str, where: str) -> object:
    """The value of a key from its text, by the key's type and within its range."""
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.0)[0]
        raise SempaError(f"{where}: unknown key {key!r}; the nearest known key is {near!r} (CHANGELOG.md has old keys)")
    kind = kinds[key]
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise SempaError(f"{where}: {key} is {text!r:.100}, expected {_EXPECTED[kind]}") from None
    if kind is str:
        value = "" if text in ("null", "~") else text
    if key in ("triplets", "sts_dir", "gsm8k", "output") and value.startswith("~/"):
        value = os.path.expanduser(value)  # noqa: PTH111, which raises for a user without a home
    for expected, (fits, keys) in _RANGES.items():
        if key in keys and not fits(value):
            raise SempaError(f"{where}: {key} is {value!r}, expected {expected}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise SempaError(f"{where}: {key} is {value!r}, expected one of {', '.join(_CHOICES[key])}")
    return value
