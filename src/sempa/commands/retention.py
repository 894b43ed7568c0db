"""`sempa retention`: how much of the language model an adapter leaves, on texts, prompts and questions of one's own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sempa.commands.common import add_model_arguments, load_embedder
from sempa.errors import SempaError

if TYPE_CHECKING:
    from sempa.model.base import BaseModel

_FORMS = """\
A text file holds passages with blank lines between them, or JSON lines: {"text": …}, {"question": …, "answer": …}, or
{"messages": [{"role": …, "content": …}, …]}. Of a conversation the assistant's tokens count. A file of questions holds
JSON lines {"question": …, "choices": [ … ], "label": NUMBER OF THE RIGHT ONE, FROM 0}.
"""


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "retention",
        help="measure how much of the language model an adapter leaves",
        description="Perplexity, KL(base || aligned) and agreement per token of texts, greedy answers, and multiple "
        "choice by log-likelihood, with the adapter off and on.",
        epilog=_FORMS,
    )
    add_model_arguments(parser)
    parser.add_argument("texts", nargs="*", type=Path, metavar="FILE", help="text files (default: built-in texts)")
    parser.add_argument(
        "--choices", action="append", default=[], type=Path, metavar="FILE", help="a file of multiple-choice questions"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts, one a line (default: built-in ones)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest greedy answer, 0 for none (default %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first of each file's texts or questions")
    parser.add_argument(
        "--window", type=int, metavar="TOKENS", help="cut longer texts (default: 2048, at most the model's context)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="TOKENS", help="from one window to the next (default: half the window)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and the answers to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure with the adapter off and on, and print the tables."""
    from sempa.evaluation.measure import measure_generation
    from sempa.evaluation.multiple_choice import read_questions
    from sempa.io.files import write_json
    from sempa.report.html import number, share, text_table
    from sempa.report.run_report import terminal_table

    if arguments.limit is not None and arguments.limit < 1:
        raise SempaError(f"limit: found {arguments.limit}, expected at least 1")
    if arguments.max_new_tokens < 0:
        raise SempaError(f"max_new_tokens: found {arguments.max_new_tokens}, expected 0 or more")
    prompts = _prompts(arguments)
    questions = {path: read_questions(path, arguments.limit) for path in arguments.choices}
    base = load_embedder(arguments).base
    report: dict[str, object] = {"model": arguments.model, "adapter": str(arguments.adapter or "")}
    report["retention"] = _texts(base, arguments) if arguments.texts else measure_generation(base, [], 0)[0]
    print(terminal_table(report))
    if prompts:
        answers = _answers(base, prompts, arguments.max_new_tokens)
        kept = sum(answer["kept"] for answer in answers) / len(answers)
        same = sum(answer["kept"] == 1 for answer in answers) / len(answers)
        report["greedy"] = {"prompts": len(answers), "kept": kept, "same": same, "answers": answers}
        columns = ["prompts", "longest", "kept to the first difference", "same to the end"]
        row = [f"{len(answers):,}", f"{arguments.max_new_tokens:,}", share(kept), share(same)]
        print("\n" + text_table("Greedy answers", columns, [row]))
    if questions:
        report["choices"] = [_choices(base, path, asked) for path, asked in questions.items()]
        columns = ["file", "questions", "acc base", "aligned", "acc_norm base", "aligned", "same choice"]
        names = ("base_accuracy", "aligned_accuracy", "base_normalised", "aligned_normalised")
        rows = [
            [row["file"], f"{row['questions']:,}", *(number(100 * row[n], 1) for n in names), share(row["same"])]
            for row in report["choices"]
        ]
        print("\n" + text_table("Multiple choice, accuracy × 100", columns, rows))
    if arguments.json:
        write_json(arguments.json, report)


def _prompts(arguments: argparse.Namespace) -> list[str]:
    from sempa.evaluation.unseen_text import CONVERSATIONS, GENERATION_PROMPTS
    from sempa.io.rows import numbered_lines

    if not arguments.max_new_tokens:
        return []
    if arguments.prompts is None:
        return [*GENERATION_PROMPTS, *(question for question, _ in CONVERSATIONS)]
    lines = [line.strip() for _, line in numbered_lines(arguments.prompts) if line.strip()]
    if not lines:
        raise SempaError(f"{arguments.prompts}: holds blank lines only, expected one prompt a line")
    return lines[: arguments.limit]


def _texts(base: "BaseModel", arguments: argparse.Namespace) -> list[dict]:
    from sempa.evaluation.eval_texts import encode_file
    from sempa.evaluation.measure import measure_texts

    limits = arguments.limit, arguments.window, arguments.stride
    return measure_texts(base, {str(path): encode_file(base, path, *limits) for path in arguments.texts})


def _answers(base: "BaseModel", prompts: list[str], max_new_tokens: int) -> list[dict]:
    from sempa.evaluation.drift import generate_side_by_side
    from sempa.io.progress import bar

    with bar(2 * len(prompts), "greedy answers", "answer") as progress:
        return generate_side_by_side(base, prompts, max_new_tokens, progress)


def _choices(base: "BaseModel", path: Path, questions: list) -> dict:
    import dataclasses

    from sempa.evaluation.multiple_choice import measure_choices
    from sempa.io.progress import bar

    with bar(2 * len(questions), str(path), "question") as progress:
        return {"file": str(path), **dataclasses.asdict(measure_choices(base, questions, progress))}
