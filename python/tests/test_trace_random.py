"""Random sequences of everything a trace can do, against the oracle."""

import contextlib
import dataclasses
import functools
import os
import random

import pytest
import torch
from helpers import assert_close, choices, everywhere, shape_of, subject
from oracle import Ambiguous, Derived, first_row, has_keys, rows_of
from random_gradients import HEAD_INPUTS, GradientOperations, is_computed
from random_hooks import HookOf, clamp, halve, mix, same, uniform
from random_live import LiveOperations, cut_derived
from tiny_models import D_VOCAB

import glassformer

STEPS = int(os.environ.get("GLASSFORMER_RANDOM_STEPS", "600"))  # For each seed and model.
SEEDS = range(*map(int, os.environ.get("GLASSFORMER_RANDOM_SEEDS", "0:4").split(":")))
LONGEST = {"llama_dynamic": 20}  # Of 16 tokens; the others cross their limits, if any, below 12.
# What fused steps pass over: where these are hooked, nothing is fused.
PASSED_OVER = (
    "attn_scores",
    "hook_pattern",
    "hook_result",
    "mlp.hook_act",
    "hook_expert_gate",
    "hook_expert_out",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "final.hook_scale",
)
BY_LENGTH = ("dynamic", "longrope")
SHARED_NORM = ("ln1.hook_scale", "ln1.hook_normalized", "ln1.hook_out")


@dataclasses.dataclass
class Pair:
    """A trace and what the oracle has to know of it."""

    trace: glassformer.Trace
    tokens: torch.Tensor
    mask: torch.Tensor | None
    edits: dict  # For each node what the oracle takes: (region, numbers), a `HookOf`, a `Derived`.
    begins: list
    given: dict  # Values that stand in the place of tokens: of the node at which the trace begins, or of a past.
    n_past: int = 0
    norms_keys: bool = False  # Of a past the keys are what comes of a norm.
    held: list = dataclasses.field(default_factory=list)  # Values that were handed out to be changed.
    spoiled: set = dataclasses.field(default_factory=set)  # Nodes of values with a graph that were changed outside.

    @property
    def segments(self):
        return list(zip(self.begins, [*self.begins[1:], self.tokens.shape[1]], strict=True))

    def expected(self, oracle, edits=None):
        edits = {name: entries for name, entries in (self.edits if edits is None else edits).items() if entries}
        for name, value in self.given.items():
            edits[name] = [(everywhere(value.shape), value), *edits.get(name, [])]
        mask = self.mask
        if mask is not None and mask.ndim == 2:  # What was appended is no padding.
            mask = torch.nn.functional.pad(mask, (0, self.tokens.shape[1] - mask.shape[1]), value=1)
        return oracle.run(self.tokens, edits, mask=mask, segments=self.segments, n_past=self.n_past)

    def first(self, node):
        return first_row(node.name, self.n_past, self.norms_keys)


@functools.cache
def reaching(name, source="hook_tokens"):
    """For each node of that model those that it changes, itself too, by ways that avoid the node whose value is given;
    found by changing it and looking."""
    tiny = subject(name)
    tokens = torch.arange(10).reshape(2, 5) % D_VOCAB
    value = tiny.oracle.run(tokens)[source]
    given = [(everywhere(value.shape), value)]
    plain = tiny.oracle.run(tokens)
    changed = {}
    for node, value in plain.items():
        other = value.roll(1, 1) * 0.5 if value.is_floating_point() else value.roll(1, 1)
        if value.dtype == torch.bool:
            other = value.clone()
            other[:, 0] = False
        edits = {source: given}
        edits[node] = [*edits.get(node, []), (torch.ones_like(other, dtype=torch.bool), other)]
        nodes = tiny.oracle.run(tokens, edits)
        changed[node] = {each for each in nodes if not torch.equal(nodes[each], plain[each])} | {node}
    for node in reversed(changed):
        changed[node] |= through_choices(changed[node], changed)
    return changed


def through_choices(names, changed):
    """What depends on choices that depend on `names`, though they may come out the same."""
    chosen = [name.replace("weights", "indices") for name in names if name.endswith("hook_expert_weights")]
    return set(chosen).union(*(changed[name] for name in chosen))


