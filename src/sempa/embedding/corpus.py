"""A corpus of any size as vectors: in shards that a kill cannot spoil, in constant memory."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sempa.data.sentences import read_sentences
from sempa.embedding.embedder import Embedder
from sempa.embedding.files import check_vectors_name, read_vectors, write_vectors
from sempa.embedding.readouts import embedding_width, make_prompts
from sempa.errors import SempaError
from sempa.io.files import check_output, fingerprint, read_json, remove_leftovers, sha256, write_json
from sempa.io.progress import bar
from sempa.io.rows import STANDARD_INPUT
from sempa.model.base import weights_fingerprint
from sempa.model.forward import context_length
from sempa.model.lora import adapter_fingerprint

MANIFEST_FILE = "manifest.json"
FORMATS = ("safetensors", "npy", "parquet")
SHARD_ROWS = 16_384
# Embedded in one piece: sentences of like length fall into one batch, and what they take as tokens stays small.
CHUNK_ROWS, CHUNK_CHARACTERS = 1024, 1_000_000
# More than any readout's prompt has beside the sentence.
_PROMPT_TOKENS = 256


def embed_corpus(
    embedder: Embedder,
    source: Path,
    folder: Path,
    *,
    shard_rows: int = SHARD_ROWS,
    shard_format: str = "safetensors",
    batch_size: int = 32,
    normalize: bool = False,
    field: str | None = None,
    skip_empty: bool = False,
) -> dict:
    """Embed a file of any size into shards of `shard_rows` rows in `folder`, in constant memory; returns the manifest.

    The file is read twice: to find what is wrong with it before the work begins, then to embed. A shard is float32
    `[rows, D]`, the tensor `embeddings` of a safetensors file or an `.npy` file; `read_shards` reads them. The
    manifest, `manifest.json`, lists the finished shards with their row ranges and SHA-256, and the settings. After an
    interruption the same call continues behind the last whole shard, and ends with the same bytes.

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
            if (tokens := max(len(prompt.tokens), len(prompt.auxiliary))) > limit:
                raise SempaError(
                    f"{source}:{line}: has {tokens:,} tokens in its prompt, expected at most the {limit:,} that the "
                    "model can read at once"
                )
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
    if shard_format not in FORMATS:
        raise SempaError(f"shard_format: found {shard_format!r}, expected one of {', '.join(FORMATS)}")
    if source == STANDARD_INPUT or (source.exists() and not source.is_file() and not source.is_dir()):
        raise SempaError(f"{source}: is read twice for shards, expected a file or a folder and no pipe")
    check_vectors_name(Path(_shard_name(0, shard_format)))
    check_output(folder, folder=True)
    digest = hashlib.sha256()
    rows = sum(1 for _ in _hashed(sentences(), digest))
    identity = {"rows": rows, "sha256": digest.hexdigest()}
    settings = {**settings, "shard_rows": shard_rows, "shard_format": shard_format, "input": identity}
    shards = _begin(folder, about, settings)
    changed = SempaError(f"{source}: has changed while it was being embedded; remove {folder} and begin anew")
    digest = hashlib.sha256()
    again = _hashed(sentences(), digest)
    vectors = iter(encode(_unfinished(again, rows, shard_rows, frozenset(shards))))
    with bar(rows, "embedding", "sentence") as progress:
        for index, first in enumerate(range(0, rows, shard_rows)):
            count = min(shard_rows, rows - first)
            if index in shards:
                progress.update(count)
                continue
            shard = _gather(vectors, count, progress)
            if len(shard) < count:
                raise changed
            path = folder / _shard_name(index, shard_format)
            write_vectors(path, shard)
            shards[index] = {"file": path.name, "first_row": first, "rows": count, "sha256": sha256(path)}
            _write_manifest(folder, about, settings, shards)
    for _ in vectors:
        raise SempaError(f"{source}: found more vectors than its {rows:,} sentences")
    try:
        more = next(again, None) is not None
    except SempaError:
        # A row behind the last that was counted, and a bad one at that.
        more = True
    if more or digest.hexdigest() != identity["sha256"]:
        raise changed
    return _read_manifest(folder)


