"""Hook points in modules of one's own: the same script on our classes and on TransformerLens', with equal records."""

import copy
import functools
import logging
import random

import pytest
import torch
import transformer_lens.hook_points as judge_points
from tl_hook_sessions import JUDGE, OURS, RAISED, Session, both, doubled, error_class, inputs

import glassformer.transformer_lens.hook_points as our_points
from glassformer.transformer_lens.HookedRootModule import HookedRootModule


@pytest.mark.parametrize("kind", ["Small", "TwoOutputs", "Outer"])
def test_names(kind):
    def script(session):
        session.note(list(session.module.mod_dict))
        session.note([module.name for module in session.module.mod_dict.values()])
        session.note(list(session.module.hook_dict))
        session.note([point.name for point in session.module.hook_points()])
        session.state()

    both(script, kind)


def test_order_prepend_and_permanence():
    def script(s):
        m = s.module
        m.add_hook("hook_embed", s.hook("a", doubled))
        m.add_hook("hook_embed", s.hook("b", lambda value: value + 1))
        m.add_hook("hook_embed", s.hook("first"), prepend=True)
        m.add_perma_hook("hook_embed", s.hook("stays", torch.sin))
        m.add_hook("hook_embed", s.hook("before all", torch.cos), is_permanent=True, prepend=True, level=3)
        m.add_hook(lambda name: "hook_out" in name, s.hook("everywhere", torch.neg))
        s.note(m(inputs()))
        s.state()
        for removal in (
            {"direction": "bwd"},
            {"level": 3},
            {"clear_contexts": False},
            {"including_permanent": True, "level": 7},
        ):
            m.reset_hooks(**removal)
            s.note(m(inputs()))
            s.state()

    record = both(script)
    assert [entry[0] for entry in record[:5]] == ["before all", "first", "a", "b", "stays"]


def test_levels_and_nested_blocks():
    def script(s):
        m = s.module
        m.add_hook("hook_embed", s.hook("outside", doubled))
        with m.hooks([("hook_embed", s.hook("one")), (lambda name: name.endswith("hook_in"), s.hook("in"))]) as same:
            s.note(same is m)
            m.add_hook("hook_embed", s.hook("inside, no level"))
            with m.hooks([("hook_embed", s.hook("two", torch.sin))], reset_hooks_end=False):
                s.state()
                s.note(m(inputs()))
            with m.hooks([("hook_embed", s.hook("two again", torch.cos))], clear_contexts=True):
                s.note(m(inputs()))
            s.state()
            s.note(m(inputs()))
        s.state()
        s.note(m(inputs()))
        s.note(m.run_with_hooks(inputs(), 2.0, fwd_hooks=[("final.1", s.hook("run", doubled))], reset_hooks_end=False))
        s.note(m.run_with_hooks(inputs(), fwd_hooks=[("final.1", s.hook("run 2", doubled))], scale=0.5))
        s.state()

    both(script)


def test_torchs_own_hooks_on_the_root():
    def script(s):
        s.module.register_forward_hook(lambda module, args, output: output * 3)
        s.note([s.module.run_with_hooks(inputs()), s.module.run_with_cache(inputs())])

    both(script)


def test_errors_inside_blocks_leave_no_hooks():
    def script(s):
        m = s.module
        for broken in (
            [("hook_embed", s.hook("ok")), ("hook_nowhere", s.hook("no"))],
            [("hook_embed", s.hook("ok")), ("blocks.0.linear", s.hook("no"))],
            [("hook_embed", s.hook("ok", lambda value: 1 / 0))],
            [("hook_embed", s.hook("ok", lambda value: value[0, 0, 0, 0]))],
            [("hook_embed", s.hook("ok", lambda value: "text"))],
            [("hook_embed", lambda value: None)],
            [(3, s.hook("no"))],
        ):
            for run in (m.run_with_hooks, lambda x, fwd_hooks: block(m, x, fwd_hooks)):
                try:
                    run(inputs(), fwd_hooks=broken)
                except RAISED as error:
                    s.note(error_class(error).__name__)
                s.state()

    def block(m, x, fwd_hooks):
        with m.hooks([("blocks.1.hook_in", lambda value, hook: None)]), m.hooks(fwd_hooks):
            m(x)

    record = both(script)
    named = {entry for entry in record if isinstance(entry, str)}
    assert named == {"KeyError", "TypeError", "ZeroDivisionError", "IndexError"}


