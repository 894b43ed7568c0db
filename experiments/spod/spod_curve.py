"""How much of the embedding k key tokens hold: similarity against k, and against dense vectors of the same bytes.

    python experiments/spod/spod_curve.py --sts STSBenchmark/sts-dev.csv [--adapter runs/NAME/adapter]

Every sentence is embedded once. Its k-sparse codes are compared with the dense vector and, at equal stored bytes (8 per
token in CSR, 4 per float32 entry), with the vector's first entries and its first principal components. The components
are fitted to the same sentences, which flatters them. They are free of the sentences' mean, so codes of the centred
embedding are measured, too. Writes the figures as JSON and the plot as SVG.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sparse_codes import sparse_cosines, stored_bytes, to_csr

from sempa import SempaError
from sempa.cli import Parser
from sempa.data.sts import StsTask, distinct_sentences, read_sts
from sempa.embedding.embed import embed
from sempa.evaluation.sts import evaluate_sts, score_sts
from sempa.io.files import write_atomic, write_json
from sempa.io.origin import origin
from sempa.io.streams import exit_code
from sempa.kernels import sparse_code, token_directions
from sempa.model.adapter_files import adapter_folder, load_adapter
from sempa.model.base import load_base
from sempa.report.plots import ALIGNED, BASE, INK, make_figure, svg

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter", type=Path, help="run or adapter; without one the base model is measured")
    parser.add_argument("--sts", required=True, help="file of scored pairs, such as sts-dev.csv")
    parser.add_argument("--out", type=Path, default=HERE / "spod", help="where .json and .svg go")
    given = parser.parse_args()
    base = load_base(given.model, "float32")
    if given.adapter is not None:
        load_adapter(base.model, adapter_folder(given.adapter))
    task, *others = read_sts(given.sts)
    if others:
        raise SempaError(f"{given.sts}: holds {1 + len(others)} tasks, expected one, such as sts-dev.csv")
    sentences = distinct_sentences(task.pairs)
    vectors = embed(base, sentences, progress="embedding")
    result = {
        "task": task.name,
        "model": given.model,
        "adapter": str(given.adapter or ""),
        **origin(base.model),
        **measure(task, sentences, vectors, base.model.get_output_embeddings().weight),
    }
    write_json(given.out.with_suffix(".json"), result)
    write_atomic(given.out.with_suffix(".svg"), plot(result))
    print(table(result))


def measure(task: StsTask, sentences: Sequence[str], vectors: np.ndarray, head: torch.Tensor) -> dict:
    """Spearman's ρ × 100 of dense vectors `[n, D]`, and of all codes and short vectors for each k of SIZES."""
    row = {sentence: i for i, sentence in enumerate(sentences)}
    first, second = ([row[text] for text in texts] for texts in zip(*((p.first, p.second) for p in task.pairs)))

    def dense(rows: np.ndarray) -> float:
        return evaluate_sts(lambda texts: rows[[row[text] for text in texts]], [task])[0].score

    def sparse(codes: csr_matrix) -> float:
        return score_sts(task, sparse_cosines(codes[first], codes[second])).score

    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes.T
    points = []
    for (k, codes), (_, free) in zip(sparse_codes(vectors, head), sparse_codes(centred, head)):
        size = stored_bytes(codes) / len(vectors)
        entries = min(vectors.shape[1], int(size // vectors.itemsize))
        point = {
            "k": k,
            "bytes": size,
            "sparse": sparse(codes),
            "sparse without mean": sparse(free),
            "entries": entries,
            "first entries": dense(vectors[:, :entries]),
            "principal components": dense(components[:, :entries]),
        }
        points.append(point)
    whole = {"bytes": vectors.itemsize * vectors.shape[1], "score": dense(vectors), "without mean": dense(centred)}
    return {"sentences": len(sentences), "dense": whole, "points": points}


@torch.inference_mode()
def sparse_codes(vectors: np.ndarray, head: torch.Tensor) -> Iterator[tuple[int, csr_matrix]]:
    """The codes of vectors `[n, D]` for each k of SIZES: a code is the largest values of any longer one."""
    values, indices, _ = sparse_code(torch.from_numpy(vectors).to(head.device), token_directions(head), max(SIZES))
    values, order = values.sort(dim=1, descending=True)
    for k in SIZES:
        yield k, to_csr(values[:, :k], indices.gather(1, order)[:, :k], len(head))


def table(result: dict) -> str:
    """The figures as Markdown, a row for each k."""
    names = ("k", "bytes", "sparse", "sparse without mean", "entries", "first entries", "principal components")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for point in result["points"]:
        cells = (f"{point[name]:.0f}" if name in ("k", "bytes", "entries") else f"{point[name]:.2f}" for name in names)
        lines.append(f"| {' | '.join(cells)} |")
    whole = result["dense"]
    lines += ["", f"dense, {whole['bytes']} bytes: {whole['score']:.2f}, without mean {whole['without mean']:.2f}"]
    return "\n".join(lines)


def plot(result: dict) -> str:
    """Similarity against k, and against bytes a sentence, as an SVG."""
    figure, axes = make_figure(2, (8.4, 3.2), sharey=True)
    points, whole = result["points"], result["dense"]
    codes = (("sparse", ALIGNED, "-"), ("sparse without mean", ALIGNED, "--"))
    short = (("principal components", BASE, "--"), ("first entries", BASE, "-"))
    for axis, x, lines in ((axes[0], "k", codes), (axes[1], "bytes", (*codes, *short))):
        for name, colour, style in lines:
            # A code may take more bytes than the whole vector, which then has nothing to be shortened to.
            shown = [p for p in points if (name, colour, style) in codes or p["bytes"] <= whole["bytes"]]
            xs, ys = ([p[key] for p in shown] for key in (x, name))
            axis.plot(xs, ys, style, color=colour, marker="o", markersize=3, linewidth=1.4, label=name)
        axis.set_xscale("log", base=2)
    axes[0].axhline(whole["score"], color=INK, linewidth=0.8)
    axes[0].axhline(whole["without mean"], color=INK, linewidth=0.8, linestyle="--")
    axes[1].plot([whole["bytes"]], [whole["score"]], "s", color=INK, markersize=5, label="dense")
    axes[0].set_xlabel("tokens a sentence, k (lines: dense, with and without mean)")
    axes[1].set_xlabel("stored bytes a sentence")
    axes[0].set_ylabel(f"{result['task']}, ρ × 100")
    axes[1].legend(frameon=False, labelcolor=INK, fontsize=8)
    return svg(figure, "spod", "Similarity scores of sparse codes against their size", alone=True)


if __name__ == "__main__":
    sys.exit(exit_code("spod_curve.py", main))
