"""The main table's figures are those of the bootstrap, and each format says the same."""

import csv
import io
import json
import re

import numpy as np
import pytest
from miniature_sts import write_seven_sets

from sempa.data.sts import SETS, read_sts
from sempa.evaluation.statistics import bootstrap, compare, interval
from sempa.evaluation.sts import score_sts
from sempa.evaluation.table import BASELINE, Method, summarise
from sempa.report.table import similarity_content, write_table


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sts")
    write_seven_sets(folder)
    return read_sts(folder, ("dev", "trial"), sets=SETS)


def figures_of(row):
    return {**row["tasks"], "average": row["average"]}


# The figures


def made_rows(tasks, *noises):
    """Rows whose cosines follow the gold scores, the less the noisier; the first is the baseline."""
    rng = np.random.default_rng(3)
    methods = [BASELINE, Method("mean"), Method("prompteol", adapter="run/adapter")]
    return {
        method: [score_sts(task, task.gold + noise * rng.standard_normal(len(task.pairs))) for task in tasks]
        for method, noise in zip(methods, noises)
    }


def test_intervals_and_tests_are_those_of_the_bootstrap_on_the_same_draws(tasks):
    rows = made_rows(tasks, 1.0, 2.0, 0.4)
    figures = summarise(rows, 200, seed=4)
    assert figures["baseline"] == "prompteol"
    draws = [
        [bootstrap(result.cosines, result.task.gold, 200, (4, *result.task.name.encode())) for result in results]
        for results in rows.values()
    ]
    for row, drawn in zip(figures["rows"], draws):
        for figure, values in zip(figures_of(row).values(), [*drawn, np.mean(drawn, 0)], strict=True):
            assert figure["spearman_interval"] == pytest.approx(interval(values))
    base, mean, adapter = (figures_of(row) for row in figures["rows"])
    assert "versus" not in base["average"]
    expected = compare(
        adapter["average"]["spearman"], base["average"]["spearman"], np.mean(draws[2], 0), np.mean(draws[0], 0)
    )
    assert adapter["average"]["versus"]["p"] == expected["p"] < 0.05
    assert adapter["average"]["versus"]["interval"] == pytest.approx(expected["interval"])
    assert adapter["average"]["versus"]["difference"] == pytest.approx(expected["difference"])
    one = compare(mean["STS14"]["spearman"], base["STS14"]["spearman"], draws[1][2], draws[0][2])
    assert mean["STS14"]["versus"]["p"] == one["p"] > 0.5


def test_a_sets_interval_does_not_depend_on_its_neighbours(tasks):
    rows = made_rows(tasks, 1.0)
    alone = figures_of(summarise({BASELINE: rows[BASELINE][3:4]}, 50)["rows"][0])
    together = figures_of(summarise(rows, 50)["rows"][0])
    assert alone["STS15"] == together["STS15"]
    assert alone["average"].items() <= alone["STS15"].items()


def test_without_the_baseline_or_draws_there_is_no_test(tasks):
    rows = made_rows(tasks, 1.0, 2.0)
    (row,) = summarise({Method("mean"): rows[Method("mean")]}, 50)["rows"]
    assert set(row["average"]) == {"spearman", "pearson", "spearman_interval"}


# The formats


@pytest.fixture(scope="module")
def report(tasks):
    return {"model": "tiny <b>|model", "base_source": "x", **summarise(made_rows(tasks, 1.0, 2.0, 0.4), 50)}


def written(report, folder):
    """The table as plain text, Markdown and HTML."""
    plain = write_table(folder, "table", report, similarity_content(report))
    return plain, (folder / "table.md").read_text(), (folder / "table.html").read_text()


