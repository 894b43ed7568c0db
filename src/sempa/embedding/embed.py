"""From sentences to vectors: the hidden state that is about to say the sentence in one word.

sentences → prompts as token ids → batches of like length → one packed row each → hidden states → each prompt's vector
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from sempa.batching.packing import next_fit
from sempa.embedding.readouts import check_readout, embedding_width, make_prompts, read
from sempa.embedding.readouts.plain import Prompt
from sempa.errors import SempaError
from sempa.io.progress import bar
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.model.threads import parallel_map

# Tokens of a row, so that memory stays flat however long the sentences are. On a processor longer rows are slower, as
# their activations leave the cache.
ROW_TOKENS, GPU_ROW_TOKENS = 1024, 8192
# Texts tokenized at once: a tokenizer's output takes kilobytes per text.
_TOKENIZED_AT_ONCE = 4096


def embed(
    base: BaseModel,
    sentences: Iterable[str],
    batch_size: int = 64,
    layer: int = -1,
    readout: str = "prompteol",
    progress: str = "",
) -> np.ndarray:
    """Embeddings of `sentences` by a loaded model with whatever adapter it holds: float32 `[n, D]`.

    `layer` and `readout` are those of `Embedder`; `progress` names a bar to show. Raises `SempaError` for a readout or
    layer the model cannot give, `batch_size` < 1, and a sentence that is empty, no string, or too long for the model.
    """
    check_readout(readout, base.model, layer)
    if batch_size is None or batch_size < 1:
        raise SempaError(f"batch_size: found {batch_size}, expected at least 1")
    return embed_prompts(base, sentence_prompts(base, readout, sentences), batch_size, layer, readout, progress)


@torch.inference_mode()
def embed_prompts(
    base: BaseModel, prompts: Sequence[Prompt], batch_size: int, layer: int, readout: str, progress: str = ""
) -> np.ndarray:
    """Embeddings of the prompts that `sentence_prompts` makes for this readout: float32 `[n, D]`."""
    model = base.model.eval()
    sizes = [len(prompt.tokens) + len(prompt.auxiliary) for prompt in prompts]
    batches = next_fit(sizes, ROW_TOKENS if model.device.type == "cpu" else GPU_ROW_TOKENS, batch_size)
    vectors = np.empty((len(prompts), embedding_width(readout, model, layer)), dtype=np.float32)

    passes = parallel_map(model, lambda batch: read(readout, model, [prompts[i] for i in batch], layer), batches)
    with bar(len(prompts), progress, "sentence") as shown:
        for batch, found in zip(batches, passes, strict=True):
            vectors[batch] = found.cpu().numpy()
            shown.update(len(batch))
    return vectors


def check_sentences(sentences: Iterable[str], on_empty: str = "error") -> list[str]:
    """The sentences as a list; raises `SempaError` for a non-string and, if `on_empty` is "error", an empty one."""
    # A mapping or a table would iterate as its column names, a set in any order.
    wrong = isinstance(sentences, str | bytes | Mapping | set | frozenset) or not isinstance(sentences, Iterable)
    if wrong or getattr(sentences, "ndim", 1) != 1:
        raise SempaError(f"sentences: found {type(sentences).__name__}, expected strings in a list")
    sentences = list(sentences)
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise SempaError(f"sentence {place}: found {type(sentence).__name__}, expected a string")
        if not sentence.strip() and on_empty == "error":
            raise SempaError(f"sentence {place}: is empty")
    return sentences


def sentence_prompts(base: BaseModel, readout: str, sentences: Iterable[str]) -> list[Prompt]:
    """Every sentence's prompt as token ids; raises `SempaError` as `embed` does for a sentence."""
    sentences = check_sentences(sentences)
    prompts: list[Prompt] = []
    for begin in range(0, len(sentences), _TOKENIZED_AT_ONCE):
        prompts += make_prompts(readout, base.tokenizer, sentences[begin : begin + _TOKENIZED_AT_ONCE])
    limit = context_length(base.model)
    for place, prompt in enumerate(prompts):
        check_length(prompt, limit, f"sentence {place} ({sentences[place][:30]!r:.30}…)")
    return prompts


def check_length(prompt: Prompt, limit: int, name: str) -> None:
    """Raise `SempaError` for the sentence of that name when its prompt has more tokens than `limit`."""
    longest = max(len(prompt.tokens), len(prompt.auxiliary))
    if longest > limit:
        found = f"{name}: has {longest:,} tokens in its prompt"
        raise SempaError(f"{found}, expected at most the {limit:,} that the model can read at once")
