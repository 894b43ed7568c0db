"""Triplets come out of every layout as they were written, and every row left out is counted and located."""

import csv
import gzip
import io
import json
import math
import os
import re
import tracemalloc
from pathlib import Path

import pytest
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa import SempaError
from sempa.batching.batches import hold_out, load_dataset
from sempa.config import Config
from sempa.data.triplets import EMPTY, EQUAL, INCOMPLETE, REPEATED, UNLABELLED, Triplet, read_triplets
from sempa.io.rows import numbered_lines

NLI = Path(__file__).resolve().parents[2] / "shared" / "data" / "nli"
needs_nli = pytest.mark.skipif(not NLI.is_dir(), reason="the SNLI dev files are not beside the repository")

HEADER = ["sent0", "sent1", "hard_neg"]
GOOD = [["a man sings", "a person sings", "nobody sings"], ["a dog runs", "an animal moves", "a dog sleeps"]]
# Everything that splits lines or fields somewhere: quotes, delimiters, CR, LF, NEL, LS, PS, VT, FF, FS, and a BOM.
AWKWARD = st.text(
    st.one_of(st.sampled_from('",\t\r\n\x85\u2028\u2029\v\f\x1c\ufeff{ é字😀'), st.characters(codec="utf-8"))
)
SENTENCES = AWKWARD.filter(lambda text: text.strip() and "\0" not in text)
TRIPLETS = st.lists(st.tuples(SENTENCES, SENTENCES, SENTENCES), min_size=1, max_size=6)


def as_csv(rows, delimiter=",", end="\r\n"):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, lineterminator=end).writerows(rows)
    return buffer.getvalue()


def as_jsonl(rows, names=HEADER, ascii_only=False):
    return "".join(json.dumps(dict(zip(names, row)), ensure_ascii=ascii_only) + "\n" for row in rows)


def write(folder, text, name="data.csv", compress=False):
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    (folder / name).write_bytes(gzip.compress(data) if compress else data)
    return folder / name


def texts(triplets):
    return [[t.sentence, t.chosen, t.rejected] for t in triplets]


def numbers_of(note):
    """How many triplets were kept, and how many rows of each kind left out."""
    found = re.findall(r"(?:^|: )([\d,]+)(?: triplet|, first)", note)
    return [int(number.replace(",", "")) for number in found]


def error_of(path):
    with pytest.raises(SempaError) as caught:
        read_triplets(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def labelled(*rows, names=("sentence1", "sentence2", "gold_label")):
    return as_jsonl(rows, names)


# What is read


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_is_read_whatever_its_delimiter_line_end_mark_compression_and_name(
    tmp_path, delimiter, end, bom, compress
):
    path = write(tmp_path, bom + as_csv([HEADER, *GOOD], delimiter, end), "any.name", compress)
    triplets, note = read_triplets(path)
    assert triplets == [Triplet(*GOOD[0], line=2), Triplet(*GOOD[1], line=3)]
    assert note == "2 triplets"


def test_json_lines_are_read_with_their_fields_in_any_order_and_company(tmp_path):
    rows = [dict(zip(["x", *HEADER], [1, *GOOD[0]])), dict(zip(reversed(HEADER), reversed(GOOD[1])))]
    path = write(tmp_path, "\n" + "\n\n".join(map(json.dumps, rows)))
    assert read_triplets(path)[0] == [Triplet(*GOOD[0], line=2), Triplet(*GOOD[1], line=4)]


def test_columns_are_found_by_name_among_others(tmp_path):
    path = write(tmp_path, as_csv([["id", "hard_neg ", " sent1", "sent0"], ["7", "no", "yes", "maybe"]]))
    assert texts(read_triplets(path)[0]) == [["maybe", "yes", "no"]]


@settings(max_examples=150)
@given(rows=TRIPLETS, form=st.sampled_from([",", "\t", "jsonl", "escaped jsonl"]), compress=st.booleans())
def test_any_text_survives_the_round_trip_up_to_line_feeds_and_outer_blanks(tmp_path_factory, rows, form, compress):
    good = [("a premise", "yes", "no")]

    def one_line(text):
        return re.sub(r"\s*[\r\n]+\s*", " ", text).strip()

    rows = [*rows, *good]
    expected = list(dict.fromkeys(t for t in (tuple(map(one_line, row)) for row in rows) if t[1] != t[2]))
    if "jsonl" in form:
        text = as_jsonl(rows, ascii_only=form.startswith("escaped"))
    else:
        # A field that starts with a BOM or is awkward in other ways must not be taken for an unquoted one.
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=form, quoting=csv.QUOTE_ALL).writerows([HEADER, *rows])
        text = buffer.getvalue()
    path = write(tmp_path_factory.mktemp("trip"), text, compress=compress)
    triplets, note = read_triplets(path)
    assert [tuple(t) for t in texts(triplets)] == expected
    assert sum(numbers_of(note)) == len(rows)


