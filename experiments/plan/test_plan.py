"""The plan counts what the run really takes."""

import re
from dataclasses import replace
from pathlib import Path

import efficiency
import pytest
from conftest import PREFERENCE_ONLY
from plan import GPUS, _saved_bytes, describe_plan, main, make_plan
from test_architectures import ARCHITECTURES
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig

from sempa import SempaError
from sempa.config import Config, load_config
from sempa.io.streams import exit_code
from sempa.model.base import load_base
from sempa.model.lora import add_lora, lora_parameters

EXPERIMENTS = Path(__file__).resolve().parents[1]
PAPER = PREFERENCE_ONLY | {"anchor": 0.0, "triplets": "nli_for_simcse.csv", "held_out": 0}


def test_the_papers_models_have_their_published_sizes():
    llama2 = make_plan(Config(model="meta-llama/Llama-2-7b-chat-hf", **PAPER, batch_size=256))
    llama3 = make_plan(Config(model="meta-llama/Meta-Llama-3-8B-Instruct", **PAPER, batch_size=256))
    assert llama2.parameters == 6_738_415_616
    assert llama3.parameters == 8_030_261_248
    # PEFT's own count for rank 8 on all linear layers of LLaMA2-7B.
    assert llama2.adapter_parameters == 19_988_480
    assert llama2.steps == 1077
    assert llama2.weight_bytes == 2 * llama2.parameters


def test_parameters_and_triplets_are_those_of_the_run(tiny_folder, triplets_file):
    config = Config(model=str(tiny_folder), triplets=str(triplets_file), held_out=3, batch_size=4, lora_rank=2)
    plan = make_plan(config)
    base = load_base(str(tiny_folder), "float32", "cpu")
    assert plan.parameters == sum(p.numel() for p in base.model.parameters())
    add_lora(base.model, 2, 4)
    assert plan.adapter_parameters == sum(p.numel() for p in lora_parameters(base.model).values())
    assert (plan.triplets, plan.steps) == (13, 4)
    # As in training, no more than a fifth is held out.
    assert make_plan(replace(config, held_out=60)).triplets == 13


def test_each_loss_takes_its_own_tokens(tiny_folder, triplets_file):
    """Of 16 triplets in four steps a fraction is ranked, all are contrasted, and each step has a row of samples."""
    common = {"model": str(tiny_folder), "triplets": str(triplets_file), "held_out": 0, "batch_size": 4}
    common |= PREFERENCE_ONLY | {"anchor": 0.0}
    whole, half = (make_plan(Config(**common | {"preference_fraction": fraction})) for fraction in (1.0, 0.5))
    assert (whole.triplets, whole.steps) == (16, 4)
    assert (half.tokens, half.flops) == pytest.approx((whole.tokens / 2, whole.flops / 2), rel=0.01)
    alone = common | {"objective": "none", "contrast": 1.0}
    contrast = make_plan(Config(**alone))
    # A sentence's and two responses' one-word prompts.
    assert (contrast.tokens, contrast.head_tokens) == (16 * 3 * 16, 0)
    assert make_plan(Config(**common | {"preference": 0.0, "contrast": 1.0})).tokens == contrast.tokens
    retained = make_plan(Config(**alone | {"retention": 1.0}))
    assert (retained.tokens - contrast.tokens, retained.head_tokens) == (4 * 128, 4 * 128)
    base = load_base(str(tiny_folder), "float32", "cpu").model
    head = base.get_output_embeddings().weight.numel()
    blocks = sum(p.numel() for name, p in base.named_parameters() if p.dim() == 2 and "layers." in name)
    # Forward and backward; the base's own pass on the samples is made once, before the first step.
    assert retained.flops == retained.tokens * (4 * blocks + 6 * retained.adapter_parameters) + 6 * 4 * 128 * head
    # The reference makes one pass more over the preferences.
    assert whole.flops == pytest.approx(
        whole.tokens * (6 * blocks + 6 * whole.adapter_parameters) + 6 * whole.head_tokens * head
    )
    # The contrast compares all of a batch's one-word prompts.
    large = make_plan(Config(**alone | {"batch_size": 64}))
    assert large.saved_bytes > 3 * contrast.saved_bytes
    both = make_plan(Config(**common | {"contrast": 1.0, "retention": 1.0}))
    assert both.flops == pytest.approx(whole.flops + retained.flops)
    assert both.saved_bytes == max(whole.saved_bytes, retained.saved_bytes)


def test_a_plan_without_the_file_holds_out_no_more_than_training_does(tiny_folder):
    absent = Config(model=str(tiny_folder), triplets="nli_for_simcse.csv", held_out=300_000)
    assert make_plan(absent).triplets == 275_601 - 55_120


