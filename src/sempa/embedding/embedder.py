"""Sentence embeddings from a language model: the hidden state that is about to say the sentence in one word."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sempa.embedding.readouts import check_readout, embedding_width, make_prompts, read, same_pass
from sempa.errors import SempaError
from sempa.io.progress import bar
from sempa.model.adapter_files import load_adapter
from sempa.model.base import BaseModel, context_length, load_base
from sempa.model.layers import depth
from sempa.model.threads import parallel_map

# Memory stays flat however long the sentences are; longer rows are slower, as their activations leave the cache.
_ROW_TOKENS = 1024


class Embedder:
    """Encode sentences with a readout: by default PromptEOL, the state that is about to say the sentence in one word.

    Threads may share one, and others may generate with the same model meanwhile.

    Args:
        model: what `sempa.model.base.load_base` takes: `smollm2-135m`, a folder, a `.gguf` file or a hub id.
        adapter: folder of a LoRA adapter, from sempa or PEFT; None embeds with the base model.
        readout: one of `sempa.embedding.readouts.READOUTS`.
        layer: index into transformers' `hidden_states`: 0 is the embedding output, the model's depth its last layer
            after the final norm, −2 the one before. −1, the default, is the readout's own published layer: the last
            for all but `contrastive-prompting` and `token-prepending`, which read at 27/32 of the depth.
        dtype: `bfloat16` or `float32`.
        device: a torch device; by default CUDA when there is one, else the CPU.

    Raises:
        SempaError: a model or adapter that cannot be loaded, an unknown readout, a layer the model does not have.
    """

    def __init__(
        self,
        model: str,
        adapter: str | Path | None = None,
        readout: str = "prompteol",
        layer: int = -1,
        dtype: str = "bfloat16",
        device: str | None = None,
    ) -> None:
        check_readout(readout)
        self.base = load_base(model, dtype, device)
        if adapter is not None:
            load_adapter(self.base.model, Path(adapter))
        check_readout(readout, layer, depth(self.base.model))
        self.readout, self.layer = readout, layer

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = 32,
        show_progress: bool = False,
        normalize: bool = False,
    ) -> np.ndarray:
        """Embed sentences, in their order: float32 `[n, D]` (`[D]` for a single string).

        `normalize` divides by the Euclidean length, so that a dot product is the cosine.
        """
        single = isinstance(sentences, str)
        vectors = embed(
            self.base, [sentences] if single else sentences, batch_size, self.layer, show_progress, self.readout
        )
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors[0] if single else vectors


def embed(
    base: BaseModel,
    sentences: Iterable[str],
    batch_size: int = 32,
    layer: int = -1,
    show_progress: bool = False,
    readout: str = "prompteol",
    progress: tqdm | None = None,
) -> np.ndarray:
    """Embeddings of `sentences` by a loaded model with whatever adapter it holds: float32 `[n, D]`.

    `layer` and `readout` are those of `Embedder`; `progress` is a bar to advance by one for every sentence. Raises
    `SempaError` for an unknown readout, a batch size below 1, a sentence that is not a string, is empty, or is longer
    than the model can read.
    """
    (vectors,) = embed_readings(base, sentences, [(readout, layer)], batch_size, show_progress, progress)
    return vectors


@torch.inference_mode()
def embed_readings(
    base: BaseModel,
    sentences: Iterable[str],
    readings: Sequence[tuple[str, int]],
    batch_size: int = 32,
    show_progress: bool = False,
    progress: tqdm | None = None,
) -> list[np.ndarray]:
    """What `embed` gives for each of `readings`, a readout and a layer, from one pass of the model over the sentences.

    Their readouts are of the `same_pass`: one at several layers, or `mean`, `weighted-mean` and `last`. Raises
    `SempaError` for others, too.
    """
    for readout, layer in readings:
        check_readout(readout, layer, depth(base.model))
        if not same_pass(readout, readings[0][0]):
            raise SempaError(f"readings: {readings[0][0]} and {readout} have different prompts, expected one pass")
    if batch_size < 1:
        raise SempaError(f"batch_size: found {batch_size}, expected at least 1")
    # More than one look at them: an iterator has but one.
    sentences = list(sentences)
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise SempaError(f"sentence {place}: found {type(sentence).__name__}, expected a string")
        if not sentence.strip():
            raise SempaError(f"sentence {place}: is empty")
    model = base.model.eval()
    words = [" ".join(sentence.split()) for sentence in sentences]
    prompts = make_prompts(readings[0][0], base.tokenizer, words)
    limit = context_length(model)
    for place, prompt in enumerate(prompts):
        if (longest := max(len(prompt.tokens), len(prompt.auxiliary))) > limit:
            raise SempaError(
                f"sentence {place}: has {longest:,} tokens in its prompt, expected at most the "
                f"{limit:,} that the model can read at once"
            )
    widths = [embedding_width(readout, model, layer) for readout, layer in readings]
    results = [np.empty((len(prompts), width), dtype=np.float32) for width in widths]
    shown = bar(len(prompts), "embedding", "sentence") if show_progress else contextlib.nullcontext(progress)
    batches = list(token_batches([len(prompt.tokens) for prompt in prompts], batch_size))

    def run(batch: list[int]) -> list[Tensor]:
        return read(readings, model, [prompts[i] for i in batch])

    with shown as progress:
        for batch, found in zip(batches, parallel_map(model, run, batches), strict=True):
            for result, states in zip(results, found, strict=True):
                result[batch] = states.cpu().numpy()
            if progress is not None:
                progress.update(len(batch))
    return results


def token_batches(sizes: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of prompts of so many tokens each: at most `batch_size` and `_ROW_TOKENS` tokens together (or one alone).

    Equal lengths stand side by side, longest first: attention has little to pad, and a batch too large fails at once.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if batch and (len(batch) == batch_size or tokens + sizes[index] > _ROW_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += sizes[index]
    if batch:
        yield batch