def is_available(trace, node):
    try:
        trace.read(node.name, [-1])
    except glassformer.UnavailableError:
        return False
    return True


def same_state(edits, others):
    return edits is not None and len(edits) == len(others) and all(a is b for a, b in zip(edits, others, strict=True))


class Session(LiveOperations, GradientOperations):
    """A family of traces of one model under random operations."""

    recomputed = None  # Another object each time that values are computed again from the same edits.

    def __init__(self, name, seed):
        tiny, longest = subject.__wrapped__(name), LONGEST.get(name, 12)  # Its own, since it changes weights.
        self.random = random.Random(seed)
        self.name, self.tiny = name, tiny
        self.longest = longest
        self.all_nodes = list(tiny.model.nodes())
        self.order = {node.name: number for number, node in enumerate(self.all_nodes)}
        self.fired, self.n_hooks = [], 0
        self.weights = [*tiny.model.weights.items(), *tiny.reference.named_parameters()]
        self.originals = [weight.detach().clone() for _, weight in self.weights]
        self.log = []
        self.start()

    most_appended = 3

    def start(self):
        batch, length = self.random.choice([1, 1, 2]), self.random.randint(1, self.longest // 2)
        tokens = self.some_tokens(batch, length)
        options = {"keep": self.random.choice(["budget", "all", "needed"])}
        options["budget_bytes"] = self.random.choice([0, 1, 5000])
        model, draw = self.tiny.model, self.random.random()
        n_past = self.random.randint(1, length - 1) if length > 1 and draw < 0.25 else 0
        options["attention_mask"] = mask = self.some_mask(batch, length, n_past)
        given = {}
        if n_past > 0:
            ends = ("k_norm.hook_out" if self.tiny.oracle.norms_keys else "attn.hook_k", "attn.hook_v")
            by_name = {node.name: node for node in self.all_nodes}
            keys_and_values = [
                by_name[f"blocks.{layer}.attn.{end.removeprefix('attn.')}"]
                for layer in range(model.config.n_layers)
                for end in ends
            ]
            given = {node.name: self.some_values(node, batch, n_past) for node in keys_and_values}
            layers = list(given.values())
            trace = model.trace(tokens[:, n_past:], past=list(zip(layers[::2], layers[1::2], strict=True)), **options)
        elif draw > 0.75:
            floats = [n for n in self.all_nodes if n.axes[1] == "pos" and is_computed(n)]
            source = self.random.choice([n for n in floats if not n.name.endswith(HEAD_INPUTS)])
            given = {source.name: self.some_values(source, batch, length)}
            trace = model.trace_from(source.name, given[source.name], **options)
        else:
            trace = model.trace(tokens, **options)
        self.nodes = [node for node in self.all_nodes if is_available(trace, node)]
        self.reaching = reaching(self.name, trace.begin_node)
        self.log = [f"trace {tokens.tolist()} past={n_past} from={trace.begin_node} {options}"]
        self.pairs = [Pair(trace, tokens, mask, {}, [0], given, n_past, self.tiny.oracle.norms_keys)]
        if self.random.random() < 0.25:
            for node in self.nodes:
                if node.name.endswith(PASSED_OVER):
                    self.add_hook(0, self.pairs[0], node, same)

    def some_mask(self, batch, length, n_past):
        draw = self.random.random()
        if draw > 0.4:
            return None
        shape = (batch, length) if draw > 0.15 else (batch, length - n_past, length)
        return torch.rand(shape, generator=self.generator()) < 0.7

    def some_values(self, node, batch, length):
        shape = shape_of(node, batch, length)
        return torch.rand(shape, generator=self.generator(), dtype=torch.float64) + (
            0 if node.name.endswith("scale") else -0.5
        )

    def generator(self):
        return torch.Generator().manual_seed(self.random.getrandbits(30))

    def some_tokens(self, batch, length):
        return torch.tensor([[self.random.randrange(D_VOCAB) for _ in range(length)] for _ in range(batch)])

    def step(self):
        if self.random.random() < 0.02 or len(self.pairs) > 8:
            self.start()
        choices = [self.read] * 6 + [self.set] * 5 + [self.hook] * 3 + [self.edit] * 2 + [self.unset] * 2
        choices += [self.fork] * 2 + [self.append] * 2 + [self.gradient] * 2 + [self.live] * 6
        choices += [self.truncate, self.read_all, self.run, self.drop, self.weight]
        choices += [self.augmented_item] * 2 + [self.hand_out, self.let_go, self.tracked]
        operation = self.random.choice(choices)
        index = self.random.randrange(len(self.pairs))
        pair = self.pairs[index]
        if operation not in (self.live, self.let_go, self.gradient, self.tracked, self.drop):
            for each in self.pairs if operation in (self.read_all, self.weight) else [pair]:
                self.collect(index, each)
        operation(index, pair)
        if operation != self.live:
            for each in self.pairs:
                if not any(held.has_changed() for held in each.held):
                    each.trace.core.collect()

    def read(self, index, pair):
        node = self.random.choice([*self.nodes, *self.nodes[-3:] * 6])
        positions = None
        if self.random.random() < 0.4:
            first = pair.first(node)
            positions = [self.random.randrange(first - pair.trace.length, pair.trace.length) for _ in range(2)]
            positions = [position if position < 0 else max(position, first) for position in positions]
        self.log.append(f"{index}: read {node.name} {positions}")
        self.fired = []
        self.follow_weights(pair)
        without_graph = torch.no_grad() if self.random.random() < 0.2 else contextlib.nullcontext()
        try:
            with without_graph:
                found = pair.trace.read(node.name, positions)
        except glassformer.OrderError:
            assert self.may_be_ambiguous(pair, node)
            self.unset(index, pair, ambiguous=True)
            return
        assert not self.is_ambiguous(pair, node)
        for graph in (False, True):
            calls = [call for call in self.fired if call[0] == graph]
            assert calls == sorted(calls)
        self.check(pair, node, found, positions)

    def is_ambiguous(self, pair, node):
        """Whether a derived edit that `node` depends on was made from another value."""
        try:
            self.expected(pair, node)
        except Ambiguous:
            return True
        return False

    def expected(self, pair, node):
        """The oracle's value. Where numbers that were set replace all that an ambiguous edit reaches, it is none."""
        edits = self.edits_reaching(pair, node)
        values, ambiguous = [], set()
        while len(values) < 2:
            fixed = {
                name: [e.plus(len(values)) if name in ambiguous and isinstance(e, Derived) else e for e in entries]
                for name, entries in edits.items()
            }
            try:
                values.append(pair.expected(self.tiny.oracle, fixed)[node.name])
            except Ambiguous as found:
                ambiguous.add(str(found))
                values = []
                continue
            if not ambiguous:
                break
        rows = rows_of(node.name, pair.first(node), pair.trace.length)
        if ambiguous and not torch.equal(*(value[rows] for value in values)):
            raise Ambiguous(*ambiguous)
        return values[0]

    def may_be_ambiguous(self, pair, node):
        """Whether edits before a derived one are others than when it was made. Where they come out at the same numbers
        all the same, recomputing them with another number of rows can differ in rounding, which counts as a change."""
        edits = self.edits_reaching(pair, node)
        try:  # `is_ambiguous` asks what a shift changes, which a softmax or a clamp may hide.
            pair.expected(self.tiny.oracle, edits)
        except Ambiguous:
            return True
        return any(
            isinstance(entry, Derived)
            and (not same_state(entry.state, self.state_before(pair, name)) or self.may_look_ahead(pair, name))
            for name, entries in edits.items()
            for entry in entries
        )

    def may_look_ahead(self, pair, name):
        """Whether a layer before `name` may see keys after the query: then all of its rows count as changed by what
        comes later."""
        return any(
            entries and other.endswith(("hook_attn_scores", "hook_pattern")) and name in self.reaching[other]
            for other, entries in pair.edits.items()
        )

    def state_before(self, pair, name):
        """Which edits there are upstream of a node, and when everything was last to be computed again."""
        return [self.recomputed] + [
            entry
            for other, entries in pair.edits.items()
            for entry in entries
            if other != name and name in self.reaching[other]
        ]

    def edits_reaching(self, pair, node):
        return {name: entries for name, entries in pair.edits.items() if node.name in self.reaching[name]}

    def run(self, index, pair):
        node = self.random.choice(self.nodes)
        self.log.append(f"{index}: run {node.name}")
        self.fired = []
        hooked = [name for name, entries in pair.edits.items() if any(isinstance(e, HookOf) for e in entries)]
        needed = [node, *(n for n in self.nodes if n.name in hooked and self.order[n.name] <= self.order[node.name])]
        if any(self.may_be_ambiguous(pair, each) for each in needed):
            return
        pair.trace.run(node.name)
        self.follow_weights(pair)
        for each in needed[1:]:
            for hook in pair.edits[each.name]:
                if isinstance(hook, HookOf):
                    called = {(begin, end) for begin, end, _ in hook.inputs}
                    wanted = [i for i in range(len(pair.segments)) if hook.segments is None or i in hook.segments]
                    spans = [(max(begin, pair.first(each)), end) for begin, end in pair.segments]
                    assert all(spans[i] in called for i in wanted)
        self.check(pair, node, pair.trace.read(node.name), None)

    def check(self, pair, node, found, positions):
        expected = self.expected(pair, node)
        if positions is not None:
            expected = expected[:, :, positions] if "key_pos" in node.axes[3:] else expected[:, positions]
        else:
            expected = expected[rows_of(node.name, pair.first(node), pair.trace.length)]
        self.compare(found, expected, node)

    def compare(self, found, expected, node):
        assert_close(found.detach(), expected, 1e-9, node.name)

    def editable(self, pair):
        """A node to edit. Head inputs and the shared norm of one layer exclude each other: which one q, k and v then
        come from depends on the position, and no oracle of ours says so."""
        while True:
            node = self.random.choice(self.nodes)
            if self.may_edit(pair, node):
                return node

    def may_edit(self, pair, node):
        if node.name == "positions" and self.tiny.model.config.rope.scaling in BY_LENGTH:
            return False  # The scaling of transformers looks at the largest position, ours at the length.
        layer = ".".join(node.name.split(".")[:2])
        own, other = node.name[len(layer) + 1 :], ()
        if own in HEAD_INPUTS:
            other = SHARED_NORM
        elif own in SHARED_NORM:
            other = HEAD_INPUTS
        return not any(pair.edits.get(f"{layer}.{name}") for name in other)

    def set(self, index, pair):
        node = self.editable(pair)
        shape = shape_of(node, pair.tokens.shape[0], pair.trace.length)
        rows = 2 if "key_pos" in node.axes[3:] else 1
        region, mask = self.some_region(shape, rows, pair.first(node)), None
        if self.random.random() < 0.15:
            mask = torch.rand(shape, generator=self.generator()) < 0.4
            mask.narrow(rows, 0, pair.first(node)).zero_()
        extent = shape if mask is not None else [len(indices) for indices in region]
        numbers = self.some_numbers(node, pair, extent, region if mask is None else None)
        chosen = mask if mask is not None else region
        self.log.append(f"{index}: set {node.name} {'mask' if mask is not None else region}")
        pair.trace.set(node.name, numbers, chosen if mask is not None else tuple(region))
        if mask is None or mask.any():
            self.detach(pair, node.name)
        if mask is None and all(
            (sorted(indices) if axis == rows else indices) == list(range(pair.first(node) if axis == rows else 0, size))
            for axis, (indices, size) in enumerate(zip(region, shape, strict=True))
        ):
            pair.edits[node.name] = []  # What is replaced as a whole is gone.
        pair.edits.setdefault(node.name, []).append((chosen, numbers))

    def some_region(self, shape, rows, first):
        region = []
        for axis, size in enumerate(shape):
            indices = list(range(first if axis == rows else 0, size))
            if self.random.random() < 0.5 and len(indices) > 1:
                indices = sorted(self.random.sample(indices, self.random.randint(1, len(indices))))
                if self.random.random() < 0.2:
                    self.random.shuffle(indices)
            region.append(indices)
        return region

    def some_numbers(self, node, pair, extent, region):
        if node.name == "attention_mask":
            return torch.tensor(self.random.random() < 0.3)
        if choices(node.name):
            return torch.tensor(self.random.randrange(choices(node.name)))
        draw = self.random.random()
        if draw < 0.15 and region is not None and not self.may_be_ambiguous(pair, node):  # What is there already.
            value = pair.trace.read(node.name).detach()
            axis = 2 if "key_pos" in node.axes[3:] else 1
            region = [[i - pair.first(node) for i in one] if at == axis else one for at, one in enumerate(region)]
            return value[torch.meshgrid(*map(torch.tensor, region), indexing="ij")]
        if draw < 0.4:
            return torch.tensor(self.random.uniform(0.1, 1))
        values = torch.rand(extent, generator=self.generator(), dtype=torch.float64)
        return values if node.name.endswith(("pattern", "scale")) else 2 * values - 1

    def hook(self, index, pair):
        node = self.editable(pair)
        if not is_computed(node) or node.name.endswith(("hook_scale", "hook_attn_scores")):
            change = same
        else:
            weighting = [uniform] if node.name.endswith("hook_pattern") else [mix]
            change = self.random.choice([halve, clamp, same, *weighting])
        self.add_hook(index, pair, node, change)

    def add_hook(self, index, pair, node, change):
        segments = [self.random.randrange(3)] if self.random.random() < 0.2 else None
        hook = HookOf(self, node, change, segments, self.random.random() < 0.5)
        self.log.append(f"{index}: hook {node.name} {change.__name__} segments={segments}")
        pair.trace.hook(node.name, hook.for_engine, segments)
        self.detach(pair, node.name)
        pair.edits.setdefault(node.name, []).append(hook)

    def edit(self, index, pair):
        node = self.editable(pair)
        if pair.mask is not None or not is_computed(node):
            return
        if self.may_be_ambiguous(pair, node):
            return
        self.log.append(f"{index}: edit {node.name}")
        kept = {}

        def change(value):
            kept["before"] = value.detach().clone()
            value[:, value.shape[1] // 2 :] *= 0.75
            kept["after"] = value.detach().clone()

        pair.trace.edit(node.name, change)
        self.follow_weights(pair)
        length, n_keys = pair.trace.length, pair.trace.length if has_keys(node.name) else None
        made = Derived(kept["before"], kept["after"], n_keys, range(pair.first(node), length))
        made.state = self.state_before(pair, node.name)
        made.has_graph = pair.trace.requires_grad
        self.add_edit(pair, made, node, None)

    def unset(self, index, pair, ambiguous=False):
        names = [name for name, entries in pair.edits.items() if entries]
        if ambiguous:
            names = [name for name in names if any(isinstance(entry, Derived) for entry in pair.edits[name])]
        if not names:
            return
        for name in names if ambiguous else [self.random.choice(names)]:
            self.log.append(f"{index}: unset {name}")
            pair.trace.unset(name)
            pair.edits[name] = []
            self.detach(pair, name)

    def fork(self, index, pair):
        self.log.append(f"{index}: fork -> {len(self.pairs)}")
        edits = {name: list(entries) for name, entries in pair.edits.items()}
        self.pairs.append(
            dataclasses.replace(
                pair,
                trace=pair.trace.fork(),
                edits=edits,
                begins=list(pair.begins),
                given=dict(pair.given),
                held=[],
                spoiled=set(),
            )
        )

    def append(self, index, pair):
        count = self.random.randint(1, self.most_appended)
        if pair.trace.length + count > self.longest:
            return
        tokens = self.some_tokens(pair.tokens.shape[0], count)
        self.log.append(f"{index}: append {tokens.tolist()}")
        source = pair.trace.begin_node
        if source in pair.given:
            values = self.some_values(self.all_nodes[self.order[source]], tokens.shape[0], count)
            pair.trace.append(values)
            pair.given[source] = torch.cat([pair.given[source], values], dim=1)
        else:
            pair.trace.append(tokens)
        self.detach(pair, None)
        scaled = self.tiny.model.config.rope.scaling in BY_LENGTH
        for entries in pair.edits.values():
            for entry in entries:
                # A fork that is overtaken gets tokens of its own, and with a graph values can differ in rounding; so
                # can those that are made anew since the length may have turned the keys.
                if isinstance(entry, Derived) and (entry.has_graph or scaled):
                    entry.state = None
        pair.begins.append(pair.tokens.shape[1])
        pair.tokens = torch.cat([pair.tokens, tokens], dim=1)

    def truncate(self, index, pair):
        length = self.random.randint(pair.n_past + 1, pair.trace.length)
        if pair.mask is not None and length < pair.mask.shape[-1]:
            with pytest.raises(glassformer.InputError, match="can't be cut"):
                pair.trace.truncate(length)
            return
        self.log.append(f"{index}: truncate {length}")
        if length < pair.trace.length:
            self.detach(pair, None)
        pair.trace.truncate(length)
        pair.tokens = pair.tokens[:, :length]
        pair.given = {name: value[:, :length] for name, value in pair.given.items()}
        pair.begins = [begin for begin in pair.begins if begin < length]
        for name, entries in pair.edits.items():
            cut = [self.cut(entry, name, length, pair.n_past) for entry in entries]
            pair.edits[name] = [entry for entry in cut if entry is not None]

    def cut(self, entry, name, length, n_past):
        """What is left of an edit."""
        if isinstance(entry, HookOf):
            return entry
        if isinstance(entry, Derived):
            return cut_derived(entry, length, first_row(name, n_past, self.tiny.oracle.norms_keys))
        region, numbers = entry
        if isinstance(region, torch.Tensor):
            rows = rows_of(name, 0, length)
            numbers = numbers.expand(region.shape)[rows]
            return (region[rows], numbers) if region[rows].any() else None
        axes = [2, 3] if has_keys(name) else [1]
        numbers = numbers.expand([len(indices) for indices in region])
        region = list(region)
        for axis in axes:
            kept = [number for number, at in enumerate(region[axis]) if at < length]
            numbers = numbers.index_select(axis, torch.tensor(kept, dtype=torch.int64))
            region[axis] = [region[axis][number] for number in kept]
        return (tuple(region), numbers) if all(region) else None

    def read_all(self, index, pair):
        del index, pair
        node = self.random.choice([*self.nodes, *self.nodes[-3:] * 6])
        positions = [-1] if self.random.random() < 0.4 else None
        self.log.append(f"read_all {node.name} {positions}")
        if any(self.may_be_ambiguous(pair, node) for pair in self.pairs):
            return
        values = glassformer.read_all([pair.trace for pair in self.pairs], node.name, positions)
        for pair, value in zip(self.pairs, values, strict=True):
            self.follow_weights(pair)
            self.check(pair, node, value, positions)

    def weight(self, index, pair):
        """Changes a weight of ours or of `transformers`, which the oracle has, or puts it back."""
        del index, pair
        number, factor = self.random.randrange(len(self.weights)), self.random.choice([0.5, 1.0, 1.5])
        self.log.append(f"weight {self.weights[number][0]} {factor}")
        depends = self.depending_on(self.weights[number][1])
        with torch.no_grad():
            self.weights[number][1].copy_(self.originals[number] * factor)
        for pair in self.pairs:
            for name, entries in pair.edits.items():
                for entry in entries:
                    if isinstance(entry, Derived) and name in depends:
                        entry.state = None  # Others than when it was made; the same ones can round differently.
            for held in pair.held:
                held.is_outdated = held.is_outdated or held.node.name in depends

    def depending_on(self, weight):
        """The nodes that change with a weight, or with one in the same memory (as torch counts changes)."""
        tokens = torch.arange(D_VOCAB + 1).reshape(2, -1) % D_VOCAB
        before, memory = self.tiny.oracle.run(tokens), weight.untyped_storage().data_ptr()
        beside = [each for _, each in self.weights if each.untyped_storage().data_ptr() == memory]
        kept = [each.detach().clone() for each in beside]
        with torch.no_grad():
            for each in beside:
                each.mul_(0.75)
            after = self.tiny.oracle.run(tokens)
            for each, numbers in zip(beside, kept, strict=True):
                each.copy_(numbers)
        found = {name for name, value in after.items() if not torch.equal(value, before[name])}
        return found | through_choices(found, reaching(self.name))

    def drop(self, index, pair):
        if len(self.pairs) > 1:
            self.log.append(f"{index}: drop")
            self.pairs.remove(pair)


def go_through(session):
    """All steps of a session; an error tells what was done before it."""
    for _ in range(STEPS):
        try:
            session.step()
        except Exception as error:
            error.add_note("after\n  " + "\n  ".join(session.log))
            raise


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "llama_grouped", "mistral_window", "llama_dynamic", "llama_longrope", "experts"]
)
def test_random_operations(name, seed):
    go_through(Session(name, seed))
