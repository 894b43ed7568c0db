"""The report: the figures it was given, safe HTML, well-formed pictures, the same bytes every time."""

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from unittest.mock import MagicMock

import pytest

from sempa.io.files import finite
from sempa.report import plots, run_report
from sempa.report.render import interval_cell, markdown_table, text_table
from sempa.report.run_report import page, terminal_table, write_report

CHANGE = {"change_interval": (1.04, 5.0), "p": 0.001}
VOID = {"meta", "br", "link", "img", "input"}


def example():
    gold = [i % 6 / 1.0 for i in range(400)]
    return {
        "model": "smollm2-135m",
        "base_source": "cache/model",
        "command": "sempa train x.yaml",
        "config": {"beta": 0.1, "output": "<b>&"},
        "versions": {"torch": "2"},
        "machine": {"cpu": "a cpu"},
        "seconds": {"total": 512.3, "training": 301.0, "evaluation": 150.2},
        "peak_memory_gib": 2.1234,
        "training": {"used": 2659, "steps": 84, "best_step": 63, "source": "built-in captions"},
        "sts": [
            {"task": "built-in", "pairs": 600, "base": 60.118, "aligned": 71.554, **CHANGE},
            {"task": "STS-B dev", "pairs": 1500, "base": 73.841, "aligned": 77.419, **CHANGE},
        ],
        "preference": {
            "triplets": 295,
            "base_accuracy": 0.824,
            "aligned_accuracy": 0.931,
            "reward_accuracy": 0.917,
            "reward_margin": 2.345,
        },
        "drift": [
            {
                "text": "passages",
                "tokens": 5234,
                "base_perplexity": 6.281,
                "aligned_perplexity": 6.302,
                "change": 0.0034,
                "change_stderr": 0.0021,
                "kl": 0.0123,
                "agreement": 0.943,
            }
        ],
        "generations": [
            {
                "prompt": 'Say "hi" & <go>',
                "base": "<script>alert(1)</script>",
                "aligned": "fine\nhere",
                "unchanged": 0.25,
            },
            {"prompt": "Hi", "base": "Hello", "aligned": "Hello", "unchanged": 1.0},
        ],
        "scatter": {
            "task": "STS-B dev",
            "gold": gold,
            "base": [g / 10 + 0.3 for g in gold],
            "aligned": [g / 6 for g in gold],
        },
    }


CURVE = [{"scale": scale, "kl": scale / 10, "score": 70.0} for scale in (0.0, 0.5, 0.75, 1.0)]
BUDGET = {"kl_budget": 0.05, "scale": 0.5, "task": "STS-B dev, 400 pairs", "curve": CURVE}
HISTORY = [
    {
        **{"step": s, "loss": 1 / s, "nll_loss": 0.5 / s, "ches": -s / 2},
        **{"rewards/margins": s / 9, "rewards/chosen": s / 20, "rewards/rejected": s / 20 - s / 9},
    }
    for s in range(1, 30)
] + [{"step": 10, "eval/sts": 74.0}, {"step": 20, "eval/sts": 76.0}]


class Nesting(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[k] for k in ("src", "href", "xlink:href") if k in values]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    parser = Nesting()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_the_page_holds_the_figures_it_was_given_and_its_tags_are_balanced():
    text = " ".join(parse(page(example(), HISTORY)).text)
    for figure in ("73.84", "77.42", "+3.58", "82.4 %", "93.1 %", "2.35", "6.281", "+0.3 %", "0.0123", "2.12", "8.5"):
        assert figure in text, figure


def test_what_a_model_or_a_user_wrote_is_escaped():
    html = page(example(), HISTORY)
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "Say &#34;hi&#34; &amp; &lt;go&gt;" in html
    assert "&lt;b&gt;&amp;" in html


def test_the_page_asks_nothing_of_the_network_and_its_ids_are_unique():
    html = page(example(), HISTORY)
    parser = parse(html)
    assert len(parser.ids) == len(set(parser.ids))
    assert all(link.startswith("#") and link[1:] in parser.ids for link in parser.links)
    assert all(target in parser.ids for target in re.findall(r"url\(#([^)]*)\)", html))
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "http" not in without_namespaces


def test_every_picture_is_well_formed_xml_with_a_title_and_the_pages_own_ink():
    pictures = re.findall(r"<svg.*?</svg>", page(example(), HISTORY), flags=re.DOTALL)
    assert len(pictures) == 2
    assert "CHES of chosen and rejected" in pictures[0]
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.get("viewBox")
        assert root.get("width") is None
        assert root[0].tag.endswith("title")
        assert root[0].text
        assert "currentColor" in picture
        assert "#123456" not in picture


