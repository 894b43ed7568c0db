"""A corpus of any size as vectors: in shards, in constant memory, and resumable behind the last whole shard."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sempa.data.sentences import read_sentences
from sempa.embedding.embed import check_length
from sempa.embedding.embedder import Embedder
from sempa.embedding.files import check_vectors_name, read_vectors, write_vectors
from sempa.embedding.readouts import embedding_width, make_prompts
from sempa.errors import SempaError
from sempa.io.files import check_output, read_json, remove_leftovers, write_json
from sempa.io.progress import bar
from sempa.io.rows import STANDARD_INPUT
from sempa.model.base import weights_fingerprint
from sempa.model.forward import context_length
from sempa.model.lora import adapter_fingerprint

MANIFEST_FILE = "manifest.json"
SHARD_ROWS = 16_384
# Embedded in one piece: sentences of like length fall into one batch, and what they take as tokens stays small.
CHUNK_ROWS = 1024
# More than any readout's prompt has beside the sentence.
_PROMPT_TOKENS = 256


def embed_corpus(
    embedder: Embedder,
    source: Path,
    folder: Path,
    *,
    shard_rows: int = SHARD_ROWS,
    shard_format: str = "safetensors",
    batch_size: int = 64,
    normalize: bool = False,
    field: str | None = None,
    skip_empty: bool = False,
) -> dict:
    """Embed a file of any size into shards of `shard_rows` rows in `folder`, in constant memory; returns the manifest.

    The file is read twice: to find what is wrong with it before the work begins, then to embed. A shard is float32
    `[rows, D]`, the tensor `embeddings` of a safetensors file or an `.npy` file; `read_shards` reads them. The
    manifest, `manifest.json`, lists the shards with their row ranges, and the settings. After an interruption the same
    call goes on with the shards that are missing, and ends with the same bytes.

    Raises `SempaError` for bad input, a sentence that is too long for the model, input that can be read only once (a
    pipe), a full disk, and a folder that was begun with other settings or input.
    """
    settings = {**embedder_settings(embedder), "batch_size": batch_size, "normalize": normalize}

    def encode(chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        return (embedder.encode(chunk, batch_size, normalize=normalize) for chunk in chunks)

    def sentences() -> Iterator[str]:
        return check_lengths(embedder, source, read_sentences(source, field, skip_empty=skip_empty))

    return write_corpus(encode, sentences, describe(embedder), settings, source, folder, shard_rows, shard_format)


def check_lengths(embedder: Embedder, source: Path, numbered: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The sentences of `numbered` lines of `source`; raises `SempaError` with the line of one that is too long."""
    tokenizer, limit = embedder.base.tokenizer, context_length(embedder.base.model)
    for line, sentence in numbered:
        # A token has a byte at least, and no prompt holds a sentence more than twice.
        if 2 * len(sentence.encode()) + _PROMPT_TOKENS > limit:
            (prompt,) = make_prompts(embedder.readout, tokenizer, [sentence])
            check_length(prompt, limit, f"{source}:{line}")
        yield sentence


