"""One flat YAML file per experiment, checked to the last key, and `key=value` on the command line above it."""

import dataclasses
import difflib
import math
import os
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
CANDIDATES = ("responses", "all")


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
    preference_fraction: float = 0.25
    beta: float = 0.1
    anchor: float = 0.0
    # The weight of InfoNCE on one-word embeddings; its candidates: the batch's responses, or all texts in both
    # directions; its temperature τ.
    contrast: float = 1.0
    contrast_candidates: str = "all"
    temperature: float = 0.05
    # The weight of KL(base ‖ policy) per token on samples of the base model.
    retention: float = 10.0
    # LoRA; and how far from the base (0) to the trained weights (1) the saved adapter goes.
    lora_rank: int = 8
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    interpolation: float = 0.7
    # AdamW; the rate warms up, then falls to zero along a cosine.
    learning_rate: float = 1e-3
    epochs: float = 1.0
    batch_size: int = 8
    weight_decay: float = 0.0
    beta2: float = 0.999
    # Tokens of a packed row.
    row_tokens: int = 512
    # Every so many steps: score `dev_pairs` pairs of the development set, save a checkpoint, keep the best adapter.
    eval_every: int = 20
    dev_pairs: int = 100


_AT_LEAST_ONE = ("batch_size", "row_tokens", "eval_every")
_AT_LEAST_ZERO = ("triplet_limit", "held_out", "preference", "anchor", "contrast", "retention", "weight_decay", "seed")
_ABOVE_ZERO = ("beta", "lora_alpha", "learning_rate", "temperature")
_CHOICES = {"objective": OBJECTIVES, "contrast_candidates": CANDIDATES, "dtype": DTYPES}
# Beyond the width of any model's layers a higher rank says nothing new.
_LARGEST_RANK = 65_536
_BELOW_ONE = ("lora_dropout", "beta2")
_TEXTS = {field.name for field in dataclasses.fields(Config) if field.type is str}
_PATHS = ("triplets", "sts_dir", "gsm8k", "output")
# Keys of version 0.1, and where their subject is now.
_GONE = {
    "preference_share": "it is called preference_fraction",
    "shard": "sharded bases are gone",
    **dict.fromkeys(("reference_share", "online_tokens"), "online preferences are in experiments/online"),
    **dict.fromkeys(("sparse", "sparse_tokens", "uniformity", "isotropy"), "sparse codes are in experiments/spod"),
    **dict.fromkeys(("warmup", "max_length", "max_bad_share", "max_grad_norm"), "its default is a constant now"),
    **dict.fromkeys(("label_smoothing", "neutral_tokens"), "its default is a constant now"),
    **dict.fromkeys(("builtin_pairs", "generation_tokens"), "its default is a constant now"),
}


# PyYAML's own constructors of numbers and dates raise other errors, and deep nests end the interpreter's stack.
_YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, RecursionError)
_YAML_TEXT, *_YAML_GUESSES = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "timestamp"))
_NONE = ("null", "~")
_LARGEST_FILE = 1_000_000


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
        try:
            # A text is taken as it stands, but for YAML's words for none.
            if key in _TEXTS:
                values[key] = None if text in _NONE else text
            else:
                values[key] = yaml.safe_load(text) if text else text
        except _YAML_ERRORS as error:
            raise SempaError(f"argument {override!r}: the value is not valid YAML") from error
        source[key] = "command line"
    return make_config(values, source)


