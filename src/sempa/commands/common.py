"""What several commands share: the arguments that name a model, and the embedder they ask for."""

import argparse
from collections.abc import Callable
from pathlib import Path

import sempa
from sempa.io.files import user_path


def add_model_arguments(parser: argparse.ArgumentParser, model: str = "--model", **options: object) -> None:
    """Add `--model`, `--adapter`, `--dtype` and `--device`; the first may have another name and further options."""
    add_base_arguments(parser, model, **options)
    parser.add_argument("--adapter", type=user_path, metavar="RUN", help="run folder, or LoRA adapter folder")


def add_base_arguments(parser: argparse.ArgumentParser, model: str = "--model", **options: object) -> None:
    """Add `--model`, `--dtype` and `--device`."""
    text = "smollm2-135m, a model folder, a .gguf file or a hub id (default: the adapter's base, else smollm2-135m)"
    parser.add_argument(model, default="", help=text, **options)
    text = "bfloat16, float32 or auto, the faster of the two on the device (default %(default)s)"
    parser.add_argument("--dtype", default="auto", help=text)
    parser.add_argument("--device", help="cpu, cuda, … (default: CUDA when there is one)")


def add_readout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--readout` and `--layer`."""
    names = "mean, weighted-mean, last, echo, prompteol, prompteol-icl, contrastive-prompting, token-prepending"
    parser.add_argument("--readout", help=f"{names} or attention-sum (default: the adapter's own, else prompteol)")
    text = "hidden layer: 0 the embeddings, the model's depth the last, -2 the one before (default: the readout's own)"
    parser.add_argument("--layer", type=int, default=-1, help=text)


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` on, of at most 31 bits."""

    def number(text: str) -> int:
        if not least <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from {least} to {2**31 - 1:,}")
        return int(text)

    return number


def model_files(arguments: argparse.Namespace) -> list[Path]:
    """What no output may replace: base, adapter and its run's report; `arguments.model` then holds the base's name."""
    from sempa.model.adapter_files import adapter_folder

    arguments.model = base_name(arguments.model, arguments.adapter)
    files = [user_path(arguments.model)]
    if arguments.adapter:
        adapter = adapter_folder(arguments.adapter)
        files += [adapter, adapter.with_name("report.json")]
    return files


def load_embedder(arguments: argparse.Namespace, merged: bool = True) -> "sempa.Embedder":
    """The embedder that the model and readout arguments name; `arguments.model` then holds the base that was found.

    Where the base is to be compared with its adapter, the two must not be `merged`.
    """
    arguments.model = base_name(arguments.model, arguments.adapter)
    options = {key: value for key, value in vars(arguments).items() if key in ("readout", "layer", "dtype", "device")}
    return sempa.Embedder(arguments.model, arguments.adapter, **options, merged=merged)


def base_name(model: str, adapter: Path | None) -> str:
    """The base model that is meant: the one that is named, else the adapter's own, else the default."""
    from sempa.config import DEFAULT_MODEL
    from sempa.model.adapter_files import adapter_folder, read_adapter

    if not model and adapter:
        model = str(read_adapter(adapter_folder(adapter))[0].get("base_model_name_or_path") or "")
    return model or DEFAULT_MODEL
