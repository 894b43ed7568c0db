"""Sentences/s: Embedder.encode against sentence-transformers with the same model, prompt, dtype and pooling."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import race
import torch

from sempa.captions import make_pairs
from sempa.embedder import Embedder
from sempa.models import resolve_model
from sempa.prompts import EOL_PREFIX, EOL_SUFFIX, clean_sentence

_PEER_BATCHES = (16, 32, 64)


def main() -> None:
    given = race.arguments(
        __doc__,
        model={"default": "smollm2-135m"},
        sentences={"default": "", "help": "text file with one sentence per line (default: the built-in grammar's)"},
        count={"type": int, "default": 512},
        memory={"choices": ("sempa", "peer"), "help": "measure the peak memory of this contestant only"},
        batch={"type": int, "default": 32},
    )
    sentences = _sentences(given)
    if given.memory:
        run = _sempa(given, sentences, given.batch) if given.memory == "sempa" else _peer(given, sentences, given.batch)
        peak = race.PeakMemory(given.device)
        run()
        print(json.dumps({"bytes": peak.risen()}))
        return
    contestants = {f"sempa, batch {size}": _sempa(given, sentences, size) for size in (32, 128)}
    sizes = (32,) if given.short else _PEER_BATCHES
    contestants |= {f"sentence-transformers, batch {size}": _peer(given, sentences, size) for size in sizes}
    _agree(*(contestants[name]() for name in ("sempa, batch 32", "sentence-transformers, batch 32")))
    seconds = race.alternate(contestants, given.rounds)
    ours = seconds["sempa, batch 32"]
    options = ["--model", given.model, "--sentences", given.sentences, "--count", given.count, "--device", given.device]
    rows = []
    for name, value in seconds.items():
        what = "sempa" if name.startswith("sempa") else "peer"
        risen = race.in_fresh_process(__file__, *options, "--memory", what, "--batch", name.split()[-1])["bytes"]
        rows.append(
            {
                "contestant": name,
                "sentences/s": len(sentences) / value,
                "x sempa": value / ours,
                "peak GiB": risen / 2**30,
            }
        )
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(race.keep("embedding", given, rows))


def _sentences(given: argparse.Namespace) -> list[str]:
    if given.sentences:
        return Path(given.sentences).read_text(encoding="utf-8").splitlines()[: given.count]
    return [text for pair in make_pairs(given.count // 2) for text in (pair.first, pair.second)]


def _sempa(given: argparse.Namespace, sentences: list[str], batch: int) -> Callable[[], np.ndarray]:
    embedder = Embedder(given.model, device=given.device)
    return lambda: embedder.encode(sentences, batch_size=batch)


def _peer(given: argparse.Namespace, sentences: list[str], batch: int) -> Callable[[], np.ndarray]:
    from sentence_transformers import SentenceTransformer, models

    body = models.Transformer(resolve_model(given.model), model_args={"dtype": torch.bfloat16})
    pooling = models.Pooling(body.get_word_embedding_dimension(), pooling_mode="lasttoken")
    peer = SentenceTransformer(modules=[body, pooling], device=given.device)
    prompts = [f"{EOL_PREFIX}{clean_sentence(s)}{EOL_SUFFIX}" for s in sentences]
    return lambda: peer.encode(prompts, batch_size=batch, show_progress_bar=False)


def _agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    if cosines.min() < 0.99:
        raise SystemExit(f"the two do not embed alike: smallest cosine {cosines.min():.3f}")


if __name__ == "__main__":
    main()
