"""A model with its adapter and readout: sentences in, vectors of any width and precision out."""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sempa.embedding.compress import check_compression, cosines, middle_directions, quantise, unit
from sempa.embedding.embed import check_sentences, embed
from sempa.embedding.readouts import check_readout, embedding_width
from sempa.errors import SempaError
from sempa.io.files import user_path
from sempa.model.adapter_files import adapter_folder, adapter_readout, load_adapter
from sempa.model.base import load_base
from sempa.model.lora import adapter_fingerprint, merge_adapter


class Embedder:
    """Encode sentences with a readout: by default PromptEOL, the state that is about to say the sentence in one word.

    Threads may share one, and others may generate with the same model meanwhile.

    Args:
        model: what `sempa.model.base.load_base` takes: `smollm2-135m`, a folder, a `.gguf` file or a hub id.
        adapter: folder of a LoRA adapter, from sempa or PEFT, or a run folder; None embeds with the base model.
        readout: one of `sempa.embedding.readouts.READOUTS`; by default the one that the adapter or the merged model was
            trained with, else `prompteol`.
        layer: index into transformers' `hidden_states`: 0 is the embedding output, the model's depth its last layer
            after the final norm, −2 the one before. −1, the default, is the readout's own published layer: the last
            for all but `contrastive-prompting` and `token-prepending`, which read at 27/32 of the depth.
            `attention-sum` reads all layers and takes no other value.
        dtype: `bfloat16`, `float32` or `auto`, the faster of the two on the device.
        device: a torch device; by default CUDA when there is one, else the CPU.
        merged: add the adapter to the weights, which is up to a quarter faster; False keeps it beside them, so that
            `sempa.model.lora.adapter_disabled` gives the base model back.

    Raises:
        SempaError: a model or adapter that cannot be loaded, an unknown readout or one that the model's architecture
            cannot give, a layer the model does not have.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        readout: str | None = None,
        layer: int = -1,
        dtype: str = "auto",
        device: str | None = None,
        merged: bool = True,
    ) -> None:
        folder = None if adapter is None else adapter_folder(user_path(adapter))
        self.base = load_base(str(model), dtype, device)
        if readout is None:
            readout = adapter_readout(folder or self.base.source)
        if folder is not None:
            load_adapter(self.base.model, folder)
        # The digest of the adapter that is part of the weights now; "" where there is none.
        self.merged_adapter = adapter_fingerprint(self.base.model) if merged else ""
        if merged:
            merge_adapter(self.base.model, self.base.model.dtype)
        check_readout(readout, self.base.model, layer)
        self.readout, self.layer = readout, layer

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int = 64,
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
            on_empty: what an empty sentence is: an `error`, or `zero`, the zero vector (not `binary`).

        Raises:
            SempaError: as `embed`, for an invalid `dim`, `precision` or `on_empty`, and for an empty text as `binary`.
        """
        if on_empty not in ("error", "zero"):
            raise SempaError(f"on_empty: found {on_empty!r}, expected error or zero")
        check_compression(dim, precision, embedding_width(self.readout, self.base.model, self.layer))
        single = isinstance(sentences, str)
        texts = check_sentences([sentences] if single else sentences, on_empty)
        empty = [not text.strip() for text in texts]
        if any(empty) and precision == "binary":
            raise SempaError("on_empty: a binary vector cannot be zero; leave empty sentences out, or take int8")
        # Embedded as a full stop, an empty text keeps its place, which errors name.
        texts = ["." if blank else text for text, blank in zip(texts, empty, strict=True)]
        vectors = embed(self.base, texts, batch_size, self.layer, self.readout, "embedding" if show_progress else "")
        vectors[empty] = 0
        if dim is not None:
            vectors = self.shorten(vectors, dim)
        vectors = quantise(unit(vectors) if normalize else vectors, precision)
        return vectors[0] if single else vectors

    encode_query = encode_document = encode

    def shorten(self, vectors: np.ndarray, dim: int) -> np.ndarray:
        """The first `dim` numbers of `[n, D]` or `[D]` after an orthogonal map, the same for all vectors of this model.

        The map's first directions say most about a sentence (`sempa.embedding.compress.middle_directions`). The first
        numbers of a vector of 256 are the vector of 128. Raises `SempaError` for a `dim` that is not from 1 to D.
        """
        check_compression(dim, "float32", vectors.shape[-1])
        return vectors @ self._directions[:, :dim]

    @functools.cached_property
    def _directions(self) -> np.ndarray:
        return middle_directions(self.base.model.get_output_embeddings().weight)

    similarity = staticmethod(cosines)
    """The cosine of each of n vectors with each of m, of any precision: float32 `[n, m]`."""