def test_the_same_report_gives_the_same_bytes_and_stays_small():
    first, second = (page(example(), HISTORY) for _ in range(2))
    assert first == second
    large = example()
    large["scatter"] = {
        "task": "STS-B dev",
        **{k: [i / 9000 for i in range(9000)] for k in ("gold", "base", "aligned")},
    }
    assert len(page(large, HISTORY)) < 700_000


def test_the_terminal_table_fits_a_hundred_columns_and_holds_the_figures():
    table = terminal_table(example())
    assert max(map(len, table.splitlines())) <= 100
    row = next(line for line in table.splitlines() if "STS-B dev" in line)
    assert row.split() == ["STS-B", "dev", "1,500", "73.84", "77.42", "+3.58", "+1.0", "–", "+5.0", "0.001"]
    assert "reward margin (nats)" in table
    rows = {line.split("  ")[1]: line.split()[1:] for line in table.splitlines() if line.startswith("  ")}
    assert rows["preference accuracy"] == ["accuracy", "82.4", "%", "93.1", "%"]
    assert rows["reward accuracy"] == ["accuracy", "91.7", "%"]
    assert " ".join(rows["passages"]) == "5,234 6.281 6.302 +0.3 % ± 0.2 % 0.0123 94.3 %"
    # Answers that are identical are one of two.
    assert re.search(r"identical.*\n *2 +62\.5 % +50\.0 %", table)
    assert "84 (best at 63)" in table
    # Minutes in all, of training and of evaluation.
    assert "8.5 (5.0, 2.5)" in table
    # One text alone has no error, and a report of version 0.1 says none.
    (row,) = example()["drift"]
    del row["change_stderr"]
    for alone in (row, {**row, "change_stderr": math.nan}):
        assert " +0.3 %  " in terminal_table({**example(), "drift": [alone]})


def test_hellaswag_stands_below_its_side():
    measured = {"base": 0.41, "aligned": 0.4, "change": -0.01, "p": 0.25}
    errors = {"base_stderr": 0.011, "aligned_stderr": 0.012, "change_stderr": 0.003}
    row = terminal_table({"hellaswag": {"tasks": 2000, **measured, **errors}}).splitlines()[-1]
    assert " ".join(row.split()) == "accuracy (acc_norm) 2,000 41.0 % ± 1.1 % 40.0 % ± 1.2 % -1.00 % ± 0.30 % 0.250"


def test_one_scale_alone_is_the_saved_one():
    (line,) = (line for line in terminal_table({**example(), "budget": BUDGET}).splitlines() if "(saved)" in line)
    assert line.split() == ["0.500", "(saved)", "0.0500", "70.00"]


def test_a_table_without_names_has_no_empty_line():
    assert text_table("Cost", ["", ""], [["steps", "44"]]) == "Cost\n  steps  44"


def test_a_bar_in_a_cell_ends_no_cell():
    lines = markdown_table("t", ["a", "b|c"], [["x|y", "1"]]).splitlines()
    assert lines[2:] == ["| a | b\\|c |", "| --- | ---: |", "| x\\|y | 1 |"]


@pytest.fixture
def axes(monkeypatch):
    """What is drawn on each axis, call by call."""
    made = []

    def make_figure(columns, *_, **__):
        made.extend(MagicMock() for _ in range(columns))
        return MagicMock(), made

    monkeypatch.setattr(plots, "make_figure", make_figure)
    monkeypatch.setattr(plots, "svg", lambda *_: "")
    return made


def test_the_colours_stand_out_on_light_and_on_dark():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    # The contrast ratio that WCAG 2.2 asks of graphics (1.4.11).
    for colour in plots.COLOURS.values():
        for ground in ("#ffffff", "#121212"):
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3


def test_a_legend_stands_below_its_axis_and_titles_are_of_one_size():
    pytest.importorskip("matplotlib")
    picture = ET.fromstring(plots.curves(HISTORY))
    texts = {"".join(node.itertext()).strip(): node for node in picture.iterfind(".//{*}text")}
    assert float(texts["margins"].get("y")) > float(texts["step"].get("y"))
    assert "9px" in texts["implicit reward (nats)"].get("style")


