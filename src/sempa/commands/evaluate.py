"""Measure a model with its adapter off and on: Spearman's rho x 100 on similarity benchmarks, the geometry of their
embeddings, perplexity and KL(base || aligned) on unseen text, accuracy on HellaSwag, and greedy answers.
"""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, at_least, load_embedder, model_files
from sempa.errors import SempaError
from sempa.io.files import check_output, read_json, user_path, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = """A text file holds passages with blank lines between them, or JSON lines: {"text": ...}
        or {"question": ..., "answer": ...}, where only the answer and its end of turn are scored. HellaSwag is
        answered without examples, by log-probability per character (lm-evaluation-harness's acc_norm)."""
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("--sts", type=user_path, metavar="PATH", help="SentEval STS folder, or a file of scored pairs")
    text = "splits of STS-B, SICK and files with a split column (default %(default)s)"
    parser.add_argument("--splits", default="dev,trial,test", help=text)
    parser.add_argument("--builtin-pairs", type=at_least(0), default=600, help="built-in pairs (default %(default)s)")
    parser.add_argument("--geometry", action="store_true", help="also alignment, uniformity, isotropy and hubness")
    parser.add_argument("--texts", nargs="+", type=user_path, default=[], metavar="FILE", help="texts for perplexity")
    parser.add_argument("--gsm8k", type=user_path, metavar="FILE", help="GSM8K file (JSON lines) for perplexity")
    parser.add_argument("--hellaswag", type=user_path, metavar="FILE", help="HellaSwag file (JSON lines) for accuracy")
    parser.add_argument("--hellaswag-tasks", type=at_least(0), default=2000, help="tasks; 0: all (default %(default)s)")
    parser.add_argument("--report", action="store_true", help="also put HellaSwag into the report of the adapter's run")
    parser.add_argument("--no-drift", action="store_true", help="skip perplexity and KL")
    parser.add_argument("--prompts", type=user_path, metavar="FILE", help="prompts to answer greedily, one per line")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=64, help="longest answer (default %(default)s)")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N texts and prompts of a file")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> None:
    """Measure with the adapter off and on, and print the tables."""
    from sempa.data.sts import read_sts
    from sempa.evaluation.drift import generate_side_by_side, measure_drift
    from sempa.evaluation.eval_texts import read_prompts, read_texts, report_texts
    from sempa.evaluation.hellaswag import encode_tasks, measure_hellaswag, read_hellaswag
    from sempa.evaluation.measure import builtin_task, measure_geometry, measure_sts
    from sempa.io.origin import origin
    from sempa.model.adapter_files import adapter_folder
    from sempa.model.sampling import encode_prompts
    from sempa.report.run_report import terminal_table, write_report
    from sempa.training.metrics import read_metrics

    if arguments.no_drift and (arguments.gsm8k or arguments.texts):
        raise SempaError("no-drift: --gsm8k and --texts name texts to measure drift on; leave one or the other out")
    if arguments.json:
        named = (arguments.sts, arguments.gsm8k, arguments.hellaswag, arguments.prompts, *arguments.texts)
        check_output(arguments.json, *filter(None, named), *model_files(arguments))
    if arguments.report:
        run = arguments.adapter and adapter_folder(arguments.adapter).parent
        if not (run and arguments.hellaswag and (run / "report.json").is_file()):
            raise SempaError("report: give --hellaswag FILE and --adapter RUN, the folder of a finished run")
        place, history = run / "report.json", read_metrics(run / "metrics.jsonl")
        try:
            write_report(run, filed := read_json(place), history)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SempaError(f"report: {place} is not one of this version's runs ({error!r})") from error
    tasks = [builtin_task(arguments.builtin_pairs)] if arguments.builtin_pairs else []
    if arguments.sts:
        tasks += read_sts(arguments.sts, arguments.splits.split(","))
    texts = report_texts(arguments.gsm8k) | {str(path): read_texts(path, arguments.limit) for path in arguments.texts}
    prompts = read_prompts(arguments.prompts, arguments.limit) if arguments.prompts else []
    questions = read_hellaswag(arguments.hellaswag, arguments.hellaswag_tasks) if arguments.hellaswag else []
    if arguments.no_drift and not (tasks or questions or prompts):
        raise SempaError("evaluate: nothing is left to measure; give --sts, --hellaswag, --prompts or --builtin-pairs")
    embedder = load_embedder(arguments, merged=False)
    # What does not fit is found before hours of work.
    encode_prompts(embedder.base, prompts, arguments.max_new_tokens)
    encode_tasks(embedder.base, questions)
    report = {**origin(embedder.base.model), "model": arguments.model, "adapter": str(arguments.adapter or "")}
    notes = [note for task in tasks for note in task.notes]
    report |= {"readout": embedder.readout, "layer": embedder.layer, "notes": notes}
    if tasks:
        report["sts"], _, sides = measure_sts(embedder.base, tasks, embedder.readout, embedder.layer)
        if arguments.geometry:
            report["geometry"] = [measure_geometry(task, sides) for task in tasks]
    if not arguments.no_drift:
        report["drift"] = measure_drift(embedder.base, texts)
    if questions:
        report["hellaswag"] = measure_hellaswag(embedder.base, questions)
    if prompts:
        report["generations"] = generate_side_by_side(embedder.base, prompts, arguments.max_new_tokens)
    print(terminal_table(report))
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.report:
        write_report(run, filed | {"hellaswag": report["hellaswag"]}, history)
        print(f"report: {run / 'report.html'}")
