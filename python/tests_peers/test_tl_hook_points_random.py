"""Random operations on hook points: the same on our classes and on TransformerLens', with equal records."""

import contextlib
import random

import pytest
from tl_hook_sessions import both, inputs


class RandomScript:
    """Random operations, the same for both sides: choices come from a generator of their own."""

    def __init__(self, seed, steps):
        self.seed, self.steps = seed, steps

    def __call__(self, s):
        self.choose, self.s, self.count = random.Random(self.seed), s, 0
        self.operations(self.steps, depth=0)
        s.state()

    def operations(self, steps, depth):
        menu = ["add", "add", "perma", "point", "remove", "reset", "block", "run", "run", "cache", "caching", "with"]
        for _ in range(steps):
            getattr(self, "do_" + self.choose.choice(menu))(depth)

    def hook(self):
        self.count += 1
        kind = self.choose.choice(["none", "none", "scaled", "shifted"])
        factor = self.choose.uniform(0.5, 1.5)
        made = {"none": None, "scaled": lambda v: v * factor, "shifted": lambda v: v + factor}[kind]
        return self.s.hook(self.count, made)

    def name(self):
        names = list(self.s.module.hook_dict)
        part = self.choose.choice(["hook_in", "hook", "blocks.0", "nothing"])
        return self.choose.choice([self.choose.choice(names), lambda name: part in name])

    def dir(self, both=False):
        return self.choose.choice(["fwd", "bwd", "both"] if both else ["fwd", "fwd", "bwd"])

    def pairs(self):
        return [(self.name(), self.hook()) for _ in range(self.choose.randrange(3))]

    def flag(self, often=0.5):
        return self.choose.random() < often

    def do_add(self, depth):
        level = self.choose.choice([None, 0, 1, 2])
        self.s.module.add_hook(self.name(), self.hook(), self.dir(), self.flag(0.2), level, self.flag())

    def do_perma(self, depth):
        self.s.module.add_perma_hook(self.name(), self.hook(), self.dir())

    def do_point(self, depth):
        point = self.choose.choice(list(self.s.module.hook_points()))
        point.add_hook(self.hook(), self.dir(), prepend=self.flag())

    def do_remove(self, depth):
        point = self.choose.choice(list(self.s.module.hook_points()))
        point.remove_hooks(self.dir(both=True), self.flag(0.2), self.choose.choice([None, 0, 1, 2]))

    def do_reset(self, depth):
        level = self.choose.choice([None, 0, 1, 2])
        self.s.module.reset_hooks(self.flag(), self.dir(both=True), self.flag(0.2), level)
        self.s.state()

    def run(self, call):
        x = inputs(self.choose.randrange(9)).requires_grad_()
        try:
            made = call(x)
            out = made[0] if isinstance(made, tuple) else made
            if out.requires_grad and out.ndim == 0 and x.grad is None:
                out.backward()
            self.s.note([made, x.grad])
        except RuntimeError:
            self.s.note("RuntimeError")

    def do_run(self, depth):
        scalar = self.flag(0.7)
        self.run(lambda x: self.s.module(x, scalar=scalar))

    def do_with(self, depth):
        options = {"reset_hooks_end": self.flag(0.8), "clear_contexts": self.flag(0.3), "scalar": self.flag()}
        fwd, bwd = self.pairs(), self.pairs()
        self.run(lambda x: self.s.module.run_with_hooks(x, fwd_hooks=fwd, bwd_hooks=bwd, **options))

    def do_cache(self, depth):
        names = self.choose.choice([None, self.name(), list(self.s.module.hook_dict)[::2]])
        backward = self.flag()
        options = {"remove_batch_dim": self.flag(), "pos_slice": self.choose.choice([None, 1, (0, 2), [2, 0]])}
        options |= {"reset_hooks_end": self.flag(0.8), "clear_contexts": self.flag(0.2)}
        self.run(
            lambda x: self.s.module.run_with_cache(x, names_filter=names, incl_bwd=backward, scalar=backward, **options)
        )

    def do_caching(self, depth):
        cache = self.s.module.add_caching_hooks(self.name(), incl_bwd=self.flag(), remove_batch_dim=self.flag())
        self.do_run(depth)
        self.s.note(cache)

    def do_block(self, depth):
        if depth == 3:
            return
        fails = self.flag(0.2)
        with contextlib.suppress(ZeroDivisionError):
            block = self.s.module.hooks(self.pairs(), self.pairs(), self.flag(0.8), self.flag(0.3))
            with block:
                self.operations(self.choose.randrange(6), depth + 1)
                if fails:
                    raise ZeroDivisionError
        self.s.state()


@pytest.mark.parametrize("seed", range(40))
def test_random_operations(seed):
    record = both(RandomScript(seed, steps=40))
    assert len(record) > 100
