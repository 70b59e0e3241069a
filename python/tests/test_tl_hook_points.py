"""Hook points in modules of one's own, and the helpers around them, in TransformerLens' words."""

import types

import pytest
import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens import utilities, utils
from glassformer.transformer_lens.hook_points import BaseTensorConversion, HookedRootModule, HookPoint


class Chain(HookedRootModule):
    """`batch pos 3`: times two, plus one, squared, with a hook point behind each."""

    def __init__(self):
        super().__init__()
        self.hook_in = HookPoint()
        self.blocks = nn.ModuleList([nn.ModuleDict({"hook_double": HookPoint()})])
        self.hook_plus = HookPoint()
        self.hook_z = HookPoint()
        self.linear = nn.Linear(1, 1)
        self.setup()

    def forward(self, x, scalar=False):
        x = self.blocks[0]["hook_double"](self.hook_in(x) * 2)
        x = self.hook_z((self.hook_plus(x + 1) ** 2).unsqueeze(-2)).squeeze(-2)
        return x.sum() if scalar else x


NAMES = ["hook_in", "blocks.0.hook_double", "hook_plus", "hook_z"]


def chain_input():
    return torch.arange(6.0, dtype=torch.float64).view(1, 2, 3)


def recorder(log, label, change=None):
    def hook(value, hook):
        log.append((label, hook.name))
        return None if change is None else change(value)

    return hook


def test_the_order_of_hooks():
    module, log = Chain(), []
    assert list(module.hook_dict) == NAMES
    assert [point.name for point in module.hook_points()] == NAMES
    assert module.blocks[0]["hook_double"].layer() == 0
    module.add_hook("hook_in", recorder(log, "second", lambda value: value + 10))
    module.add_hook("hook_in", recorder(log, "first", lambda value: value * 3), prepend=True)
    module.add_perma_hook(lambda name: name != "hook_in", recorder(log, "all"))
    x = chain_input()
    assert torch.equal(module(x), ((x * 3 + 10) * 2 + 1) ** 2)
    assert log == [("first", "hook_in"), ("second", "hook_in"), *(("all", name) for name in NAMES[1:])]
    assert torch.equal(module.hook_in.run_hooks(x), x * 3 + 10)
    assert repr(module.hook_in) == "HookPoint(name='hook_in', 2 fwd)"
    module.reset_hooks()
    assert torch.equal(module(x), (x * 2 + 1) ** 2)
    assert list(module.list_hooks()) == NAMES[1:]
    module.reset_hooks(including_permanent=True)
    assert module.list_hooks() == {}


def test_blocks_remove_their_own_level_only():
    module, log = Chain(), []
    with module.hooks([("hook_in", recorder(log, "outer"))]):
        with pytest.raises(ZeroDivisionError), module.hooks([("hook_in", recorder(log, "inner"))]):
            module(chain_input())
            raise ZeroDivisionError
        module(chain_input())
        assert module.context_level == 1
    module(chain_input())
    assert [label for label, _ in log] == ["outer", "inner", "outer"]
    assert not module.hook_in.has_hooks()
    assert module.context_level == 0


def test_gradients():
    module, log = Chain(), []
    x = chain_input().requires_grad_()
    with module.hooks(bwd_hooks=[("hook_plus", recorder(log, "a", lambda grad: (grad * 3,)))]):
        module.hook_plus.add_hook(recorder(log, "b"), dir="bwd")
        module(x, scalar=True).backward()
    assert torch.equal(x.grad, 3 * 2 * (x.detach() * 2 + 1) * 2)
    assert log == [("a", "hook_plus"), ("b", "hook_plus")]
    module.reset_hooks()
    grad = torch.ones(2)
    for factor in (2, 5):
        module.hook_in.add_hook(lambda grad, hook, factor=factor: grad * factor, dir="bwd")
    assert torch.equal(module.hook_in.run_hooks(grad, "bwd"), grad * 5)


