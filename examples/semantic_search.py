"""Search your own text files by meaning: the files' sentences are embedded once, and kept in a cache by their content.

python examples/semantic_search.py notes/ --adapter runs/smollm2_captions/adapter --query "who makes music?"
"""

import argparse
import contextlib
import hashlib
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sempa import Embedder, SempaError
from sempa.commands.common import at_least, base_name
from sempa.embedding.corpus import describe
from sempa.io.files import cache_folder, fingerprint, read_tensors, write_tensors

SUFFIXES = (".txt", ".md", ".rst")
# A sentence ends behind its full stop, question mark or exclamation mark, and the quotes or brackets that close there;
# Chinese and Japanese have no blank behind theirs.
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*\s*")
# Characters. A text without full stops, or blanks, is cut, so that one vector does not stand for a whole page.
LONGEST = 480


@dataclass(frozen=True)
class Passage:
    """A sentence of a file, and the line (from 1) on which its paragraph begins."""

    text: str
    file: Path
    line: int


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, in order, blanks made single; long words and sentences are cut."""
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(paragraph)), len(paragraph)]
    sentences = (" ".join(paragraph[begin:end].split()) for begin, end in itertools.pairwise(ends))
    return [piece for sentence in sentences for piece in textwrap.wrap(sentence, LONGEST, break_on_hyphens=False)]


def read_passages(paths: Iterable[Path]) -> list[Passage]:
    """The sentences of the files, and of all text files below the folders; blank lines part paragraphs.

    Raises `SempaError` for a file that cannot be read or is not UTF-8 text, and when no text is found at all.
    """
    passages = []
    for path in paths:
        found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if path.is_dir() else [path]
        for file in found:
            passages += _passages(file)
    if not passages:
        raise SempaError(f"found no text, expected files, or folders with files of {', '.join(SUFFIXES)}")
    return passages


def _passages(file: Path) -> list[Passage]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SempaError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    passages: list[Passage] = []
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            paragraph.append(line)
        else:
            begin = number - len(paragraph)
            passages += [Passage(sentence, file, begin) for sentence in split_sentences(" ".join(paragraph))]
            paragraph = []
    return passages


def encode_cached(embedder: Embedder, texts: Sequence[str], folder: Path) -> np.ndarray:
    """Unit vectors of `texts`, float32 `[n, D]`; only those that are not yet in the cache `folder` are computed.

    A vector's key is its text and all that determines it (weights, adapter, dtype, readout), so moving a file costs
    nothing, and two adapters never share vectors.
    """
    path = folder / f"{fingerprint(sorted(describe(embedder)['settings'].items()))}.safetensors"
    known: dict[bytes, np.ndarray] = {}
    # A cache that is missing or damaged is one that has to be filled.
    with contextlib.suppress(SempaError, KeyError):
        kept = read_tensors(path)
        known = {key.tobytes(): vector for key, vector in zip(kept["keys"].numpy(), kept["embeddings"].numpy())}
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    missing = {key: text for key, text in zip(keys, texts) if key not in known}
    if missing:
        made = embedder.encode(list(missing.values()), show_progress=True, normalize=True)
        known |= zip(missing, made)
        rows = torch.tensor([list(key) for key in known], dtype=torch.uint8)
        write_tensors(path, {"keys": rows, "embeddings": torch.from_numpy(np.stack(list(known.values())))})
    return np.stack([known[key] for key in keys])


def search(embedder: Embedder, vectors: np.ndarray, query: str, top: int) -> list[tuple[float, int]]:
    """Cosine and place of the `top` nearest of the unit vectors `[n, D]`, best first."""
    cosines = vectors @ embedder.encode(query, normalize=True)
    return [(float(cosines[place]), int(place)) for place in np.argsort(-cosines, kind="stable")[:top]]


def show(passages: Sequence[Passage], found: Sequence[tuple[float, int]]) -> None:
    """Print what `search` found among `passages`, a line each."""
    for cosine, place in found:
        passage = passages[place]
        print(f"  {cosine:.3f}  {passage.file}:{passage.line}  {passage.text}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that both examples take."""
    parser.add_argument("paths", nargs="+", type=Path, help=f"text files, or folders with {', '.join(SUFFIXES)} files")
    parser.add_argument("--model", default="", help="the base model (default: the adapter's, or smollm2-135m)")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter, such as RUN/adapter")
    parser.add_argument("--dtype", default="auto", help="bfloat16, float32 or auto (default %(default)s)")
    parser.add_argument("--top", type=at_least(1), default=5, help="sentences to find (default %(default)s)")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "search", help="folder that keeps the vectors")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the nearest sentences of each query; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Search text files by meaning.")
    add_arguments(parser)
    parser.add_argument("--query", action="append", help="what to look for (else one query per line of standard input)")
    arguments = parser.parse_args(argv)
    try:
        passages = read_passages(arguments.paths)
        model = base_name(arguments.model, arguments.adapter)
        embedder = Embedder(model, arguments.adapter, dtype=arguments.dtype)
        vectors = encode_cached(embedder, [passage.text for passage in passages], arguments.cache)
        for query in map(str.strip, arguments.query or sys.stdin):
            if query:
                print(query)
                show(passages, search(embedder, vectors, query, arguments.top))
    except SempaError as error:
        print(f"semantic_search: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