def cells_of(text):
    """The rows of the Markdown tables as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_format_has_the_same_scores(report, tmp_path):
    plain, marked, html = written(report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"table.{end}" for end in ("json", "csv", "md", "html")}
    saved = json.loads((tmp_path / "table.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    for row, line in zip(saved["rows"], lines, strict=True):
        figures = figures_of(row)
        scores = [figure["spearman"] for figure in figures.values()]
        shown = [f"{score:.2f}" for score in scores]
        assert line["method"] == row["label"]
        assert [float(line[name]) for name in figures] == scores
        assert float(line["average pearson"]) == figures["average"]["pearson"]
        assert float(line["STS12 subtasks forum"]) == figures["STS12"]["subtasks"]["forum"]
        ends = [float(line[f"average spearman_interval {end}"]) for end in ("low", "high")]
        assert ends == figures["average"]["spearman_interval"]
        assert line["average versus p"] == str(figures["average"].get("versus", {"p": ""})["p"])
        first = next(cells for cells in cells_of(marked) if cells[0] == row["label"])
        assert first[1:9] == shown
        (text,) = (text for text in plain.splitlines() if text.startswith(f"  {row['label']}  "))
        assert text.removeprefix(f"  {row['label']}").split()[:8] == shown
        assert all(f"<td>{score}</td>" in html for score in shown)
    assert saved["tasks"][0] == {"pairs": 18, "name": "STS12"}


def test_quoted_rows_are_those_of_the_papers_and_only_beside_all_seven_sets(report, tasks, tmp_path):
    _, (_, columns, quoted) = similarity_content(report)[0]
    assert columns == ["method", "source", *SETS, "average"]
    full = [row for row in quoted if row[2]]
    assert len(full) == 12
    for method, _, *scores, average in full:
        # Both are rounded to two decimals in print.
        assert sum(map(float, scores)) / 7 == pytest.approx(float(average), abs=0.0101), method
    assert [row[-1] for row in quoted if row[0].endswith("SemPA")] == ["77.69", "78.10"]
    assert [row[-1] for row in quoted if "contrastive" in row[0]] == ["84.79", "85.70"]
    assert [row[1:] for row in quoted if "AlignedWVA" in row[0]] == [
        ["arXiv 2602.01572", *[""] * 7, average] for average in ("77.91", "76.25")
    ]
    assert all("Quoted, not measured here" in text for text in written(report, tmp_path))
    fewer = {"model": "tiny", **summarise(made_rows(tasks[1:], 1.0), 50)}
    assert "quoted" not in "".join(written(fewer, tmp_path)).lower()


def test_what_was_left_out_and_what_the_columns_mean_is_said_in_every_format(report, tmp_path):
    for text in written(report, tmp_path):
        assert "STS12: 2 pairs without a gold score left out" in text
        assert "percentile interval of 50 bootstrap draws" in text
        assert "one-sided paired bootstrap test that the row beats prompteol" in text


def test_the_page_needs_nothing_else_and_names_are_escaped(report, tmp_path):
    _, marked, html = written(report, tmp_path)
    assert "tiny &lt;b&gt;|model" in html
    assert "<b>" not in html
    assert not re.search(r"<(script|link|img|iframe)|https?://(?!www\.w3\.org)|@import|url\((?!#)", html)
    assert "forum" in html
    assert "### tiny <b>|model" in marked


def test_the_details_of_a_set_stand_below_their_names(report):
    first = report["rows"][0]
    figure = {"spearman": 70.0, "pearson": 60.0, "subtasks": {}, "spearman_interval": (65.0, 75.0)}
    row = {**first, "average": figure, "tasks": dict.fromkeys(first["tasks"], figure)}
    _, (details, *_), _ = similarity_content({**report, "rows": [row]})
    shown = dict(zip(details.columns[:4], details.rows[0]))
    assert shown == {"method": "prompteol", "Spearman": "70.00", "95 %": "65.0 – 75.0", "Pearson": "60.00"}


def test_sub_tasks_have_their_scores_and_mean(report, tmp_path):
    cells = cells_of(written(report, tmp_path)[1])
    place = cells.index(["method", "forum", "news", "mean"])
    forum, news = report["rows"][0]["tasks"]["STS12"]["subtasks"].values()
    assert cells[place + 2] == ["prompteol", f"{forum:.2f}", f"{news:.2f}", f"{(forum + news) / 2:.2f}"]


def test_a_single_set_has_no_average_but_its_details(tasks, tmp_path):
    one = {"model": "tiny", **summarise(made_rows(tasks[6:], 1.0, 2.0), 50)}
    ((_, columns, rows),), _, _ = similarity_content(one)
    assert columns == ["method", "SICK trial", "95 %", "p"]
    assert [row[3] != "" for row in rows] == [False, True]
    plain, *_ = written(one, tmp_path)
    assert "SICK trial, 12 pairs" in plain
    assert "Pearson" in plain


def test_two_sets_have_an_average_and_leave_the_details_to_the_files(tasks, tmp_path):
    two = {"model": "tiny", **summarise(made_rows(tasks[5:], 1.0, 2.0), 50)}
    ((_, columns, (_, row)),), _, _ = similarity_content(two)
    assert columns == ["method", "STS-B dev", "SICK trial", "average", "95 %", "p"]
    average = two["rows"][1]["average"]
    assert (row[3], row[-1]) == (f"{average['spearman']:.2f}", f"{average['versus']['p']:.3f}")
    assert "Pearson" not in written(two, tmp_path)[0]