def test_a_file_that_is_not_there_is_not_counted_as_another(tiny_folder):
    with pytest.raises(SempaError, match=r"triplets mistyped\.csv: no such file"):
        make_plan(Config(model=str(tiny_folder), triplets="mistyped.csv"))


def test_the_blocks_of_gpt2_count_too(tmp_path, triplets_file):
    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=320).save_pretrained(tmp_path)
    plan = make_plan(Config(model=str(tmp_path), **PAPER | {"triplets": str(triplets_file)}))
    # q, k, v, output and the two of the MLP: 12 D² a block; the head sees the responses alone.
    blocks, head = 2 * 12 * 32**2, 320 * 32
    expected = 6 * plan.tokens * (blocks + plan.adapter_parameters) + 6 * plan.head_tokens * head
    assert plan.flops == pytest.approx(expected)


def test_saved_activations_grow_with_the_row_and_are_those_of_a_real_pass(tiny_folder):
    """On the meta device and on the CPU autograd keeps the same bytes."""
    kept = {}
    for device in ("meta", "cpu"):
        base = load_base(str(tiny_folder), "bfloat16", "cpu")
        base.model.to(device)
        add_lora(base.model, 2, 4)
        kept[device] = [_saved_bytes(base.model, tokens) for tokens in (1, 512, 1024)]
    assert kept["meta"] == kept["cpu"]
    shortest, half, whole = kept["cpu"]
    assert 0.85 < whole / half < 1.15
    # The smallest row has two triplets, however few tokens were asked for: its own length is what counts.
    assert 1 / 1.3 < shortest / half < 1.3


def test_checkpointing_adds_a_forward_pass_and_keeps_the_inputs_of_blocks(tiny_folder, triplets_file):
    common = {"model": str(tiny_folder), "triplets": str(triplets_file), "held_out": 0, **PREFERENCE_ONLY}
    kept, recomputed = (make_plan(Config(**common, checkpoint_activations=on)) for on in (False, True))
    base = load_base(str(tiny_folder), "float32", "cpu").model
    blocks = sum(p.numel() for name, p in base.named_parameters() if p.dim() == 2 and "layers." in name)
    assert recomputed.flops - kept.flops == pytest.approx(kept.tokens * 2 * (blocks + kept.adapter_parameters))
    assert recomputed.tokens == kept.tokens
    # Of two blocks one is kept at a time, beside the inputs of both.
    assert kept.saved_bytes / 2 < recomputed.saved_bytes < 0.6 * kept.saved_bytes


def test_the_papers_models_fit_into_24_gb_with_checkpointing():
    config = load_config(EXPERIMENTS / "paper_llama3_8b.yaml")
    kept, recomputed = (make_plan(replace(config, checkpoint_activations=on)) for on in (False, True))
    assert "24 GB: lower row_tokens" in describe_plan(kept, 0.4)
    assert "24 GB" not in describe_plan(recomputed, 0.4)


def test_hours_follow_flops_and_efficiency():
    plan = make_plan(Config(model="meta-llama/Llama-2-7b-chat-hf", **PAPER))
    for gpu, (peak, _) in GPUS.items():
        assert plan.hours(gpu, 0.5) * 3600 * peak * 0.5 == pytest.approx(plan.flops)
    twice = make_plan(Config(model="meta-llama/Llama-2-7b-chat-hf", **PAPER | {"epochs": 2.0}))
    assert twice.flops / plan.flops == pytest.approx(2, rel=0.01)


def test_a_fraction_of_each_batch_is_ranked_as_in_training(tiny_folder, triplets_file):
    """Rounded up batch by batch: of single triplets every one, however small the fraction."""
    common = {"model": str(tiny_folder), "triplets": str(triplets_file), "held_out": 0}
    common |= PREFERENCE_ONLY | {"preference_fraction": 0.25}
    plans = {size: make_plan(Config(**common, batch_size=size)) for size in (1, 2, 5, 16)}
    assert {size: plan.head_tokens / 20 for size, plan in plans.items()} == {1: 16, 2: 8, 5: 7, 16: 4}


