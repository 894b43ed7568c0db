"""The command line as a stranger meets it: help, a sentence per error and exit code 2, whole runs on a tiny model."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import weights

from sempa import __version__, commands
from sempa import run as experiment
from sempa.__main__ import run as run_as_process
from sempa.cli import COMMANDS, main, make_parser
from sempa.embedding.embedder import Embedder
from sempa.io.files import write_folder
from sempa.model.adapter_files import read_adapter
from sempa.training.checkpoints import read_checkpoint

NAMES = [name for group in COMMANDS.values() for name in group]


@pytest.fixture
def config(tiny_folder, triplets_file, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {tiny_folder}\ndtype: float32\ndevice: cpu\ntriplets: {triplets_file}\nheld_out: 3\nbatch_size: 4\n"
        f"lora_rank: 2\neval_every: 2\ndev_pairs: 10\nretention: 0\n"
        f"output: {tmp_path / 'run'}\n"
    )
    return path


@pytest.fixture
def run(config, tmp_path, short_texts):
    assert main(["train", str(config)]) == 0
    return tmp_path / "run"


@pytest.fixture
def short_texts(monkeypatch):
    """The tiny tokenizer makes ten times as many tokens of the report's texts as a real one."""
    from sempa.evaluation import eval_texts

    for name in ("read_texts", "read_prompts"):
        read = getattr(eval_texts, name)
        monkeypatch.setattr(eval_texts, name, lambda path, limit=1, read=read: read(path, limit))


