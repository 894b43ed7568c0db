"""Write an adapter merged into its base, with tokenizer, chat template, the one-word prompt as a template
(prompteol.jinja) and a model card that says how to use them.
"""

import argparse

from sempa.commands.common import base_name
from sempa.errors import SempaError
from sempa.io.files import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "Example: sempa export --sentence-transformers runs/smollm2_captions my-encoder"
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--merge", action="store_true", help="a plain transformers folder, as vLLM takes it")
    kind.add_argument(
        "--sentence-transformers", action="store_true", help="the same, ready for SentenceTransformer(OUTPUT).encode"
    )
    kind.add_argument(
        "--gguf",
        metavar="KIND",
        help="a GGUF file for llama.cpp: f32, f16 or q8_0 of the merged model, or lora, the adapter alone",
    )
    kind.add_argument(
        "--base", action="store_true", help="the base without the adapter, as PEFT and llama.cpp's converter take it"
    )
    parser.add_argument("adapter", type=user_path, metavar="RUN_OR_ADAPTER", help="run folder, or LoRA adapter folder")
    parser.add_argument("output", type=user_path, metavar="OUTPUT", help="folder to write; it must not exist yet")
    parser.add_argument("--model", default="", help="the base model (default: the one the adapter names)")
    parser.add_argument("--dtype", help="of --merge and --sentence-transformers: bfloat16 (default) or float32")


def run(arguments: argparse.Namespace) -> None:
    """Write the folder."""
    from sempa.export.folders import export_base, export_merged, export_sentence_transformers
    from sempa.export.gguf import export_gguf
    from sempa.model.adapter_files import adapter_folder, adapter_readout

    output, dtype = arguments.output, arguments.dtype
    if dtype and (arguments.gguf or arguments.base):
        raise SempaError("--dtype: is of --merge and --sentence-transformers alone")
    adapter = adapter_folder(arguments.adapter)
    model = base_name(arguments.model, adapter)
    if arguments.gguf:
        export_gguf(model, adapter, output, arguments.gguf)
    elif arguments.base:
        export_base(model, adapter, output)
    else:
        write = export_sentence_transformers if arguments.sentence_transformers else export_merged
        write(model, adapter, output, dtype or "bfloat16")
    print(f"exported: {output}")
    if not arguments.base and (readout := adapter_readout(adapter)) != "prompteol":
        print(f"note: trained at the readout {readout}; other tools read the last hidden state, which gains less")