def test_wrong_arguments():
    def script(s):
        m, point = s.module, s.module.hook_embed
        hook = s.hook("no")
        for wrong in (
            lambda: m.add_hook("hook_nowhere", hook),
            lambda: m.add_hook("blocks.0", hook),
            lambda: m.add_hook(["hook_embed"], hook),
            lambda: m.add_hook("hook_embed", hook, dir="both"),
            lambda: point.add_hook(hook, "forward"),
            lambda: point.remove_hooks("all"),
            lambda: point.has_hooks("all"),
            lambda: m.reset_hooks(direction="up"),
            lambda: m.list_hooks(3),
            lambda: m.run_with_cache(inputs(), names_filter=("hook_embed",)),
            lambda: m.run_with_cache(inputs(), names_filter=3),
            lambda: m.run_with_cache(inputs(), pos_slice="first"),
            lambda: m.run_with_cache(inputs(), incl_bwd=True),
            lambda: m.run_with_cache(inputs(), pos_slice=[7]),
            lambda: m.run_with_cache(inputs(), nonsense=True),
            lambda: m.hook_embed.layer(),
            lambda: s.side.point().layer(),
            lambda: m.final[1].layer(),
            lambda: m.heads["hook_z"].layer(),
        ):
            try:
                s.note(wrong())
            except RAISED as error:
                s.note(error_class(error).__name__)
            s.state()
        s.note(m.blocks[1].hook_out.layer())

    both(script)


def test_has_hooks_and_remove_hooks():
    def script(s):
        for removal in (
            {},
            {"dir": "bwd"},
            {"dir": "both", "level": 1},
            {"dir": "both", "including_permanent": True},
            {"level": 2},
            {"dir": "both"},
        ):
            point = s.side.point()
            for index, dir in enumerate(["fwd", "bwd", "fwd", "bwd", "fwd"]):
                point.add_hook(s.hook(index), dir, is_permanent=index < 2, level=[None, 1, 1, 2, None][index])
            point.add_perma_hook(s.hook("p"), "bwd")
            point.remove_hooks(**removal)
            s.note([repr(point), [h.context_level for h in point.fwd_hooks + point.bwd_hooks]])
            for dir in ("fwd", "bwd", "both"):
                for permanent in (True, False):
                    for level in (None, 1, 2):
                        s.note(point.has_hooks(dir, permanent, level))
            x = inputs().requires_grad_()
            point(x * 3).sum().backward()
            s.note(x.grad)

    both(script)


BACKWARD = {
    "nothing": lambda grad: None,
    "tensor": lambda grad: grad * 3,
    "tuple": lambda grad: (grad * 5,),
    "pair": lambda grad: (grad, grad),
    "list": lambda grad: [grad],
    "other shape": lambda grad: grad[0],
}


@pytest.mark.parametrize(
    "kinds", [*[(kind,) for kind in BACKWARD], ("tensor", "tuple", "nothing"), ("tuple", "tensor")]
)
def test_backward_hooks(kinds):
    def script(s):
        m = s.module
        for index, kind in enumerate(kinds):
            m.add_hook("blocks.1.hook_in", s.hook(f"{index} {kind}", BACKWARD[kind]), dir="bwd")
        m.add_hook(lambda name: True, s.hook("first"), dir="bwd", prepend=True)
        x = inputs().requires_grad_()
        out = m(x, scalar=True)
        try:
            out.backward()
        finally:
            s.note([x.grad, m.blocks[0].linear.weight.grad])
            s.state()

    both(script)


def test_backward_hooks_count_from_the_forward_pass_on():
    def script(s):
        m = s.module
        x = inputs().requires_grad_()
        with m.hooks(bwd_hooks=[("hook_embed", s.hook("gone", doubled))]):
            out = m(x, scalar=True)
        m.add_hook("hook_embed", s.hook("late", doubled), dir="bwd")
        out.backward()
        s.note(x.grad)
        with m.hooks(bwd_hooks=[(lambda name: "blocks" in name, s.hook("inside", doubled))]):
            m(x, scalar=True).backward()
        s.note(x.grad)
        m.run_with_hooks(x, scalar=True, bwd_hooks=[("final.1", s.hook("r", doubled))]).backward()
        kept = {"bwd_hooks": [("final.1", s.hook("k", doubled))], "reset_hooks_end": False}
        m.run_with_hooks(x, scalar=True, **kept).backward()
        s.note(x.grad)
        s.state()

    record = both(script)
    assert record[0][0] == "gone"


def test_warning_about_backward_hooks(caplog):
    for side in (OURS, JUDGE):
        caplog.clear()
        module = Session(side).module
        module.run_with_hooks(inputs(), bwd_hooks=[("hook_embed", lambda value, hook: None)], reset_hooks_end=False)
        assert not caplog.records
        module.run_with_hooks(inputs(), bwd_hooks=[("hook_embed", lambda value, hook: None)])
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


