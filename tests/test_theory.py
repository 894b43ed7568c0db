"""The theory program: every statement holds, every control fails, and a broken loss turns a named statement red."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from sempa import losses, theory, verify_theory
from sempa.losses import infonce, plackett_luce
from sempa.theory import log_sum, pictures, sphere
from sempa.theory.statement import Measurement, Statement, compare, exceeds, verify

BY_NAME = {statement.name: statement for statement in theory.ALL}


@pytest.mark.parametrize("name", BY_NAME)
def test_the_statement_holds_and_its_check_has_power(name):
    verdict = verify(BY_NAME[name], seed=11, trials=16)
    assert verdict.worst.holds, verdict.worst
    assert verdict.controls_rejected
    assert verdict.has_power, verdict.controls_rejected


@pytest.mark.parametrize("seed", [6, 31, 39, 41, 46, 628, 3181, 44087])
def test_negatives_so_hard_that_a_thousand_are_few_are_no_fault(seed):
    """With χ² of hundreds, χ²/(2K) is most of the gap only far beyond K = 1,024."""
    statement = BY_NAME["hard-negatives-bound-kl"]
    assert all(one.holds for one in statement.check(statement.claim, torch.Generator().manual_seed(seed), 1))


@pytest.mark.parametrize("sets", [[(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)], [(0, 1, 2), (2, 3, 4), (4, 5, 0)]])
def test_any_comparisons_that_connect_all_responses_have_one_optimum(sets):
    statement = BY_NAME["optimum-is-unique"]
    assert all(one.holds for one in statement.check(lambda: sets, torch.Generator().manual_seed(0), 1))


# What is broken, in which file, and the statement that must notice.
MUTANTS = [
    (infonce, "(negatives - positive)", "(positive - negatives)", "top1-is-infonce"),
    (infonce, "/ temperature", "* temperature", "top1-is-infonce"),
    (infonce, "-F.logsigmoid(-margins.logsumexp(1))", "margins.logsumexp(1)", "ranking-is-shrinking-infonce"),
    (infonce, "margins.logsumexp(1)", "margins.logsumexp(1) * 0.999", "one-word-is-infonce"),
    (plackett_luce, "scores[:, None].masked", "(-scores)[:, None].masked", "gradient-is-softmax"),
    (plackett_luce, ".triu()", ".tril()", "orders-sum-to-one"),
    (plackett_luce, ".sum(1)\n\n\ndef", ".mean(1)\n\n\ndef", "ranking-is-shrinking-infonce"),
    (plackett_luce, ".log_softmax(2)", ".sub(candidates.amax(2, keepdim=True))", "gumbel-choice"),
    (
        losses.dpo,
        "beta * (chosen_log_ratio - rejected_log_ratio)",
        "chosen_log_ratio - rejected_log_ratio",
        "bradley-terry",
    ),
    (
        losses.dpo,
        "policy_rejected, reference_chosen, reference_rejected, beta",
        "policy_rejected, 0 * reference_chosen, reference_rejected, beta",
        "one-word-preference-moves-state",
    ),
]


@pytest.mark.parametrize(("module", "right", "wrong", "name"), MUTANTS)
def test_a_broken_loss_turns_the_statement_red(module, right, wrong, name, monkeypatch):
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(right) >= 1
    space = {"__name__": module.__name__}
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), space)
    for part in ("ranking", "choice", "optimum", "one_word"):
        for function in ("infonce_loss", "plackett_luce_loss", "dpo_loss"):
            if function in space and hasattr(getattr(theory, part), function):
                monkeypatch.setattr(getattr(theory, part), function, space[function])
    assert not verify(BY_NAME[name], seed=0, trials=8).worst.holds


def test_a_check_that_finds_no_number_or_nothing_does_not_pass():
    def statement(measurements):
        return Statement("s", "e", "t", None, {"c": None}, lambda *_: measurements)

    for errors in ([math.nan], [0.1, math.nan, 0.2]):
        assert not verify(statement([Measurement(error, 1.0) for error in errors]), 0, 1).worst.holds
    nothing, zero = torch.tensor([math.nan, 0.0]), torch.zeros(2)
    for found in (Measurement(math.nan, 1.0), exceeds(nothing, zero, 1.0), compare(nothing, zero, 1.0)):
        assert not found.holds
    # A control that is not rejected is a failure too.
    blind = verify(statement([Measurement(0.0, 1.0)]), 0, 1)
    assert blind.worst.holds
    assert not blind.passed
    assert not blind.as_dict()["control_rejected"]
    # So is one of several.
    seeing = Statement("s", "e", "t", 0, {"seen": 1, "unseen": 0}, lambda claim, *_: [Measurement(float(claim), 0.5)])
    assert verify(seeing, 0, 1).controls_rejected == {"seen": True, "unseen": False}
    assert not verify(seeing, 0, 1).as_dict()["control_rejected"]
    with pytest.raises(ValueError, match="empty"):
        verify(statement([]), 0, 1)
    # A small error beyond its tolerance is worse than a large one within.
    found = [Measurement(1.0, 2.0), Measurement(1e-3, 1e-6)]
    assert verify(statement(found), 0, 1).worst == found[1]


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_the_expected_logarithm_of_a_sum_is_that_of_enumeration(draws):
    generator = torch.Generator().manual_seed(3)
    values = (3 * torch.randn(2, 3, generator=generator, dtype=torch.float64)).exp()
    values[1, 2] = 0
    probabilities = torch.randn(2, 3, generator=generator, dtype=torch.float64).softmax(1)
    fixed = torch.tensor([0.7, 1e-4], dtype=torch.float64)
    found = log_sum.expected_log_sum(fixed, values, probabilities, draws)
    for row in range(2):
        expected = 0.0
        for outcome in product(range(3), repeat=draws):
            chance = math.prod(probabilities[row, j].item() for j in outcome)
            expected += chance * math.log(fixed[row].item() + sum(values[row, j].item() for j in outcome))
        assert found[row].item() == pytest.approx(expected, abs=1e-12)


def test_the_mean_of_chance_hits_agrees_with_the_binomial_sum():
    negatives, share = 40, 0.03
    found = log_sum.expected_log_sum(
        *(torch.tensor(x, dtype=torch.float64) for x in ([1.0], [[1.0, 0.0]], [[share, 1 - share]])), negatives
    )
    expected = sum(
        math.comb(negatives, hits) * share**hits * (1 - share) ** (negatives - hits) * math.log(1 + hits)
        for hits in range(negatives + 1)
    )
    assert found.item() == pytest.approx(expected, abs=1e-13)


def test_the_uniform_sphere_has_the_moments_of_a_coordinate():
    for dimension in (3, 8, 50):
        setting = sphere.uniform_sphere(dimension, 1.0, 0.5)
        second = (setting.probabilities * setting.cosines**2).sum().item()
        assert second == pytest.approx(1 / dimension, rel=1e-12)


def test_the_program_prints_a_table_and_exits_with_zero(capsys):
    assert verify_theory.main(["--statement", "bradley-terry", "--statement", "one-word-is-infonce"]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 statements hold" in text
    assert "rejected: reference left out" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_list_checks_nothing(capsys):
    assert verify_theory.main(["--list", "--statement", "bradley-terry"]) == 0
    assert capsys.readouterr().out.startswith("bradley-terry: K = 1:")


def test_a_false_statement_exits_with_one_and_is_named(capsys, monkeypatch):
    false = Statement("false", "1 = 2", "none", None, {"c": None}, lambda *_: [Measurement(1.0, 0.5)])
    monkeypatch.setattr(theory, "ALL", (false,))
    assert verify_theory.main([]) == 1
    out = capsys.readouterr().out
    assert "FAILS" in out
    assert "not ≤ 0.5" in out


def test_a_check_without_power_exits_with_one_and_says_so(capsys, monkeypatch):
    blind = Statement("blind", "1 = 1", "none", None, {"nothing": None}, lambda *_: [Measurement(0.0, 0.5)])
    monkeypatch.setattr(theory, "ALL", (blind,))
    assert verify_theory.main([]) == 1
    out = capsys.readouterr().out
    assert "NO POWER" in out
    assert "NOT REJECTED: nothing" in out


def test_json_holds_every_verdict(capsys, tmp_path):
    assert verify_theory.main(["--statement", "regularised-reward", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (statement,) = report["statements"]
    assert {"name", "equation", "max_error", "tolerance", "passed", "control_rejected"} <= set(statement)
    assert statement["passed"] is True
    assert 0 < statement["max_error"] <= statement["tolerance"]
    path = tmp_path / "theory.json"
    assert verify_theory.main(["--statement", "regularised-reward", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["statements"] == report["statements"]
    # Other instances, other rounding errors.
    other = ["--seed", "5", "--trials", "3"]
    assert verify_theory.main(["--statement", "regularised-reward", *other, "--json", str(path)]) == 0
    (other,) = json.loads(path.read_text())["statements"]
    assert other["measurements"] == 2 * 3
    assert (other["max_error"], other["tolerance"]) != (statement["max_error"], statement["tolerance"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--statement", "bradly-terry"], "--statement: found 'bradly-terry', see --list"),
        (["--statement", "model-bradley-terry"], "the model- statements need --model"),
        (["--trials", "0"], "argument --trials: found 0, expected a whole number from 1 to"),
        (["--seed", str(2**64)], "argument --seed: found 18446744073709551616, expected a whole number from 0 to"),
        (["--trials", "2", "--json", "."], ".: is not a regular file"),
        (["--trials", "2", "--plot", __file__], "test_theory.py: is not a folder"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model", "/" + "a" * 5000], "File name too long"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(arguments, message, capsys):
    assert verify_theory.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_program_outlasts_its_reader_and_shows_any_text():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sempa.verify_theory", "--list"]
    left = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (left.returncode, left.stderr) == (0, b"")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            lost = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert lost.returncode == 2
        assert lost.stderr == "verify_theory: standard output cannot be written: No space left on device\n"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, capture_output=True, check=False, env=ascii_only)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert rb"bradley-terry: K = 1:  \u2212log \u03c3(r" in shown.stdout


def test_seeds_draw_instances_of_their_own(capsys):
    def error(seed):
        assert verify_theory.main(["--statement", "bradley-terry", "--seed", seed, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["statements"][0]["max_error"]

    # Two seeds may have the same largest error by chance.
    assert len({error(seed) for seed in "012345"}) > 1
    assert error("0") == error("0")


def test_pictures_that_cannot_be_drawn_lose_no_verdict(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sempa.report.plots.available", lambda: False)
    written = tmp_path / "theory.json"
    arguments = ["--statement", "bradley-terry", "--json", str(written), "--plot", str(tmp_path / "pictures")]
    assert verify_theory.main(arguments) == 2
    assert "--plot: needs matplotlib" in capsys.readouterr().err
    assert json.loads(written.read_text())["passed"] is True


def test_pictures_are_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert verify_theory.main(["--statement", "bradley-terry", "--plot", str(tmp_path / "pictures")]) == 0
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == ["gradient_weights.png", "information.png", "many_negatives.png", "rounding.png"]
    assert all((tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_the_picture_of_gradients_shows_the_softmax_weight_of_the_negatives():
    axis = MagicMock()
    pictures._gradient_weights(axis, torch.Generator())
    for call, negatives in zip(axis.plot.call_args_list, (1, 4, 16, 64), strict=True):
        margins, weight = call.args
        torch.testing.assert_close(weight, negatives / (negatives + margins.exp()))


def test_the_curves_of_the_picture_of_information_end_at_their_lines():
    axis = MagicMock()
    pictures._information(axis, torch.Generator().manual_seed(0))
    ends = {call.kwargs["label"]: call.args[1][-1] for call in axis.semilogx.call_args_list}
    lines = {call.kwargs["label"]: call.args[0] for call in axis.axhline.call_args_list}
    information, divergence = lines["I(x; y)"], lines["E KL(p(y|x) ‖ q(y|x))"]
    assert information < divergence
    assert ends["best critic"] == pytest.approx(information, rel=0.01)
    assert ends["hard negatives, their best critic"] == pytest.approx(divergence, rel=0.01)


def test_a_rate_that_misses_by_the_root_of_k_is_refused():
    """What it misses falls twofold when K grows fourfold, that of the statement fourfold."""
    check = sphere.alignment_uniformity_rate.check
    generator = torch.Generator().manual_seed(0)
    for found in check(lambda setting, k: setting.next_order() / k * (1 - k**-0.5), generator, 1):
        assert not found.holds
    assert all(found.holds for found in check(lambda setting, k: setting.next_order() / k, generator, 1))


def test_the_curves_of_the_picture_of_many_negatives_end_on_their_dotted_lines():
    axis = MagicMock()
    pictures._many_negatives(axis, torch.Generator())
    drawn = [call.args[1] for call in axis.loglog.call_args_list[:-1]]
    for gaps, dotted in zip(drawn[::2], drawn[1::2], strict=True):
        assert gaps[-1] == pytest.approx(dotted[-1], rel=0.01)


def test_the_picture_of_rounding_shows_rounding():
    axis = MagicMock()
    pictures._rounding(axis, torch.Generator().manual_seed(0))
    floors = [line.args[0] for line in axis.axhline.call_args_list]
    assert floors == [2**-24, 2**-53]
    for call, floor in zip(axis.loglog.call_args_list, floors, strict=True):
        assert floor <= min(call.args[1]) <= max(call.args[1]) < 1000 * floor


def test_the_statements_hold_on_a_models_own_sentences_and_adapter(tiny_folder, capsys):
    wanted = ["bradley-terry", "top1-is-infonce", "ranking-is-shrinking-infonce", "gradient-is-softmax"]
    names = [part for name in wanted for part in ("--statement", f"model-{name}")]
    assert verify_theory.main(["--model", str(tiny_folder), *names, "--json"]) == 0
    statements = json.loads(capsys.readouterr().out)["statements"]
    assert [statement["name"] for statement in statements] == [f"model-{name}" for name in wanted]
    assert all(all(statement["controls"].values()) for statement in statements)
