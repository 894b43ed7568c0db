"""Sentence embeddings from a language model: the hidden state that is about to say the sentence in one word.

sentences → prompts as token ids → batches of like length → one packed row each → hidden states → each prompt's vector
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sempa.embedding.compress import check_dim, check_precision, cosines, middle_directions, quantise, unit
from sempa.embedding.readouts import check_readout, embedding_width, make_prompts, read
from sempa.embedding.readouts.prompts import Prompt
from sempa.errors import SempaError
from sempa.io.progress import bar
from sempa.model.adapter_files import adapter_folder, adapter_readout, load_adapter
from sempa.model.base import BaseModel, load_base
from sempa.model.forward import context_length
from sempa.model.threads import parallel_map

# Memory stays flat however long the sentences are; longer rows are slower, as their activations leave the cache.
_ROW_TOKENS = 1024
# Texts that are tokenized at once: what a tokenizer hands out takes kilobytes a text.
_TOKENIZED_AT_ONCE = 4096


class Embedder:
    """Encode sentences with a readout: by default PromptEOL, the state that is about to say the sentence in one word.

    Threads may share one, and others may generate with the same model meanwhile.

    Args:
        model: what `sempa.model.base.load_base` takes: `smollm2-135m`, a folder, a `.gguf` file or a hub id.
        adapter: folder of a LoRA adapter, from sempa or PEFT, or a run folder; None embeds with the base model.
        readout: one of `sempa.embedding.readouts.READOUTS`; by default the one that the adapter, or the merged model,
            was trained at, and `prompteol` where nothing is said.
        layer: index into transformers' `hidden_states`: 0 is the embedding output, the model's depth its last layer
            after the final norm, −2 the one before. −1, the default, is the readout's own published layer: the last
            for all but `contrastive-prompting` and `token-prepending`, which read at 27/32 of the depth.
            `attention-sum` reads all layers and takes no other value.
        dtype: `bfloat16` or `float32`.
        device: a torch device; by default CUDA when there is one, else the CPU.

    Raises:
        SempaError: a model or adapter that cannot be loaded, an unknown readout or one that the model's architecture
            cannot give, a layer the model does not have.
    """

    def __init__(
        self,
        model: str,
        adapter: str | Path | None = None,
        readout: str | None = None,
        layer: int = -1,
        dtype: str = "bfloat16",
        device: str | None = None,
    ) -> None:
        folder = None if adapter is None else adapter_folder(Path(adapter))
        if readout is None:
            readout = adapter_readout(Path(model) if folder is None else folder)
        check_readout(readout, layer)
        self.base = load_base(model, dtype, device)
        if folder is not None:
            load_adapter(self.base.model, folder)
        check_readout(readout, layer, self.base.model)
        self.readout, self.layer = readout, layer

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = 32,
        show_progress: bool = False,
        normalize: bool = False,
        *,
        dim: int | None = None,
        precision: str = "float32",
        on_empty: str = "error",
    ) -> np.ndarray:
        """Embed sentences, in their order: float32 `[n, D]` (`[D]` for a single string).

        `encode_query` and `encode_document` are the same: SemPA knows one kind of sentence.

        Args:
            sentences: strings in a sequence of one dimension, or one string.
            batch_size: sentences at a time.
            show_progress: show a bar.
            normalize: divide by the Euclidean length, so that a dot product is the cosine.
            dim: numbers to keep, the first after a rotation (`shorten`); None keeps all, as they are.
            precision: `float32`; `int8`, whose cosines are the float's to rounding; or `binary`, uint8 `[n, D / 8]`,
                one bit for each number's sign, to be compared by Hamming distance (FAISS's `IndexBinaryFlat`).
            on_empty: what a sentence without a character is: an `error`, or `zero`, the zero vector.

        Raises:
            SempaError: as `embed`, and for a `dim`, `precision` or `on_empty` that does not exist.
        """
        if on_empty not in ("error", "zero"):
            raise SempaError(f"on_empty: found {on_empty!r}, expected error or zero")
        width = embedding_width(self.readout, self.base.model, self.layer)
        if dim is not None:
            check_dim(dim, width, self.base.model.get_output_embeddings().weight)
        check_precision(precision, width if dim is None else dim)
        single = isinstance(sentences, str)
        texts = check_sentences([sentences] if single else sentences, on_empty)
        empty = [not text.strip() for text in texts]
        # Embedded as a full stop, an empty text keeps its place, which errors name.
        texts = ["." if blank else text for text, blank in zip(texts, empty, strict=True)]
        vectors = embed(self.base, texts, batch_size, self.layer, show_progress, self.readout)
        vectors[empty] = 0
        if dim is not None:
            vectors = self.shorten(vectors, dim)
        if normalize:
            vectors = unit(vectors)
        vectors = quantise(vectors, precision)
        return vectors[0] if single else vectors

    encode_query = encode_document = encode

    def shorten(self, vectors: np.ndarray, dim: int) -> np.ndarray:
        """The first `dim` numbers of `[n, D]` after an orthogonal map, the same for every vector of this model.

        The map's first directions say most about a sentence (`sempa.embedding.compress.middle_directions`). The first
        numbers of a vector of 256 are the vector of 128.
        """
        return vectors @ self._directions[:, :dim]

    @functools.cached_property
    def _directions(self) -> np.ndarray:
        return middle_directions(self.base.model.get_output_embeddings().weight)

    @staticmethod
    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The cosine of each of n vectors with each of m, of any precision: float32 `[n, m]`."""
        return cosines(first, second)


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
    `SempaError` for an unknown readout, a batch size below 1, and a sentence that is not a string, is empty, cannot be
    written as UTF-8, or is longer than the model can read.
    """
    check_readout(readout, layer, base.model)
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise SempaError(f"batch_size: found {batch_size!r}, expected a whole number of at least 1")
    prompts = sentence_prompts(base, readout, sentences)
    shown = bar(len(prompts), "embedding", "sentence") if show_progress else contextlib.nullcontext(progress)
    with shown as progress:
        return embed_prompts(base, prompts, batch_size, layer, readout, progress)


@torch.inference_mode()
def embed_prompts(
    base: BaseModel,
    prompts: Sequence[Prompt],
    batch_size: int = 32,
    layer: int = -1,
    readout: str = "prompteol",
    progress: tqdm | None = None,
) -> np.ndarray:
    """Embeddings of the prompts that `sentence_prompts` makes for this readout: float32 `[n, D]`."""
    model = base.model.eval()
    batches = list(token_batches([len(prompt.tokens) + len(prompt.auxiliary) for prompt in prompts], batch_size))
    vectors = np.empty((len(prompts), embedding_width(readout, model, layer)), dtype=np.float32)

    def run(batch: list[int]) -> Tensor:
        return read(readout, model, [prompts[i] for i in batch], layer)

    for batch, found in zip(batches, parallel_map(model, run, batches), strict=True):
        vectors[batch] = found.cpu().numpy()
        if progress is not None:
            progress.update(len(batch))
    return vectors


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


def check_sentences(sentences: Iterable[str], on_empty: str = "error") -> list[str]:
    """The sentences as a list; what iterates as something else, such as a table's column names, is refused."""
    ordered = isinstance(sentences, Iterable) and not isinstance(sentences, str | bytes | Mapping | set | frozenset)
    if not ordered or getattr(sentences, "ndim", 1) != 1:
        raise SempaError(
            f"sentences: found {type(sentences).__name__}, expected strings in a list, or in another sequence of one "
            "dimension"
        )
    sentences = list(sentences)
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise SempaError(f"sentence {place}: found {type(sentence).__name__}, expected a string")
        if not sentence.strip() and on_empty == "error":
            raise SempaError(f"sentence {place}: is empty")
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            code = f"U+{ord(sentence[error.start]):04X}"
            raise SempaError(f"sentence {place}: holds the lone surrogate {code}, which is no character") from error
    return sentences


def sentence_prompts(base: BaseModel, readout: str, sentences: Iterable[str]) -> list[Prompt]:
    """Every sentence's prompt as token ids; raises `SempaError` as `embed` does for a sentence."""
    sentences = check_sentences(sentences)
    prompts: list[Prompt] = []
    for begin in range(0, len(sentences), _TOKENIZED_AT_ONCE):
        prompts += make_prompts(readout, base.tokenizer, sentences[begin : begin + _TOKENIZED_AT_ONCE])
    limit = context_length(base.model)
    for place, prompt in enumerate(prompts):
        if (longest := max(len(prompt.tokens), len(prompt.auxiliary))) > limit:
            raise SempaError(
                f"sentence {place}: has {longest:,} tokens in its prompt, expected at most the "
                f"{limit:,} that the model can read at once"
            )
    return prompts