FILTERS = {
    "all": None,
    "one": "blocks.0.hook_in",
    "none": "hook_nowhere",
    "list": ["final.1", "hook_embed", "hook_nowhere"],
    "empty": [],
    "function": lambda name: "hook_in" in name,
}


@pytest.mark.parametrize("names", FILTERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_batch_dim": True},
        {"device": "cpu"},
        {"device": torch.device("cpu"), "incl_bwd": True, "scalar": True},
        {"incl_bwd": True, "scalar": True, "reset_hooks_end": False},
        {"pos_slice": 1},
        {"pos_slice": (0, 2), "incl_bwd": True, "scalar": True},
        {"pos_slice": [2, 0], "remove_batch_dim": True},
        {"pos_slice": torch.tensor([1])},
        {"pos_slice": "Slice"},
        {"pos_slice": -1, "clear_contexts": True},
        {"scale": 3.0, "reset_hooks_end": False},
    ],
    ids=str,
)
def test_cache(names, options):
    def script(s):
        m = s.module
        given = {**options, "pos_slice": s.side.slice(2)} if options.get("pos_slice") == "Slice" else options
        m.add_hook("hook_embed", s.hook("changes", doubled))
        x = inputs().requires_grad_()
        out, cache = m.run_with_cache(x, names_filter=FILTERS[names], **given)
        s.note([out, x.grad, type(cache).__name__])
        s.note(cache)
        s.state()

    both(script)


def test_caching_hooks():
    def script(s):
        m = s.module
        given = {"mine": torch.ones(2)}
        cache, fwd, bwd = m.get_caching_hooks(["hook_embed", "blocks.1.hook_out"], incl_bwd=True, cache=given)
        s.note([cache is given, [name for name, _ in fwd], [name for name, _ in bwd]])
        s.state()
        with m.hooks(fwd, bwd):
            m(inputs(), scalar=True).backward()
        s.note(cache)
        added = m.add_caching_hooks(lambda name: "hook_in" in name, incl_bwd=True, remove_batch_dim=True)
        s.state()
        m(inputs(1), scalar=True).backward()
        s.note(added)
        m.reset_hooks()
        everything, some = {}, {}
        m.cache_all(everything, incl_bwd=True, device="cpu")
        m.cache_some(some, lambda name: "z" in name, remove_batch_dim=True)
        m(inputs(2), scalar=True).backward()
        s.note([everything, some])
        s.state()

    both(script)


def test_cached_values_share_memory_with_what_went_through():
    def script(s):
        m = s.module
        _, cache = m.run_with_cache(inputs(), names_filter="hook_embed")
        before = cache["hook_embed"].clone()
        cache, fwd, _ = m.get_caching_hooks("hook_embed")
        with m.hooks([*fwd, ("hook_embed", s.hook("in place", lambda value: value.mul_(2)))]):
            m(inputs())
        s.note([before, cache, torch.equal(cache["hook_embed"], before * 2)])

    assert both(script)[-1][-1] is True


def test_two_outputs():
    def script(s):
        m = s.module
        m.add_hook("hook_pair", s.hook("pair", lambda pair: (pair[1], pair[0] * 2)))
        m.add_hook("hook_twice", s.hook("twice", doubled))
        m.add_hook("hook_pair", s.hook("back of the pair"), dir="bwd")
        m.add_hook("hook_twice", s.hook("back", doubled), dir="bwd")
        x = inputs().requires_grad_()
        left, right = m(x)
        s.note([left, right])
        (left.sum() + right.square().sum()).backward()
        s.note(x.grad)
        s.note(m.run_with_cache(x, names_filter="hook_twice")[1])
        s.note(m.run_with_cache(x)[1])

    record = both(script, "TwoOutputs")
    assert record[-1] == ("raised", AttributeError)


def test_roots_inside_roots():
    def script(s):
        m = s.module
        out, cache = m.run_with_cache(inputs(), incl_bwd=True)
        s.note([out, cache])
        s.note(m.inner.run_with_cache(inputs())[1])
        with m.hooks([("inner.hook_embed", s.hook("outer", doubled))]):
            s.note(m.inner.run_with_hooks(inputs(), fwd_hooks=[("hook_embed", s.hook("inner", torch.sin))]))
            s.note([m.inner.context_level, m.context_level])
            s.note(m(inputs()))
        s.state()

    both(script, "Outer")


