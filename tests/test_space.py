"""The embedding space of both sides: each figure from the right embeddings, and the tables and pages that show them."""

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from conftest import with_adapter
from test_report import HISTORY, example, parse

from sempa.cli import main
from sempa.data.sts import ScoredPair, StsTask, distinct_sentences
from sempa.embedding.embedder import Embedder
from sempa.errors import SempaError
from sempa.evaluation.geometry import all_measures, unit_vectors
from sempa.evaluation.measure import embed_sides, measure_geometry, measure_sts
from sempa.model.adapter_files import save_adapter
from sempa.model.base import load_base
from sempa.report import plots
from sempa.report.run_report import page, terminal_table

PEOPLE = ("man", "woman", "girl", "boy", "dog", "cat", "bird")
FIRST = StsTask("first", [ScoredPair(f"A {x} runs.", f"The {x} is running.", 5 - i % 3) for i, x in enumerate(PEOPLE)])
SECOND = StsTask("x < & > y", [ScoredPair(f"A {x} runs.", f"A {x} sleeps.", i % 5) for i, x in enumerate(PEOPLE)])


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    base = load_base(str(tiny_folder), "float32", "cpu")
    save_adapter(with_adapter(base.model, 0.1), folder, str(tiny_folder))
    return folder


@pytest.fixture(scope="module")
def embedders(tiny_folder, adapter):
    return {
        "base": Embedder(str(tiny_folder), dtype="float32", device="cpu"),
        "aligned": Embedder(str(tiny_folder), adapter, dtype="float32", device="cpu", merged=False),
    }


def test_the_sides_are_the_model_without_and_with_its_adapter(embedders):
    sentences = distinct_sentences(FIRST.pairs)
    sides = embed_sides(embedders["aligned"].base, [*sentences, *sentences])
    for side, embedder in embedders.items():
        assert list(sides[side]) == sentences
        np.testing.assert_allclose(list(sides[side].values()), embedder.encode(sentences), rtol=1e-4, atol=1e-5)
    assert all(np.abs(sides["base"][text] - sides["aligned"][text]).max() > 1e-3 for text in sentences)


def test_a_task_is_measured_on_its_own_sentences(embedders):
    everything = distinct_sentences([*FIRST.pairs, *SECOND.pairs])
    found = measure_geometry(SECOND, embed_sides(embedders["aligned"].base, everything))
    sentences = distinct_sentences(SECOND.pairs)
    positives = [[sentences.index(p.first), sentences.index(p.second)] for p in SECOND.pairs if p.score > 3.2]
    for side, embedder in embedders.items():
        expected = all_measures(embedder.encode(sentences), np.array(positives))
        # Rounding of float32 embeddings, other batches.
        np.testing.assert_allclose(found[side].pop("spectrum"), expected.pop("spectrum"), rtol=1e-3, atol=1e-5)
        assert found[side] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert (found["task"], found["sentences"]) == ("x < & > y", 14)
    assert found["positives"] == len(positives)


def test_a_report_measures_the_embeddings_that_similarity_has_scored(embedders):
    base = embedders["aligned"].base
    table, scatter, sides = measure_sts(base, [FIRST, SECOND])
    assert [row["task"] for row in table] == ["first", "x < & > y"]
    assert scatter["gold"] == [pair.score for pair in SECOND.pairs]
    for side, embedder in embedders.items():
        first, second = (
            unit_vectors(embedder.encode([getattr(pair, name) for pair in SECOND.pairs]))
            for name in ("first", "second")
        )
        np.testing.assert_allclose(scatter[side], (first * second).sum(1), atol=1e-5)
    # Marks that only the given embeddings leave.
    zeros = {side: {sentence: 0 * vector for sentence, vector in vectors.items()} for side, vectors in sides.items()}
    with pytest.raises(SempaError, match="vector 0: is zero"):
        measure_geometry(SECOND, zeros)


def full_report(sides=("base", "aligned"), width=12):
    random = np.random.default_rng(0)
    sentences = distinct_sentences(SECOND.pairs)
    vectors = {side: dict(zip(sentences, random.standard_normal((14, width)))) for side in sides}
    cosines = {side: random.uniform(-1, 1, 7).tolist() for side in sides}
    gold = [pair.score for pair in SECOND.pairs]
    return {
        "geometry": [measure_geometry(SECOND, vectors)],
        "scatter": {"task": SECOND.name, "gold": gold, **cosines},
    }


def test_the_run_report_shows_geometry_and_escapes_what_it_names():
    report = {**example(), **full_report()}
    html = page(report, HISTORY)
    parser = parse(html)
    text = " ".join(parser.text)
    measured = report["geometry"][0]
    for side in ("base", "aligned"):
        for key, digits in (("alignment", 3), ("uniformity", 3), ("isoscore", 4), ("hubness", 2)):
            assert f"{measured[side][key]:.{digits}f}" in text
    assert "Geometry, x < & > y: 14 sentences, 1 positive pair" in text
    assert "x < & > y" not in html
    assert len(parser.ids) == len(set(parser.ids))
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        assert ET.fromstring(picture)[0].text
        assert "#123456" not in picture
    # Black ticks would vanish in the dark: all letters of a picture have the page's own colour.
    colours = [colour for picture in pictures for colour in inks(ET.fromstring(picture))]
    assert len(colours) > 50
    assert set(colours) == {"currentColor"}
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert page(report, HISTORY) == html
    table = terminal_table(report)
    assert max(map(len, table.splitlines())) <= 100
    row = next(line for line in table.splitlines() if "effective rank" in line)
    assert row.split()[-2:] == [f"{measured[side]['effective_rank']:.1f}" for side in ("base", "aligned")]


def test_the_command_measures_the_space_of_every_task(tiny_folder, adapter, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    lines = [f"{pair.first},{pair.second},{pair.score}" for pair in FIRST.pairs]
    pairs.write_text("\n".join(["sentence1,sentence2,score", *lines, "No score.,None.,"]) + "\n")
    options = ["--sts", str(pairs), "--builtin-pairs", "20", "--dtype", "float32", "--no-drift"]
    out = tmp_path / "out.json"
    assert main(["evaluate", "--geometry", "--adapter", str(adapter), *options, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    saved = json.loads(out.read_text())
    assert saved["model"] == str(tiny_folder)
    assert "1 pair without a gold score left out" in printed
    builtin, measured = saved["geometry"]
    assert builtin["task"] == "built-in"
    sentences = distinct_sentences(FIRST.pairs)
    vectors = Embedder(str(tiny_folder), adapter, dtype="float32").encode(sentences)
    positives = [[sentences.index(p.first), sentences.index(p.second)] for p in FIRST.pairs if p.score > 4.6]
    expected = all_measures(vectors, np.array(positives))
    for key in ("alignment", "uniformity", "mean_cosine", "isoscore", "effective_rank"):
        assert measured["aligned"][key] == pytest.approx(expected[key], rel=1e-3)
    assert f"{expected['effective_rank']:.1f}" in printed


def inks(element, colour="black"):
    """The colour of every text below an element, its own or inherited."""
    found = re.search(r"fill: ([^;]*)", element.get("style", ""))
    colour = found[1] if found else colour
    own = [colour] if element.tag.endswith("}text") else []
    return own + [one for child in element for one in inks(child, colour)]


def test_an_axis_of_less_than_a_decade_has_labels_in_the_pages_ink():
    side = {"spectrum": [4.0, 3.0, 2.0], "effective_rank": 3.0}
    assert set(inks(ET.fromstring(plots.spectrum({"base": side, "aligned": side})))) == {"currentColor"}
