"""Trouble that does not stop a training is already_warned in words, once."""

import warnings

import pytest

from sempa.config import Config
from sempa.training.metrics import FAR, warn_of_step

BETA = 0.1
CALM = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "grad_norm": 1.0}


def warned(already_warned=None, **changes):
    already_warned = set() if already_warned is None else already_warned
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_step(
            Config(beta=BETA), 7, CALM | {name.replace("_", "/", 1): x for name, x in changes.items()}, already_warned
        )
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("chosen", [0.0, 3.0, -0.99 * FAR * BETA])
def test_nothing_is_said_of_a_healthy_step(chosen):
    assert warned(rewards_chosen=chosen, rewards_rejected=-2 * FAR * BETA) == []


def test_a_chosen_sentence_that_becomes_unlikely_is_displacement():
    (text,) = warned(rewards_chosen=-1.2 * FAR * BETA)
    assert text.startswith("step 7: the chosen sentences' log-ratio to the base is -60 nats")
    assert "anchor" in text


@pytest.mark.parametrize("name", ["rewards_chosen", "rewards_rejected"])
def test_log_ratios_that_explode_either_way_are_named(name):
    (text,) = warned(**{name: 11 * FAR * BETA})
    assert (
        f"the {name.removeprefix('rewards_')} sentences' log-ratio to the base is 550 nats, expected at most 500"
        in text
    )


def test_a_gradient_of_zero_is_already_warned_and_everything_only_once():
    already_warned = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            warn_of_step(Config(), step, {"grad_norm": 0.0}, already_warned)
    (warning,) = caught
    assert str(warning.message).startswith("step 0: the gradient is zero")