def make_config(values: dict[str, object], source: dict[str, str]) -> Config:
    """Check names, types and ranges; `source` says where each key stands, for the error's sentence."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    checked = {}
    for key, value in values.items():
        where = source.get(key, "config")
        if key not in fields:
            if key in _GONE:
                raise SempaError(
                    f"{where}: {key} is a key of version 0.1 ({_GONE[key]}); take it out and train anew: an adapter "
                    "that 0.1 trained is loaded as before"
                )
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)[0]
            raise SempaError(f"{where}: unknown key {_shown(key)}; the nearest known key is {near!r}")
        checked[key] = _typed(key, value, fields[key].type, where)
    config = Config(**checked)
    for key in fields:
        _check_range(key, getattr(config, key), source.get(key, "config"))
    _check_learns(config, source)
    return config


def _check_learns(config: Config, source: dict[str, str]) -> None:
    if not (config.contrast or config.anchor or (config.preference and config.objective != "none")):
        where = source.get("objective", "config")
        raise SempaError(f"{where}: objective, anchor and contrast are all off, so there is nothing to learn")


def dump_config(config: Config) -> str:
    """The YAML text of a config, keys in their documented order."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """YAML's own reader takes the last of two equal keys without a word, and a folder named 010 for the number 8."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a name", key_node.start_mark)
            if key in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", mark)
            seen.add(key)
        # A node may be shared by an anchor's name: what is text here can be a number there.
        node.value = [(key, self._as_text(value) if key.value in _TEXTS else value) for key, value in node.value]
        return super().construct_mapping(node, deep)

    @staticmethod
    def _as_text(node: yaml.Node) -> yaml.Node:
        if node.tag not in _YAML_GUESSES:
            return node
        return yaml.ScalarNode(_YAML_TEXT, node.value, node.start_mark, node.end_mark, node.style)


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise SempaError(f"config {path}: has over {_LARGEST_FILE:,} bytes, expected a page of settings")
        values = yaml.load(data.decode(), _StrictLoader)
    except UnicodeDecodeError as error:
        raise SempaError(f"config {path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SempaError(f"config {path}: cannot be read: {error.strerror}") from error
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise SempaError(f"config {path}:{where} {getattr(error, 'problem', None) or 'is not valid YAML'}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SempaError(f"config {path}: found a {type(values).__name__}, expected lines of `key: value`")
    return values


def _typed(key: str, value: object, kind: type, where: str) -> object:
    if isinstance(value, int) and value.bit_length() > 63:
        raise SempaError(f"{where}: {key} is {_shown(value)}, expected a number of 63 bits at most")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text for want of a decimal point.
        try:
            return float(value)
        except ValueError:
            pass
    if kind is str and value is None:
        return ""
    if kind is str and isinstance(value, str):
        _check_text(key, value, where)
        return str(Path(value).expanduser()) if key in _PATHS and value.startswith("~/") else value
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise SempaError(f"{where}: {key} is {_shown(value)}, expected {names[kind]}")
    return value


def _check_text(key: str, text: str, where: str) -> None:
    """What no file system takes for a path, nor UTF-8 for text, is better said here than met later."""
    # Control characters, and what stands for bytes that are no UTF-8.
    odd = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if odd is not None:
        raise SempaError(f"{where}: {key} is {_shown(text)}, with the character {odd!a}, expected printable text")
    if max(map(len, os.fsencode(text).split(b"/"))) > 255:
        raise SempaError(f"{where}: {key} is {_shown(text)}, of {len(text):,} characters, longer than a file's name")


def _shown(value: object) -> str:
    """The value in an error's sentence: short, though a few lines of YAML can stand for a list without end."""
    if isinstance(value, int) and value.bit_length() > 63:
        return f"a number of {value.bit_length():,} bits"
    return f"a {type(value).__name__}" if isinstance(value, list | dict | set) else f"{value!r:.100}"


def _check_range(key: str, value: object, where: str) -> None:
    expected = None
    if key in _AT_LEAST_ONE and value < 1:
        expected = "at least 1"
    elif key in _AT_LEAST_ZERO and not 0 <= value < math.inf:
        expected = "at least 0"
    elif key in _ABOVE_ZERO and not 0 < value < math.inf:
        expected = "a number above 0"
    elif key in ("interpolation", "preference_fraction") and not 0 < value <= 1:
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
        raise SempaError(f"{where}: {key} is {_shown(value)}, expected {expected}")
