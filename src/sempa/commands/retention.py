"""`sempa retention`: how far an adapter has moved the language model, on the user's own texts and prompts."""

import argparse

from sempa.commands.common import add_model_arguments, load_embedder
from sempa.errors import SempaError
from sempa.io.files import check_output, user_path

_FORMATS = """\
A text file holds passages with blank lines between them, or JSON lines: {"text": ...} or {"question": ..., "answer":
...}. Of a question and its answer the answer's tokens count.
"""


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "retention",
        help="measure how far an adapter has moved the language model",
        description="Perplexity, KL(base || aligned) and agreement per token of texts, and greedy answers to prompts, "
        "with the adapter off and on.",
        epilog=_FORMATS,
    )
    add_model_arguments(parser)
    parser.add_argument("texts", nargs="*", type=user_path, metavar="FILE", help="text files (default: built-in texts)")
    parser.add_argument("--prompts", type=user_path, metavar="FILE", help="prompts, one a line (default: built-in)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest greedy answer, 0 for none (default %(default)s)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first of each file's texts or prompts")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write figures and answers to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure with the adapter off and on, and print the tables."""
    from sempa.evaluation.drift import generate_side_by_side, measure_drift
    from sempa.evaluation.eval_texts import builtin_prompts, builtin_texts, read_prompts, read_texts
    from sempa.io.files import write_json
    from sempa.report.run_report import terminal_table
    from sempa.report.tables import percent, text_table

    limit, longest = arguments.limit, arguments.max_new_tokens
    if limit is not None and limit < 1:
        raise SempaError(f"limit: found {limit}, expected at least 1")
    if longest < 0:
        raise SempaError(f"max_new_tokens: found {longest}, expected 0 or more")
    if arguments.json:
        check_output(arguments.json)
    texts = {str(path): read_texts(path, limit) for path in arguments.texts} or builtin_texts()
    if arguments.prompts:
        prompts = read_prompts(arguments.prompts, limit)
    else:
        prompts = [*builtin_prompts(), *(text.question for text in builtin_texts()["conversations"])]
    base = load_embedder(arguments).base
    report: dict[str, object] = {"model": arguments.model, "adapter": str(arguments.adapter or "")}
    report["retention"] = measure_drift(base, texts)
    print(terminal_table(report))
    if longest:
        answers = generate_side_by_side(base, prompts, longest)
        unchanged = sum(answer["unchanged"] for answer in answers) / len(answers)
        identical = sum(answer["unchanged"] == 1 for answer in answers) / len(answers)
        report["greedy"] = {"unchanged": unchanged, "identical": identical, "answers": answers}
        columns = ["prompts", "longest", "unchanged before the first difference", "identical"]
        row = [f"{len(answers):,}", f"{longest:,}", percent(unchanged), percent(identical)]
        print("\n" + text_table("Greedy answers", columns, [row]))
    if arguments.json:
        write_json(arguments.json, report)
