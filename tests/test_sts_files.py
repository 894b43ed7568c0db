"""The STS benchmarks are read as they were published, and whatever else is in their place is refused."""

import csv
import gzip
import json
import shutil
from collections import Counter

import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa import SempaError
from sempa.data.sts import ScoredPair, StsTask, development_task, read_sts, sample_task

DATA = SHARED / "sts"
needs_sts = pytest.mark.skipif(not DATA.is_dir(), reason="the STS benchmarks are not beside the repository")

STSB = "main-captions\tMSRvid\t2012test\t{i:04}\t{score}\tA {i} sings.\tThe {i} sang."
SICK_HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
SICK = "{i}\tA {i} sings\tThe {i} sang\t{score}\tNEUTRAL"


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def write_year(folder, **subtasks):
    for name, rows in subtasks.items():
        write(folder / f"STS.input.{name}.txt", *(f"{first}\t{second}" for first, second, _ in rows))
        write(folder / f"STS.gs.{name}.txt", *(score for *_, score in rows))
    return folder


def rows(line, count=3):
    return [line.format(i=i, score=1 + i / 2) for i in range(count)]


def benchmark(folder):
    for year in (16, 12):
        write_year(folder / f"STS{year}", b=[("a", "b", "1.5"), ("c", "d", "")], a=[("e", "f", 4), (" g", "h ", "0")])
    for split in ("train", "dev", "test"):
        write(folder / "STSBenchmark" / f"sts-{split}.csv", *rows(STSB))
        name = {"dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}.get(split, "SICK_train.txt")
        write(folder / "SICK" / name, SICK_HEADER, *rows(SICK))
    return folder


def names(tasks):
    return [task.name for task in tasks]


def error_of(path, *splits):
    with pytest.raises(SempaError) as caught:
        read_sts(path, splits) if splits else read_sts(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tasks_come_in_the_order_of_the_table_without_the_train_splits(tmp_path):
    assert names(read_sts(benchmark(tmp_path))) == [
        *("STS12", "STS16", "STS-B dev", "STS-B test", "SICK trial", "SICK test")
    ]
    assert names(read_sts(tmp_path, ["train"])) == ["STS12", "STS16", "STS-B train", "SICK train"]
    assert names(read_sts(str(tmp_path), ("test", "dev"))) == ["STS12", "STS16", "STS-B dev", "STS-B test", "SICK test"]


def test_a_year_is_its_subtasks_one_after_another_without_unscored_pairs(tmp_path):
    (task,) = read_sts(benchmark(tmp_path) / "STS16")
    assert task == StsTask(
        "STS16",
        [ScoredPair("e", "f", 4.0, "a"), ScoredPair("g", "h", 0.0, "a"), ScoredPair("a", "b", 1.5, "b")],
        notes=["STS16: 1 pair without a gold score left out"],
    )


def test_each_benchmarks_folder_and_file_can_be_given_itself(tmp_path):
    benchmark(tmp_path)
    (stsb,) = read_sts(tmp_path / "STSBenchmark", ["dev"])
    (sick,) = read_sts(tmp_path / "SICK", ["trial"])
    pairs = [(f"A {i} sings", f"The {i} sang", 1 + i / 2) for i in range(3)]
    assert sick == StsTask("SICK trial", [ScoredPair(*pair) for pair in pairs])
    assert stsb == StsTask("STS-B dev", [ScoredPair(f"{a}.", f"{b}.", score) for a, b, score in pairs])
    assert read_sts(tmp_path / "STSBenchmark" / "sts-dev.csv") == [stsb]
    assert read_sts(tmp_path / "SICK" / "SICK_trial.txt") == [sick]


def test_subtasks_are_taken_in_the_order_of_their_names_not_of_the_disk(tmp_path):
    for name in "dbhfaceg":
        write_year(tmp_path / "STS15", **{name: [(name, "x", ord(name))]})
    assert "".join(pair.first for pair in read_sts(tmp_path)[0].pairs) == "abcdefgh"


def test_the_folder_layout_of_senteval_is_found_two_levels_down(tmp_path):
    for year in (16, 13, 12):
        write_year(tmp_path / "STS" / f"STS{year}-en-test", x=[("a", "b", 1), ("c", "d", 2)])
    assert names(read_sts(tmp_path)) == ["STS12", "STS13", "STS16"]


def test_the_current_folder_has_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_year(tmp_path / "STS14", x=[("a", "b", 1), ("c", "d", 2)]))
    assert names(read_sts(".")) == ["STS14"]


def test_quotes_are_plain_characters_and_the_sources_of_a_row_are_passed_over(tmp_path):
    lines = [
        'g\tf\ty\t1\t5\t"Yes, she said.\tHe said "yes\tsource 1\tsource 2',
        'g\tf\ty\t2\t0\tU+2028 is\u2028no end\t"No"\r',
    ]
    (sick,) = read_sts(
        write(tmp_path / "SICK_trial.txt", SICK_HEADER, '1\t"a\tb"\t1\tNEUTRAL', '2\t"c"\td\t2\tNEUTRAL')
    )
    assert sick.pairs == [ScoredPair('"a', 'b"', 1.0), ScoredPair('"c"', "d", 2.0)]
    (task,) = read_sts(write(tmp_path / "sts-dev.csv", *lines))
    assert task.pairs == [
        ScoredPair('"Yes, she said.', 'He said "yes', 5.0),
        ScoredPair("U+2028 is\u2028no end", '"No"', 0.0),
    ]


def test_a_single_file_of_pairs_and_scores_is_a_task_of_its_name(tmp_path):
    pairs = [('"He", the man', "A man", 4.25), ("x", "y", 0)]
    keys = ("sentence1", "sentence2", "score")
    jsonl = [json.dumps(dict(zip(keys, pair))) for pair in pairs] + [
        '{"sentence1": "u", "sentence2": "v", "score": null}'
    ]
    write(tmp_path / "mine.jsonl", *jsonl)
    write(tmp_path / "mine.csv", "score,sentence1,sentence2", '4.25,"""He"", the man",A man', "0,x,y", ",u,v")
    write(tmp_path / "mine.tsv", "\t".join(keys), '"""He"", the man"\tA man\t4.25', "x\ty\t0", "u\tv\t")
    (tmp_path / "mine.csv.gz").write_bytes(gzip.compress((tmp_path / "mine.csv").read_bytes()))
    for suffix in ("jsonl", "csv", "tsv", "csv.gz"):
        (task,) = read_sts(tmp_path / f"mine.{suffix}")
        assert (task.name, task.pairs) == ("mine", [ScoredPair(*pair) for pair in pairs])
        assert task.notes == ["mine: 1 pair without a gold score left out"]


def test_only_the_published_tables_have_bare_quotes(tmp_path):
    """GLUE's and sentence-transformers' STS-B name the genre; a table of one's own comes from a CSV library."""
    columns, row = ["genre", "score", "sentence1", "sentence2"], ["news", "4.25", '"He", the man', "A man"]
    pair = ScoredPair('"He", the man', "A man", 4.25)
    path = write(tmp_path / "pairs.tsv", "\t".join(columns), "\t".join(row), "news\t0\tx\ty")
    assert read_sts(path)[0].pairs[0] == pair
    for quoting, first in ((csv.QUOTE_MINIMAL, 1), (csv.QUOTE_ALL, 0)):
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", quoting=quoting)
            writer.writerows(cells[first:] for cells in (columns, row, ["news", "0", "x", "y"]))
        assert read_sts(path)[0].pairs[0] == pair
    write(path, "\t".join(columns[1:]), "\t".join(row[1:]), "0\tx\ty")
    assert "pairs.tsv:2: '\\t' expected after '\"'; is a quotation mark" in error_of(path)


def test_a_file_may_name_its_columns_as_it_likes(tmp_path):
    path = write(tmp_path / "mine.jsonl", '{"a": "x", "b": "y", "gold": 99}', '{"a": "u", "b": "v", "gold": -3.5}')
    assert read_sts(path, columns=("a", "b", "gold"))[0].gold.tolist() == [99, -3.5]
    assert "found the columns 'a', 'b', 'gold', expected split, sentence1, sentence2, score or" in error_of(path)


def test_a_files_split_column_selects_its_rows(tmp_path):
    """The layout of sentence-transformers' stsbenchmark.tsv, where quotation marks are plain characters."""
    header = "split\tgenre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2"
    lines = [
        f'{split}\tmain-captions\tMSRvid\t2012test\t{i:04}\t{i}.0\t"{split} {i}\tThe "other" {i}'
        for split in ("train", "dev", "test")
        for i in range(3)
    ]
    path = write(tmp_path / "stsbenchmark.tsv", header, *lines)

    def pairs(split):
        return [ScoredPair(f'"{split} {i}', f'The "other" {i}', float(i)) for i in range(3)]

    assert read_sts(path, ["dev"]) == [StsTask("stsbenchmark dev", pairs("dev"))]
    assert read_sts(path) == [StsTask(f"stsbenchmark {split}", pairs(split)) for split in ("dev", "test")]
    assert development_task(path) == StsTask("stsbenchmark dev", pairs("dev"))
    for name in (" Validation", "val", "Valid"):
        renamed = write(tmp_path / "renamed.tsv", header, *(line.replace("dev\t", f"{name}\t") for line in lines))
        assert [task.name for task in read_sts(renamed, ["dev", "trial"])] == ["renamed dev"]
    without = write(tmp_path / "without.tsv", header, *(line for line in lines if not line.startswith("dev")))
    with pytest.raises(SempaError, match=r"without\.tsv: found the splits train, test, asked for dev, trial"):
        development_task(without)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_split_column_is_found_in_every_format_and_with_any_columns(tmp_path, suffix):
    rows = [{"a": f"{split} {i}", "b": "x", "gold": i, "split": split} for split in ("test", "dev") for i in range(2)]
    csv_lines = ["a,b,gold,split", *(",".join(map(str, row.values())) for row in rows)]
    path = write(tmp_path / f"mine.{suffix}", *(csv_lines if suffix == "csv" else map(json.dumps, rows)))
    (task,) = read_sts(path, [" dev"], ("a", "b", "gold"))
    assert task == StsTask("mine dev", [ScoredPair("dev 0", "x", 0.0), ScoredPair("dev 1", "x", 1.0)])


def test_of_two_copies_of_a_benchmark_the_nearer_is_read(tmp_path):
    found = read_sts(benchmark(tmp_path))
    far = shutil.copytree(tmp_path, tmp_path / "zzz")
    for file in far.rglob("*.*"):
        if file.is_file():
            file.write_text(file.read_text().replace("sings", "dances").replace("\tb", "\tz"))
    assert read_sts(tmp_path) == found


def test_a_folders_tasks_are_selected_by_the_names_of_the_table(tmp_path):
    benchmark(tmp_path)
    selected = read_sts(tmp_path, ["dev", "trial"], sets=["SICK", "STS12", "STS-B"])
    assert names(selected) == ["STS12", "STS-B dev", "SICK trial"]
    assert names(read_sts(tmp_path, ["test"], sets=["STS-B", "SICK"])) == ["STS-B test", "SICK test"]


@needs_sts
def test_the_published_benchmarks_have_their_published_sizes():
    tasks = read_sts(DATA)
    assert [(task.name, len(task.pairs)) for task in tasks] == [
        ("STS12", 3108),
        ("STS13", 1500),
        ("STS14", 3750),
        ("STS15", 3000),
        ("STS16", 1186),
        ("STS-B dev", 1500),
        ("SICK trial", 500),
    ]
    assert [note for task in tasks for note in task.notes] == [
        "STS15: 5,500 pairs without a gold score left out",
        "STS16: 7,997 pairs without a gold score left out",
    ]
    trained_on = read_sts(DATA, ["train"])[5:]
    assert [(len(task.pairs), task.notes) for task in trained_on] == [(5749, []), (4500, [])]
    sizes = {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "surprise.OnWN": 750, "surprise.SMTnews": 399}
    assert Counter(pair.subtask for pair in tasks[0].pairs) == sizes


# What is refused


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(2, 12), st.integers(0, 3))
def test_a_sample_keeps_order_and_sub_tasks_and_is_fixed_by_its_seed(sizes, count, seed):
    parts = [(part, i) for part, size in enumerate(sizes) for i in range(size)]
    pairs = [ScoredPair(f"{part} {i}", "b", float(part), f"{part}") for part, i in parts]
    task = StsTask("STS12", pairs)
    drawn = sample_task(task, count, seed)
    if count >= len(pairs):
        assert drawn is task
        return
    places = [pairs.index(pair) for pair in drawn.pairs]
    assert len(places) == count and places == sorted(set(places))
    assert [pair.subtask for pair in drawn.pairs] == [f"{pair.score:g}" for pair in drawn.pairs]
    assert sample_task(task, count, seed) == drawn
    assert drawn.notes == [f"STS12: a sample of {count} of its {len(pairs)} scored pairs"]