def write_corpus(
    encode: Callable[[Iterable[list[str]]], Iterable[np.ndarray]],
    sentences: Callable[[], Iterator[str]],
    about: dict,
    settings: dict,
    source: Path,
    folder: Path,
    shard_rows: int,
    shard_format: str,
) -> dict:
    """What `embed_corpus` does, with vectors from `encode` and what the manifest says `about` the model.

    `encode` gets chunks of sentences, none across two shards, and gives their vectors `[n, D]` in the same order; a
    chunk's vectors may come in several pieces. `sentences` reads `source` anew at each call. Raises `SempaError` as
    `embed_corpus` does.
    """
    if shard_rows < 1:
        raise SempaError(f"shard_rows: found {shard_rows}, expected at least 1")
    if source == STANDARD_INPUT or (source.exists() and not source.is_file() and not source.is_dir()):
        raise SempaError(f"{source}: is read twice for shards, expected a file or a folder and no pipe")
    check_vectors_name(Path(f"shard.{shard_format}"))
    check_output(folder, folder=True)
    rows, digest = 0, hashlib.sha256()
    for sentence in sentences():
        rows += 1
        digest.update(sentence.encode() + b"\0")
    identity = {"rows": rows, "sha256": digest.hexdigest()}
    settings = {**settings, "shard_rows": shard_rows, "shard_format": shard_format, "input": identity}
    shards = [
        {"file": f"shard-{index:06d}.{shard_format}", "first_row": first, "rows": min(shard_rows, rows - first)}
        for index, first in enumerate(range(0, rows, shard_rows))
    ]
    manifest = {**about, "settings": settings, "shards": shards}
    _begin(folder, manifest)
    # A shard is written whole or not at all: one that is there is finished.
    missing = [not (folder / shard["file"]).exists() for shard in shards]
    vectors = iter(encode(_chunks(sentences(), shards, missing)))
    with bar(rows, "embedding", "sentence") as progress:
        for shard, is_missing in zip(shards, missing, strict=True):
            if is_missing:
                write_vectors(folder / shard["file"], _take(vectors, shard["rows"], source, progress))
            else:
                progress.update(shard["rows"])
    return manifest


def read_shards(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The shards of `embed_corpus` in their order: the number of the first row (from 0), and float32 `[rows, D]`.

    Raises `SempaError` when the corpus is unfinished, or a shard is missing or damaged.
    """
    shards = _read_manifest(folder)["shards"]
    missing = [shard["file"] for shard in shards if not (folder / shard["file"]).exists()]
    if missing:
        raise SempaError(f"{folder}: lacks {len(missing)} of {len(shards)} shards, first {missing[0]}; embed it again")
    for shard in shards:
        yield shard["first_row"], read_vectors(folder / shard["file"])


def embedder_settings(embedder: Embedder) -> dict:
    """All that decides about a vector, by content: a model may move to another folder in between."""
    model = embedder.base.model
    return {
        "adapter": adapter_fingerprint(model),
        "weights": weights_fingerprint(embedder.base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "readout": embedder.readout,
        "layer": embedder.layer,
    }


def describe(embedder: Embedder) -> dict:
    """What a manifest says of a model beside the settings: its source, and the vectors' dimensions."""
    width = embedding_width(embedder.readout, embedder.base.model, embedder.layer)
    return {"model": embedder.base.source, "dimensions": width}


def _begin(folder: Path, manifest: dict) -> None:
    """Write the manifest into a new folder; in one that is there, check that it was begun with the same settings."""
    if not (folder / MANIFEST_FILE).exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise SempaError(f"output {folder}: exists without a {MANIFEST_FILE}, expected a new or an empty folder")
        write_json(folder / MANIFEST_FILE, manifest)
    begun = _read_manifest(folder)["settings"]
    for key, value in manifest["settings"].items():
        if (before := begun.get(key)) != value:
            other = "other sentences" if key == "input" else f"{key} = {before}, now {value}"
            raise SempaError(f"output {folder}: was begun with {other}; give another folder")
    remove_leftovers(folder)


def _read_manifest(folder: Path) -> dict:
    try:
        return read_json(folder / MANIFEST_FILE)
    except (OSError, ValueError) as error:
        raise SempaError(f"{folder / MANIFEST_FILE}: cannot be read: {error}") from error


def _chunks(sentences: Iterator[str], shards: list[dict], missing: list[bool]) -> Iterator[list[str]]:
    """The sentences of the missing shards in chunks that are embedded in one piece."""
    for shard, is_missing in zip(shards, missing, strict=True):
        mine = itertools.islice(sentences, shard["rows"])
        while chunk := list(itertools.islice(mine, CHUNK_ROWS)):
            if is_missing:
                yield chunk


def _take(vectors: Iterator[np.ndarray], rows: int, source: Path, progress: tqdm) -> np.ndarray:
    """The next `rows` vectors, which may come in several pieces."""
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < rows:
        if (piece := next(vectors, None)) is None:
            raise SempaError(f"{source}: has changed while it was being embedded")
        pieces.append(piece)
        progress.update(len(piece))
    return np.concatenate(pieces)
