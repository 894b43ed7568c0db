"""The fused kernel against float64 arithmetic, plain PyTorch and TRL, in values and gradients, on extreme inputs too.

The last tests count work: matrix products, exponentials, passes over the logits, bytes alive.
"""

import weakref
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sempa.kernels import token_logprobs

# The package's attribute of this name is the function.
module = import_module("sempa.kernels.token_logprobs")


def plain(hidden, weight, targets, bias=None, softcap=None):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def problem(rows=7, width=5, vocabulary=11, dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden, weight, targets


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    upstream = torch.linspace(-1, 2, output.numel(), dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_values_and_all_gradients_equal_the_plain_formula_in_float64(softcap, with_bias, chunk_rows):
    hidden, weight, targets = problem()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)

    def ours(h, w, b=None):
        return token_logprobs(h, w, targets, bias=b, softcap=softcap, chunk_rows=chunk_rows)

    def theirs(h, w, b=None):
        return plain(h, w, targets, b, softcap)

    for mine, other in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_numerical_differentiation_agrees_with_the_backward_pass(softcap):
    hidden, weight, targets = problem()
    bias = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs(h, w, targets, bias=b, softcap=softcap, chunk_rows=2),
        (hidden.requires_grad_(), weight.requires_grad_(), bias),
    )


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 8),
    vocabulary=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    chunk_rows=st.integers(1, 10),
    seed=st.integers(0, 9999),
)
def test_float32_is_within_rounding_of_float64_at_any_shape_and_scale(rows, width, vocabulary, scale, chunk_rows, seed):
    hidden, weight, targets = problem(rows, width, vocabulary, torch.float32, scale, seed)

    def ours(h):
        return token_logprobs(h, weight, targets, chunk_rows=chunk_rows)

    value, gradient = gradients(ours, hidden)
    exact = plain(hidden.double(), weight.double(), targets)
    logit_size = float((hidden.abs().double() @ weight.abs().double().T).max()) if rows else 0.0
    assert value.dtype == torch.float32
    # A logit's own float32 rounding is all that may separate them.
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=4e-7 * logit_size + 1e-6)
    if scale <= 1:
        exact_gradient = gradients(lambda h: plain(h, weight.double(), targets), hidden.double())[1]
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-5)


def test_logits_of_ten_thousand_and_targets_at_both_ends_stay_finite_and_exact():
    hidden = torch.tensor([[1.0], [-1.0], [1.0]]) * 1e4
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    targets = torch.tensor([0, 0, 2])
    value, gradient = gradients(lambda h: token_logprobs(h, weight, targets), hidden)
    torch.testing.assert_close(value, torch.tensor([0.0, -2e4, -2e4]))
    # ∂/∂h = u_y − Σ p u: 0 where the target has all the mass, else u_y minus the winner's embedding.
    upstream = torch.linspace(-1, 2, 3)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.0, 2.0, -2.0]) * upstream)


def model_like(dtype, peaked):
    """Logits of standard deviation 3, a language model's; with `peaked` most targets are likely ones."""
    generator = torch.Generator().manual_seed(4)
    weight = 3 / 64**0.5 * torch.randn(2000, 64, generator=generator)
    targets = torch.randint(2000, (150,), generator=generator)
    hidden = torch.randn(150, 64, generator=generator) + (1.5 * weight[targets] if peaked else 0)
    return hidden.to(dtype), weight.to(dtype), targets


def relative_errors(function, exact, *inputs):
    return [
        float((mine.double() - truth).norm() / truth.norm())
        for mine, truth in zip(gradients(function, *inputs), exact, strict=True)
    ]


@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("softcap", [None, 10.0])
def test_float32_is_within_a_hundred_thousandth_of_float64_in_values_and_gradients(peaked, softcap):
    hidden, weight, targets = model_like(torch.float32, peaked)
    exact = gradients(lambda h, w: plain(h, w, targets, softcap=softcap), hidden.double(), weight.double())
    errors = relative_errors(lambda h, w: token_logprobs(h, w, targets, softcap=softcap), exact, hidden, weight)
    assert max(errors) < 1e-5


