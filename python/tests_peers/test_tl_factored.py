"""Factored matrices, composition scores and singular vectors: TransformerLens' numbers and ours."""

import copy
import types
import warnings

import numpy as np
import pytest
import torch
import transformer_lens
from helpers import assert_close
from transformer_lens import utilities as judge_utilities

import glassformer
from glassformer.transformer_lens import FactoredMatrix, SVDInterpreter, utilities

SHAPES = [
    ((6, 3), (3, 6)),
    ((3, 6), (6, 3)),
    ((5, 3), (3, 7)),
    ((7, 4), (4, 3)),
    ((4, 5), (5, 2)),
    ((1, 3), (3, 1)),
    ((2, 3, 6, 2), (2, 3, 2, 6)),
    ((6, 3), (2, 4, 3, 6)),
    ((4, 5, 3), (2, 1, 3, 7)),
]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
REFUSED = (AssertionError, KeyError, ValueError, RuntimeError, IndexError)


def pair_of(shapes, dtype=torch.float64, requires_grad=False):
    """The same random matrix, ours and the judge's, and the factors of each."""
    torch.manual_seed(sum(map(sum, shapes)))
    factors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    ours, theirs = ([factor.clone().requires_grad_(requires_grad) for factor in factors] for _ in range(2))
    return types.SimpleNamespace(
        ours=FactoredMatrix(*ours),
        judge=transformer_lens.FactoredMatrix(*theirs),
        our_factors=ours,
        judge_factors=theirs,
        tolerance=TOLERANCES[dtype],
    )


