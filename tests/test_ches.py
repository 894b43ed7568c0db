"""The CHES score against its definition, on made states and on a packed row of a model."""

import pytest
import torch
from conftest import points

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference
from sempa.losses import ches_score
from sempa.model.forward import hidden_states


def ches_by_hand(states, lengths):
    """One pair, one double loop over positions, as in the definition's first form."""
    chosen, rejected = states[: lengths[0]], states[lengths[0] : sum(lengths)]
    across = sum(float(a @ b) for a in chosen for b in rejected)
    within = sum(float(a @ b) for a in chosen for b in chosen)
    return across - within, across / (lengths[0] * lengths[1]) - within / lengths[0] ** 2


def test_ches_is_the_sum_over_all_pairs_of_positions():
    lengths = torch.tensor([[3, 2], [1, 4]])
    states = points(10, 6)
    owner = torch.arange(4).repeat_interleave(lengths.flatten())
    by_hand = [ches_by_hand(states[:5], [3, 2]), ches_by_hand(states[5:], [1, 4])]
    # The order of the rows must not matter.
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    plain = ches_score(states[order], owner[order], lengths)
    normalised = ches_score(states[order], owner[order], lengths, length_normalised=True)
    torch.testing.assert_close(torch.cat([plain, normalised], 1), torch.tensor(by_hand, dtype=torch.float64))


def test_ches_of_a_response_with_itself_is_zero_and_of_an_opposite_one_negative():
    states, lengths = points(2, 3, 5).float(), torch.tensor([[2, 2, 2]])
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    chosen = states[0, :2]
    same_opposite = ches_score(torch.cat([chosen, chosen, -chosen]), owner, lengths)
    assert same_opposite.shape == (1, 2)
    torch.testing.assert_close(same_opposite[0, 0], torch.tensor(0.0))
    torch.testing.assert_close(same_opposite[0, 1], -2 * chosen.sum(0).square().sum())


def test_ches_reads_the_states_that_predict_the_response_from_a_packed_row(tiny_llama):
    preferences = [Preference([5, 6], ([7, 8, 9], [4, 2])), Preference([5, 3, 9], ([7, 2], [4, 4, 2, 1]))]
    (packed,) = pack_preferences(preferences, 100)
    with torch.no_grad():
        hidden = hidden_states(tiny_llama, **packed.packed.inputs())[0][packed.source]
        scores = ches_score(hidden, packed.owner, packed.lengths, length_normalised=True)
        for place, example in enumerate(packed.examples):
            prompt, responses = preferences[example].prompt, preferences[example].responses
            # From the prompt's last token to the response's last but one.
            states = [
                hidden_states(tiny_llama, torch.tensor([[*prompt, *response]]))[0, len(prompt) - 1 : -1]
                for response in responses
            ]
            expected = ches_by_hand(torch.cat(states).double(), [len(response) for response in responses])[1]
            assert scores[place].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": torch.tensor([2, 1])}, r"lengths \[n, responses >= 2\], found \(2,\)"),
        ({"lengths": torch.tensor([[3]])}, r"found \(1, 1\)"),
        ({"owner": torch.tensor([0, 1])}, r"found \(3, 4\) and \(2,\)"),
        ({"lengths": torch.tensor([[1, 2]])}, "lengths that count the owners"),
        ({"lengths": torch.tensor([[2, 1], [0, 0]]), "owner": torch.tensor([0, 0, 5])}, "count the owners"),
    ],
)
def test_owners_and_lengths_that_do_not_fit_are_refused(change, message):
    arguments = {"hidden": torch.ones(3, 4), "owner": torch.tensor([0, 0, 1]), "lengths": torch.tensor([[2, 1]])}
    with pytest.raises(ValueError, match=message):
        ches_score(**arguments | change)


def test_ches_of_narrow_states_is_summed_in_float32():
    states = torch.tensor([1.0, 0.5], dtype=torch.bfloat16).repeat_interleave(511)[:, None]
    owner, lengths = torch.arange(2).repeat_interleave(511), torch.tensor([[511, 511]])
    # A sum of 511 has one bit too many for bfloat16.
    assert ches_score(states, owner, lengths).item() == (255.5 - 511) * 511


def test_ches_is_a_monitor_and_has_no_gradient():
    states = torch.ones(2, 3, requires_grad=True)
    assert not ches_score(states, torch.arange(2), torch.ones(1, 2, dtype=torch.int64)).requires_grad