def read_shards(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The shards of `embed_corpus` in their order: the number of the first row (from 0), and float32 `[rows, D]`.

    Raises `SempaError` when the corpus is unfinished, or a shard is missing or damaged.
    """
    manifest = _read_manifest(folder)
    wanted = manifest["settings"]["input"]["rows"]
    if (found := sum(shard["rows"] for shard in manifest["shards"])) != wanted:
        raise SempaError(f"{folder}: holds {found:,} of {wanted:,} rows, the embedding was interrupted")
    for index, shard in enumerate(manifest["shards"]):
        # By number: a path in the manifest is for people to read, and never followed.
        path = folder / _shard_name(index, manifest["settings"]["shard_format"])
        if not _is_whole(path, shard):
            raise SempaError(f"{path}: is missing or damaged, it does not match its checksum in {MANIFEST_FILE}")
        yield shard["first_row"], read_vectors(path)


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


def _begin(folder: Path, about: dict, settings: dict) -> dict[int, dict]:
    """The shards that an earlier call finished, by number; those that are missing or damaged are left out."""
    if not (folder / MANIFEST_FILE).exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise SempaError(f"output {folder}: exists without a {MANIFEST_FILE}, expected a new or an empty folder")
        # Before the first shard, so that a kill behind that one finds the folder its own.
        _write_manifest(folder, about, settings, {})
    manifest = _read_manifest(folder)
    for key, value in settings.items():
        if (before := manifest["settings"].get(key)) != value:
            other = "other sentences" if key == "input" else f"{key} = {before}, now {value}"
            raise SempaError(f"output {folder}: was begun with {other}; give another folder")
    remove_leftovers(folder)
    shards = {shard["first_row"] // settings["shard_rows"]: shard for shard in manifest["shards"]}
    return {i: s for i, s in shards.items() if _is_whole(folder / _shard_name(i, settings["shard_format"]), s)}


def _write_manifest(folder: Path, about: dict, settings: dict, shards: dict[int, dict]) -> None:
    manifest = {
        **about,
        "settings": settings,
        "fingerprint": _fingerprint(settings),
        "shards": [shards[index] for index in sorted(shards)],
    }
    write_json(folder / MANIFEST_FILE, manifest)


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST_FILE
    try:
        manifest = read_json(path)
        if manifest["fingerprint"] != _fingerprint(manifest["settings"]):
            raise ValueError("its settings do not match their fingerprint")
        if manifest["settings"]["shard_format"] not in FORMATS:
            raise ValueError(f"shard_format is not one of {', '.join(FORMATS)}")
        for shard in manifest["shards"]:
            if not (type(shard["rows"]) is type(shard["first_row"]) is int and isinstance(shard["sha256"], str)):
                raise ValueError("a shard's rows, first_row or sha256 is of a wrong type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SempaError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return manifest


def _gather(parts: Iterator[np.ndarray], rows: int, progress: tqdm) -> np.ndarray:
    """The next `rows` vectors, or fewer where there are no more."""
    vectors = np.empty((rows, 0), dtype=np.float32)
    done = 0
    while done < rows and (part := next(parts, None)) is not None:
        if not done:
            vectors = np.empty((rows, part.shape[1]), dtype=np.float32)
        vectors[done : done + len(part)] = part
        done += len(part)
        progress.update(len(part))
    return vectors[:done]


def _unfinished(sentences: Iterator[str], rows: int, shard_rows: int, finished: frozenset[int]) -> Iterator[list[str]]:
    """The sentences of all shards but the `finished` in chunks that are embedded in one piece."""
    for index, first in enumerate(range(0, rows, shard_rows)):
        mine = itertools.islice(sentences, min(shard_rows, rows - first))
        if index in finished:
            for _ in mine:
                pass
        else:
            yield from _chunks(mine)


def _chunks(sentences: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for sentence in sentences:
        chunk.append(sentence)
        characters += len(sentence)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _is_whole(path: Path, shard: dict) -> bool:
    return path.is_file() and sha256(path) == shard["sha256"]


def _shard_name(index: int, shard_format: str) -> str:
    return f"shard-{index:06d}.{shard_format}"


def _hashed(sentences: Iterable[str], digest: "hashlib._Hash") -> Iterator[str]:
    for sentence in sentences:
        data = sentence.encode()
        digest.update(len(data).to_bytes(4, "little") + data)
        yield sentence


def _fingerprint(settings: dict) -> str:
    return fingerprint(json.dumps(settings, sort_keys=True))
