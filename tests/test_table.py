"""The main table: every row is what its readout scores, and finished rows survive."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_llama
from miniature_sts import sentence, write_seven_sets
from safetensors.torch import load_file, save_file

from sempa import SempaError
from sempa.batching import prompts
from sempa.cli import main
from sempa.data.sts import SETS, ScoredPair, StsTask, read_sts
from sempa.embedding.embed import embed
from sempa.embedding.embedder import Embedder
from sempa.evaluation import table
from sempa.evaluation.measure import measure_sts
from sempa.evaluation.statistics import bootstrap, compare
from sempa.evaluation.sts import evaluate_sts
from sempa.evaluation.table import BASELINE, Method, measure_rows, parse_methods, row_keys, summarise
from sempa.model.adapter_files import load_adapter, save_adapter
from sempa.model.base import load_base
from sempa.model.lora import adapter_disabled, add_lora
from sempa.report.run_report import tables


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sts")
    write_seven_sets(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(benchmark):
    return read_sts(benchmark, ("dev", "trial"), sets=SETS)


@pytest.fixture
def base(tiny_folder):
    return load_base(str(tiny_folder), "float32", "cpu")


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, tiny_folder):
    """Two adapters that turn the tiny model's embeddings."""
    folders = []
    for seed, rank in ((1, 2), (2, 3)):
        model = make_llama(initializer_range=0.2).requires_grad_(False)
        add_lora(model, rank, 8.0, 0.0, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.normal_(0, 0.2, generator=generator)
        folders.append(tmp_path_factory.mktemp(f"adapter{seed}"))
        save_adapter(model, folders[-1], str(tiny_folder))
    return [str(folder) for folder in folders]


def counted(monkeypatch, stop_after=None):
    """Count the sentences that are embedded; with `stop_after`, so many and no more."""
    seen = []

    def embed_and_count(base, sentences, *arguments, **options):
        if stop_after is not None and len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.extend(sentences)
        return embed(base, sentences, *arguments, **options)

    monkeypatch.setattr("sempa.evaluation.table.embed", embed_and_count)
    return seen


# The rows


def test_methods_are_named_by_readout_layer_and_adapter():
    assert parse_methods("mean, echo@-2,prompteol@1", "run/adapter") == [
        Method("mean", -1, "run/adapter"),
        Method("echo", -2, "run/adapter"),
        Method("prompteol", 1, "run/adapter"),
    ]
    labels = [method.label for method in (*parse_methods("mean,echo@-2"), Method("prompteol", 3, "run/adapter"))]
    assert labels == ["mean", "echo@-2", "prompteol@3 + run/adapter"]
    assert {"mean", "weighted-mean", "last", "echo", "prompteol"} < {method.readout for method in parse_methods("all")}
    for wrong, message in (
        ("means", "found 'means', expected some of mean"),
        ("mean@x", "layer 'x', expected a whole"),
    ):
        with pytest.raises(SempaError, match=message):
            parse_methods(wrong)


def test_a_row_is_what_the_readout_scores_and_each_distinct_sentence_is_embedded_once(
    base, tasks, adapters, tiny_folder, tmp_path, monkeypatch
):
    seen = counted(monkeypatch)
    methods = [BASELINE, Method("mean", 1), *(Method("prompteol", adapter=adapter) for adapter in adapters)]
    rows = measure_rows(base, methods, tasks, tmp_path)
    distinct = {text for task in tasks for pair in task.pairs for text in (pair.first, pair.second)}
    assert len(seen) == len(methods) * len(distinct)
    assert all(set(seen[i * len(distinct) : (i + 1) * len(distinct)]) == distinct for i in range(len(methods)))
    figures = summarise(rows, resamples=2)["rows"]
    for method, figure in zip(methods, figures):
        embedder = Embedder(str(tiny_folder), method.adapter or None, method.readout, method.layer, "float32", "cpu")
        for task in tasks:
            first, second = (
                embedder.encode([getattr(pair, side) for pair in task.pairs], normalize=True).astype(np.float64)
                for side in ("first", "second")
            )
            gold = [pair.score for pair in task.pairs]
            found = figure["tasks"][task.name]
            cosines = (first * second).sum(1)
            assert found["spearman"] == pytest.approx(100 * scipy.stats.spearmanr(cosines, gold).statistic, abs=1.5)
            assert found["pearson"] == pytest.approx(100 * scipy.stats.pearsonr(cosines, gold).statistic, abs=0.01)
        for name in ("spearman", "pearson"):
            *scores, average = (part[name] for part in (*figure["tasks"].values(), figure["average"]))
            assert average == pytest.approx(sum(scores) / 7)
    averages = [figure["average"]["pearson"] for figure in figures]
    assert len({round(average, 3) for average in averages}) == len(methods)


def test_the_base_is_bare_again_after_rows_with_adapters(base, tasks, adapters, tmp_path, monkeypatch):
    before = embed(base, ["A man runs."])
    measure_rows(base, [Method("prompteol", adapter=adapter) for adapter in adapters], tasks[:1], tmp_path)
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]
    np.testing.assert_array_equal(embed(base, ["A man runs."]), before)
    counted(monkeypatch, stop_after=0)
    with pytest.raises(KeyboardInterrupt):
        measure_rows(base, [Method("prompteol", adapter=adapters[0])], tasks[:1], tmp_path / "stopped")
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]