def test_another_seed_draws_another_sample():
    task = StsTask("STS12", [ScoredPair(str(i), "b", i) for i in range(100)])
    assert sample_task(task, 10, 0) != sample_task(task, 10, 1)


def test_a_folder_without_tasks_is_refused_with_what_was_expected(tmp_path):
    benchmark(tmp_path / "all")
    message = error_of(tmp_path / "all" / "SICK", "dev")
    assert f"{tmp_path / 'all' / 'SICK'}: no STS task (splits: dev; found SICK train, SICK trial" in message
    for expected in ("STS12 to STS16", "STS.input.*.txt", "sts-dev.csv", "SICK_trial.txt"):
        assert expected in message
    assert "no such file" in error_of(tmp_path / "absent")
    assert "splits: found 'valid', expected some of train" in error_of(tmp_path / "all" / "SICK", "valid")


def test_a_missing_task_is_refused_with_what_the_folder_has(tmp_path):
    def error(sets, splits):
        with pytest.raises(SempaError) as caught:
            read_sts(tmp_path, splits, sets=sets)
        return str(caught.value)

    write(tmp_path / "STSBenchmark" / "sts-dev.csv", *rows(STSB))
    write(tmp_path / "SICK_train.txt", SICK_HEADER, *rows(SICK))
    write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d", 2)])
    there = "found STS12, STS-B dev, SICK train"
    assert error(["STS12", "STS-B"], ["test"]) == (
        f"{tmp_path}: 0 tasks for STS-B (splits: test; {there}), expected one, in sts-test.csv"
    )
    assert error(["SICK"], ["test"]).endswith("expected one, in SICK_test_annotated.txt")
    assert error(["STS99"], ["test"]).endswith("expected one of STS12, STS13, STS14, STS15, STS16, STS-B, SICK")
    assert f"0 tasks for STS13 (splits: dev; {there})" in error(["STS12", "STS13"], ["dev"])
    write(tmp_path / "STSBenchmark" / "sts-test.csv", *rows(STSB))
    assert "2 tasks for STS-B (splits: dev, test; found" in error(["STS-B"], ["dev", "test"])