@pytest.mark.parametrize("peaked", [False, True])
def test_bfloat16_is_no_further_from_float64_than_peers_are(peaked):
    hidden, weight, targets = model_like(torch.bfloat16, peaked)
    exact = gradients(lambda h, w: plain(h, w, targets), hidden.double(), weight.double())
    ours = relative_errors(lambda h, w: token_logprobs(h, w, targets, chunk_rows=64), exact, hidden, weight)
    selective = pytest.importorskip("trl.trainer.utils").selective_log_softmax
    peers = {
        "plain": lambda h, w: plain(h, w, targets),
        "TRL": lambda h, w: selective(h @ w.T, targets),
        "PyTorch": lambda h, w: -F.linear_cross_entropy(h, w, targets, reduction="none"),
    }
    for name, peer in peers.items():
        for own, other in zip(ours, relative_errors(peer, exact, hidden, weight), strict=True):
            assert own <= other, name


@pytest.mark.parametrize("peaked", [False, True])
def test_bfloat16_rounds_its_logits_and_its_gradients_and_nothing_else(peaked):
    hidden, weight, targets = model_like(torch.bfloat16, peaked)
    rounded = (hidden @ weight.T).double().requires_grad_()
    value, residual = gradients(lambda z: z.log_softmax(1).gather(1, targets[:, None])[:, 0], rounded)
    ours = gradients(lambda h, w: token_logprobs(h, w, targets), hidden, weight)
    torch.testing.assert_close(ours[0].double(), value, rtol=1e-5, atol=1e-6)
    # Three roundings to 8 bits, each an error of at most 2^-9 and on average of a third of that.
    for mine, truth in ((ours[1], residual @ weight.double()), (ours[2], residual.T @ hidden.double())):
        assert (mine.double() - truth).norm() < 2**-8 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_flat_distribution_over_a_large_vocabulary_has_no_overflow(dtype):
    # 70,000 equal exponentials add up to more than float16 can hold.
    hidden = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    weight = torch.ones(70_000, 2, dtype=dtype, requires_grad=True)
    value = token_logprobs(hidden, weight, torch.tensor([0, 1, 69_999]))
    value.sum().backward()
    torch.testing.assert_close(value, torch.full((3,), -torch.tensor(70_000.0).log()))
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


