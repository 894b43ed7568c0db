"""What a training step and an encoder may cost: tokens, multiply-adds and bytes, which no busy machine changes."""

from dataclasses import replace

import pytest
import torch
from conftest import PREFERENCE_ONLY
from test_token_logprobs import Work
from torch.utils._python_dispatch import TorchDispatchMode

from sempa.batching.batches import make_batch
from sempa.batching.packing import shared_prefix
from sempa.batching.prompts import encode_one_word, encode_triplet
from sempa.config import Config
from sempa.embedding.embed import embed
from sempa.model.base import load_base
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import add_lora, lora_parameters
from sempa.training.step import train_step

# A size that nothing else has, to know the adapter's products by.
RANK, VOCABULARY, WIDTH = 3, 320, 32
DPO = Config(**PREFERENCE_ONLY | {"anchor": 0.0}, row_tokens=100_000)


class Products(TorchDispatchMode):
    """Multiply-adds of matrix products inside, apart: the blocks' own weights, the adapter's, and the head's."""

    def __init__(self):
        super().__init__()
        self.blocks = self.adapter = self.head = self.attention = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            sizes = (*left.shape, right.shape[1])
            kind = "adapter" if RANK in sizes else "head" if VOCABULARY in sizes else "blocks"
            setattr(self, kind, getattr(self, kind) + sizes[0] * sizes[1] * sizes[2])
        elif name in ("bmm", "matmul") and args[0].ndim > 2:
            self.attention += args[0].numel() * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def base(tiny_folder):
    base = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(base.model, RANK, 2)
    return base


@pytest.fixture
def batch(base, triplets):
    """All triplets in one row."""
    preferences = [encode_triplet(base.tokenizer, triplet) for triplet in triplets]
    batch = make_batch(replace(DPO, batch_size=len(preferences)), preferences, 0)
    return batch


def step(base, batch):
    """A training step of plain DPO."""
    optimizer = torch.optim.AdamW(lora_parameters(base.model).values())
    return lambda: train_step(DPO, base.model, optimizer, batch, [], 0, 10)


def tokens_through_blocks(base, run):
    """How many tokens each block reads while `run` runs: the same for all of them."""
    blocks = base.model.model.layers
    seen = dict.fromkeys(range(len(blocks)), 0)

    def note(number):
        def add(_module, inputs, _output):
            seen[number] += inputs[0].shape[:2].numel()

        return add

    for number, block in enumerate(blocks):
        block.register_forward_hook(note(number))
    run()
    (tokens,) = set(seen.values())
    return tokens


def sizes(base):
    """Weights of the blocks' linear layers; of those whose input needs no gradient; and the adapter's."""
    linears = [m for m in base.model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    first = base.model.model.layers[0].self_attn
    frozen = sum(getattr(first, name).base.weight.numel() for name in ("q_proj", "k_proj", "v_proj"))
    return sum(m.weight.numel() for m in linears), frozen, sum(p.numel() for p in lora_parameters(base.model).values())


def test_a_step_runs_the_instructions_once_every_prompt_once_and_every_answer_once(base, batch):
    prompts = [preference.prompt for preference in batch.preferences]
    instructions = len(shared_prefix(prompts))
    # Nothing is predicted from an answer's last token, and it is not read.
    own = sum(len(p.prompt) - instructions + sum(len(r) - 1 for r in p.responses) for p in batch.preferences)
    # Once for the policy, once for the reference.
    assert tokens_through_blocks(base, step(base, batch)) == 2 * (instructions + own)
    # Separate sequences, as they would stand without packing, are over twice as many tokens here.
    assert 2 * (instructions + own) < sum(len(p.prompt) + len(r) for p in batch.preferences for r in p.responses)


def test_a_step_multiplies_by_each_frozen_weight_three_times_and_only_answers_meet_the_head(base, batch):
    tokens = sum(len(row.packed.tokens) for row in batch.preference_rows)
    answers = sum(len(response) for p in batch.preferences for response in p.responses)
    weights, first, adapter = sizes(base)
    run = step(base, batch)
    with Products() as counted:
        run()
    # Reference, policy, and the gradient of the activations; none for the weights, nor for the embeddings.
    assert counted.blocks == tokens * (3 * weights - first)
    assert counted.head == 3 * answers * VOCABULARY * WIDTH
    # Forward, gradient of what comes in, gradient of the adapter.
    assert counted.adapter <= 3 * tokens * adapter


def test_a_forward_pass_multiplies_by_each_weight_once(base, batch):
    (row,) = batch.preference_rows
    answers = len(row.target)
    weights, *_ = sizes(base)
    with torch.no_grad(), Products() as counted:
        sequence_logprobs(base.model.eval(), row)
    assert counted.blocks == len(row.packed.tokens) * weights
    assert counted.head == answers * VOCABULARY * WIDTH


def test_an_encoder_reads_what_its_prompts_share_once_a_batch_and_pads_nothing(base, triplets):
    sentences = [triplet.sentence for triplet in triplets]
    prompts = encode_one_word(base.tokenizer, sentences)
    prefix = len(shared_prefix(prompts))
    seen = tokens_through_blocks(base, lambda: embed(base, sentences, batch_size=len(sentences) // 2))
    assert seen == 2 * prefix + sum(len(prompt) - prefix for prompt in prompts)


def attention(run):
    """Multiply-adds of attention's products, padding included."""
    with Products() as counted:
        run()
    return counted.attention


def test_an_encoder_s_padding_does_not_depend_on_the_order_of_the_sentences(base):
    """Of like length side by side: with short and long in turn attention would pad every short one to a long one."""
    short, long = ([f"{i} {' '.join(['dog'] * words)}" for i in range(6)] for words in (2, 40))
    turns = [sentence for pair in zip(short, long, strict=True) for sentence in pair]
    apart = attention(lambda: embed(base, [*short, *long], batch_size=6))
    assert attention(lambda: embed(base, turns, batch_size=6)) == apart
    together = attention(lambda: [embed(base, turns[i : i + 6], batch_size=6) for i in (0, 6)])
    assert together > 1.5 * apart


def test_a_step_takes_and_keeps_few_bytes_a_token(base, batch):
    """What thin products beside the frozen ones, and attention by branches, save must stay saved."""
    tokens = sum(len(row.packed.tokens) for row in batch.preference_rows)
    run = step(base, batch)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Work() as counted:
        run()
    # Measured, and a little room; float32, the reference's pass included.
    assert sum(kept.values()) < 9_100 * tokens
    assert counted.taken < 85_000 * tokens