def test_a_sick_file_without_its_header_keeps_its_first_pair(tmp_path):
    write(tmp_path / "SICK_trial.txt", *rows(SICK))
    (task,) = read_sts(tmp_path, ["trial"])
    assert len(task.pairs) == len(rows(SICK)) and not task.notes


def test_training_looks_at_the_development_split_alone(tmp_path):
    task = development_task(benchmark(tmp_path))
    assert task.name == "STS-B dev"
    assert task.notes == [f"{tmp_path}: only STS-B dev is used here, not STS12, STS16, SICK trial"]
    with (tmp_path / "STSBenchmark" / "sts-dev.csv").open("a") as stream:
        stream.write(STSB.format(i=99, score="") + "\n")
    assert development_task(tmp_path).notes == ["STS-B dev: 1 pair without a gold score left out", *task.notes]
    assert development_task(tmp_path / "SICK").name == "SICK trial"
    assert development_task(tmp_path / "STS12").name == "STS12"
    (tmp_path / "rest").mkdir()
    for name in ("STS12", "SICK"):
        shutil.copytree(tmp_path / name, tmp_path / "rest" / name)
    assert development_task(tmp_path / "rest").name == "SICK trial"
    with pytest.raises(SempaError, match=r"sts-test\.csv: found the splits test, asked for dev, trial"):
        development_task(tmp_path / "STSBenchmark" / "sts-test.csv")