# Finished rows are stored


def test_finished_rows_survive_an_interrupt_and_the_second_call_goes_on(base, tasks, tmp_path, monkeypatch):
    methods = parse_methods("prompteol,mean,last,echo")
    distinct = len({text for task in tasks for pair in task.pairs for text in (pair.first, pair.second)})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, stop_after=2 * distinct)
        measure_rows(base, methods, tasks, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    seen = counted(monkeypatch)
    resumed = measure_rows(base, methods, tasks, tmp_path)
    assert len(seen) == 2 * distinct
    again = measure_rows(base, methods, tasks, tmp_path)
    assert len(seen) == 2 * distinct
    whole = measure_rows(base, methods, tasks, tmp_path / "whole")
    for method in methods:
        for x, y, z in zip(resumed[method], again[method], whole[method]):
            np.testing.assert_array_equal(x.cosines, y.cosines)
            np.testing.assert_array_equal(x.cosines, z.cosines)


def test_a_row_is_measured_again_when_anything_behind_it_changed_or_its_file_is_damaged(
    base, tasks, adapters, tmp_path, monkeypatch
):
    tasks = tasks[:2]
    measure_rows(base, [BASELINE, Method("prompteol", adapter=adapters[0])], tasks, tmp_path)
    stored = {path: path.read_text() for path in tmp_path.iterdir()}
    seen = counted(monkeypatch)

    def again(methods, tasks=tasks):
        seen.clear()
        measure_rows(base, methods, tasks, tmp_path)
        return len(seen)

    whole = again([Method("prompteol", 1)])
    assert again([BASELINE]) == 0
    assert again([Method("prompteol", adapter=adapters[1])]) == whole
    copy = shutil.copytree(adapters[0], tmp_path / "adapter")
    assert again([Method("prompteol", adapter=str(copy))]) == 0
    weights = load_file(copy / "adapter_model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, copy / "adapter_model.safetensors")
    assert again([Method("prompteol", adapter=str(copy))]) == whole
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 4.0}))
    assert again([Method("prompteol", adapter=str(copy))]) == whole
    pairs = [*tasks[0].pairs[:-1], ScoredPair("the cat sings.", "a dog.", 2.0)]
    assert again([BASELINE], [StsTask("STS12", pairs), tasks[1]]) > 0
    assert again([BASELINE], tasks[:1]) > 0
    for path in stored:
        path.write_text("{")
    assert again([BASELINE]) == whole
    base.model.model.norm.weight.data[:1] += 1e-3
    assert again([BASELINE]) == whole