@settings(max_examples=100)
@given(rows=st.lists(st.tuples(*[st.text(st.sampled_from('ab",\n'), min_size=1)] * 3), min_size=1, max_size=8))
def test_line_numbers_are_physical_even_where_fields_hold_line_feeds(tmp_path_factory, rows):
    begins, text = [], as_csv([HEADER], end="\n")
    for row in rows:
        begins.append(text.count("\n") + 1)
        text += as_csv([row], end="\n")
    last = [[f"premise {i}", "yes", "no"] for i in range(800)]
    path = write(tmp_path_factory.mktemp("lines"), text + as_csv(last, end="\n"))
    triplets, _ = read_triplets(path)
    assert {t.line for t in triplets[:-800]} <= set(begins)
    assert triplets[-1].line == text.count("\n") + 800
    for triplet in triplets[:-800]:
        row = rows[begins.index(triplet.line)]
        assert triplet.sentence.split() == row[0].split()


def many_rows(path, count, row):
    with gzip.open(path, "wt", newline="", compresslevel=1) as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(map(row, range(count)))
    return path


def test_a_file_of_the_size_of_the_training_set_is_read_whole(tmp_path):
    path = many_rows(tmp_path / "big.csv.gz", 275_601, lambda i: [f"premise {i}", "yes", "no"])
    triplets, note = read_triplets(path)
    assert len(triplets) == 275_601
    assert note == "275,601 triplets"
    assert triplets[-1] == Triplet("premise 275600", "yes", "no", line=275_602)


def test_a_file_is_streamed(tmp_path):
    # Of 40,000 long rows three are kept, so that the peak is what is held of the file itself (11 MB).
    path = many_rows(tmp_path / "big.csv.gz", 40_000, lambda i: [f"{i % 3}{'x' * 90}", "y" * 90, "z" * 90])
    tracemalloc.start()
    try:
        triplets, note = read_triplets(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(triplets), note) == (3, "3 triplets; repeated: 39,997, first in line 5")
    assert peak < 1_000_000


# Labelled pairs


