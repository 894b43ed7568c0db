"""What alignment changed: sentence similarity, preference, and how much of the language model is left."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference, encode_texts, render_prompt
from sempa.data.captions import caption_pairs
from sempa.data.examples import distinct_sentences
from sempa.embedding.embedder import embed
from sempa.errors import SempaError
from sempa.evaluation.drift import generate_side_by_side, measure_retention
from sempa.evaluation.eval_texts import (
    Scored,
    default_window,
    encode_conversations,
    encode_file,
    encode_passages,
    read_gsm8k,
    split_long,
)
from sempa.evaluation.statistics import compare
from sempa.evaluation.sts import StsTask, draw_scores, evaluate_sts, left_out, read_sts
from sempa.evaluation.unseen_text import CONVERSATIONS, GENERATION_PROMPTS, PASSAGES
from sempa.io.progress import bar
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import adapter_disabled
from sempa.model.threads import parallel_map

BUILTIN = "built-in"
# A sample is enough for a perplexity to three digits, and a report should not take longer than the training.
GSM8K_PROBLEMS = 40


def builtin_task(pairs: int, split: Literal["dev", "test"] = "test") -> StsTask:
    """The first of the built-in graded pairs, of vocabulary and scenes that no built-in triplet for training holds.

    Raises `SempaError` for fewer than two pairs, which have no order, and for more than there are.
    """
    if pairs < 2:
        raise SempaError(f"built-in pairs: found {pairs}, expected at least 2")
    return StsTask(BUILTIN, caption_pairs(split, pairs))


def development_tasks(sts_dir: str) -> tuple[list[StsTask], list[str]]:
    """What may be looked at while training: the development set of STS-B, else SICK's, else all there is.

    With it come notes on what was left out: pairs, and the tasks that are there beside it.
    """
    tasks = read_sts(sts_dir, splits=("dev", "trial"))
    chosen = [task for task in tasks if task.name.endswith((" dev", " trial"))][:1] or tasks
    notes = left_out(chosen)
    if others := [task.name for task in tasks if all(task is not one for one in chosen)]:
        notes.append(
            f"{sts_dir}: only {chosen[0].name} is looked at here; `sempa table` scores {', '.join(others)} too"
        )
    return chosen, notes


def measure_sts(
    base: BaseModel, tasks: Sequence[StsTask], readout: str = "prompteol", layer: int = -1
) -> tuple[list[dict], dict, dict[str, np.ndarray]]:
    """Spearman's ρ × 100 of each task with the adapter off and on; cosines and embeddings of the last task for more.

    A task has the 95 % interval of its change, too, and `p` of the paired bootstrap test that aligned beats base.
    The embeddings, under `base` and `aligned`, are float32 `[n, D]` of the last task's n distinct sentences.
    """
    own = distinct_sentences(tasks[-1].pairs)
    kept: list[np.ndarray] = []

    def encode(sentences: list[str]) -> np.ndarray:
        vectors = embed(base, sentences, layer=layer, show_progress=True, readout=readout)
        row = {sentence: i for i, sentence in enumerate(sentences)}
        kept.append(vectors[[row[sentence] for sentence in own]])
        return vectors

    with adapter_disabled(base.model):
        before = evaluate_sts(encode, tasks)
    after = evaluate_sts(encode, tasks)
    table = []
    for one, two in zip(before, after, strict=True):
        change = compare(two.score, one.score, draw_scores(two), draw_scores(one))
        scores = {"task": one.task.name, "pairs": len(one.task.pairs), "base": one.score, "aligned": two.score}
        table.append({**scores, "change_interval": change.interval, "p": change.p})
    gold = [pair.score for pair in tasks[-1].pairs]
    cosines = {"base": before[-1].cosines.tolist(), "aligned": after[-1].cosines.tolist()}
    scatter = {"task": tasks[-1].name, "gold": gold, **cosines}
    return table, scatter, dict(zip(("base", "aligned"), kept, strict=True))


def measure_preference(
    base: BaseModel, preferences: Sequence[Preference], row_tokens: int, beta: float
) -> dict[str, float]:
    """How often the model prefers the chosen sentence to the rejected one, on triplets it was not trained on.

    `base_accuracy` and `aligned_accuracy` compare log π(y⁺|x) with log π(y⁻|x); `reward_accuracy` and `reward_margin`
    (nats) compare the implicit rewards β log π/π_ref.
    """
    rows = pack_preferences(preferences, range(len(preferences)), row_tokens)
    with bar(2 * len(preferences), "held-out triplets", "triplet") as progress, torch.inference_mode():

        def logprobs() -> Tensor:
            result, model = torch.empty(len(preferences), 2), base.model.eval()
            for row, found in zip(rows, parallel_map(model, partial(sequence_logprobs, model), rows), strict=True):
                # Of a ranking, its best and its worst.
                result[list(row.examples)] = found[:, [0, -1]].float().cpu()
                progress.update(len(row.examples))
            return result

        with adapter_disabled(base.model):
            reference = logprobs()
        policy = logprobs()
    rewards = beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "triplets": len(preferences),
        "base_accuracy": (reference[:, 0] > reference[:, 1]).double().mean().item(),
        "aligned_accuracy": (policy[:, 0] > policy[:, 1]).double().mean().item(),
        "reward_accuracy": (margins > 0).double().mean().item(),
        "reward_margin": margins.mean().item(),
    }


def gsm8k_sample(path: str) -> list[tuple[str, str]]:
    """The first problems of a GSM8K file, none when no file is named."""
    return read_gsm8k(Path(path), limit=GSM8K_PROBLEMS) if path else []


def check_room(base: BaseModel, new_tokens: int) -> None:
    """Raise `SempaError` where the report's answers would not fit into the model's context behind their prompts."""
    context = context_length(base.model)
    prompts = encode_texts(base.tokenizer, [render_prompt(base.tokenizer, prompt) for prompt in GENERATION_PROMPTS])
    room = max(0, context - max(map(len, prompts)))
    if new_tokens > room:
        raise SempaError(
            f"generation_tokens is {new_tokens:,}, expected at most {room:,}: the model reads {context:,} tokens at "
            "once, the report's prompts included"
        )


def measure_generation(
    base: BaseModel, problems: Sequence[tuple[str, str]], new_tokens: int, files: Sequence[Path] = ()
) -> tuple[list[dict], list[dict]]:
    """Perplexity, KL and agreement on text far from the training data, and greedy generations side by side.

    `problems` are GSM8K questions and answers, if any, `files` the user's own texts (`eval_texts.read_texts`); without
    `new_tokens` nothing is generated.
    """
    texts = {
        "passages": encode_passages(base.tokenizer, PASSAGES),
        "conversations": encode_conversations(base.tokenizer, CONVERSATIONS),
    }
    if problems:
        texts["GSM8K"] = encode_conversations(base.tokenizer, problems)
    window = default_window(base)
    texts = {name: split_long(sequences, window, window // 2) for name, sequences in texts.items()}
    texts |= {str(path): encode_file(base, path) for path in files}
    retention = measure_texts(base, texts)
    generations = []
    if new_tokens:
        with bar(2 * len(GENERATION_PROMPTS), "generations", "answer") as progress:
            generations = generate_side_by_side(base, GENERATION_PROMPTS, new_tokens, progress)
    return retention, generations


def measure_texts(base: BaseModel, texts: dict[str, list[Scored]]) -> list[dict]:
    """Perplexity, KL and agreement on each of the named texts, as the report's rows."""
    rows = []
    for name, sequences in texts.items():
        with bar(len(sequences), name, "text") as progress:
            measured = measure_retention(base.model, sequences, name, progress)
        rows.append({**dataclasses.asdict(measured), "change": measured.change})
    return rows