def test_one_row_and_no_rows_have_gradients_of_their_shapes():
    for rows in (0, 1):
        hidden, weight, targets = problem(rows)
        value, *grads = gradients(lambda h, w, targets=targets: token_logprobs(h, w, targets), hidden, weight)
        truth = gradients(lambda h, w, targets=targets: plain(h, w, targets), hidden, weight)
        for mine, other in zip((value, *grads), truth, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trl_selective_log_softmax_gives_the_same_log_probabilities(dtype):
    utils = pytest.importorskip("trl.trainer.utils")
    hidden, weight, targets = problem(33, 24, 300, dtype, 1.0, 5)
    theirs = utils.selective_log_softmax((hidden @ weight.T).float(), targets)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets), theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_keeps_nothing_of_the_logits():
    hidden, weight, targets = problem(16, 6, 4096, torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        token_logprobs(hidden.requires_grad_(), weight, targets).sum().backward()
    assert weight.grad is None
    assert max(saved) <= hidden.numel()


def test_non_contiguous_inputs_and_inputs_without_gradient_are_fine():
    hidden, weight, targets = problem(6, 5, 11)
    exact = plain(hidden, weight, targets)
    hidden_view, weight_view = hidden.T.contiguous().T, weight.repeat_interleave(2, 0)[::2]
    result = token_logprobs(hidden_view, weight_view, targets)
    assert not result.requires_grad
    torch.testing.assert_close(result, exact)

    def views(h, w):
        return token_logprobs(h.T.contiguous().T, w.repeat_interleave(2, 0)[::2], targets, chunk_rows=4)

    ours, theirs = gradients(views, hidden, weight), gradients(lambda h, w: plain(h, w, targets), hidden, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3)}, r"hidden \[N, D\]"),
        ({"weight": torch.zeros(4, 9)}, r"found \(2, 3\) and \(4, 9\)"),
        ({"weight": torch.zeros(4, 3, dtype=torch.bfloat16)}, "one floating dtype"),
        ({"targets": torch.tensor([0, 4])}, r"targets in \[0, 4\), found 0 to 4"),
        ({"targets": torch.tensor([-1, 0])}, "found -1 to 0"),
        ({"targets": torch.tensor([0])}, r"shape \(2,\)"),
        ({"targets": torch.tensor([0, 1], dtype=torch.int32)}, "int64"),
        ({"bias": torch.zeros(3)}, r"bias of shape \(4,\)"),
        ({"softcap": 0.0}, "softcap > 0"),
        ({"chunk_rows": 0}, "chunk_rows >= 1"),
    ],
)
def test_bad_arguments_are_named_with_what_was_found(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(4, 3), "targets": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=message):
        token_logprobs(**arguments)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_as_the_model_s_own_head_would_and_returns_gradients_in_the_inputs_dtypes(hidden_dtype):
    hidden, weight, targets = model_like(torch.float32, peaked=True)
    hidden = hidden.to(hidden_dtype)

    def head(h, w):
        return F.linear(h, w).float().log_softmax(1).gather(1, targets[:, None])[:, 0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gradients(lambda h, w: token_logprobs(h, w, targets), hidden, weight)
        theirs = gradients(head, hidden, weight)
    assert [x.dtype for x in ours] == [torch.float32, hidden_dtype, torch.float32]
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert (mine - other).norm() < 2**-7 * other.norm()


def test_autocast_leaves_float64_alone_as_it_does_for_linear_layers():
    hidden, weight, targets = problem()
    exact = token_logprobs(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logprobs(hidden, weight, targets)
    assert torch.equal(found, exact) and found.dtype == torch.float64


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_whole_it_gives_the_same_values_and_gradients(backend):
    hidden, weight, targets = problem(dtype=torch.float32)

    def score(h, w):
        return token_logprobs(h * 2, w, targets, softcap=4.0, chunk_rows=3)

    compiled = torch.compile(score, backend=backend, fullgraph=True)
    for mine, other in zip(gradients(compiled, hidden, weight), gradients(score, hidden, weight), strict=True):
        torch.testing.assert_close(mine, other)
    torch._dynamo.reset()


def test_functional_differentiation_gives_the_gradients_of_autograd():
    hidden, weight, targets = problem()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64)

    def total(h, w, b):
        return token_logprobs(h, w, targets, bias=b, chunk_rows=2).sum()

    ours = torch.func.grad(total, argnums=(0, 1, 2))(hidden, weight, bias)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    theirs = torch.autograd.grad(plain(leaves[0], leaves[1], targets, leaves[2]).sum(), leaves)
    torch.testing.assert_close(ours, theirs)
    # One backward pass for all rows: ∂ log p_i / ∂h_j is 0 off the diagonal.
    jacobian = torch.func.jacrev(lambda h: token_logprobs(h, weight, targets, bias=bias))(hidden)
    torch.testing.assert_close(jacobian.sum(1), theirs[0])


def test_what_cannot_be_differentiated_says_so():
    hidden, weight, targets = problem()

    def total(h, w=weight):
        return token_logprobs(h, w, targets, chunk_rows=3).sum()

    leaf = hidden.clone().requires_grad_()
    gradient = torch.autograd.grad(total(leaf), leaf, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once, not twice"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="once, not twice"):
        torch.func.grad(lambda h: torch.func.grad(total)(h).sum())(hidden)
    head = weight.clone().requires_grad_()
    gradient = torch.autograd.grad(total(hidden, head), head, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once, not twice"):
        gradient.sum().backward()
    with pytest.raises(ValueError, match=r"flatten hidden \[B, N, D\]"):
        torch.func.vmap(lambda h: token_logprobs(h, weight, targets))(hidden.expand(2, -1, -1))
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(total, (hidden,), (hidden,))


class Work(TorchDispatchMode):
    """Counts what runs inside: multiply-adds of products, elements by operation, bytes taken in all and at once."""

    def __init__(self):
        super().__init__()
        self.products, self.multiply_adds, self.elements = 0, 0, {}
        self.taken = self.alive = self.peak = 0
        self._seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "matmul", "linear"):
            self.products += 1
            self.multiply_adds += result.numel() * args[-2].shape[-1]
        elif not func.is_view:
            read = max((x.numel() for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor)), default=0)
            self.elements[name] = self.elements.get(name, 0) + (0 if name.startswith(("empty", "new_empty")) else read)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage)
                self.taken += storage.nbytes()
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, change):
        self.alive += change
        self.peak = max(self.peak, self.alive)


def work(rows, *, width=8, vocabulary=3000, dtype=torch.float32, trained=False, function=token_logprobs):
    hidden, weight, targets = problem(rows, width, vocabulary, dtype)
    hidden.requires_grad_()
    weight.requires_grad_(trained)
    with Work() as counted:
        function(hidden, weight, targets).sum().backward()
    return counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 512, 1300])