def test_inputs_and_gold_scores_of_different_length_are_refused(tmp_path):
    folder = write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d", 2)])
    write(folder / "STS.gs.x.txt", 1, 2, "")
    assert f"{folder / 'STS.input.x.txt'}: 2 pairs, but STS.gs.x.txt has 3 scores" in error_of(tmp_path)
    (folder / "STS.gs.x.txt").unlink()
    assert f"{folder / 'STS.gs.x.txt'}: no such file" in error_of(tmp_path)


@pytest.mark.parametrize("score", ["high", "nan", "inf", "1,5"])
def test_a_score_that_is_no_number_is_located(tmp_path, score):
    refused = f":2: score '{score}', expected a number"
    year = write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d", score)])
    assert f"STS.input.x.txt{refused}" in error_of(year)
    assert f"sts-dev.csv{refused}" in error_of(
        write(tmp_path / "sts-dev.csv", *rows(STSB, 1), STSB.format(i=1, score=score))
    )
    sick = write(tmp_path / "SICK_trial.txt", SICK_HEADER, SICK.format(i=1, score=score))
    assert f"SICK_trial.txt{refused}" in error_of(sick)


def test_a_row_of_the_wrong_width_is_located(tmp_path):
    year = write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d\te", 2)])
    assert "STS.input.x.txt:2: 3 tab-separated columns, expected 2" in error_of(year)
    stsb = write(tmp_path / "sts-dev.csv", "a,b,c,d,e,f,g")
    assert "sts-dev.csv:1: 1 tab-separated columns, expected 7" in error_of(stsb)
    sick = write(tmp_path / "SICK_trial.txt", SICK_HEADER, *rows(SICK), "4\ta\tb")
    assert "SICK_trial.txt:5: 3 tab-separated columns, expected 5" in error_of(sick)
    mine = write(tmp_path / "mine.csv", "sentence1,sentence2,score", "a,b,1", "a,b")
    assert "mine.csv:3: 2 columns, expected 3" in error_of(mine)


def test_a_wrong_header_an_empty_sentence_and_a_lone_pair_are_refused(tmp_path):
    wrong = write(tmp_path / "wrong.csv", "sentence_1,sentence2,score", "a,b,1")
    assert "found the columns 'sentence_1', 'sentence2', 'score', expected split, sentence1" in error_of(wrong)
    empty = write(tmp_path / "empty.csv", "sentence1,sentence2,score", "a, ,1", "a,b,2")
    assert "empty.csv:2: an empty sentence, expected two sentences" in error_of(empty)
    lone = write(tmp_path / "lone.csv", "sentence1,sentence2,score", "a,b,1", "a,c,")
    assert "lone.csv: 1 scored pair, expected at least 2" in error_of(lone)
