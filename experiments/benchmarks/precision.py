"""What a vector of fewer numbers or fewer bits costs: Spearman's rho x 100 on STS-B dev against bytes.

python experiments/benchmarks/precision.py --sts STS [--adapter RUN]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sempa import Embedder
from sempa.cli import Parser
from sempa.data.sts import StsTask, distinct_sentences, read_sts
from sempa.embedding.compress import PRECISIONS, quantise
from sempa.evaluation.sts import pair_cosines, score_sts
from sempa.io.streams import exit_code
from sempa.report.render import text_table


def score(task: StsTask, sentences: Sequence[str], vectors: np.ndarray) -> float:
    """Spearman's rho x 100 of the pairs' cosines with their gold scores; uint8 is bits, each +1 or -1."""
    numbers = 2.0 * np.unpackbits(vectors, axis=1) - 1 if vectors.dtype == np.uint8 else vectors.astype(np.float32)
    return score_sts(task, pair_cosines(dict(zip(sentences, numbers, strict=True)), task.pairs)).score


def main() -> None:
    """Embed once, and print a row for each number of dimensions and each precision."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="base model (default %(default)s)")
    parser.add_argument("--adapter", type=Path, help="run folder, or LoRA adapter folder")
    parser.add_argument("--sts", type=Path, required=True, help="SentEval STS folder")
    parser.add_argument("--dims", default="256,128,64", help="numbers to keep (default %(default)s)")
    given = parser.parse_args()
    (task,) = read_sts(given.sts, ["dev"], sets=["STS-B"])
    sentences = distinct_sentences(task.pairs)
    embedder = Embedder(given.model, given.adapter)
    whole = embedder.encode(sentences, show_progress=True)
    width = whole.shape[1]
    rows = []
    for dim in (width, *map(int, given.dims.split(","))):
        cut, turned = whole[:, :dim], embedder.shorten(whole, dim)
        for precision in PRECISIONS:
            made = [quantise(vectors, precision) for vectors in (cut, turned)]
            scores = (f"{score(task, sentences, vectors):.2f}" for vectors in made)
            rows.append([str(dim), precision, str(made[0][0].nbytes), *scores])
    columns = ["numbers", "precision", "bytes", "first numbers", "rotated first (dim=)"]
    print(text_table(f"{task.name}, {len(task.pairs):,} pairs, {given.adapter or 'base'}", columns, rows))


if __name__ == "__main__":
    sys.exit(exit_code("precision.py", main))
