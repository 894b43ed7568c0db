"""A corpus of any size as vectors: in shards, in constant memory, and resumable after the last whole shard."""

import collections
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from sempa.data.sentences import read_sentences
from sempa.embedding.embed import check_length
from sempa.embedding.embedder import Embedder
from sempa.embedding.files import check_vectors_name, read_vectors, write_vectors
from sempa.embedding.readouts import embedding_width, make_prompts
from sempa.errors import SempaError
from sempa.io.files import check_output, read_json, remove_leftovers, write_json
from sempa.io.lock import folder_lock
from sempa.io.progress import bar
from sempa.io.rows import STANDARD_INPUT
from sempa.model.base import weights_fingerprint
from sempa.model.forward import context_length
from sempa.model.lora import adapter_fingerprint

MANIFEST_FILE = "manifest.json"
SHARD_ROWS = 16_384
# Sentences embedded together: enough to batch by length, few enough that their tokens take little memory.
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
    encode: Callable[[Iterable[list[str]]], Iterable[np.ndarray]] | None = None,
) -> dict:
    """Embed a file of any size into shards of `shard_rows` rows in `folder`, in constant memory; returns the manifest.

    The file is read twice: to find what is wrong with it before the work begins, then to embed. A shard is float32
    `[rows, D]` in one of the formats of `sempa.embedding.files`; `read_shards` reads them. The manifest,
    `manifest.json`, lists the shards with their row ranges, and the settings. After an interruption the same call goes
    on with the shards that are missing, and ends with the same bytes.

    Vectors may come from elsewhere: `encode` gets chunks of sentences, none spanning two shards, and gives their
    vectors `[n, D]` in the same order, in pieces of any length, none spanning two shards either.

    Raises `SempaError` for bad input, a sentence that is too long for the model, input that can be read only once (a
    pipe), a full disk, and a folder that was begun with other settings or input.
    """
    if source == STANDARD_INPUT or (source.exists() and not source.is_file() and not source.is_dir()):
        raise SempaError(f"{source}: is read twice for shards; expected a file or a folder, not a pipe")
    check_vectors_name(Path(f"shard.{shard_format}"))
    check_output(folder, folder=True)

    def sentences(digest: "hashlib._Hash") -> Iterator[str]:
        for sentence in check_lengths(embedder, source, read_sentences(source, field, skip_empty=skip_empty)):
            digest.update(sentence.encode() + b"\0")
            yield sentence

    digest, again = hashlib.sha256(), hashlib.sha256()
    rows = sum(1 for _ in sentences(digest))
    shards = [
        {"file": f"shard-{index:06d}.{shard_format}", "first_row": first, "rows": min(shard_rows, rows - first)}
        for index, first in enumerate(range(0, rows, shard_rows))
    ]
    manifest = describe(embedder) | {"shards": shards}
    manifest["settings"] |= {"batch_size": batch_size, "normalize": normalize, "shard_rows": shard_rows}
    manifest["settings"] |= {"shard_format": shard_format, "input": {"rows": rows, "sha256": digest.hexdigest()}}
    changed = SempaError(f"{source}: changed while it was being embedded; embed it again, into another folder")
    with folder_lock(folder):
        _begin(folder, manifest)
        remove_leftovers(folder)
        # A shard is written whole or not at all: one that is there is finished.
        missing = [shard for shard in shards if not (folder / shard["file"]).exists()]
        second_reading = sentences(again)
        chunks = _chunks(second_reading, missing)
        own = (embedder.encode(chunk, batch_size, normalize=normalize) for chunk in chunks)
        pieces = own if encode is None else iter(encode(chunks))
        with bar(sum(shard["rows"] for shard in missing), "embedding", "sentence") as progress:
            for shard in missing:
                found: list[np.ndarray] = []
                while sum(map(len, found)) < shard["rows"]:
                    if (piece := next(pieces, None)) is None:
                        raise changed
                    found.append(piece)
                    progress.update(len(piece))
                if sum(map(len, found)) > shard["rows"]:
                    raise ValueError("encode: found a piece with vectors of two shards")
                if shard is missing[-1]:
                    collections.deque(second_reading, maxlen=0)
                    if again.digest() != digest.digest():
                        raise changed
                write_vectors(folder / shard["file"], np.concatenate(found))
    return manifest


def check_lengths(embedder: Embedder, source: Path, numbered: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The sentences of `numbered` lines of `source`; raises `SempaError` with the line of one that is too long."""
    tokenizer, limit = embedder.base.tokenizer, context_length(embedder.base.model)
    for line, sentence in numbered:
        # A token has a byte at least, and no prompt holds a sentence more than twice.
        if 2 * len(sentence.encode()) + _PROMPT_TOKENS > limit:
            (prompt,) = make_prompts(embedder.readout, tokenizer, [sentence])
            check_length(prompt, limit, f"{source}:{line}")
        yield sentence


def read_shards(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The shards of `embed_corpus` in their order: the number of the first row (from 0), and float32 `[rows, D]`.

    Raises `SempaError` when a shard is missing, because the corpus is unfinished, or is damaged.
    """
    for shard in _read_manifest(folder)["shards"]:
        yield shard["first_row"], read_vectors(folder / shard["file"])


def describe(embedder: Embedder) -> dict:
    """A manifest's entries on a model: its source, the vectors' dimensions, and the settings that determine them.

    The settings identify the model by its content, so its folder may move between two calls.
    """
    model = embedder.base.model
    settings = {
        "adapter": embedder.merged_adapter or adapter_fingerprint(model),
        "weights": weights_fingerprint(embedder.base),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "readout": embedder.readout,
        "layer": embedder.layer,
    }
    width = embedding_width(embedder.readout, model, embedder.layer)
    return {"model": embedder.base.source, "dimensions": width, "settings": settings}


def _begin(folder: Path, manifest: dict) -> None:
    """Write the manifest into a new folder; in one that is there, check that it was begun with the same settings."""
    if not (folder / MANIFEST_FILE).exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise SempaError(f"output {folder}: exists without a {MANIFEST_FILE}, expected a new or an empty folder")
        write_json(folder / MANIFEST_FILE, manifest)
    begun = _read_manifest(folder)["settings"]
    for key, value in manifest["settings"].items():
        if (before := begun.get(key)) != value:
            other = "other sentences" if key == "input" else f"{key} = {before!r}, now {value!r}"
            raise SempaError(f"output {folder}: was begun with {other}; give another folder")


def _read_manifest(folder: Path) -> dict:
    try:
        manifest = read_json(folder / MANIFEST_FILE)
        return {"settings": dict(manifest["settings"]), "shards": list(manifest["shards"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SempaError(f"{folder / MANIFEST_FILE}: cannot be read: {error}") from error


def _chunks(sentences: Iterator[str], shards: list[dict]) -> Iterator[list[str]]:
    """The sentences of these shards, in chunks that are embedded in one piece."""
    row = 0
    for shard in shards:
        end = shard["first_row"] + shard["rows"]
        own = itertools.islice(sentences, shard["first_row"] - row, end - row)
        while chunk := list(itertools.islice(own, CHUNK_ROWS)):
            yield chunk
        row = end
