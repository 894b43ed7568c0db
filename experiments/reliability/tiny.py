"""The tests' tiny model, tokenizer and triplets, for programs that kill, fuzz and repeat: all made on the spot."""

import sys
from pathlib import Path

import torch

from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.data.sts import ScoredPair, StsTask
from sempa.data.triplets import Triplet
from sempa.embedding.embed import embed
from sempa.evaluation.sts import evaluate_sts
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import add_lora
from sempa.model.resolve import quiet
from sempa.training.loop import train

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from conftest import make_llama, make_tokenizer, tiny_texts, write_gguf  # noqa: F401

# Plain DPO with dropout, a checkpoint every other step.
SETTINGS = {
    **{"preference": 1.0, "preference_fraction": 1.0, "anchor": 1.0, "contrast": 0.0, "retention": 0.0},
    **{"batch_size": 4, "eval_every": 2, "lora_rank": 2, "learning_rate": 1e-2, "lora_dropout": 0.1},
}


def make_folder(folder: Path) -> Path:
    """Save the tiny Llama and its tokenizer as a folder that `load_base` opens."""
    with quiet():
        make_llama(initializer_range=0.2).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def sentences(count: int) -> list[str]:
    """So many different sentences of uneven length."""
    texts = [text for triple in tiny_texts() for text in triple]
    return [" ".join([texts[i % len(texts)]] * (1 + i % 3)) + f" Number {i}." for i in range(count)]


def load(folder: Path) -> BaseModel:
    """The tiny model in float32 on the CPU, without an adapter."""
    return load_base(str(folder), "float32", "cpu")


def train_tiny(base: BaseModel, run: Path, epochs: float) -> dict:
    """Add an adapter and train it on sixteen triplets as `sempa train` would, or go on where `run` stands."""
    config = Config(model=base.source, dtype="float32", device="cpu", epochs=epochs, output=str(run), **SETTINGS)
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    triplets = [Triplet(*texts, line=i + 2) for i, texts in enumerate(tiny_texts())]
    preferences = [encode_triplet(base.tokenizer, triplet) for triplet in triplets]
    # Graded pairs: a sentence's own entailment is nearer to it than the next one's contradiction.
    pairs = [ScoredPair(t.sentence, t.chosen, 5.0 - i / 9) for i, t in enumerate(triplets[:4])]
    pairs += [ScoredPair(t.sentence, t.rejected, i / 9) for i, t in enumerate(triplets[4:8])]

    def score_dev() -> float:
        (result,) = evaluate_sts(lambda texts: embed(base, texts), [StsTask("pairs", pairs)])
        return result.score

    run.mkdir(parents=True, exist_ok=True)
    return train(config, base, preferences, run, score_dev)


def one_thread() -> None:
    """Compute in the calling thread alone: a fork copies no other."""
    torch.set_num_threads(1)
