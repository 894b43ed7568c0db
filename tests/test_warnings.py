"""Training warns of likelihood displacement, once."""

import pytest

from sempa.config import Config
from sempa.training.metrics import FAR, warn_of_displacement

BETA = 0.1


@pytest.mark.parametrize("record", [{"rewards/chosen": chosen} for chosen in (0.0, 3.0, -0.99 * FAR * BETA)] + [{}])
def test_nothing_is_said_of_a_healthy_step(record, recwarn):
    assert not warn_of_displacement(Config(beta=BETA), 7, record)
    assert not recwarn


def test_a_chosen_sentence_that_becomes_unlikely_is_displacement():
    with pytest.warns(UserWarning, match="step 7: the chosen sentences' log-ratio to the base is -60 nats.*anchor"):
        assert warn_of_displacement(Config(beta=BETA), 7, {"rewards/chosen": -1.2 * FAR * BETA})
