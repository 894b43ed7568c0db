"""Transfer tasks: files as they were published, predictions against plain scikit-learn, and the table in every form."""

import csv
import json
import random
import shutil

import numpy as np
import pytest
import scipy.stats
from conftest import SHARED
from test_table import adapters, base  # noqa: F401

from sempa import SempaError
from sempa.cli import main
from sempa.data.transfer import TASKS, Examples, TransferTask, read_transfer
from sempa.embedding.embedder import Embedder
from sempa.evaluation import transfer
from sempa.evaluation.table import BASELINE, Method
from sempa.evaluation.transfer import measure_transfer, predict, summarise_transfer

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict

STRENGTHS = (0.01, 1.0)
QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


@pytest.fixture(autouse=True)
def _two_strengths(monkeypatch):
    """Six hundred fits a row take seconds."""
    monkeypatch.setattr(transfer, "STRENGTHS", STRENGTHS)


def sentence(rng, *words):
    return " ".join([*words, *rng.choices(("man", "dog", "runs", "red", "house", "the", "old"), k=4)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The seven tasks in miniature, 26 examples each and more of TREC."""
    folder, rng = tmp_path_factory.mktemp("transfer"), random.Random(0)
    for good, bad in (("rt-polarity.pos", "rt-polarity.neg"), ("custrev.pos", "custrev.neg"), ("mpqa.pos", "mpqa.neg")):
        (folder / good).write_text("".join(f"{sentence(rng, 'good')} \n" for _ in range(13)))
        (folder / bad).write_text("".join(f"{sentence(rng, 'bad')} \n" for _ in range(13)))
    for name in ("subj.subjective", "subj.objective"):
        (folder / name).write_text("".join(sentence(rng) + "\n" for _ in range(13)))
    with (folder / "rt-polarity.pos").open("ab") as stream:
        stream.write("a café\n \n".encode("latin-1"))
    for split in ("train", "dev", "test"):
        lines = [f"{k % 2} {sentence(rng, ('bad', 'good')[k % 2])}" for k in range(26)]
        (folder / f"stsa.binary.{split}").write_text("\n".join(lines) + "\n")
    for split, count in (("train", 78), ("test", 12)):
        lines = [f"{QUESTIONS[k % 6]}:x {sentence(rng, QUESTIONS[k % 6])} ?" for k in range(count)]
        (folder / f"TREC.{split}").write_text("\n".join(lines) + "\n")
        rows = [f"{k % 3 > 0:d}\t1\t2\t{sentence(rng)}\t{sentence(rng)}" for k in range(39)]
        (folder / f"msr_paraphrase_{split}.txt").write_text("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n")
        with (folder / f"msr_paraphrase_{split}.txt").open("a") as stream:
            stream.write("\n".join(rows) + "\n")
    return folder


def synthetic(name, sizes, classes, distance, pairs=False, seed=0):
    """A task whose sentences have random vectors in which the classes lie apart, and these vectors."""
    rng = np.random.default_rng(seed)
    centres, vectors, splits = rng.normal(size=(classes, 6)), {}, {}
    for split, size in sizes.items():
        labels = rng.permutation(np.arange(size) % classes)
        texts = []
        for k, label in enumerate(labels):
            text = [f"{split} {k} {side}" for side in range(1 + pairs)]
            vectors[text[0]] = (5 + 3 * (distance * centres[label] + rng.normal(size=6))).astype(np.float32)
            for other in text[1:]:
                # Alike where the class is 1.
                vectors[other] = (vectors[text[0]] * label + (1 - label) * rng.normal(size=6)).astype(np.float32)
            texts.append(tuple(text))
        splits[split] = Examples(texts, labels)
    return TransferTask(name, splits), vectors


def folds(seed):
    return StratifiedKFold(10, shuffle=True, random_state=seed)


def grid(seed):
    return GridSearchCV(LogisticRegression(max_iter=5000, tol=1e-6), {"C": STRENGTHS}, cv=folds(seed))


def scaled(task, vectors):
    """The vectors over their standard deviation, not centred."""
    matrix = np.stack([vectors[s] for s in task.sentences]).astype(float)
    spread = np.sqrt(((matrix - matrix.mean(0)) ** 2).mean())
    return {s: vectors[s] / spread for s in vectors}


def matrix(task, split, vectors):
    return np.stack([vectors[text[0]] for text in task.splits[split].texts])


# The files


def test_every_task_is_read_as_it_was_published(folder):
    tasks = read_transfer(folder)
    assert [task.name for task in tasks] == list(TASKS) == ["MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC"]
    sizes = {task.name: {split: len(part.texts) for split, part in task.splits.items()} for task in tasks}
    assert sizes == {
        **{"MR": {"all": 27}, "CR": {"all": 26}, "SUBJ": {"all": 26}, "MPQA": {"all": 26}},
        **{"SST2": {"train": 26, "dev": 26, "test": 26}, "TREC": {"train": 78, "test": 12}},
        "MRPC": {"train": 39, "test": 39},
    }
    by_name = {task.name: task for task in tasks}
    mr = by_name["MR"].splits["all"]
    assert mr.texts[13] == ("a café",)
    assert mr.labels.tolist() == [1] * 14 + [0] * 13
    assert by_name["MR"].notes == []
    assert "trained on 26 examples; SentEval's 67,349 are phrases too" in by_name["SST2"].notes[0]
    trec, mrpc = by_name["TREC"].splits["train"], by_name["MRPC"].splits["test"]
    assert [QUESTIONS[label] for label in trec.labels] == [text[0].split()[0] for text in trec.texts]
    assert mrpc.labels.tolist() == [int(k % 3 > 0) for k in range(39)]
    assert {len(text) for text in mrpc.texts} == {2}


@pytest.mark.parametrize(
    ("file", "task", "content", "message"),
    [
        ("custrev.neg", "CR", None, "custrev.neg: no such file"),
        ("TREC.test", "TREC", None, "TREC.test: no such file"),
        (
            "stsa.binary.dev",
            "SST2",
            "1 fine .\na fine film\t1\n",
            "dev:2: found the class 'a', expected one of 0, 1 and a sentence",
        ),
        ("stsa.binary.dev", "SST2", "1 fine .\n1\n", "dev:2: found the class '1', expected one of 0, 1 and a sentence"),
        (
            "TREC.test",
            "TREC",
            "NUM:a How ?\nWHO:b Who ?\n",
            "TREC.test:2: found the class 'WHO', expected one of ABBR",
        ),
        (
            "msr_paraphrase_test.txt",
            "MRPC",
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\ta\n",
            "test.txt:2: 4 columns, expected 5",
        ),
        (
            "msr_paraphrase_test.txt",
            "MRPC",
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n2\t2\t3\ta\tb\n",
            "test.txt:2: found the class '2', expected one of 0, 1",
        ),
        (
            "msr_paraphrase_test.txt",
            "MRPC",
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
            "test.txt: no examples",
        ),
    ],
)
def test_a_missing_file_and_a_line_of_another_layout_are_named(folder, tmp_path, file, task, content, message):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(SempaError) as caught:
        read_transfer(tmp_path)
    assert message in str(caught.value)
    others = [name for name in TASKS if name != task]
    assert [task.name for task in read_transfer(tmp_path, others)] == others


def test_a_film_review_is_utf_8(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "stsa.binary.dev").write_text("1 a  café .\n0 a bore .\n", encoding="utf-8")
    (task,) = read_transfer(copied, ["SST2"])
    assert task.splits["dev"].texts == [("a café .",), ("a bore .",)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real transfer tasks are not beside the project")
def test_the_real_tasks_have_their_published_sizes():
    sizes = {t.name: [len(part.texts) for part in t.splits.values()] for t in read_transfer(SHARED / "transfer")}
    # CR and MPQA: SentEval's 3,775 and 10,606 hold four and three blank lines.
    assert sizes == {
        **{"MR": [10_662], "CR": [3_771], "SUBJ": [10_000], "MPQA": [10_603]},
        **{"SST2": [6_920, 872, 1_821], "TREC": [5_452, 500], "MRPC": [4_076, 1_725]},
    }


# The protocol


def test_ten_folds_are_nested_as_scikit_learn_nests_them():
    task, vectors = synthetic("CR", {"all": 120}, 2, 0.4)
    features, labels = matrix(task, "all", scaled(task, vectors)), task.splits["all"].labels
    expected = cross_val_predict(grid(3), features, labels, cv=folds(3))
    assert predict(task, vectors, 3).tolist() == expected.tolist()
    assert 0.6 < (expected == labels).mean() < 0.95
    assert predict(task, vectors, 0).tolist() != expected.tolist()


def test_c_is_chosen_on_the_development_set_or_in_folds_of_the_training_set():
    task, vectors = synthetic("SST2", {"train": 80, "dev": 40, "test": 60}, 2, 0.3)
    x = {split: matrix(task, split, scaled(task, vectors)) for split in task.splits}
    y = {split: part.labels for split, part in task.splits.items()}
    best, chosen = -1.0, None
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=5000).fit(x["train"], y["train"])
        if (score := accuracy_score(y["dev"], fitted.predict(x["dev"]))) > best:
            best, chosen = score, fitted
    assert predict(task, vectors).tolist() == chosen.predict(x["test"]).tolist()
    task, vectors = synthetic("TREC", {"train": 180, "test": 60}, 6, 0.7)
    x = {split: matrix(task, split, scaled(task, vectors)) for split in task.splits}
    expected = grid(0).fit(x["train"], task.splits["train"].labels).predict(x["test"])
    assert predict(task, vectors).tolist() == expected.tolist()
    assert len(set(expected)) == 6


def test_pairs_are_told_apart_by_difference_and_product():
    task, vectors = synthetic("MRPC", {"train": 80, "test": 40}, 2, 0.5, pairs=True)
    own = scaled(task, vectors)
    x = {}
    for split, part in task.splits.items():
        sides = [np.stack([own[text[side]] for text in part.texts]) for side in (0, 1)]
        x[split] = np.concatenate([np.abs(sides[0] - sides[1]), sides[0] * sides[1]], axis=1)
    expected = grid(0).fit(x["train"], task.splits["train"].labels).predict(x["test"])
    assert predict(task, vectors).tolist() == expected.tolist()
    labels = task.splits["test"].labels
    for predicted in (expected, np.ones_like(labels)):
        (row,) = summarise_transfer({Method("mean"): [predicted]}, [task])["rows"]
        assert row["tasks"]["MRPC"]["accuracy"] == pytest.approx(100 * accuracy_score(labels, predicted))
        assert row["tasks"]["MRPC"]["f1"] == pytest.approx(100 * f1_score(labels, predicted))


def test_an_accuracy_has_its_own_error_and_a_change_the_paired_one():
    task, _ = synthetic("CR", {"all": 60}, 2, 0.4)
    labels, places = task.splits["all"].labels, np.arange(60)
    before, after = np.where(places < 20, 1 - labels, labels), np.where(places % 6 == 0, 1 - labels, labels)
    _, row = summarise_transfer({BASELINE: [before], Method("mean"): [after]}, [task])["rows"]
    found, right = row["tasks"]["CR"], [(side == labels).astype(float) for side in (before, after)]
    assert found["stderr"] == pytest.approx(100 * scipy.stats.sem(right[1]))
    assert found["versus"]["stderr"] == pytest.approx(100 * scipy.stats.sem(right[1] - right[0]))


def test_classes_far_apart_are_all_found_and_shuffled_ones_by_chance_alone():
    task, vectors = synthetic("MR", {"all": 200}, 2, 30.0)
    labels = task.splits["all"].labels
    assert (predict(task, vectors) == labels).all()
    shuffled = np.random.default_rng(1).permutation(labels)
    chance = (
        predict(TransferTask("MR", {"all": Examples(task.splits["all"].texts, shuffled)}), vectors) == shuffled
    ).mean()
    assert abs(chance - 0.5) < 0.15


def test_embeddings_that_are_all_the_same_are_no_error():
    task, vectors = synthetic("CR", {"all": 60}, 2, 0.4)
    assert predict(task, dict.fromkeys(vectors, np.ones(6, np.float32))).shape == (60,)


def test_the_scale_of_an_embedding_does_not_matter():
    task, vectors = synthetic("CR", {"all": 120}, 2, 0.4)
    larger = {s: 1000 * vector + 3 for s, vector in vectors.items()}
    assert predict(task, larger).tolist() == predict(task, vectors).tolist()


# The table


def test_rows_are_kept_task_by_task_and_the_base_is_bare_again(folder, base, adapters, tmp_path, monkeypatch):  # noqa: F811
    methods = [Method("prompteol"), Method("mean", adapter=adapters[0])]
    tasks = read_transfer(folder, ["CR", "SST2"])
    first = measure_transfer(base, methods, tasks, tmp_path)
    embedder = Embedder(base.source, adapters[0], readout="mean", dtype="float32", device="cpu")
    vectors = dict(zip(tasks[0].sentences, embedder.encode(tasks[0].sentences)))
    assert first[methods[1]][0].tolist() == predict(tasks[0], vectors).tolist()
    assert not [name for name, _ in base.model.named_parameters() if "lora" in name]
    assert len(list(tmp_path.iterdir())) == 4
    asked = []
    monkeypatch.setattr(transfer, "predict", lambda task, *rest: asked.append(task.name) or predict(task, *rest))
    again = measure_transfer(base, methods, [*tasks, *read_transfer(folder, ["TREC"])], tmp_path)
    assert asked == ["TREC", "TREC"]
    assert [own.tolist() for own in again[methods[0]][:2]] == [own.tolist() for own in first[methods[0]]]
    damaged = next(tmp_path.glob("CR-prompteol-*"))
    damaged.write_text(damaged.read_text()[:-9])
    measure_transfer(base, methods, tasks, tmp_path)
    assert asked[2:] == ["CR"]
    measure_transfer(base, methods[:1], tasks[:1], tmp_path, seed=1)
    assert asked[3:] == ["CR"]
    whole = tasks[0].splits["all"]
    turned = TransferTask("CR", {"all": Examples(whole.texts, 1 - whole.labels)})
    measure_transfer(base, methods[:1], [turned], tmp_path)
    assert asked[4:] == ["CR"]
    monkeypatch.setattr("sklearn.__version__", "0")
    measure_transfer(base, methods[:1], tasks[:1], tmp_path)
    assert asked[5:] == ["CR"]


def test_the_command_writes_the_same_figures_in_every_form(folder, tiny_folder, adapters, tmp_path, capsys):  # noqa: F811
    command = ["table", "--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu", "--output", str(tmp_path)]
    command += ["--transfer", str(folder), "--adapter", adapters[0], "--sets", "CR,SST2,MRPC"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "transfer.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["prompteol", f"prompteol + {adapters[0]}"]
    assert report["settings"]["readouts"] == "prompteol"
    with (tmp_path / "transfer.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row, line in zip(report["rows"], rows, strict=True):
        accuracies = {name: row["tasks"][name]["accuracy"] for name in ("CR", "SST2", "MRPC")}
        assert {name: float(line[name]) for name in accuracies} == accuracies
        average = row["average"]["accuracy"]
        assert float(line["average"]) == average == pytest.approx(sum(accuracies.values()) / 3)
        assert float(line["MRPC f1"]) == row["tasks"]["MRPC"]["f1"]
        for name, accuracy in accuracies.items():
            for text in (shown, *((tmp_path / f"transfer.{end}").read_text() for end in ("md", "html"))):
                assert f"{accuracy:.2f}" in text, name
    base_row, row = (each["tasks"]["SST2"] for each in report["rows"])
    assert row["versus"]["change"] == pytest.approx(row["accuracy"] - base_row["accuracy"])
    assert f"{row['versus']['change']:+.2f} ± {row['versus']['stderr']:.2f}" in shown
    assert float(rows[1]["SST2 versus change"]) == row["versus"]["change"]
    assert rows[0]["SST2 versus change"] == ""
    assert "SentEval's 67,349 are phrases too" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--sets", "CR,STS12"], "sets: found 'STS12', expected some of MR,CR,SUBJ,MPQA,SST2,TREC,MRPC"),
        (["--transfer", "nowhere"], "nowhere/rt-polarity.pos: no such file"),
    ],
)
def test_bad_arguments_end_with_one_sentence_and_code_2(folder, tiny_folder, tmp_path, capsys, change, message):
    command = ["table", "--model", str(tiny_folder), "--output", str(tmp_path), "--transfer", str(folder)]
    assert main([*command, *change]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line


def test_a_sentence_too_long_for_one_readout_is_found_before_any_row(folder, base, tmp_path):  # noqa: F811
    """Echo repeats it."""
    copy = shutil.copytree(folder, tmp_path / "long")
    with (copy / "custrev.pos").open("a") as stream:
        stream.write("dog " * 1100 + "\n")
    with pytest.raises(SempaError, match=r"sentence \d+ \('dog dog .*\): has .* tokens in its prompt"):
        measure_transfer(base, [BASELINE, Method("echo")], read_transfer(copy, ["MR", "CR"]), tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_a_class_too_small_for_the_folds_is_found_before_embedding_and_any_seed_is_taken(folder, base, tmp_path):  # noqa: F811
    short = shutil.copytree(folder, tmp_path / "short")
    for name in ("custrev.pos", "custrev.neg"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (short / name).write_text("".join(lines[: 11 if name.endswith("neg") else 13]))
    with pytest.raises(SempaError, match="CR: found a class of 11 examples, expected 12 for 10 folds"):
        measure_transfer(base, [Method("mean")], read_transfer(short, ["CR"]), tmp_path)
    # Where a development set chooses C there are no folds.
    short_train = (folder / "stsa.binary.train").read_text().splitlines(keepends=True)[:8]
    (short / "stsa.binary.train").write_text("".join(short_train))
    assert measure_transfer(base, [Method("mean")], read_transfer(short, ["SST2"]), tmp_path)
    (short / "custrev.neg").write_text("".join((folder / "custrev.neg").read_text().splitlines(keepends=True)[:12]))
    tasks = read_transfer(short, ["CR"])
    (found,) = measure_transfer(base, [Method("mean")], tasks, tmp_path, seed=2**40)[Method("mean")]
    assert found.shape == (25,)


def test_without_scikit_learn_the_extra_is_named(folder, base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(SempaError, match=r"pip install scikit-learn"):
        measure_transfer(base, [Method("mean")], read_transfer(folder, ["CR"]), tmp_path)
