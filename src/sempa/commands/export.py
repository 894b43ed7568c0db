"""Write a folder of the base model with the adapter merged in, with tokenizer, chat template and a model card. (PEFT
loads RUN/adapter as it is.)
"""

import argparse

from sempa.commands.common import base_name
from sempa.io.files import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "Example: sempa export --sentence-transformers runs/smollm2_captions my-encoder"
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--merge", action="store_true", help="a plain transformers folder, as vLLM and llama.cpp take it")
    kind.add_argument(
        "--sentence-transformers", action="store_true", help="the same, ready for SentenceTransformer(OUTPUT).encode"
    )
    parser.add_argument("adapter", type=user_path, metavar="RUN_OR_ADAPTER", help="run folder, or LoRA adapter folder")
    parser.add_argument("output", type=user_path, metavar="OUTPUT", help="folder to write; it must not exist yet")
    parser.add_argument("--model", default="", help="the base model (default: the one the adapter names)")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 or float32 (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Merge and write."""
    from sempa.export.folders import adapter_folder, export_merged, export_sentence_transformers

    write = export_sentence_transformers if arguments.sentence_transformers else export_merged
    model = base_name(arguments.model, adapter_folder(arguments.adapter))
    write(model, arguments.adapter, arguments.output, arguments.dtype)
    print(f"exported: {arguments.output}")