def test_a_frozen_head_costs_two_products_one_exponential_per_logit_and_few_passes(rows, dtype):
    counted = work(rows, dtype=dtype)
    logits = rows * 3000
    assert counted.products == 2 * -(-rows // module.CHUNK_ROWS)
    assert counted.multiply_adds == 2 * logits * 8
    assert counted.elements["exp2_"] == logits
    assert not counted.elements.keys() & {"exp", "exp_", "_softmax", "_log_softmax", "logsumexp"}
    # Greatest, difference, scale, power, sum, share and a copy, which float32 has for nothing; bfloat16 has two.
    touched = sum(counted.elements[name] for name in ("amax", "sub_", "mul_", "exp2_", "sum", "copy_"))
    assert touched < (8.1 if dtype == torch.bfloat16 else 7.1) * logits + 100 * rows
    known = {"amax", "sub_", "mul_", "exp2_", "sum", "copy_", "gather", "scatter_"}
    assert sum(size for name, size in counted.elements.items() if name not in known) < 0.1 * logits


def test_without_gradients_it_costs_one_product_and_no_residuals():
    hidden, weight, targets = problem(600, 8, 3000, torch.float32)
    with torch.no_grad(), Work() as counted:
        token_logprobs(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert counted.multiply_adds == 600 * 3000 * 8
    assert "scatter_" not in counted.elements


def test_a_trained_head_costs_a_third_product_and_recomputes_only_what_it_may_not_keep(monkeypatch):
    product = 1300 * 3000 * 8
    assert work(1300, trained=True).multiply_adds == 3 * product
    # Cut in two chunks of 650 rows, of which one may be kept.
    monkeypatch.setattr(module, "KEPT_BYTES", 900 * 3000 * 4)
    counted = work(1300, trained=True)
    assert counted.multiply_adds == 3 * product + 650 * 3000 * 8
    assert counted.peak < (900 + 2 * module.CHUNK_ROWS) * 3000 * 4 + 8 * module.PASS_ELEMENTS


@pytest.mark.parametrize("kept_bytes", [0, 4 * 11 * 4, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_and_recomputed_residuals_give_the_same_gradients(monkeypatch, kept_bytes, dtype):
    monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    hidden, weight, targets = problem(10, dtype=dtype)
    bias = torch.linspace(-1, 1, 11)
    ours = gradients(lambda h, w, b: token_logprobs(h, w, targets, bias=b, chunk_rows=3), hidden, weight, bias)
    exact = gradients(
        lambda h, w, b: plain(h, w, targets, b), *(x.to(dtype).double() for x in (hidden, weight)), bias.double()
    )
    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-5
    for mine, truth in zip(ours, exact, strict=True):
        assert (mine.double() - truth).norm() < tolerance * truth.norm()


def test_recomputed_chunks_add_up_in_float32(monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    hidden, weight, targets = model_like(torch.bfloat16, peaked=False)
    exact = gradients(lambda h, w: plain(h, w, targets), hidden.double(), weight.double())
    *_, in_75_chunks = relative_errors(lambda h, w: token_logprobs(h, w, targets, chunk_rows=2), exact, hidden, weight)
    *_, in_one = relative_errors(lambda h, w: token_logprobs(h, w, targets), exact, hidden, weight)
    assert in_75_chunks < 1.1 * in_one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_alive_do_not_grow_with_the_rows_beyond_their_own(dtype):
    few, many = work(1024, dtype=dtype), work(4096, dtype=dtype)
    # What may grow: hidden directions and gradients, log-probabilities and their upstream scalars.
    assert many.peak - few.peak < (4096 - 1024) * (4 * 8 * 4 + 100)
    assert many.peak < module.CHUNK_ROWS * 3000 * dtype.itemsize + 4 * module.PASS_ELEMENTS + 4096 * 300


def test_all_chunks_share_one_buffer():
    # Taking it anew for every chunk is as small, but fills fresh pages each time.
    assert work(4096).taken < 1.5 * module.CHUNK_ROWS * 3000 * 4


def test_at_2048_rows_at_most_a_third_of_the_plain_version_s_bytes_are_alive():
    assert work(2048).peak < 0.35 * work(2048, function=plain).peak