def compare(found, expected, tolerance, what=""):
    """Two tensors, or two factored matrices factor by factor."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, what
        if expected.is_complex():
            found, expected = torch.view_as_real(found), torch.view_as_real(expected)
        assert_close(found.detach(), expected.detach(), tolerance, what)
        return
    assert isinstance(found, FactoredMatrix), what
    assert (found.shape, found.mdim) == (expected.shape, expected.mdim), what
    assert_close(found.AB.detach(), expected.AB.detach(), tolerance, what)
    assert_close(found.A.detach(), expected.A.detach(), tolerance, what)
    assert_close(found.B.detach(), expected.B.detach(), tolerance, what)


def like(reference, signs_of, expected):
    """`reference` (`... n k`) with the sign that each of its columns has in `expected`."""
    return reference * (signs_of * expected).sum(-2, keepdim=True).sign()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shapes", SHAPES)
class TestValues:
    def test_sizes(self, shapes, dtype):
        both = pair_of(shapes, dtype)
        for name in ["ldim", "mdim", "rdim", "ndim", "shape", "has_leading_dims"]:
            assert getattr(both.ours, name) == getattr(both.judge, name), name
        assert type(both.ours.shape) is torch.Size
        assert repr(both.ours) == repr(both.judge)
        compare(both.ours, both.judge, 0)
        for found, expected in zip(both.ours.pair, both.judge.pair, strict=True):
            assert torch.equal(found, expected)

    def test_products(self, shapes, dtype):
        both = pair_of(shapes, dtype)
        compare(both.ours.AB, both.judge.AB, both.tolerance)
        compare(both.ours.T, both.judge.T, both.tolerance)
        left, right = both.judge.ldim, both.judge.rdim
        leading = both.judge.shape[:-2]
        for size in [(2,), (8,), (*leading, 3)]:
            before, behind = (
                torch.randn(shape, dtype=dtype) for shape in [(*size, left), (*size[:-1], right, size[-1])]
            )
            if before.ndim > 1:
                compare(before @ both.ours, before @ both.judge, both.tolerance, "matrix @")
            compare(both.ours @ behind, both.judge @ behind, both.tolerance, "@ matrix")
        row, column = torch.randn(left, dtype=dtype), torch.randn(right, dtype=dtype)
        compare(row @ both.ours, row @ both.judge, both.tolerance, "vector @")
        compare(both.ours @ column, both.judge @ column, both.tolerance, "@ vector")
        compare(both.ours @ both.ours.T, both.judge @ both.judge.T, both.tolerance)
        compare(both.ours.T @ both.ours, both.judge.T @ both.judge, both.tolerance)
        if left == right:
            compare(both.ours.BA, both.judge.BA, both.tolerance)

    def test_numbers(self, shapes, dtype):
        both = pair_of(shapes, dtype)
        for number in [3, -0.5, np.float64(2), np.float32(1.5), torch.tensor(4), torch.tensor([0.25], dtype=dtype)]:
            compare(both.ours * number, both.judge * number, both.tolerance)
            compare(number * both.ours, number * both.judge, both.tolerance)

    def test_svd(self, shapes, dtype):
        both = pair_of(shapes, dtype)
        U, S, V = both.ours.svd()
        expected_U, expected_S, expected_V = both.judge.svd()
        compare(S, expected_S, both.tolerance)
        compare(like(U, U, expected_U), expected_U, both.tolerance)
        compare(like(V, U, expected_U), expected_V, both.tolerance)
        for name, value in {"U": U, "S": S, "V": V, "Vh": V}.items():
            assert getattr(both.ours, name) is value, name
        compare(U * S[..., None, :] @ V.mT, both.judge.AB, both.tolerance)
        compare(like(both.ours.collapse_r(), U, expected_U), both.judge.collapse_r(), both.tolerance)
        compare(like(both.ours.collapse_l().mT, U, expected_U).mT, both.judge.collapse_l(), both.tolerance)
        even, expected = both.ours.make_even(), both.judge.make_even()
        compare(like(even.A, U, expected_U), expected.A, both.tolerance)
        compare(like(even.B.mT, U, expected_U).mT, expected.B, both.tolerance)
        compare(both.ours.norm(), both.judge.norm(), both.tolerance)

    def test_eigenvalues(self, shapes, dtype):
        both = pair_of(shapes, dtype)
        if both.judge.ldim != both.judge.rdim:
            with pytest.raises(REFUSED):
                both.ours.eigenvalues  # noqa: B018
            return
        compare(both.ours.eigenvalues, both.judge.eigenvalues, both.tolerance)

    def test_parts(self, shapes, dtype):
        both = pair_of(shapes, dtype)
        for k in [1, 2, 3, 9]:
            compare(both.ours.get_corner(k), both.judge.get_corner(k), both.tolerance)
            compare(
                utilities.get_matrix_corner(both.ours, k),
                judge_utilities.get_matrix_corner(both.judge, k),
                both.tolerance,
            )
        compare(both.ours.get_corner(), both.judge.get_corner(), both.tolerance)
        compare(utilities.get_corner(both.ours), judge_utilities.get_corner(both.judge), both.tolerance)
        for place in range(both.judge.ndim - 1):
            compare(both.ours.unsqueeze(place), both.judge.unsqueeze(place), both.tolerance)
        compare(both.ours.unsqueeze(-3), both.judge.unsqueeze(-3), both.tolerance)

    def test_gradients(self, shapes, dtype):
        made = {
            "norm": lambda matrix: matrix.norm().sum(),
            "AB": lambda matrix: matrix.AB.pow(3).sum(),
            "products": lambda matrix: (2.5 * (matrix @ matrix.T)).make_even().AB.square().sum(),
            "singular values": lambda matrix: matrix.S.pow(3).sum(),
            "eigenvalues": lambda matrix: matrix.eigenvalues.abs().sum(),
            "a part": lambda matrix: matrix[(0,) * (matrix.ndim - 2) + (slice(2), -1)].norm(),
        }
        tolerance = TOLERANCES[dtype] * 100  # Three decompositions there, fewer here.
        for name, scalar in made.items():
            both = pair_of(shapes, dtype, requires_grad=True)
            if name == "eigenvalues" and (both.judge.ldim != both.judge.rdim or both.judge.mdim > both.judge.ldim):
                continue  # Eigenvalues that are 0 in exact arithmetic have no slope.
            if name == "products" and dtype == torch.float32:
                continue  # Squared singular values of 32 bits.
            scalar(both.ours).backward()
            scalar(both.judge).backward()
            for found, expected in zip(both.our_factors, both.judge_factors, strict=True):
                compare(found.grad, expected.grad, tolerance, name)


INDICES = [
    0,
    -1,
    slice(None, 2),
    None,
    [1, 0],
    (0, 1),
    (slice(None), 1),
    (slice(None), slice(1, None)),
    (None, 1, None),
    (0, 1, 2),
    (1, -1, -1),
    (0, 0, slice(1, 5, 2)),
    (0, 0, 2, 3),
    (0, 0, -1, -1),
    (1, slice(None), -6, -5),
    (slice(None), slice(None), slice(2), slice(1, 4)),
    (slice(None), 2, [0, 5], [4, 1]),
    (slice(None), 2, [0, 5], 3),
    (0, 0, torch.tensor([1, 3]), torch.tensor([2])),
    (torch.tensor([1, 0, 1]), torch.tensor([0, 0, 2])),
    (np.array([True, False]), 1),
    (slice(None), np.int64(2), slice(None), np.array([0, 1])),
    Ellipsis,
    (Ellipsis, slice(None)),
    True,
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indices(index):
    both = pair_of(((2, 3, 6, 4), (3, 4, 5)))
    compare(both.ours[index], both.judge[index], 1e-10)


@pytest.mark.parametrize(
    "index", [0, -1, slice(2, 4), (0, 1), (slice(None), -1), (None, 2), [5, 1], (None, 2, 3)], ids=str
)
def test_indices_without_leading_axes(index):
    both = pair_of(((6, 4), (4, 5)))
    compare(both.ours[index], both.judge[index], 1e-10)


def test_indices_beyond_the_judge():
    """What it refuses or gets wrong follows torch here, with axes kept for integers."""
    matrix = pair_of(((2, 3, 6, 4), (3, 4, 5))).ours
    AB, mask = matrix.AB, torch.rand(2, 3) > 0.5
    compare(matrix[..., 1].AB, AB[..., 1:2], 1e-10)
    compare(matrix[..., 1, :].AB, AB[..., 1:2, :], 1e-10)
    compare(matrix[mask, ..., -1].AB, AB[mask][..., -1:], 1e-10)
    compare(matrix[[1, 0], [2, 1], [3, 4, 0]].AB, AB[[1, 0], [2, 1]][:, [3, 4, 0]], 1e-10)
    compare(matrix[0, 0, torch.tensor(2)].AB, AB[0, 0, 2:3], 1e-10)
    assert [part.shape for part in matrix] == [matrix.shape[1:]] * 2
    assert len(list(matrix[0, 0])) == 6


@pytest.mark.parametrize("index", [2, -3, (0, 0, 6), (0, 0, 0, -6), (Ellipsis, Ellipsis)], ids=str)
def test_indices_out_of_range(index):
    with pytest.raises(IndexError):
        pair_of(((2, 3, 6, 4), (3, 4, 5))).ours[index]


@pytest.mark.parametrize("index", [(0,) * 5, (0, 0, 0, None), (0, 0, [[0, 1]]), (0, 0, 0, 0, Ellipsis, 0)], ids=str)
def test_indices_that_mean_nothing(index):
    with pytest.raises(ValueError):
        pair_of(((2, 3, 6, 4), (3, 4, 5))).ours[index]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda make, m: make(torch.ones(4, 3), torch.ones(4, 3)),
        lambda make, m: make(torch.ones(2, 4, 3), torch.ones(3, 3, 4)),
        lambda make, m: make(torch.ones(3), torch.ones(3, 4)),
        lambda make, m: m @ torch.ones(6, 5),
        lambda make, m: torch.ones(5, 5) @ m,
        lambda make, m: torch.ones(5) @ m,
        lambda make, m: m @ torch.ones(6),
        lambda make, m: m @ m,
        lambda make, m: m * torch.ones(2),
        lambda make, m: torch.ones(2, 2) * m,
        lambda make, m: m.BA,
        lambda make, m: m.eigenvalues,
        lambda make, m: m.unsqueeze(4),
        lambda make, m: m[0, 0, 0],
    ],
)
def test_what_is_refused(wrong):
    for make in [transformer_lens.FactoredMatrix, FactoredMatrix]:
        with pytest.raises(REFUSED):
            wrong(make, make(torch.randn(6, 4), torch.randn(4, 5)))


@pytest.mark.parametrize("other", [3, "a", [1.0], None])
def test_products_with_what_is_no_matrix(other):
    matrix = pair_of(SHAPES[0]).ours
    with pytest.raises(TypeError):
        matrix @ other
    with pytest.raises(TypeError):
        other @ matrix
    if other != 3:
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            matrix * other


def test_sixteen_bits():
    A, B = torch.randn(6, 3), torch.randn(3, 6)
    for dtype in [torch.bfloat16, torch.float16]:
        ours, judge = (make(A.to(dtype), B.to(dtype)) for make in (FactoredMatrix, transformer_lens.FactoredMatrix))
        compare(ours.eigenvalues, judge.eigenvalues, 1e-6)
        wide = FactoredMatrix(ours.A.float(), ours.B.float())
        compare(ours.S, wide.S, 1e-6)
        compare(ours.norm(), wide.norm(), 1e-6)


def test_the_core_does_the_mathematics(judge, monkeypatch):
    """Python's own products and decompositions aren't called."""
    left, right = (pair_of(((*shape, 6, 3), (*shape, 3, 6))).ours for shape in [(2,), (3,)])
    expected = [
        (left[0] @ right).S,
        utilities.composition_scores(left, right),
        (left @ torch.ones(6, 1, dtype=torch.float64)).AB,
    ]

    def refuse(*arguments, **options):
        raise AssertionError("mathematics in Python")

    for place, names in {
        torch: ["matmul", "bmm", "mm", "einsum", "sqrt", "norm"],
        torch.Tensor: ["__matmul__", "__mul__", "matmul", "pow", "sqrt", "sum", "norm"],
        torch.linalg: ["svd", "qr", "eig", "norm"],
    }.items():
        for name in names:
            monkeypatch.setattr(place, name, refuse)
    left, right = FactoredMatrix(*left.pair), FactoredMatrix(*right.pair)
    found = [
        (left[0] @ right).S,
        utilities.composition_scores(left, right),
        (left @ torch.ones(6, 1, dtype=torch.float64)).AB,
    ]
    for matrix in (left * 2, left.make_even(), left.T):
        matrix.norm(), matrix.eigenvalues, matrix.collapse_l(), matrix.collapse_r(), matrix.get_corner()
    for vector_type in ["OV", "w_in", "w_out"]:
        SVDInterpreter(judge).get_singular_vectors(vector_type, 0, 2, 0)
    monkeypatch.undo()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_copies():
    matrix = pair_of(((6, 3), (2, 4, 3, 6))).ours
    copied = copy.deepcopy(matrix)
    assert torch.equal(copied.AB, matrix.AB)
    matrix.B.mul_(2)  # Of A one matrix stands for all leading axes.
    assert not torch.equal(copied.AB, matrix.AB)
    compare(matrix.norm(), copied.norm() * 2, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("leading", [((), ()), ((3,), ()), ((2, 3), (2, 3)), ((2,), (3, 2))])
def test_composition_scores(leading, dtype):
    left, right = (pair_of(((*shape, 6, 3), (*shape, 3, 6)), dtype, requires_grad=True) for shape in leading)
    found = utilities.composition_scores(left.ours, right.ours)
    expected = judge_utilities.composition_scores(left.judge, right.judge)
    compare(found, expected, left.tolerance)
    assert found.shape == leading[0] + leading[1]
    found.sum().backward()
    expected.sum().backward()
    for both in (left, right):
        for ours, theirs in zip(both.our_factors, both.judge_factors, strict=True):
            compare(ours.grad, theirs.grad, left.tolerance * 100)


def test_composition_scores_one_by_one():
    left, right = pair_of(((2, 3, 5, 2), (2, 3, 2, 6))), pair_of(((3, 6, 4), (3, 4, 7)))
    found = utilities.composition_scores(left.ours, right.ours, broadcast_dims=False)
    compare(found, judge_utilities.composition_scores(left.judge, right.judge, broadcast_dims=False), 1e-10)
    with pytest.raises(ValueError):
        utilities.composition_scores(right.ours, left.ours)


def judge_of(**options):
    sizes = {"n_layers": 2, "d_model": 12, "n_ctx": 16, "d_head": 4, "n_heads": 3, "d_vocab": 23, "act_fn": "gelu"}
    config = transformer_lens.HookedTransformerConfig(**sizes, seed=0, device="cpu", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = transformer_lens.HookedTransformer(config)
    for parameter in model.parameters():  # No norm's weight stays at 1.
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module", params=["LN", "LNPre"])
def judge(request):
    return judge_of(normalization_type=request.param)


@pytest.mark.parametrize("vector_type", ["OV", "w_in", "w_out"])
def test_singular_vectors(judge, vector_type):
    ours, theirs = SVDInterpreter(judge), transformer_lens.SVDInterpreter(judge)
    for layer in range(2):
        count = 4 if vector_type == "OV" else 12
        found = ours.get_singular_vectors(vector_type, layer, num_vectors=count, head_index=1)
        expected = theirs.get_singular_vectors(vector_type, layer, num_vectors=count, head_index=1)
        assert found.shape == (23, 1, count)
        compare(found * (found * expected).sum(0).sign(), expected, 1e-4)
    if vector_type != "OV":
        assert ours.get_singular_vectors(vector_type, 0).shape == (23, 1, 10)


def test_singular_vectors_of_neurons_that_read_no_norm():
    """The judge scales what they read by the weight of the norm behind them."""
    judge = judge_of(normalization_type="RMS", original_architecture="Olmo2ForCausalLM")
    found = SVDInterpreter(judge).get_singular_vectors("w_in", 0)
    wrong = transformer_lens.SVDInterpreter(judge).get_singular_vectors("w_in", 0)
    with torch.no_grad():
        judge.blocks[0].ln2.w.fill_(1)
    expected = transformer_lens.SVDInterpreter(judge).get_singular_vectors("w_in", 0)
    compare(found * (found * expected).sum(0).sign(), expected, 1e-4)
    assert (wrong.abs() - expected.abs()).abs().max() > 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        ("OV", 0),
        ("OV", 2, 3, 0),
        ("OV", 0, 3, 3),
        ("OV", 0, 5, 0),
        ("w_in", -1),
        ("w_in", 0, 13),
        ("w_in", 0, 0),
        ("W", 0, 1, 0),
    ],
)
def test_singular_vectors_that_are_not_there(judge, arguments):
    for interpreter in [SVDInterpreter(judge), transformer_lens.SVDInterpreter(judge)]:
        with pytest.raises(REFUSED):
            interpreter.get_singular_vectors(*arguments)
    with pytest.raises(glassformer.InputError):
        SVDInterpreter(judge).get_singular_vectors(*arguments)


def test_singular_vectors_of_a_model_without_mlps(judge):
    bare = types.SimpleNamespace(
        cfg=judge.cfg, W_U=judge.W_U, blocks=[types.SimpleNamespace(attn=block.attn) for block in judge.blocks]
    )
    found, expected = (SVDInterpreter(model).get_singular_vectors("OV", 0, 2, 0) for model in (bare, judge))
    assert found.shape == (23, 1, 2) and torch.equal(found, expected)
    with pytest.raises(glassformer.InputError, match="no MLPs"):
        SVDInterpreter(bare).get_singular_vectors("w_out", 0)


def test_plain_tensors(capsys):
    tensor = torch.randn(4, 5, 6)
    for n in [1, 3, 9]:
        assert torch.equal(utilities.get_corner(tensor, n), judge_utilities.get_corner(tensor, n))
    assert torch.equal(utilities.transpose(tensor), judge_utilities.transpose(tensor))
    square = torch.randn(4, 4)
    for x in [tensor, tensor[0], square, square.tril(), square.triu(), tensor[0].tril()]:
        assert utilities.is_square(x) == judge_utilities.is_square(x)
        assert utilities.is_lower_triangular(x) == judge_utilities.is_lower_triangular(x)
    one, other = torch.arange(16.0).view(4, 4), torch.arange(16.0).view(4, 4)
    other[1, 2] = 9
    rising = torch.arange(4.0).expand(4, 4)
    for t1, t2 in [
        (one, one),
        (one, other),
        (square, one),
        (rising, rising.T),
        (rising, rising.flip(1)),
        (one, rising),
    ]:
        for verbose in [False, True]:
            utilities.check_structure(t1, t2, verbose=verbose)
            found = capsys.readouterr().out
            judge_utilities.check_structure(t1, t2, verbose=verbose)
            assert found == capsys.readouterr().out
    for t1, t2 in [(square, tensor[0]), (tensor, tensor)]:
        with pytest.raises(AssertionError):
            utilities.check_structure(t1, t2)
