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


def load_embedder(arguments: argparse.Namespace, **options: object) -> "Embedder":
    """The embedder that the model arguments name; `arguments.model` then holds the base that was found."""
    from sempa.embedder import Embedder
    from sempa.lora import read_adapter
    from sempa.models import DEFAULT_MODEL

    model = arguments.model
    if not model and arguments.adapter:
        model = read_adapter(arguments.adapter)[0].get("base_model_name_or_path", "")
    arguments.model = model or DEFAULT_MODEL
    return Embedder(arguments.model, arguments.adapter, dtype=arguments.dtype, device=arguments.device, **options)