def test_paper_shows_closed_details_and_whole_tables():
    html = page(example(), HISTORY)
    assert "details::details-content { content-visibility: visible; }" in html
    assert ".scroll, figure { overflow: visible; }" in html


def test_of_many_pairs_each_point_is_one_pair(axes):
    gold = [i / 4000 for i in range(4000)]
    plots.scatter({"task": "t", "gold": gold, "base": [-g for g in gold], "aligned": [2 * g for g in gold]})
    for axis, factor in zip(axes, (-1, 2), strict=True):
        x, y = axis.scatter.call_args.args
        assert 1000 < len(x) <= 1500
        assert x[-1] > 0.99  # a sample of all pairs, not the first of them
        assert y == [factor * g for g in x]


def test_the_saved_scale_and_the_budget_are_marked(axes):
    plots.budget(BUDGET)
    assert [axis.plot.call_args.args[1] for axis in axes] == [[70.0] * 4, [0.0, 0.05, 0.075, 0.1]]
    assert [axis.axvline.call_args.args for axis in axes] == [(0.5,), (0.5,)]
    assert axes[1].axhline.call_args.args == (0.05,)
    assert not axes[0].axhline.called


def test_each_spectrum_has_its_own_effective_rank(axes):
    ranks = {"base": 12.0, "aligned": 34.0}
    plots.spectrum({side: {"spectrum": [3.0, 2.0, 1.0], "effective_rank": rank} for side, rank in ranks.items()})
    (axis,) = axes
    labels = [call.kwargs["label"] for call in axis.loglog.call_args_list]
    assert labels == ["base: effective rank 12", "aligned: effective rank 34"]
    assert [call.args for call in axis.axvline.call_args_list] == [(12.0,), (34.0,)]
    for call in axis.loglog.call_args_list:
        places, fractions = call.args
        assert places.tolist() == [1, 2, 3]
        assert fractions.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6])


def test_a_curve_is_drawn_over_the_steps_that_have_its_figure(axes):
    losses = [{"step": step, "loss": 6.0 - step, "nll_loss": 1.0 / step} for step in (1, 2, 4)]
    scores = [{"step": 2, "eval/sts": 70.0}, {"step": 4, "eval/sts": 75.0}]
    plots.curves([*losses[:2], scores[0], losses[2], scores[1]])
    drawn = {call.kwargs["label"]: call.args for axis in axes for call in axis.plot.call_args_list}
    assert drawn == {
        "loss": ([1, 2, 4], [5.0, 4.0, 2.0]),
        "nll_loss": ([1, 2, 4], [1.0, 0.5, 0.25]),
        "sts": ([2, 4], [70.0, 75.0]),
    }


@pytest.mark.parametrize("missing", ["sts", "preference", "drift", "generations", "scatter", "seconds"])
def test_a_part_that_is_absent_or_empty_is_left_out(missing):
    for value in (None, [], {}):
        report = {**example(), missing: value}
        parse(page(report, HISTORY))
        terminal_table(report)
    parse(page({k: v for k, v in example().items() if k != missing}, []))


def test_figures_that_are_not_finite_read_na_and_become_null(tmp_path):
    report = example()
    report["drift"][0]["kl"] = math.inf
    write_report(tmp_path, report, HISTORY)
    saved = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["drift"][0]["kl"] is None
    assert saved["drift"][0]["agreement"] == 0.943
    assert "n/a" in (tmp_path / "report.html").read_text()
    assert finite({"a": [math.nan, 1.0, "x"]}) == {"a": [None, 1.0, "x"]}


def test_without_matplotlib_the_page_says_how_to_get_pictures(monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    html = page(example(), HISTORY)
    assert "<svg" not in html
    assert "pip install matplotlib" in html


def test_the_page_begins_with_score_drift_and_time_and_shows_each_answer_on_its_side():
    html = page(example(), HISTORY)
    for text in ("STS-B dev: 73.8 → 77.4.", "Perplexity on passages: +0.3", "84 steps, 8.5 minutes in all."):
        assert text in html
    assert "<b>base</b>&lt;script&gt;alert(1)&lt;/script&gt;</div><div><b>aligned</b>fine" in html


def test_an_interval_without_ends_is_shown_as_such():
    assert interval_cell([-0.04, 12.34], sign="+") == "-0.0 – +12.3"
    assert interval_cell([math.nan, math.nan]) == interval_cell([None, None]) == "n/a – n/a"


def test_a_run_whose_page_cannot_be_made_is_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, example(), HISTORY)
    assert not (tmp_path / "report.json").exists()