def test_aliases_and_conversions():
    def script(s):
        class Transposed(s.side.conversion):
            def handle_conversion(self, input_value, *full_context):
                return input_value.transpose(-1, -2)

            def revert(self, input_value, *full_context):
                return input_value.transpose(-1, -2)

        class Half(s.side.conversion):
            def handle_conversion(self, input_value, *full_context):
                return input_value / 2

        m, point = s.module, s.module.blocks[0].hook_in
        point.add_hook(s.hook("aliases", doubled), alias_names=["blocks.7.x", "y"])
        point.add_hook(s.hook("none", doubled), alias_names=[])
        point.add_hook(lambda value, hook: s.note([hook.name, hook.layer()]), alias_names=["blocks.7.x"])
        point.add_hook(s.hook("back", doubled), dir="bwd")
        x = inputs().requires_grad_()
        for conversion in (None, Transposed(), Half(lambda value: value + 1, lambda value: value - 3)):
            point.enable_reshape(conversion)
            out = m(x, scalar=True)
            out.backward()
            s.note([out, x.grad, point.hook_conversion is conversion])
        m.reset_hooks()
        s.note(m.run_with_cache(x)[1])
        point.enable_reshape(s.side.conversion())
        s.note(m(x))
        point.add_hook(s.hook("no"))
        try:
            m(x)
        except NotImplementedError:
            s.note("NotImplementedError")

    record = both(script)
    assert record[-1] == "NotImplementedError"


def test_checks_of_subclasses():
    def script(s):
        calls = []

        class Checked(type(s.module)):
            def check_hooks_to_add(
                self, hook_point, hook_point_name, hook, dir="fwd", is_permanent=False, prepend=False
            ):
                calls.append(
                    (hook_point is self.mod_dict[hook_point_name], hook_point_name, dir, is_permanent, prepend)
                )
                if "out" in hook_point_name:
                    raise ValueError("not there")

        m = Checked().double()
        m.add_hook("hook_embed", s.hook("a"), dir="bwd", prepend=True)
        m.check_and_add_hook(m.hook_embed, "hook_embed", s.hook("b"), level=2)
        try:
            m.add_perma_hook(lambda name: "block" in name, s.hook("c"))
        except ValueError:
            s.note("refused")
        with m.hooks([("blocks.0.hook_out", s.hook("unchecked"))]):
            m(inputs())
        m.run_with_cache(inputs())
        s.note(calls)
        s.module = m
        s.state()

    both(script)


def test_handles_name_the_users_function():
    for side in (OURS, JUDGE):
        point = side.point()
        partial = functools.partial(print, torch.ones(3))
        for hook in (doubled, partial):
            point.add_hook(hook)
            point.add_hook(hook, dir="bwd")
        assert [handle.user_hook for handle in point.fwd_hooks] == [doubled, partial]
        expected = [repr(doubled), f"partial({print!r},...)"]
        assert [hook.__name__ for hook in point._forward_hooks.values()] == expected
        assert [hook.__name__ for hook in point._backward_hooks.values()] == expected
        assert isinstance(point, side.points.HookPoint)
        assert isinstance(doubled, side.points.HookFunction)
    assert our_points.HookedRootModule is HookedRootModule
    with pytest.raises(ImportError):
        from glassformer.transformer_lens.hook_points import nothing  # noqa: F401


def test_copies_of_modules():
    def script(s):
        m = s.module
        m.add_hook("hook_embed", s.hook("a", doubled))
        m.hook_embed.ctx["seen"] = 1
        other = copy.deepcopy(m)
        s.note(other(inputs()))
        m.reset_hooks()
        s.note([other(inputs()), m(inputs())])
        s.note([dict(m.hook_embed.ctx), dict(other.hook_embed.ctx)])

    both(script)


def test_running_the_hooks_without_torch_is_the_same():
    """What `run_hooks` makes of a value and of a gradient, beside the judge's module."""
    for dir in ("fwd", "bwd"):
        for seed in range(20):
            choose = random.Random(seed)
            ours, judge = our_points.HookPoint(), judge_points.HookPoint()
            for _ in range(choose.randrange(5)):
                factor, kind = choose.uniform(1, 2), choose.choice(["none", "tensor", "tuple"])
                made = {"none": lambda v, f: None, "tensor": lambda v, f: v * f, "tuple": lambda v, f: (v * f,)}[
                    kind if dir == "bwd" else kind.replace("tuple", "tensor")
                ]
                prepend = choose.random() < 0.5
                for point in (ours, judge):
                    point.add_hook(lambda v, hook, made=made, f=factor: made(v, f), dir=dir, prepend=prepend)
            x = inputs(seed).requires_grad_()
            if dir == "fwd":
                expected, found = judge(x), ours.run_hooks(x)
            else:
                judge(x).backward(torch.ones_like(x))
                expected, found = x.grad, ours.run_hooks(torch.ones_like(x), "bwd")
            assert torch.equal(found, expected)