def test_a_rows_key_knows_versions_and_the_kind_of_device(base, monkeypatch):
    keys = set(row_keys(base, [BASELINE], [], 0).values())
    for target, name, value in (
        (torch, "__version__", "0"),
        (table, "__version__", "0"),
        (type(base.model), "device", torch.device("meta")),
        (prompts, "EOL_SUFFIX", '" means:"'),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            keys |= set(row_keys(base, [BASELINE], [], 0).values())
    assert len(keys) == 5


def test_a_row_without_an_order_is_refused(base, tasks, tmp_path):
    # Before the first layer the last token's state is the embedding of the full stop that ends every sentence.
    with pytest.raises(SempaError, match=r"STS12: all 18 cosines are 1, so the pairs have no order"):
        measure_rows(base, parse_methods("mean,last@0,last"), tasks, tmp_path)


def test_a_row_that_cannot_be_stored_ends_in_a_sentence(base, tasks, tmp_path):
    (tmp_path / "rows").write_text("a file where the folder would be")
    with pytest.raises(SempaError, match=r"rows.*: cannot be written"):
        measure_rows(base, [BASELINE], tasks, tmp_path / "rows")


def test_mistakes_are_found_before_the_first_row(base, tasks, adapters, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    wider = shutil.copytree(adapters[0], tmp_path / "wider")
    weights = load_file(wider / "adapter_model.safetensors")
    save_file(
        {name: torch.cat([tensor, tensor], 1) for name, tensor in weights.items()}, wider / "adapter_model.safetensors"
    )
    for methods, message in (
        ([BASELINE, Method("mean", 9)], "layer: found 9, expected -3 to 2 for this model"),
        ([BASELINE, Method("mean", adapter=str(tmp_path / "none"))], "adapter '.*none': cannot be read"),
        ([BASELINE, Method("mean", adapter=str(wider))], "wider.*has shape .*, expected"),
    ):
        with pytest.raises(SempaError, match=message):
            measure_rows(base, methods, tasks, tmp_path)
    assert not seen
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]


# A run's report


def test_a_runs_report_has_the_interval_and_the_test_of_every_change(base, tasks, adapters):
    load_adapter(base.model, Path(adapters[0]))
    figures, *_ = measure_sts(base, tasks[:2])
    rows = tables({"sts": figures})[0][2]
    for task, figure, row in zip(tasks, figures, rows):
        with adapter_disabled(base.model):
            (before,) = evaluate_sts(lambda sentences: embed(base, sentences), [task])
        (after,) = evaluate_sts(lambda sentences: embed(base, sentences), [task])
        seed = (0, *task.name.encode())
        draws = [bootstrap(side.cosines, task.gold, seed=seed) for side in (after, before)]
        expected = compare(after.score, before.score, *draws)
        # Other batches round otherwise, which may exchange two ranks.
        assert figure["p"] == pytest.approx(expected["p"], abs=0.02)
        assert figure["change_interval"] == pytest.approx(expected["interval"], abs=2)
        low, high = figure["change_interval"]
        assert row[-2:] == [f"{low:+.1f} – {high:+.1f}", f"{figure['p']:.3f}"]


def test_a_sentence_too_long_for_one_readout_is_found_before_any_row(base, tmp_path):
    """Echo repeats it."""
    long = "dog " * 1100
    tasks = [StsTask("long", [ScoredPair(long, "A cat.", 1.0), ScoredPair("A dog.", "A cat.", 2.0)])]
    with pytest.raises(SempaError, match=r"sentence 0 \('dog dog .*\): has .* tokens in its prompt"):
        measure_rows(base, [BASELINE, Method("echo")], tasks, tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    assert measure_rows(base, [BASELINE], tasks, tmp_path / "rows")


# The command


def test_a_table_may_lie_beside_a_folder_of_its_name(benchmark, tiny_folder, tmp_path):
    """`runs/table` is where the next one goes by default."""
    (tmp_path / "table").mkdir()
    command = ["table", "--sts", str(benchmark), "--sets", "STS12", "--model", str(tiny_folder)]
    assert main([*command, "--readouts", "prompteol", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "table.csv").exists()


@pytest.mark.parametrize("name", ["table.csv", "table.json"])
def test_pairs_that_would_become_the_table_are_refused(name, tiny_folder, tmp_path, capsys):
    pairs = tmp_path / name
    pairs.write_text("sentence1,sentence2,score\nA man sings.,A dog runs.,1\nA cat.,The cat.,4\n")
    before = pairs.read_bytes()
    assert main(["table", "--sts", str(pairs), "--model", str(tiny_folder), "--output", str(tmp_path)]) == 2
    assert f"{pairs}: is the input itself, which would be lost" in capsys.readouterr().err
    assert pairs.read_bytes() == before


def test_the_command_prints_and_writes_the_table_and_goes_on(
    benchmark, tiny_folder, adapters, tmp_path, capsys, monkeypatch
):
    command = ["table", "--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu", "--sts", str(benchmark)]
    command += ["--splits", "dev, trial", "--resamples", "20", "--readouts", "prompteol,mean@1"]
    command += ["--output", str(tmp_path)]
    assert main(command) == 0
    seen = counted(monkeypatch)
    assert main([*command, "--adapter", adapters[0], "--adapter", adapters[1], "--adapter-readouts", "mean"]) == 0
    out = capsys.readouterr().out
    assert f"table: {tmp_path / 'table.html'}" in out
    assert "Quoted, not measured here" in out
    report = json.loads((tmp_path / "table.json").read_text())
    labels = ["prompteol", "mean@1", *(f"mean + {adapter}" for adapter in adapters)]
    assert [row["label"] for row in report["rows"]] == labels
    assert report["settings"]["splits"] == "dev, trial"
    assert report["versions"]["torch"]
    # Only the adapters' rows were new.
    assert len(seen) == 2 * len(set(seen))
    assert len(list((tmp_path / "rows").iterdir())) == 4


def test_a_file_may_be_called_average(tiny_folder, tmp_path, capsys):
    pairs = tmp_path / "average.csv"
    rows = (f"The cat {i}.,{sentence(random.Random(i))},{i % 4}\n" for i in range(9))
    pairs.write_text("sentence1,sentence2,score\n" + "".join(rows))
    options = ["--readouts", "prompteol,last", "--resamples", "20", "--output", str(tmp_path / "out")]
    assert main(["table", "--model", str(tiny_folder), "--dtype", "float32", "--sts", str(pairs), *options]) == 0
    assert "average, 9 pairs" in capsys.readouterr().out
    for row in json.loads((tmp_path / "out" / "table.json").read_text())["rows"]:
        assert row["average"]["spearman"] == row["tasks"]["average"]["spearman"]


def test_the_command_scores_any_file_of_pairs(tiny_folder, tmp_path, capsys):
    pairs = tmp_path / "mine.tsv"
    pairs.write_text(
        "a\tb\tgold\n" + "".join(f"The cat {i}.\t{sentence(random.Random(i))}\t{i % 4}\n" for i in range(9))
    )
    command = ["table", "--model", str(tiny_folder), "--dtype", "float32", "--sts", str(pairs), "--columns", "a,b,gold"]
    assert main([*command, "--readouts", "prompteol,last", "--resamples", "20", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mine, 9 pairs" in out
    assert "average" not in out
    sampled = [*command, "--readouts", "last", "--pairs", "6", "--resamples", "2", "--output", str(tmp_path)]
    assert main(sampled) == 0
    out = capsys.readouterr().out
    assert "mine, 6 pairs" in out
    assert "mine: a sample of 6 of its 9 scored pairs" in out
    # Another seed draws another sample, of which there is no row yet.
    rows = len(list((tmp_path / "rows").iterdir()))
    assert main([*sampled, "--seed", "1"]) == 0
    assert len(list((tmp_path / "rows").iterdir())) == rows + 1


def test_adapters_of_different_bases_are_refused_unless_the_base_is_named(
    benchmark, adapters, tiny_folder, tmp_path, capsys
):
    other = shutil.copytree(adapters[0], tmp_path / "adapter")
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_folder), "another/base"))
    command = ["table", "--sts", str(benchmark), "--splits", "dev", "--sets", "STS-B"]
    command += ["--readouts", "mean", "--resamples", "2"]
    command += ["--dtype", "float32", "--adapter", adapters[0], "--adapter", str(other), "--output", str(tmp_path)]
    assert main(command) == 2
    assert f"found adapters of {tiny_folder} and another/base, expected one base" in capsys.readouterr().err
    assert main([*command, "--model", str(tiny_folder)]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--splits", "dev, tset"], "splits: found 'tset', expected some of train, dev, trial, test"),
        (["--readouts", "meen"], "readout: found 'meen', expected some of mean"),
        (["--sets", "STS12,sick"], "0 tasks for sick (splits: dev, trial; found STS12, STS13"),
        (["--splits", "test"], "0 tasks for STS-B (splits: test; found STS12, STS13, STS14, STS15, STS16, STS-B dev"),
        (["--resamples", "-1"], "--resamples: found -1, expected a whole number from 1 to 2,147,483,647"),
        (["--columns", "a,b"], "columns: found 'a,b', expected three names"),
        (["--adapter", "nowhere"], "adapter 'nowhere': holds no adapter_config.json"),
        (["--adapter-readouts", "mean"], "adapter-readouts: there is no --adapter to read"),
    ],
)
def test_bad_arguments_end_with_one_sentence_and_code_2(benchmark, tiny_folder, tmp_path, capsys, change, message):
    command = ["table", "--model", str(tiny_folder), "--sts", str(benchmark), "--splits", "dev,trial"]
    assert main([*command, "--readouts", "mean", "--output", str(tmp_path), *change]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