def test_caches():
    module, x = Chain(), chain_input().requires_grad_()
    out, cache = module.run_with_cache(x, incl_bwd=True, scalar=True)
    assert list(cache) == [*NAMES, *(f"{name}_grad" for name in reversed(NAMES))]
    assert torch.equal(cache["hook_plus"], x.detach() * 2 + 1)
    assert torch.equal(cache["hook_plus_grad"], 2 * cache["hook_plus"])
    assert out.requires_grad and not any(value.requires_grad for value in cache.values())
    _, cache = module.run_with_cache(x, names_filter=["hook_z", "hook_in"], remove_batch_dim=True, pos_slice=1)
    assert {name: tuple(value.shape) for name, value in cache.items()} == {"hook_in": (1, 3), "hook_z": (1, 1, 3)}
    assert torch.equal(cache["hook_in"], x[0, 1:])
    assert not module.is_caching
    assert module.list_hooks() == {}


def test_positions_where_the_axis_is_gone():
    module = Chain()
    _, cache = module.run_with_cache(torch.ones(2, 3), remove_batch_dim=True, names_filter="hook_in", pos_slice=0)
    assert cache["hook_in"].shape == (3,)


def test_conversions_and_aliases():
    class Negative(BaseTensorConversion):
        def handle_conversion(self, input_value, *full_context):
            return -input_value

        def revert(self, input_value, *full_context):
            return -input_value

    point, log, x = HookPoint(), [], chain_input()
    point.enable_reshape(Negative())
    point.add_hook(recorder(log, "a", lambda value: value + 1), alias_names=["x.3", "y"])
    assert torch.equal(point(x), x - 2)
    assert torch.equal(point.run_hooks(x), x - 2)
    assert log == [("a", "x.3"), ("a", "y")] * 2


def nothing(value, hook):
    return None


@pytest.mark.parametrize(
    "wrong,error,text",
    [
        (lambda m: m.add_hook("hook_plu", nothing), KeyError, "has no hook point 'hook_plu'; near it: hook_plus"),
        (lambda m: m.add_hook("linear", nothing), AssertionError, "'linear' is a Linear; expected"),
        (lambda m: m.run_with_hooks(chain_input(), fwd_hooks=[("linear", nothing)]), TypeError, "'linear' is a Linear"),
        (lambda m: m.hook_in.add_hook(nothing, "up"), ValueError, "'fwd' or 'bwd'; found 'up'"),
        (lambda m: m.hook_in.remove_hooks("up"), ValueError, "'fwd', 'bwd' or 'both'; found 'up'"),
        (lambda m: m.run_with_cache(chain_input(), names_filter=3), ValueError, "names_filter is .*; found int"),
        (lambda m: HookPoint().layer(), ValueError, "has no name"),
        (lambda m: BaseTensorConversion().convert(1), NotImplementedError, "has no handle_conversion"),
    ],
)
def test_wrong_arguments(wrong, error, text):
    module = Chain()
    with pytest.raises(error, match=text):
        wrong(module)
    assert module.list_hooks() == {}


def test_helpers():
    assert utils.get_act_name("k6") == utils.get_act_name("key", 6) == "blocks.6.attn.hook_k"
    x = torch.arange(12).view(3, 4)
    assert utilities.Slice((1, 3)).apply(x, dim=-1).tolist() == [[1, 2], [5, 6], [9, 10]]
    assert utilities.Slice(2).apply(x).tolist() == [8, 9, 10, 11]
    tokenizer = types.SimpleNamespace(padding_side="left", pad_token_id=0, bos_token_id=0)
    tokens = torch.tensor([[0, 0, 0, 5], [0, 3, 0, 5]])
    assert utilities.get_attention_mask(tokenizer, tokens, prepend_bos=True).tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert utilities.get_tokens_with_bos_removed(tokenizer, tokens).tolist() == [[0, 0, 5], [3, 0, 5]]
    with pytest.raises(ValueError, match="no data set 'mine'"):
        utilities.get_dataset("mine")


def test_ranked_tokens():
    generator = torch.Generator().manual_seed(4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits = torch.randn(2, 3, 50, generator=generator, dtype=torch.float64).to(dtype)
        ranking = _core.rank_tokens(logits.requires_grad_())
        wide = logits.detach().to(torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(ranking.probabilities, wide.exp() / wide.exp().sum(-1, keepdim=True))
        for index in range(6):
            row = wide.flatten(0, 1)[index].tolist()
            expected = sorted(range(50), key=lambda token: (-row[token], token))
            assert ranking.order.flatten(0, 1)[index].tolist() == expected
            assert ranking.ranks.flatten(0, 1)[index][expected].tolist() == list(range(50))
    for wrong in (torch.tensor(1.0), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="logits to rank"):
            _core.rank_tokens(wrong)
