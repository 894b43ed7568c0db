"""One flat YAML file per experiment, checked to the last key, and `key=value` on the command line above it."""

import dataclasses
import difflib
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from sempa.errors import SempaError

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("bfloat16", "float32")
CAPTIONS = "captions"
RANKINGS = ("plackett-luce", "plackett-luce-top1")
OBJECTIVES = ("dpo", "conservative-dpo", "ipo", *RANKINGS, "none")
# How a one-word prompt is read where the reading is trained: the last hidden state, or the attention outputs there.
TRAINED_READOUTS = ("prompteol", "attention-sum")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result. The defaults are the default recipe; a file holds what differs."""

    # The base model: an alias, a folder, a .gguf file or a hub id; the dtype of its frozen weights (bfloat16 becomes
    # float32 on a CPU without bfloat16 arithmetic); "" picks the device.
    model: str = DEFAULT_MODEL
    dtype: str = "bfloat16"
    device: str = ""
    # A file of triplets, or "captions" for the built-in ones; all combinations of a premise's sentences, or one
    # triplet each; at most so many triplets (0: all); about so many set aside for the report.
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
    # How an embedding is read from the one-word prompt: the readout that contrast trains and that is measured.
    readout: str = "attention-sum"
    # The weight of InfoNCE on embeddings, among all texts of a batch, and its temperature τ.
    contrast: float = 1.0
    temperature: float = 0.05
    # The weight of KL(base ‖ policy) per token on samples of the base model.
    retention: float = 5.0
    # The most KL(base ‖ policy), in nats per token of samples kept from training, that the adapter may cost: it is
    # scaled down until it does not (0: no limit).
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
    # Tokens of a packed row; and whether decoder blocks run again in the backward pass, for less memory.
    row_tokens: int = 1024
    checkpoint_activations: bool = False
    # Every so many steps: score `dev_pairs` pairs of the development set, save a checkpoint, keep the best adapter.
    eval_every: int = 20
    dev_pairs: int = 100


_AT_LEAST_ONE = ("batch_size", "row_tokens", "eval_every")
_AT_LEAST_ZERO = (
    *("triplet_limit", "held_out", "preference", "anchor", "contrast", "retention", "kl_budget", "weight_decay"),
    "seed",
)
_ABOVE_ZERO = ("beta", "lora_alpha", "learning_rate", "temperature")
_CHOICES = {"objective": OBJECTIVES, "readout": TRAINED_READOUTS, "dtype": DTYPES}
# Beyond the width of any model's layers a higher rank says nothing new.
_LARGEST_RANK = 65_536
_BELOW_ONE = ("lora_dropout", "beta2")
_PATHS = ("triplets", "sts_dir", "gsm8k", "output")
# Keys of version 0.1, and where their subject is now.
_GONE = {
    "preference_share": "it is called preference_fraction",
    "contrast_candidates": "contrast always compares all texts of a batch",
    "interpolation": "kl_budget now finds how far the adapter may go",
    "shard": "sharded bases are gone",
    **dict.fromkeys(("reference_share", "online_tokens"), "online preferences are in experiments/online"),
    **dict.fromkeys(("sparse", "sparse_tokens", "uniformity", "isotropy"), "sparse codes are in experiments/spod"),
    **dict.fromkeys(("warmup", "max_length", "max_bad_share", "max_grad_norm"), "its default is a constant now"),
    **dict.fromkeys(("label_smoothing", "neutral_tokens"), "its default is a constant now"),
    **dict.fromkeys(("builtin_pairs", "generation_tokens"), "its default is a constant now"),
}


# A config is a page of settings; deep nests would end the interpreter's stack.
_LARGEST_FILE = 1_000_000
_YAML_ERRORS = (yaml.YAMLError, RecursionError)
_EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_NOTHING = ("", "null", "~")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file of `Config`'s keys and lay `key=value` overrides over it.

    Raises `SempaError` for an unreadable file, an unknown or repeated key (naming the nearest one), a wrong type or a
    value out of range.
    """
    values = _read_yaml(path)
    source = dict.fromkeys(values, str(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SempaError(f"argument {override!r}: expected key=value")
        values[key], source[key] = text, "command line"
    fields = {field.name: field for field in dataclasses.fields(Config)}
    config = Config(**{key: _parse(key, text, fields, source[key]) for key, text in values.items()})
    for key in fields:
        _check_range(key, getattr(config, key), source.get(key, "config"))
    if not (config.contrast or config.anchor or (config.preference and config.objective != "none")):
        where = source.get("objective", "config")
        raise SempaError(f"{where}: objective, anchor and contrast are all off, so there is nothing to learn")
    return config


def dump_config(config: Config) -> str:
    """The YAML text of a config, keys in their documented order."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


class _TextLoader(yaml.BaseLoader):
    """Every value as the text it is written as: a key's type decides what it means. A repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [(self.construct_object(key), key.start_mark) for key, _ in node.value]
        for place, (key, mark) in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a name", mark)
            if key in [earlier for earlier, _ in keys[:place]]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise SempaError(f"config {path}: has over {_LARGEST_FILE:,} bytes, expected a page of settings")
        values = yaml.load(data.decode(), _TextLoader)
    except UnicodeDecodeError as error:
        raise SempaError(f"config {path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SempaError(f"config {path}: cannot be read: {error.strerror}") from error
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise SempaError(f"config {path}:{where} {getattr(error, 'problem', None) or 'is not valid YAML'}") from error
    if values in (None, ""):
        return {}
    if not isinstance(values, dict):
        raise SempaError(f"config {path}: found a {type(values).__name__}, expected lines of `key: value`")
    return values


def _parse(key: str, text: object, fields: dict[str, dataclasses.Field], where: str) -> object:
    """The value of a key from its text, by the key's type."""
    if key in _GONE:
        raise SempaError(
            f"{where}: {key} is a key of an earlier version ({_GONE[key]}); take it out and train anew: its adapters "
            "are loaded as before"
        )
    if key not in fields:
        near = difflib.get_close_matches(key, fields, n=1, cutoff=0.0)[0]
        raise SempaError(f"{where}: unknown key {key!r:.100}; the nearest known key is {near!r}")
    kind = fields[key].type
    if not isinstance(text, str):
        raise SempaError(f"{where}: {key} is a {type(text).__name__}, expected {_EXPECTED[kind]}")
    if kind is str:
        return _check_text(key, "" if text in _NOTHING else text, where)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind is int and re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
            return int(text)
        if kind is float:
            return float(text)
    except ValueError:
        pass
    raise SempaError(f"{where}: {key} is {text!r:.100}, expected {_EXPECTED[kind]}")


def _check_text(key: str, text: str, where: str) -> str:
    """The text, with `~` in a path expanded; refused where no file system takes it for a path."""
    # Control characters, and what stands for bytes that are not UTF-8.
    odd = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if odd is not None:
        raise SempaError(f"{where}: {key} is {text!r:.100}, with the character {odd!a}, expected printable text")
    if max(map(len, os.fsencode(text).split(b"/"))) > 255:
        raise SempaError(f"{where}: {key} is {text!r:.100}, of {len(text):,} characters, longer than a file's name")
    try:
        return str(Path(text).expanduser()) if key in _PATHS and text.startswith("~/") else text
    except RuntimeError as error:
        raise SempaError(f"{where}: {key} is {text!r:.100}, and there is no home folder") from error


def _check_range(key: str, value: object, where: str) -> None:
    expected = None
    if key in _AT_LEAST_ONE and value < 1:
        expected = "at least 1"
    elif key in _AT_LEAST_ZERO and not 0 <= value < math.inf:
        expected = "at least 0"
    elif key in _ABOVE_ZERO and not 0 < value < math.inf:
        expected = "a number above 0"
    elif key == "preference_fraction" and not 0 < value <= 1:
        expected = "a number above 0, at most 1"
    elif key in _CHOICES and value not in _CHOICES[key]:
        near = difflib.get_close_matches(value, _CHOICES[key], n=1, cutoff=0.0)[0]
        expected = f"one of {', '.join(_CHOICES[key])}; the nearest is {near!r}"
    elif key in _BELOW_ONE and not 0 <= value < 1:
        expected = "a number from 0 to below 1"
    elif key == "seed" and value >= 2**31:
        expected = "below 2,147,483,648"
    elif key == "dev_pairs" and value < 2:
        expected = "at least 2"
    elif key == "epochs" and not 0 < value <= 1_000_000:
        expected = "a number above 0, at most 1,000,000"
    elif key == "lora_rank" and not 1 <= value <= _LARGEST_RANK:
        expected = f"1 to {_LARGEST_RANK:,}"
    elif key in ("model", "triplets", "output") and not value:
        expected = "a name or a path"
    if expected:
        raise SempaError(f"{where}: {key} is {value!r:.100}, expected {expected}")