def fails(capsys, *arguments):
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("sempa: ")
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("command", NAMES)
def test_help_explains_every_argument(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 8
    (subparsers,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for action in subparsers.choices[command]._actions:
        assert action.help, action.dest


def test_help_lists_every_command_by_its_task_in_lines_of_80_columns(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    groups = re.findall(r"^([a-z ]+):\n((?:  \S.*\n)+)", shown, flags=re.MULTILINE)
    listed = {group: re.findall(r"^  (\S+)  ", lines, flags=re.MULTILINE) for group, lines in groups}
    assert {group: listed[group] for group in COMMANDS} == {group: list(own) for group, own in COMMANDS.items()}
    assert {"align", "embed", "evaluate", "serve and export"} == COMMANDS.keys()
    assert len(NAMES) <= 12
    assert max(map(len, shown.splitlines())) <= 80
    modules = {path.stem.replace("_", "-") for path in Path(commands.__path__[0]).glob("[!_]*.py")}
    assert modules == {*NAMES, "common"}


def test_a_command_imports_no_other_commands_module():
    code = "import sys\nfrom sempa.cli import make_parser\nmake_parser('train').parse_args(['train', 'x.yaml'])\n"
    code += "print(*(name for name in sys.modules if name.startswith('sempa.commands.')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["sempa.commands.train"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_help_comes_at_once_without_importing_what_computes(words):
    code = f"import sys\nfrom sempa.cli import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += "print(*{'torch', 'transformers', 'numpy', 'scipy', 'yaml', 'tqdm'} & sys.modules.keys(), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr.split() == []
    assert words != ["--version"] or done.stdout == f"sempa {__version__}\n"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sempa", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"sempa {__version__}\n"


def test_a_run_folder_holds_adapter_checkpoints_config_metrics_and_reports(run, tiny_folder):
    files = {"config.yaml", "environment.json", "metrics.jsonl", "report.json", "report.html"}
    assert {path.name for path in run.iterdir()} == files | {"adapter", "checkpoints", ".lock"}
    report = json.loads((run / "report.json").read_text())
    assert report["training"]["used"] == 13
    assert report["training"]["held_out"] == 3
    assert report["preference"]["triplets"] == 3
    assert [row["text"] for row in report["drift"]] == ["passages", "conversations"]
    assert report["sts"][0]["task"] == "built-in"
    assert report["geometry"][0]["task"] == "built-in"
    # In GiB: no machine has 10,000.
    assert 0.1 < report["peak_memory_gib"] < report["machine"]["memory_gib"] < 10_000
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tiny_folder)
    assert yaml.safe_load((run / "config.yaml").read_text())["batch_size"] == 4


def test_a_warning_is_one_line_and_those_for_developers_are_not_shown(monkeypatch, capsys):
    def warn(_):
        warnings.warn("half of the file is empty", stacklevel=2)
        warnings.warn("this argument is deprecated", FutureWarning, stacklevel=2)

    monkeypatch.setattr("sempa.commands.similarity.run", warn)
    assert main(["similarity", "A dog.", "A cat."]) == 0
    assert capsys.readouterr().err == "sempa: warning: half of the file is empty\n"


def test_a_finished_run_is_not_overwritten(run, config, capsys):
    capsys.readouterr()
    assert "holds a finished run" in fails(capsys, "train", config)
    assert main(["train", str(config), f"output={run}2", "epochs=0.5"]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.yaml", r"config.yaml: unknown key 'my'"),
        ("metrics.jsonl", "already holds a run"),
        ("report.html", "already holds a run"),
    ],
)
def test_another_programs_files_are_not_written_over(config, tmp_path, capsys, name, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("my: precious")
    assert re.search(message, fails(capsys, "train", config))
    assert (tmp_path / "run" / name).read_text() == "my: precious"
    # What an interrupted start has left is no obstacle.
    (tmp_path / "run" / "config.yaml").write_text("seed: 5")
    assert main(["train", str(config), "epochs=0.5"]) == 0


def test_what_a_run_measures_and_saves_is_the_best_adapter_not_the_last(config, triplets_file, tmp_path, monkeypatch):
    with triplets_file.open("a") as stream:
        stream.write(f"{'A dog. ' * 900},An animal.,A cat.\n")
    scores, measured = iter([9.0, 5.0]), {}
    monkeypatch.setattr(experiment, "evaluate_sts", lambda *_: [SimpleNamespace(score=next(scores))])
    monkeypatch.setattr(experiment, "fit_scale", lambda *_: (1.0, []))
    monkeypatch.setattr(experiment, "_measure", lambda config, base, *_: measured.update(weights(base)) or {})
    assert main(["train", str(config), "held_out=0"]) == 0
    run = tmp_path / "run"
    training = json.loads((run / "report.json").read_text())["training"]
    assert (training["best_step"], training["steps"]) == (2, 4)
    assert (training["triplets"], training["used"], training["skipped_too_long"]) == (17, 16, 1)
    best, last = (read_checkpoint(run / "checkpoints" / f"step-00000{step}.safetensors")[0] for step in (2, 4))
    _, saved = read_adapter(run / "adapter")
    assert any(not torch.equal(best[name], last[name]) for name in saved)
    assert all(torch.equal(best[name], saved[name]) and torch.equal(best[name], measured[name]) for name in saved)


def test_a_resumed_runs_total_holds_what_was_spent_before(config, tmp_path, monkeypatch):
    state = {"step": 4, "best_step": 2, "best_score": 9.0, "seconds": 5000.0}
    found = {"train": state, "read_adapter": ({}, {}), "set_lora": None, "read_metrics": [], "fit_scale": (1.0, [])}
    for name, value in {**found, "_measure": {}}.items():
        monkeypatch.setattr(experiment, name, lambda *_, value=value: value)
    assert main(["train", str(config)]) == 0
    seconds = json.loads((tmp_path / "run" / "report.json").read_text())["seconds"]
    assert seconds["training"] == 5000.0 <= seconds["total"] < 5500


def test_the_peak_of_memory_is_that_of_the_models_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (1 + device.index) * 2**30)
    assert experiment._peak_memory(torch.device("cuda", 1)) == 2.0
    assert 0.1 < experiment._peak_memory(torch.device("cpu")) < 1000


def test_embed_similarity_and_generate_use_the_adapter_and_find_its_base(run, tmp_path, capsys):
    sentences = ["A man runs.", "Two dogs sleep.", 'He said "hi"']
    source = tmp_path / "sentences.txt"
    source.write_text("\r\n".join(sentences), encoding="utf-8-sig")
    options = ["--adapter", str(run / "adapter"), "--dtype", "float32"]
    assert main(["embed", *options, str(source), str(tmp_path / "vectors.npy")]) == 0
    assert main(["embed", *options, str(source), str(tmp_path / "vectors.csv"), "--normalize"]) == 0
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    expected = Embedder(model, run / "adapter", dtype="float32").encode(sentences)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy", allow_pickle=False), expected, rtol=1e-5, atol=1e-6)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "vectors.csv", delimiter=","), unit, rtol=1e-5, atol=1e-6)
    capsys.readouterr()
    assert main(["similarity", *options, *sentences[:2]]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(float(unit[0] @ unit[1]), abs=1e-4)
    assert main(["similarity", *options, *sentences]) == 0
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()] == sentences[1:]
    assert main(["generate", *options, "--max-new-tokens", "3", "Hello?"]) == 0


def test_evaluate_scores_any_pairs_and_writes_json(run, tmp_path, capsys, short_texts):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "sentence1,sentence2,score\nA dog runs.,A dog is running.,5\nA cat sits.,Rain falls.,0\nHi.,Hello.,4\n"
    )
    out = tmp_path / "figures.json"
    options = ["--adapter", str(run / "adapter"), "--dtype", "float32", "--builtin-pairs", "10"]
    assert main(["evaluate", *options, "--sts", str(pairs), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert [row["pairs"] for row in figures["sts"]] == [10, 3]
    assert len(figures["drift"]) == 2
    assert "Spearman" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1", "command line: unknown key 'learning_rat'; the nearest known key is 'learning_rate'"),
        ("batch_size=x", "command line: batch_size is 'x', expected a whole number"),
        ("model=/nowhere", "model '/nowhere': cannot be opened (no such folder"),
        ("triplets=/nowhere.csv", "/nowhere.csv"),
        ("sts_dir=/nowhere", "/nowhere"),
        ("gsm8k=/nowhere", "/nowhere: no such file"),
        ("dtype=half", "dtype is 'half'"),
    ],
)
def test_bad_settings_end_with_one_sentence_and_code_2(config, capsys, change, message, short_texts):
    assert message in fails(capsys, "train", config, change)


def test_development_pairs_of_one_score_are_found_before_training(config, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    rows = "sentence1,sentence2,score\nA dog.,A cat.,3\nA man.,A boy.,3\n"
    pairs.write_text(rows)
    message = f"{pairs}: all 2 gold scores are 3, so the pairs have no order"
    assert message in fails(capsys, "train", config, f"sts_dir={pairs}")
    assert message in fails(capsys, "evaluate", "--sts", pairs)
    # Of ten pairs, the two that are drawn.
    pairs.write_text(rows + "A car.,A bus.,3\n" * 7 + "A car.,A bus.,1\n")
    message = "pairs: 2 pairs all have the score 3; raise dev_pairs"
    assert message in fails(capsys, "train", config, f"sts_dir={pairs}", "dev_pairs=2")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_numbers_out_of_range_end_with_one_sentence_before_a_model_is_loaded(tiny_folder, capsys):
    model = ["--model", "/nowhere"]
    assert "--builtin-pairs: found -5, expected a whole number" in fails(capsys, "evaluate", "--builtin-pairs=-5")
    assert "--max-new-tokens: found 0" in fails(capsys, "evaluate", *model, "--max-new-tokens", 0)
    assert "--seed: found -1, expected a whole number from 0 to" in fails(capsys, "table", "--sts", "x", "--seed=-1")
    assert f"--seed: found {2**64}, expected" in fails(capsys, "generate", "--seed", 2**64, "Hello.")
    assert "--seed: invalid number value: 'x'" in fails(capsys, "table", "--sts", "x", "--seed=x")


def test_other_mistakes_end_with_one_sentence_and_code_2(config, tmp_path, capsys):
    assert "give a CONFIG.yaml, or --resume RUN" in fails(capsys, "train")
    assert "holds no run to resume" in fails(capsys, "train", "--resume", tmp_path / "nothing")
    assert "give a CONFIG.yaml, or --resume RUN, which takes its settings from the run" in fails(
        capsys, "train", config, "--resume", tmp_path
    )
    assert "cannot be read" in fails(capsys, "train", tmp_path / "missing.yaml")
    assert "ends in .npy, .csv" in fails(capsys, "embed", "in.txt", "out.pkl")
    assert "missing.txt: no such file" in fails(capsys, "embed", "missing.txt", "out.npy")
    (tmp_path / "gap.txt").write_text("one\n\ntwo\n")
    assert "gap.txt:2: is empty" in fails(capsys, "embed", tmp_path / "gap.txt", "out.npy")
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt: the file is empty" in fails(capsys, "embed", tmp_path / "empty.txt", "out.npy")
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    assert "latin.txt:2: not UTF-8" in fails(capsys, "embed", tmp_path / "latin.txt", "out.npy")
    assert "adapter" in fails(capsys, "similarity", "--adapter", tmp_path / "none", "a", "b")


def test_responses_and_prompts_that_are_too_long_are_skipped_counted_and_told_apart(
    config, tmp_path, capsys, short_texts
):
    long = tmp_path / "long.csv"
    lines = ["sent0,sent1,hard_neg", *(f"A man runs {i}.,He runs {i}.,He sits {i}." for i in range(12))]
    lines += [f"A man runs.,{'very ' * 1200}long.,He sits.", f"{'Very ' * 1200}long.,He runs.,He sits."]
    long.write_text("\n".join(lines) + "\n")
    assert main(["train", str(config), f"triplets={long}", "held_out=0"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"skipped 2 triplets of more than 1,024 tokens, first on line 14 \(", out)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training"]["skipped_too_long"] == 2
    assert "skipped 2 triplets" in " ".join(report["notes"])
    assert report["training"]["used"] == 12


def test_ctrl_c_is_a_clean_stop_that_names_the_command_to_go_on(config, tmp_path, capsys, monkeypatch, short_texts):
    import signal

    real = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (os.kill(os.getpid(), signal.SIGINT), real(self))[1])
    folder = tmp_path / "a run"
    assert main(["train", str(config), f"output={folder}"]) == 130
    assert f"sempa train --resume '{folder}'" in capsys.readouterr().err
    monkeypatch.setattr(torch.optim.AdamW, "step", real)
    before = (folder / "config.yaml").read_bytes()
    assert f"sempa train --resume '{folder}'" in fails(capsys, "train", config, f"output={folder}", "batch_size=5")
    assert "config.yaml: would be overwritten; resume its run with --resume" in fails(
        capsys, "train", folder / "config.yaml", f"output={folder}"
    )
    assert (folder / "config.yaml").read_bytes() == before
    assert main(["train", "--resume", str(folder)]) == 0
    assert (folder / "report.json").exists()
    capsys.readouterr()
    # A report may hold more than its run measured.
    report = (folder / "report.json").read_bytes()
    for words in ([config, f"output={folder}"], ["--resume", folder]):
        assert f"{folder}: holds a finished run, see {folder}/report.html" in fails(capsys, "train", *words)
    assert (folder / "report.json").read_bytes() == report


def test_an_adapter_that_lies_in_the_output_is_not_written_over(config, run, tmp_path, capsys):
    shutil.copytree(run / "adapter", tmp_path / "mine" / "adapter")
    before = {path: path.read_bytes() for path in (tmp_path / "mine" / "adapter").iterdir()}
    assert "already holds a run" in fails(capsys, "train", config, f"output={tmp_path / 'mine'}")
    assert {path: path.read_bytes() for path in before} == before


def test_a_config_in_the_run_folder_is_not_written_over(config, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    own = config.rename(tmp_path / "mine" / "config.yaml")
    before = own.read_text()
    assert "config.yaml: would be overwritten" in fails(capsys, "train", own, f"output={tmp_path / 'mine'}")
    assert own.read_text() == before


def test_sigterm_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    import signal

    def stop(folder):
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr("sempa.commands.similarity.run", lambda _: write_folder(tmp_path / "out", stop))
    before = signal.getsignal(signal.SIGTERM)
    try:
        monkeypatch.setattr(sys, "argv", ["sempa", "similarity", "a", "b"])
        assert run_as_process() == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "sempa: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_one_sentence(config, tiny_folder, capsys):
    assert "device: 'cuda:99' cannot be used here" in fails(capsys, "train", config, "device=cuda:99")
    given = ("--model", tiny_folder, "--device", "cuda:99")
    assert "device: 'cuda:99' cannot be used here" in fails(capsys, "similarity", *given, "a", "b")


def test_a_scored_pair_that_is_too_long_is_found_before_training(config, tmp_path, capsys, monkeypatch):
    file = tmp_path / "pairs.csv"
    file.write_text(f"split,sentence1,sentence2,score\ndev,{'long ' * 3000},b,1\ndev,c,d,2\ndev,e,f,3\n")
    monkeypatch.setattr("sempa.run.train", lambda *_: pytest.fail("training began"))
    assert "sentence 0 ('long long long long long long…): has " in fails(capsys, "train", config, f"sts_dir={file}")


def test_ctrl_c_while_the_report_is_made_names_the_command_to_go_on(config, tmp_path, capsys, monkeypatch, short_texts):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # Before the first checkpoint there is nothing to go on with.
        patched.setattr(experiment, "train", stop)
        assert main(["train", str(config)]) == 130
        assert capsys.readouterr().err == "sempa: interrupted\n"
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "measure_sts", stop)
        assert main(["train", str(config)]) == 130
        assert f"sempa train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.json").exists()


def test_a_run_says_what_it_leaves_out_of_its_development_data(config, tmp_path, capsys, short_texts):
    folder = tmp_path / "sts"
    for name in ("STS12", "STSBenchmark"):
        (folder / name).mkdir(parents=True)
    (folder / "STS12" / "STS.input.news.txt").write_text("A dog runs.\tA dog is running.\nA cat sits.\tRain falls.\n")
    (folder / "STS12" / "STS.gs.news.txt").write_text("5\n1\n")
    rows = [("5", "A dog runs.", "A dog is running."), ("0", "A cat sits.", "Rain falls."), ("", "Hi.", "Hello.")]
    lines = ["\t".join(("main", "news", "2012", str(i), *row)) for i, row in enumerate(rows)]
    (folder / "STSBenchmark" / "sts-dev.csv").write_text("\n".join(lines) + "\n")
    assert main(["train", str(config), f"sts_dir={folder}"]) == 0
    expected = [
        "STS-B dev: 1 pair without a gold score left out",
        f"{folder}: only STS-B dev is used here, not STS12",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == expected
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    scored = "checkpoints are scored on 2 pairs of STS-B dev"
    assert report["notes"] == [*expected, "16 triplets", scored] == printed[:4]
    assert [row["task"] for row in report["sts"]] == ["built-in", "STS-B dev"]
    assert report["geometry"][0]["task"] == "STS-B dev"
    assert "without a gold score left out" in (tmp_path / "run" / "report.html").read_text()


def test_texts_without_drift_to_measure_are_refused(tiny_folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("A man sings.\n")
    for option in ("--texts", "--gsm8k"):
        options = ["--no-drift", option, tmp_path / "texts.txt"]
        assert "no-drift: --gsm8k and --texts name" in fails(capsys, "evaluate", "--model", tiny_folder, *options)
    options = ["--no-drift", "--builtin-pairs", "0", "--geometry"]
    assert "nothing is left to measure" in fails(capsys, "evaluate", "--model", tiny_folder, *options)


def test_a_prompt_that_does_not_fit_is_found_before_anything_is_measured(tiny_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.txt").write_text("Who sings?\n")
    monkeypatch.setattr("sempa.evaluation.measure.measure_sts", lambda *_: pytest.fail("it measures"))
    options = ["--builtin-pairs", "12", "--no-drift", "--prompts", tmp_path / "prompts.txt", "--max-new-tokens", "2048"]
    assert "prompt 0: found" in fails(capsys, "evaluate", "--model", tiny_folder, *options)
