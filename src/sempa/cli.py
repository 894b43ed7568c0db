"""The command line: train, embed, similarity, evaluate, generate."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sempa.errors import SempaError

_EPILOGUE = """\
Bad input ends with one sentence and exit code 2; Ctrl-C while training saves a checkpoint and exits with code 130.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for an interrupt."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except SempaError as error:
        print(f"sempa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"sempa: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sempa",
        description="SemPA: sentence-level preference alignment makes a chat LLM a sentence encoder that still talks.",
        epilog=_EPILOGUE,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="align a model on triplets and report what changed",
        description="Train a LoRA adapter by sentence-level DPO, evaluate it, and write adapter, metrics and report.",
        epilog="Example: sempa train experiments/smollm2_nli.yaml triplets=nli_for_simcse.csv output=runs/nli",
    )
    train.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="flat YAML file of settings")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with the interrupted run in this folder")
    train.set_defaults(run=_train)

    embed = commands.add_parser(
        "embed",
        help="embed sentences, one a line, into a .npy or .csv file",
        description="Embed the lines of a text file with PromptEOL: one float32 row per line, in the file's order.",
    )
    _model_arguments(embed)
    embed.add_argument("input", help="UTF-8 text file with one sentence per line, or - for standard input")
    embed.add_argument("output", type=Path, help="file to write: .npy (NumPy array [n, D]) or .csv")
    embed.add_argument("--batch-size", type=int, default=32, help="sentences at a time (default %(default)s)")
    embed.add_argument("--normalize", action="store_true", help="scale every embedding to length 1")
    embed.set_defaults(run=_embed)

    similarity = commands.add_parser(
        "similarity",
        help="print the cosine of two sentences, or of the first to each other one",
        description="Print the cosine similarity (-1 to 1) of the first sentence to each of the others.",
    )
    _model_arguments(similarity)
    similarity.add_argument("first", help="a sentence, in quotes")
    similarity.add_argument("others", nargs="+", metavar="other", help="one or more sentences to compare it with")
    similarity.set_defaults(run=_similarity)

    evaluate = commands.add_parser(
        "evaluate",
        help="score similarity benchmarks and retention of a base model and its adapter",
        description="Spearman's rho x 100 on similarity benchmarks, and perplexity and KL on unseen text, with the "
        "adapter off and on.",
    )
    _model_arguments(evaluate)
    evaluate.add_argument(
        "--sts", metavar="PATH", help="SentEval STS12-16, STS-B or SICK folder, or a scored-pairs file"
    )
    evaluate.add_argument(
        "--splits", default="dev,trial,test", help="splits of STS-B and SICK to score (default %(default)s)"
    )
    evaluate.add_argument(
        "--builtin-pairs", type=int, default=600, help="pairs of the built-in set (default %(default)s)"
    )
    evaluate.add_argument("--gsm8k", default="", metavar="FILE", help="GSM8K file (JSON lines) for perplexity")
    evaluate.add_argument("--no-retention", action="store_true", help="score similarity only")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    evaluate.set_defaults(run=_evaluate)

    generate = commands.add_parser(
        "generate",
        help="let the model answer a prompt",
        description="Answer a prompt through the chat template, greedily, with the adapter when one is given.",
    )
    _model_arguments(generate)
    generate.add_argument("prompt", help="what the user says, in quotes")
    generate.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default %(default)s)")
    generate.set_defaults(run=_generate)
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="",
        help="smollm2-135m, a model folder, a .gguf file or a hub id (default: the adapter's base, else smollm2-135m)",
    )
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="LoRA adapter, such as RUN/adapter")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 or float32 (default %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, … (default: CUDA when there is one)")


# Every command imports what it needs when it runs: `sempa --help` should not wait for torch.


def _train(arguments: argparse.Namespace) -> None:
    from sempa.config import load_config
    from sempa.experiment import resume_run, start_run
    from sempa.training import Interrupted

    command = shlex.join(["sempa", "train", *_given(arguments)])
    try:
        if arguments.resume is not None:
            if arguments.config is not None:
                raise SempaError("train: --resume RUN takes its settings from the run; give no CONFIG.yaml beside it")
            resume_run(arguments.resume, command)
            return
        if arguments.config is None:
            raise SempaError("train: give a CONFIG.yaml, or --resume RUN")
        config = load_config(arguments.config, arguments.overrides)
        start_run(config, command)
    except Interrupted:
        run = arguments.resume or config.output
        raise KeyboardInterrupt(f"stopped and saved; go on with: sempa train --resume {run}") from None


def _given(arguments: argparse.Namespace) -> list[str]:
    if arguments.resume is not None:
        return ["--resume", str(arguments.resume)]
    return [str(part) for part in (arguments.config, *arguments.overrides) if part is not None]


def _embed(arguments: argparse.Namespace) -> None:
    from sempa.files import replace_atomically, write_atomic

    if arguments.output.suffix not in (".npy", ".csv"):
        raise SempaError(f"output {arguments.output}: expected a name that ends in .npy or .csv")
    sentences = _read_lines(arguments.input)
    vectors = _embedder(arguments).encode(sentences, arguments.batch_size, True, arguments.normalize)
    if arguments.output.suffix == ".csv":
        rows = (",".join(f"{value:.9g}" for value in vector) for vector in vectors)
        write_atomic(arguments.output, "".join(f"{row}\n" for row in rows))
    else:

        def save(path: Path) -> None:
            with path.open("wb") as stream:
                np.save(stream, vectors, allow_pickle=False)

        replace_atomically(arguments.output, save)
    print(f"{len(vectors):,} embeddings of {vectors.shape[1]} dimensions: {arguments.output}")


def _read_lines(name: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SempaError(f"input {name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SempaError(f"input {name}: line {line} is not UTF-8 text") from error
    lines = text.replace("\r\n", "\n").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise SempaError(f"input {name}: is empty, expected one sentence per line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise SempaError(f"input {name}: line {number} is empty, expected one sentence per line")
    return lines


def _similarity(arguments: argparse.Namespace) -> None:
    vectors = _embedder(arguments).encode([arguments.first, *arguments.others], normalize=True).astype(np.float64)
    for other, vector in zip(arguments.others, vectors[1:], strict=True):
        cosine = float(vectors[0] @ vector)
        print(f"{cosine:.4f}" if len(arguments.others) == 1 else f"{cosine:.4f}  {other}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from sempa.evaluation import builtin_task, gsm8k_sample, measure_generation, measure_sts
    from sempa.files import write_json
    from sempa.report import terminal_table
    from sempa.sts import read_sts

    tasks = [builtin_task(arguments.builtin_pairs, 2)] if arguments.builtin_pairs else []
    if arguments.sts:
        tasks += read_sts(arguments.sts, arguments.splits.split(","))
    problems = gsm8k_sample(arguments.gsm8k)
    base = _embedder(arguments).base
    report: dict[str, object] = {"model": arguments.model, "adapter": str(arguments.adapter or "")}
    if tasks:
        report["sts"], _ = measure_sts(base, tasks)
    if not arguments.no_retention:
        report["retention"], _ = measure_generation(base, problems, 0)
    print(terminal_table(report))
    if arguments.json:
        write_json(arguments.json, report)


def _generate(arguments: argparse.Namespace) -> None:
    from sempa.retention import generate

    print(generate(_embedder(arguments).base, arguments.prompt, arguments.max_new_tokens))


def _embedder(arguments: argparse.Namespace) -> "object":
    from sempa.embedder import Embedder
    from sempa.lora import read_adapter
    from sempa.models import DEFAULT_MODEL

    model = arguments.model
    if not model and arguments.adapter:
        model = read_adapter(arguments.adapter)[0].get("base_model_name_or_path", "")
    arguments.model = model or DEFAULT_MODEL
    return Embedder(arguments.model, arguments.adapter, dtype=arguments.dtype, device=arguments.device)


if __name__ == "__main__":
    sys.exit(main())
