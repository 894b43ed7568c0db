"""What several commands share: the arguments that name a model, and the embedder they ask for."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sempa.embedder import Embedder


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--adapter`, `--dtype` and `--device`."""
    parser.add_argument(
        "--model",
        default="",
        help="smollm2-135m, a model folder, a .gguf file or a hub id (default: the adapter's base, else smollm2-135m)",
    )
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="LoRA adapter, such as RUN/adapter")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 or float32 (default %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, … (default: CUDA when there is one)")


def add_readout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--readout` and `--layer`."""
    parser.add_argument(
        "--readout",
        default="prompteol",
        help="mean, weighted-mean, last, echo, prompteol, prompteol-icl, contrastive-prompting or token-prepending "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=-1,
        help="hidden layer to read: 0 is the embedding output, the model's depth the last one, -2 the one before "
        "(default: the readout's published layer, mostly the last)",
    )


def load_embedder(arguments: argparse.Namespace, **options: object) -> "Embedder":
    """The embedder that the model and readout arguments name; `arguments.model` then holds the base that was found."""
    from sempa.embedder import Embedder
    from sempa.lora import read_adapter
    from sempa.models import DEFAULT_MODEL

    model = arguments.model
    if not model and arguments.adapter:
        model = read_adapter(arguments.adapter)[0].get("base_model_name_or_path", "")
    arguments.model = model or DEFAULT_MODEL
    options |= {name: value for name, value in vars(arguments).items() if name in ("readout", "layer")}
    return Embedder(arguments.model, arguments.adapter, dtype=arguments.dtype, device=arguments.device, **options)
