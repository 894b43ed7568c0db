"""Sentences/s: Embedder.encode against sentence-transformers with the same model, prompt, dtype and pooling.

Beside them stand the bare matrix products: the linear layers of the decoder blocks on as many tokens as sempa runs, and
nothing else. No exact encoder of these rows can be faster.

sentence-transformers wraps every text in a model's chat template where there is one: "as loaded" shows what that costs
(another prompt, other embeddings). The other contestants get the plain prompt.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import race
import torch
from torch import nn
from torch.nn import functional as F

from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, clean_sentence
from sempa.data.sts import caption_pairs
from sempa.embedding.embedder import Embedder
from sempa.model.layers import blocks
from sempa.model.resolve import resolve_model
from sempa.model.threads import parallel_map

_PEER_BATCHES = (4, 8, 16, 32)
_PLAIN_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def main() -> None:
    given = race.arguments(
        __doc__,
        model={"default": "smollm2-135m"},
        sentences={"default": "", "help": "text file with one sentence per line (default: of the built-in pairs)"},
        count={"type": int, "default": 192, "help": "sentences, evenly spread over the file (default %(default)s)"},
        memory={"choices": ("sempa", "plain", "template"), "help": "measure the peak memory of this contestant only"},
        batch={"type": int, "default": 32},
        adapter={"default": "", "help": "run folder: also with its adapter, merged with the weights and beside them"},
    )
    sentences = _sentences(given)
    if given.memory:
        if given.memory == "sempa":
            run = _sempa(given, sentences, given.batch)
        else:
            run = _peer(given, sentences, given.batch, plain=given.memory == "plain")
        peak = race.PeakMemory(given.device)
        run()
        print(json.dumps({"bytes": peak.risen()}))
        return
    contestants = {f"sempa, batch {size}": _sempa(given, sentences, size) for size in (64, 32)}
    sizes = (32,) if given.short else _PEER_BATCHES
    contestants |= {f"sentence-transformers, batch {size}": _peer(given, sentences, size) for size in sizes}
    _agree(*(contestants[name]() for name in ("sempa, batch 64", "sentence-transformers, batch 32")))
    if given.adapter:
        contestants["adapter, merged"] = _sempa(given, sentences, 64, adapter=given.adapter)
        contestants["adapter beside the weights"] = _sempa(given, sentences, 64, adapter=given.adapter, merged=False)
    contestants["sentence-transformers, batch 32, as loaded"] = _peer(given, sentences, 32, plain=False)
    contestants["bare matrix products"] = _bare_products(given, sentences)
    seconds = race.alternate(contestants, given.rounds)
    ours = seconds["sempa, batch 64"]
    rows = [
        {
            "contestant": name,
            "sentences/s": len(sentences) / value,
            "x sempa": value / ours,
            "peak GiB": _peak(given, name),
        }
        for name, value in seconds.items()
    ]
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(race.keep("embedding", given, rows))


def _sentences(given: argparse.Namespace) -> list[str]:
    if given.sentences:
        lines = Path(given.sentences).read_text(encoding="utf-8").splitlines()
    else:
        lines = [text for pair in caption_pairs("test", given.count // 2) for text in (pair.first, pair.second)]
    return [lines[i * len(lines) // given.count] for i in range(min(given.count, len(lines)))]


def _sempa(given: argparse.Namespace, sentences: list[str], batch: int, **options: object) -> Callable[[], np.ndarray]:
    embedder = Embedder(given.model, dtype=race.dtype(given), device=given.device, **options)
    return lambda: embedder.encode(sentences, batch_size=batch)


def _peer(given: argparse.Namespace, sentences: list[str], batch: int, plain: bool = True) -> Callable[[], np.ndarray]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    plainly = {"modality_config": _PLAIN_TEXT, "module_output_name": "token_embeddings"} if plain else {}
    body = Transformer(resolve_model(given.model), model_kwargs={"dtype": getattr(torch, race.dtype(given))}, **plainly)
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode="lasttoken")
    peer = SentenceTransformer(modules=[body, pooling], device=given.device)
    prompts = [f"{EOL_PREFIX}{clean_sentence(s)}{EOL_SUFFIX}" for s in sentences]
    return lambda: peer.encode(prompts, batch_size=batch, show_progress_bar=False)


def _bare_products(given: argparse.Namespace, sentences: list[str]) -> Callable[[], None]:
    """The blocks' matrix products for the rows of `sempa, batch 64`, on inputs of their shapes, in as many lanes."""
    embedder = Embedder(given.model, dtype=race.dtype(given), device=given.device)
    stack = blocks(embedder.base.model)
    lengths: list[int] = []
    hook = stack[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    embedder.encode(sentences, batch_size=64)
    hook.remove()
    weights = [module.weight for module in stack.modules() if isinstance(module, nn.Linear)]
    widths = {weight.shape[1] for weight in weights}
    inputs = {
        (length, width): torch.randn(length, width, dtype=getattr(torch, race.dtype(given)), device=given.device)
        for length in lengths
        for width in widths
    }

    def products(length: int) -> None:
        for weight in weights:
            F.linear(inputs[length, weight.shape[1]], weight)

    @torch.inference_mode()
    def run() -> None:
        list(parallel_map(embedder.base.model, products, lengths))

    return run


def _peak(given: argparse.Namespace, name: str) -> float | None:
    """Peak memory above the loaded model in a fresh process, GiB."""
    if not name.startswith(("sempa", "sentence")):
        return None
    what = "sempa" if name.startswith("sempa") else "template" if name.endswith("loaded") else "plain"
    batch = name.split("batch ")[1].split(",")[0]
    options = [
        "--model",
        given.model,
        "--dtype",
        race.dtype(given),
        "--sentences",
        given.sentences,
        "--count",
        given.count,
        "--device",
        given.device,
    ]
    return race.in_fresh_process(__file__, *options, "--memory", what, "--batch", batch)["bytes"] / 2**30


def _agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    if cosines.min() < 0.99:
        raise SystemExit(f"the two do not embed alike: smallest cosine {cosines.min():.3f}")


if __name__ == "__main__":
    main()