@pytest.mark.parametrize(
    "names, labels",
    [
        (("sentence1", "sentence2", "gold_label"), ("entailment", "neutral", "contradiction")),
        (("premise", "hypothesis", "label"), (0, 1, 2)),
        (("premise", "hypothesis", "label"), ("0", "1", "2")),
        (("premise", "hypothesis", "label"), (0.0, 1.0, 2.0)),
        (("premise", "hypothesis", "label"), ("Entailment", "NEUTRAL", " contradiction")),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", ",", "\t"])
def test_labelled_pairs_make_one_triplet_a_premise_of_the_first_of_each(tmp_path, names, labels, form):
    e, n, c = labels
    rows = [["p", "c1", c], ["q", "c", c], ["p", "n", n], ["p", "e1", e], ["p", "c2", c], ["p", "e2", e], ["r", "e", e]]
    text = as_jsonl(rows, names) if form == "jsonl" else as_csv([names, *rows], form)
    triplets, note = read_triplets(write(tmp_path, text))
    assert triplets == [Triplet("p", "e1", "c1", 4 if form == "jsonl" else 5, neutral="n")]
    assert note == f"1 triplet; {INCOMPLETE}: 2, first in line {2 if form == 'jsonl' else 3}"


def test_combinations_are_every_entailment_with_every_contradiction_of_the_premise(tmp_path):
    rows = [["p", "e1", 0], ["q", "x", 0], ["p", "c1", 2], ["p", "e2", 0], ["p", "c2", 2], ["q", "y", 2]]
    # Neutral sentences take turns.
    rows += [["p", "n1", 1], ["p", "n2", 1]]
    path = write(tmp_path, as_jsonl(rows, ("premise", "hypothesis", "label")))
    triplets, _ = read_triplets(path, combinations=True)
    assert triplets == [
        *(Triplet("p", e, f"c{i}", line, f"n{i}") for e, line in (("e1", 1), ("e2", 4)) for i in (1, 2)),
        Triplet("q", "x", "y", 2),
    ]


# As JSON, NaN is what pandas writes where it has no value.
@pytest.mark.parametrize("label", ["-", -1, "-1", "", None, math.nan])
def test_pairs_without_a_gold_label_are_no_fault_of_the_file(tmp_path, label):
    rows = [["p", "x", label], ["p", "e", "entailment"], ["p", "c", "contradiction"], ["", "x", label]]
    triplets, note = read_triplets(write(tmp_path, labelled(*rows)))
    assert (len(triplets), note) == (1, f"1 triplet; {UNLABELLED}: 2, first in line 1")


def test_the_official_tables_have_bare_quotes_and_rows_that_stop_short_of_the_last_labels(tmp_path):
    header = ["gold_label", "sentence1_parse", "sentence1", "sentence2", "pairID", "label1", "label2"]
    rows = [
        ["entailment", "(X)", '"Yes', 'He said "yes', "1", "entailment", "neutral"],
        ["contradiction", "(X)", '"Yes', "He said no", "2", "contradiction"],
    ]
    path = write(tmp_path, "\n".join("\t".join(row) for row in [header, *rows]))
    assert texts(read_triplets(path)[0]) == [['"Yes', 'He said "yes', "He said no"]]


# What is left out


SKIPPED_ROWS = {EMPTY: ["a", "  ", "c"], EQUAL: ["a", "b", "b"], REPEATED: GOOD[0]}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("kind", SKIPPED_ROWS)
def test_a_bad_row_is_skipped_counted_under_its_kind_and_located(tmp_path, kind, form):
    rows = [*GOOD, SKIPPED_ROWS[kind], ["one", "more", "row"]]
    path = write(tmp_path, as_csv([HEADER, *rows]) if form == "csv" else as_jsonl(rows))
    triplets, note = read_triplets(path)
    first = 2 if form == "csv" else 1
    assert note == f"3 triplets; {kind}: 1, first in line {first + 2}"
    assert triplets[-1].line == first + 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (as_csv([HEADER, *GOOD, ["a", "b"]]), ":4: 2 columns, expected 3"),
        (as_csv([HEADER, *GOOD, ["a", "b", "c", "d"]]), ":4: 4 columns, expected 3"),
        (as_csv([HEADER, *GOOD]) + '"a"b,c,d\n', ":4: ',' expected after '\"'; is a quotation mark left open"),
        (as_jsonl(GOOD) + '{"sent0": "a", "sent1": "b"}', ":3: no field hard_neg"),
        (as_jsonl(GOOD) + '{"sent0": "a", "sent1": ["b"], "hard_neg": "c"}', ":3: sent1 is a list, expected text"),
        (as_jsonl(GOOD) + '{"sent0": "a", "sent1": "\\ud83d", "hard_neg": "c"}', "surrogates not allowed"),
        (as_jsonl(GOOD) + '{"sent0": "a", "sent1"', "not valid JSON: Expecting ':' delimiter at column 23"),
        (as_jsonl(GOOD) + '{"a": ' + "[" * 200_000, "not valid JSON: maximum recursion depth exceeded"),
        (as_jsonl(GOOD) + '["a", "b", "c"]', ":3: a JSON list, expected one object per line"),
        (
            labelled(["p", "e", "maybe"]),
            ":1: gold_label is 'maybe', expected one of entailment, neutral, contradiction, 0",
        ),
        (labelled(["p", ["h"], "neutral"]), ":1: sentence2 is a list, expected text"),
        (
            "sentence1\tsentence2\tgold_label\tlabel1\np\te\tentailment\np\tc\n",
            ":3: 2 columns, expected 4",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_an_error_with_its_line(tmp_path, text, expected):
    assert expected in error_of(write(tmp_path, text))


def test_the_description_is_one_line_with_every_count_and_the_first_places(tmp_path):
    rows = [HEADER, *GOOD, ["", "b", "c"], GOOD[0], ["a", "b", "b"], ["a", "", "c"], ["a", "b", ""]]
    _, note = read_triplets(write(tmp_path, as_csv(rows)))
    assert note == (
        "2 triplets; with an empty field: 3, first in line 4; repeated: 1, first in line 5; with chosen = rejected: 1, "
        "first in line 6"
    )


# Files that cannot be read


def test_a_missing_file_a_folder_and_an_empty_file_are_told_apart(tmp_path):
    assert "no such file" in error_of(tmp_path / "absent.csv")
    assert "is a folder without parquet files" in error_of(tmp_path)
    assert "the file is empty" in error_of(write(tmp_path, ""))
    assert "the file is empty" in error_of(write(tmp_path, "", compress=True))
    for blank in ("\n \n", "\ufeff\n", "\u2028\n\xa0"):
        assert "the file is empty" in error_of(write(tmp_path, blank))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path):
    path = write(tmp_path, as_csv([HEADER, *GOOD]))
    path.chmod(0)
    assert "cannot be read: Permission denied" in error_of(path)


def test_a_refused_read_says_why(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in error_of(tmp_path / "data.csv")


@pytest.mark.parametrize("data", [b"\x93NUMPY\x01\0v\0{", "sent0,sent1,hard_neg\n".encode("utf-16")])
def test_a_binary_or_utf16_file_is_refused(tmp_path, data):
    assert "data.csv:1: not UTF-8 text" in error_of(write(tmp_path, data))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_refused_with_its_line(tmp_path, bom):
    data = bom + as_csv([HEADER, ["un café", "b", "c"]]).encode("latin-1")
    assert "data.csv:2: not UTF-8 text" in error_of(write(tmp_path, data))


def test_a_truncated_or_corrupt_gzip_is_refused(tmp_path):
    rows = [HEADER, *([f"premise {i * 7919}", f"yes {i}", f"no {i * i}"] for i in range(5000))]
    whole = gzip.compress(as_csv(rows).encode())
    assert len(read_triplets(write(tmp_path, whole))[0]) == 5000
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for data in (whole[: len(whole) // 2], whole[:-4], bytes(damaged), b"\x1f\x8bnot gzip at all"):
        message = error_of(write(tmp_path, data))
        assert re.search("gzip data cut short or corrupt after line|not UTF-8|columns, expected 3", message)


def test_an_unclosed_quote_is_located_where_its_row_begins(tmp_path):
    for tail in (100, 40_000):
        rows = [["a", str(i), "c"] for i in range(tail)]
        text = as_csv([HEADER, *GOOD]) + '"opened,b,c\n' + as_csv(rows)
        message = error_of(write(tmp_path, text))
        assert "data.csv:4: " in message and "is a quotation mark left open, or not doubled inside a field?" in message


@pytest.mark.parametrize(
    "text, expected",
    [
        ("sentence,sent1,hard_negative\n1,2,3\n", "the columns 'sentence', 'sent1', 'hard_negative', expected sent0,"),
        (
            '{"sent0": "a", "sent1": "b", "neg": "c"}',
            "the columns 'sent0', 'sent1', 'neg', expected sent0, sent1, hard_neg",
        ),
        ("a man sings,a person sings,nobody sings\n", "or premise, hypothesis, label"),
        ('{"sent0": "a", \n', "Expecting property name"),
        ("sent0,sent1,hard_neg\ra,b,c\r", "new-line character seen in unquoted field"),
    ],
)
def test_a_wrong_header_names_what_was_found_what_is_expected_and_what_is_near(tmp_path, text, expected):
    message = error_of(write(tmp_path, text))
    assert "data.csv:1: " in message
    assert expected in message


def test_a_file_without_a_usable_triplet_is_refused(tmp_path):
    assert "no usable triplet: 0 triplets" in error_of(write(tmp_path, as_csv([HEADER])))
    message = error_of(write(tmp_path, labelled(["p", "e", "entailment"], ["q", "c", "-"])))
    assert "no usable triplet: 0 triplets; without a gold label: 1, first in line 2; premises without" in message


@settings(max_examples=300)
@given(
    head=st.sampled_from(
        [b"", b"sent0,sent1,hard_neg\n", b"sentence1\tsentence2\tgold_label\n", b"\x1f\x8b\x08\0", b"{"]
    ),
    body=st.one_of(st.binary(max_size=80), st.text(st.sampled_from('a,"\t\n\r{}:[')).map(str.encode)),
    compress=st.booleans(),
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_sentence(tmp_path_factory, head, body, compress):
    path = write(tmp_path_factory.mktemp("fuzz"), head + body, compress=compress)
    try:
        triplets, note = read_triplets(path)
    except SempaError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert 0 < len(triplets) == numbers_of(note)[0]


def test_lines_end_at_line_feeds_only(tmp_path):
    path = write(tmp_path, "a\x85b\u2028c\vd\fe\n\nf\r\ng")
    assert list(numbered_lines(path)) == [(1, "a\x85b\u2028c\vd\fe\n"), (2, "\n"), (3, "f\r\n"), (4, "g")]


# Real data


@needs_nli
def test_the_snli_dev_triplets_are_all_kept_as_the_csv_module_reads_them():
    path = NLI / "snli_dev_triplets.csv"
    with path.open(newline="", encoding="utf-8") as file:
        expected = list(csv.reader(file))[1:]
    triplets, note = read_triplets(path)
    assert note == "2,954 triplets"
    assert texts(triplets) == [[field.strip() for field in row] for row in expected]


@needs_nli
def test_the_snli_dev_pairs_give_the_same_triplets_but_one_a_premise():
    # The ready-made triplets pair the n-th entailment with the n-th contradiction; eleven premises, which stand twice
    # in the corpus, have two of each there. Here such a premise gives one triplet, or all combinations.
    ready, _ = read_triplets(NLI / "snli_dev_triplets.csv")
    single, note = read_triplets(NLI / "snli_dev.jsonl")
    assert len(single) == 2943
    assert f"{INCOMPLETE}: 376, first" in note
    first_of_premise = {t[0]: t for t in reversed(texts(ready))}
    assert texts(single) == [first_of_premise[t.sentence] for t in single]
    assert len(ready) - len(first_of_premise) == 11
    every, note = read_triplets(NLI / "snli_dev.jsonl", combinations=True)
    assert len(every) == 3253
    assert f"{REPEATED}: 3, first" in note or f"{EQUAL}: " in note
    assert {tuple(t) for t in texts(ready)} <= {tuple(t) for t in texts(every)}


@given(st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=60), st.integers(0, 20), st.integers(0, 3))
def test_what_is_held_out_has_whole_premises_and_never_more_than_a_fifth(premises, count, seed):
    triplets = [Triplet(premise, f"yes {i}", f"no {i}", line=i) for i, premise in enumerate(premises)]
    train, held_out = hold_out(triplets, count, seed)
    assert sorted(triplet.line for triplet in train + held_out) == list(range(len(triplets)))
    assert not {triplet.sentence for triplet in train} & {triplet.sentence for triplet in held_out}
    assert len(held_out) <= len(triplets) // 5
    if len(set(premises)) == len(premises):
        assert len(held_out) == min(count, len(triplets) // 5)


def test_a_conversation_may_be_exactly_as_long_as_is_allowed(tokenizer, tmp_path):
    path = tmp_path / "triplets.csv"
    path.write_text("sent0,sent1,hard_neg\nA dog runs.,It runs.,A dog sleeps on a long red sofa.\n")
    config = Config(triplets=str(path), held_out=0)
    (preference,) = load_dataset(config, tokenizer).train
    size = len(preference.prompt) + max(map(len, preference.responses))
    assert load_dataset(config, tokenizer, longest=size).too_long == 0
    with pytest.raises(SempaError, match=f"skipped 1 triplet of more than {size - 1} tokens"):
        load_dataset(config, tokenizer, longest=size - 1)


def test_the_work_on_a_large_file_is_shown(tokenizer, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load_dataset(Config(triplet_limit=5, held_out=3), tokenizer)
    shown = capsys.readouterr().err
    assert "tokenizing" in shown and "8/8" in shown


def test_a_limit_counts_what_is_trained_on_and_a_seed_holds_out_its_own_triplets(tokenizer, triplets_file):
    held_out = []
    for seed in (0, 1):
        data = load_dataset(Config(triplets=str(triplets_file), triplet_limit=8, held_out=3, seed=seed), tokenizer)
        assert (len(data.train), len(data.held_out)) == (8, 3)
        held_out.append({preference.line for preference in data.held_out})
    assert held_out[0] != held_out[1]


def test_an_incomplete_premise_is_found_in_its_first_line(tmp_path):
    rows = ("A,b,entailment", "A,c,neutral", "B,d,entailment", "B,e,contradiction")
    (tmp_path / "nli.csv").write_text("\n".join(("premise,hypothesis,label", *rows)))
    assert read_triplets(tmp_path / "nli.csv")[1] == f"1 triplet; {INCOMPLETE}: 1, first in line 2"


def test_a_template_that_ends_no_answer_is_noted(triplets_file):
    config = Config(triplets=str(triplets_file))
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    for tokenizer, noted in ((make_tokenizer(template=template), True), (make_tokenizer(template=None), False)):
        notes = load_dataset(config, tokenizer).notes
        assert ("no token ends an answer, so training does not teach where to stop" in notes) == noted


def test_sentences_that_differ_in_a_capital_differ(tmp_path):
    (tmp_path / "t.csv").write_text("sent0,sent1,hard_neg\nA polish man.,He is Polish.,He is polish.\n")
    assert read_triplets(tmp_path / "t.csv")[1] == "1 triplet"


def test_a_cell_of_many_blanks_is_read_in_linear_time(tmp_path):
    """In quadratic time it would take hours."""
    file = tmp_path / "t.csv"
    file.write_text(f'sent0,sent1,hard_neg\n"a{" " * 10**6}b",c,d\n"a {" " * 10**6}\n  b",c,d\n')
    (first, second), _ = read_triplets(file)
    assert len(first.sentence) == 10**6 + 2
    assert second.sentence == "a b"
