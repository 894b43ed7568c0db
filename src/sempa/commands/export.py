"""Write an adapter merged into its base, with tokenizer, chat template, the one-word prompt as a template
(prompteol.jinja) and a model card that says how to use them.
"""

import argparse

from sempa.commands.common import base_name
from sempa.io.files import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "Example: sempa export --sentence-transformers runs/smollm2_captions my-encoder"
    kind = parser.add_mutually_exclusive_group(required=True)
    for option, written, explained in (
        ("--merge", "merged", "a plain transformers folder, as vLLM takes it"),
        ("--sentence-transformers", "sentence-transformers", "the same, ready for SentenceTransformer(OUTPUT).encode"),
        ("--base", "base", "the base without the adapter, as PEFT and llama.cpp's converter take it"),
    ):
        kind.add_argument(option, dest="kind", action="store_const", const=written, help=explained)
    text = "a GGUF file for llama.cpp: of the merged model, or the adapter alone (lora)"
    kind.add_argument("--gguf", dest="kind", choices=("f32", "f16", "q8_0", "lora"), help=text)
    parser.add_argument("adapter", type=user_path, metavar="RUN_OR_ADAPTER", help="run folder, or LoRA adapter folder")
    parser.add_argument("output", type=user_path, metavar="OUTPUT", help="folder to write; it must not exist yet")
    parser.add_argument("--model", default="", help="the base model (default: the one the adapter names)")
    dtypes = ("bfloat16", "float32")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="dtype when merging (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Write the folder."""
    from sempa.export.folders import export_folder
    from sempa.model.adapter_files import adapter_folder, adapter_readout

    adapter = adapter_folder(arguments.adapter)
    export_folder(base_name(arguments.model, adapter), adapter, arguments.output, arguments.kind, arguments.dtype)
    print(f"exported: {arguments.output}")
    if arguments.kind != "base" and (readout := adapter_readout(adapter)) != "prompteol":
        print(f"note: trained at the readout {readout}; other tools read the last hidden state, which gains less")