def test_a_ranking_counts_three_answers_of_the_triplets_that_have_them(tiny_folder, tmp_path):
    lines = [
        f'{{"sentence1": "Premise {i}.", "sentence2": "{label} {i}.", "gold_label": "{label}"}}'
        for i in range(10)
        for label in ("entailment", "neutral", "contradiction")
        if label != "neutral" or i < 4
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(lines))
    common = {"model": str(tiny_folder), "triplets": str(file), **PREFERENCE_ONLY, "held_out": 0, "contrast": 1.0}
    pairs, ranking = (make_plan(Config(**common, objective=name)) for name in ("dpo", "plackett-luce"))
    assert (pairs.triplets, ranking.triplets) == (10, 4)
    assert (pairs.head_tokens, ranking.head_tokens) == (10 * 2 * 10, 4 * 3 * 10)
    # The neutral sentence is ranked, and not embedded.
    ranked = make_plan(Config(**common | {"contrast": 0.0}, objective="plackett-luce"))
    assert ranking.tokens - ranked.tokens == 4 * 3 * 16


def test_a_large_batch_is_planned_without_running_it_and_names_what_bounds_its_memory(tiny_folder, triplets_file):
    common = {"model": str(tiny_folder), "triplets": str(triplets_file), "contrast": 1.0, "row_tokens": 512}
    small, large = (make_plan(Config(**common, batch_size=size)) for size in (1024, 1 << 20))
    assert large.saved_bytes == pytest.approx(small.saved_bytes * (1 << 20) / 1024, rel=0.05)
    assert (small.bound, make_plan(Config(**common, batch_size=1)).bound) == ("batch_size", "row_tokens")
    assert "does not fit in 24 GB: lower batch_size" in describe_plan(large, 0.4)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_that_loads_can_be_planned_and_measured(name, tmp_path, triplets_file):
    ARCHITECTURES[name].save_pretrained(tmp_path)
    config = Config(model=str(tmp_path), triplets=str(triplets_file), row_tokens=128, device="cpu", dtype="float32")
    for run in (make_plan, efficiency.measure_efficiency):
        try:
            result = run(config)
        except SempaError as error:
            # Windows and positions of the tests' models are shorter than a real triplet.
            assert str(error).startswith(f"model {str(tmp_path)!r}: cannot be planned: ")
        else:
            assert result


@pytest.mark.parametrize(
    "shape",
    [
        GPT2Config(n_embd=256, n_layer=3, n_head=4, vocab_size=320),
        LlamaConfig(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=320,
        ),
    ],
)
def test_measured_efficiency_counts_the_operations_that_run(shape, tmp_path, monkeypatch):
    """With operations in place of seconds, the step and the bare product run at the same rate: one a second."""
    shape.save_pretrained(tmp_path)

    def count(step, product, device):
        return tuple(counted(run) for run in (step, product))

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    monkeypatch.setattr(efficiency, "_alternate", count)
    measured = efficiency.measure_efficiency(Config(model=str(tmp_path), row_tokens=512, device="cpu"))
    assert measured.products == 1
    # Attention's own products are counted in neither plan nor share, nor is the first layers' missing input gradient.
    assert measured.fraction == pytest.approx(1, abs=0.12)


def test_measured_efficiency_is_a_share_of_what_bare_products_reach(tiny_folder, capsys):
    measured = efficiency.measure_efficiency(Config(model=str(tiny_folder), row_tokens=512, device="cpu"))
    assert 0 < measured.fraction < 1 and measured.products > 1e6
    main([str(EXPERIMENTS / "smollm2_captions.yaml"), f"model={tiny_folder}", "--measure"])
    first, *rest = capsys.readouterr().out.splitlines()
    assert f"time at {first.split()[1]} of peak" in rest


@pytest.mark.parametrize("name", ["paper_llama2_7b", "paper_llama3_8b", "smollm2_nli", "smollm2_captions"])
def test_every_experiment_can_be_planned(name, capsys):
    main([str(EXPERIMENTS / f"{name}.yaml")])
    printed = capsys.readouterr().out
    assert "H200" in printed and "GB" in printed
    assert re.search(r"A100 80GB +\d[\d.]* (h|min|s)\b", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--efficiency", "0"], "--efficiency: found 0.0, expected a fraction above 0, at most 1"),
        (["held_out=many"], "held_out"),
        (["--held=1"], "unrecognized arguments: --held=1"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert exit_code("program", lambda: main([str(EXPERIMENTS / "smollm2_nli.yaml"), *arguments])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_settings_may_stand_on_both_sides_of_an_option(tiny_folder, triplets_file, capsys):
    data = [f"model={tiny_folder}", f"triplets={triplets_file}", "batch_size=4"]
    main([str(EXPERIMENTS / "smollm2_nli.yaml"), *data, "held_out=0", "--efficiency", "0.5", "epochs=2"])
    printed = capsys.readouterr().out
    assert "16 triplets as long as SNLI's, 8 steps" in printed and "time at 50% of peak" in printed
