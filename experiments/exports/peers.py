"""Embed hard sentences by every export, in the tool that it is for, and compare with sempa's own vectors.

    .venv/bin/python experiments/exports/peers.py runs/smollm2_captions --old OLD/bin/python

`OLD` is an environment with transformers 4.57; without it that row is left out. llama.cpp comes with xllamacpp.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sempa import Embedder
from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, clean_sentence
from sempa.cli import Parser
from sempa.commands.common import base_name
from sempa.export.folders import adapter_folder, export_folder
from sempa.export.gguf import KINDS
from sempa.io.streams import exit_code

SENTENCES = [
    "A man plays a guitar",
    "Who is it?",
    'He said "go" to  the dogs in 2024',
    "Zwei Hunde jagen einen roten Ball im Park, 我们看着",
    "it's 'quoted'",
    "line one\nline two\tand a tab",
    "Children smile and wave at the camera.",
]
# Run by another Python: a merged folder and prompts in, vectors out.
_OLD = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
vectors = []
with torch.no_grad():
    for prompt in json.load(sys.stdin):
        states = model(**tokenizer(prompt, return_tensors="pt"), output_hidden_states=True).hidden_states
        vectors.append(states[-1][0, -1].tolist())
print(json.dumps({"transformers": transformers.__version__, "vectors": vectors}))
"""
# The same for llama.cpp: model, template and adapter in, the server's address out.
_SERVER = """
import os, pathlib, socket, sys, xllamacpp
model, template, lora = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = model
parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 512, 1, 2
parameters.verbosity = 0
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    parameters.port = free.getsockname()[1]
if template:
    parameters.embedding = True
    parameters.use_jinja, parameters.chat_template = True, pathlib.Path(template).read_text(encoding="utf-8")
if lora:
    # The file of the merged model says so itself, a base does not.
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
# Until the caller ends or kills it.
sys.stdin.read()
os._exit(0)
"""


def by_transformers(python: str, folder: Path) -> tuple[str, np.ndarray]:
    """The version of transformers that `python` has, and its vectors from a merged folder: `[n, D]`."""
    prompts = [f"{EOL_PREFIX}{clean_sentence(sentence)}{EOL_SUFFIX}" for sentence in SENTENCES]
    command = [python, "-c", _OLD, str(folder)]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    return answer["transformers"], np.array(answer["vectors"])


class LlamaCpp:
    """llama.cpp's server as the export's README starts it, until the object goes away."""

    def __init__(self, model: Path, template: Path | None, lora: Path | None = None) -> None:
        command = [sys.executable, "-c", _SERVER, str(model), str(template or ""), str(lora or "")]
        # In a process of its own, which is killed: a server's destructor sometimes waits for ever.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._address = process.stdout.readline().strip()
        weakref.finalize(self, process.kill)

    def post(self, path: str, body: dict) -> dict:
        """The server's answer to one request."""
        address = f"{self._address}{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def embed(self, sentences: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, `[n, D]`: the server fills each sentence's prompt in and embeds it."""
        vectors = []
        for sentence in sentences:
            filled = self.post("/apply-template", {"messages": [{"role": "user", "content": sentence}]})
            vectors.append(self.post("/v1/embeddings", {"input": filled["prompt"]})["data"][0]["embedding"])
        return np.array(vectors)


def smallest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The smallest cosine of two sets of vectors, row by row."""
    products = (one * other).sum(axis=1)
    return float((products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run or adapter folder")
    parser.add_argument("--model", default="", help="the base model (default: the one the adapter names)")
    parser.add_argument("--gguf", type=Path, help="the base as a GGUF file, for the adapter alone")
    parser.add_argument("--old", help="a Python with transformers 4.57")
    arguments = parser.parse_args()
    model = base_name(arguments.model, adapter_folder(arguments.run))
    # What other tools read, wherever the adapter was trained.
    ours = Embedder(model, arguments.run, "prompteol", dtype="float32", device="cpu").encode(SENTENCES)
    with tempfile.TemporaryDirectory() as folder:
        export_folder(model, arguments.run, Path(folder) / "merged", "merged", "float32")
        for python in filter(None, (sys.executable, arguments.old)):
            version, vectors = by_transformers(python, Path(folder) / "merged")
            print(f"--merge, transformers {version}: {smallest_cosine(ours, vectors):.7f}", flush=True)
        for kind in KINDS:
            output = Path(folder) / kind
            export_folder(model, arguments.run, output, kind)
            file, template = output / f"{kind}-{kind}.gguf", output / "prompteol.jinja"
            if kind != "lora":
                vectors = LlamaCpp(file, template).embed(SENTENCES)
            elif arguments.gguf:
                vectors = LlamaCpp(arguments.gguf, template, file).embed(SENTENCES)
            else:
                continue
            print(f"--gguf {kind}, llama.cpp: {smallest_cosine(ours, vectors):.7f}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code("peers.py", main))
