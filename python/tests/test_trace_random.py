"""Random sequences of everything a trace can do, against the oracle."""

import dataclasses
import os
import random

import pytest
import torch
from helpers import assert_close, shape_of, subject
from tiny_models import D_VOCAB

import glassformer

STEPS = int(os.environ.get("GLASSFORMER_RANDOM_STEPS", "120"))  # For each of the seeds below.
LONGEST = {"llama_dynamic": 20}  # Of 16 tokens; the others cross their limits, if any, below 12.
HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
SHARED_NORM = ("ln1.hook_scale", "ln1.hook_normalized", "ln1.hook_out")


@dataclasses.dataclass
class Pair:
    """A trace and what the oracle has to know of it."""

    trace: glassformer.Trace
    tokens: torch.Tensor
    mask: torch.Tensor | None
    edits: dict

    def expected(self, oracle):
        edits = {name: entries for name, entries in self.edits.items() if entries}
        mask = self.mask
        if mask is not None:  # What was appended is no padding.
            mask = torch.nn.functional.pad(mask, (0, self.tokens.shape[1] - mask.shape[1]), value=1)
        return oracle.run(self.tokens, edits, mask=mask)


class Session:
    """A family of traces of one model under random operations."""

    def __init__(self, tiny, seed, longest=12):
        self.random = random.Random(seed)
        self.tiny = tiny
        self.longest = longest
        self.nodes = list(tiny.model.nodes())
        self.log = []
        self.start()

    def start(self):
        batch, length = self.random.choice([1, 1, 2]), self.random.randint(1, self.longest // 2)
        tokens = self.some_tokens(batch, length)
        keep = self.random.choice(["budget", "all", "needed"])
        budget = self.random.choice([0, 1, 5000])
        mask = None
        if self.random.random() < 0.3:
            mask = torch.tensor([[self.random.random() < 0.7 for _ in range(length)] for _ in range(batch)])
        trace = self.tiny.model.trace(tokens, attention_mask=mask, keep=keep, budget_bytes=budget)
        self.log = [f"trace {tokens.tolist()} mask={mask} keep={keep} budget={budget}"]
        self.pairs = [Pair(trace, tokens, mask, {})]

    def some_tokens(self, batch, length):
        return torch.tensor([[self.random.randrange(D_VOCAB) for _ in range(length)] for _ in range(batch)])

    def step(self):
        if self.random.random() < 0.02 or len(self.pairs) > 8:
            self.start()
        choices = [self.read] * 5 + [self.set] * 6 + [self.unset] * 2 + [self.fork] * 2 + [self.append, self.read_all]
        operation = self.random.choice([*choices, self.drop])
        index = self.random.randrange(len(self.pairs))
        operation(index, self.pairs[index])

    def read(self, index, pair):
        node = self.random.choice([*self.nodes, *self.nodes[-3:] * 6])
        positions = None
        if self.random.random() < 0.4:
            positions = [self.random.randrange(-pair.trace.length, pair.trace.length) for _ in range(2)]
        self.log.append(f"{index}: read {node.name} {positions}")
        self.check(pair, node, pair.trace.read(node.name, positions), positions)

    def check(self, pair, node, found, positions):
        expected = pair.expected(self.tiny.oracle)[node.name]
        if positions is not None:
            expected = expected[:, :, positions] if "key_pos" in node.axes[3:] else expected[:, positions]
        assert_close(found, expected, 1e-9, node.name)

    def editable(self, pair):
        """A node to edit. Head inputs and the shared norm of one layer exclude each other: which one q, k and v then
        come from depends on the position, and no oracle of ours says so."""
        while True:
            node = self.random.choice(self.nodes)
            if node.name == "positions" and self.tiny.model.config.rope.scaling in ("dynamic", "longrope"):
                continue  # The scaling of transformers looks at the largest position, ours at the length.
            layer = ".".join(node.name.split(".")[:2])
            own, other = node.name[len(layer) + 1 :], ()
            if own in HEAD_INPUTS:
                other = SHARED_NORM
            elif own in SHARED_NORM:
                other = HEAD_INPUTS
            if not any(pair.edits.get(f"{layer}.{name}") for name in other):
                return node

    def set(self, index, pair):
        node = self.editable(pair)
        shape = shape_of(node, pair.tokens.shape[0], pair.trace.length)
        region, mask = self.some_region(shape), None
        if self.random.random() < 0.15:
            mask = torch.rand(shape, generator=torch.Generator().manual_seed(self.random.getrandbits(30))) < 0.4
        extent = shape if mask is not None else [len(indices) for indices in region]
        numbers = self.some_numbers(node, pair, extent, region if mask is None else None)
        chosen = mask if mask is not None else region
        self.log.append(f"{index}: set {node.name} {'mask' if mask is not None else region}")
        pair.trace.set(node.name, numbers, chosen if mask is not None else tuple(region))
        pair.edits.setdefault(node.name, []).append((chosen, numbers))

    def some_region(self, shape):
        region = []
        for size in shape:
            indices = list(range(size))
            if self.random.random() < 0.5 and size > 1:
                indices = sorted(self.random.sample(indices, self.random.randint(1, size)))
                if self.random.random() < 0.2:
                    self.random.shuffle(indices)
            region.append(indices)
        return region

    def some_numbers(self, node, pair, extent, region):
        if node.name == "attention_mask":
            return torch.tensor(self.random.random() < 0.3)
        if node.name in ("hook_tokens", "positions"):
            return torch.tensor(self.random.randrange(40))
        draw = self.random.random()
        if draw < 0.15 and region is not None:  # What is there already.
            value = pair.expected(self.tiny.oracle)[node.name]
            return value[torch.meshgrid(*map(torch.tensor, region), indexing="ij")]
        if draw < 0.4:
            return torch.tensor(self.random.uniform(0.1, 1))
        generator = torch.Generator().manual_seed(self.random.getrandbits(30))
        values = torch.rand(extent, generator=generator, dtype=torch.float64)
        return values if node.name.endswith(("pattern", "scale")) else 2 * values - 1

    def unset(self, index, pair):
        names = [name for name, entries in pair.edits.items() if entries]
        if not names:
            return
        name = self.random.choice(names)
        self.log.append(f"{index}: unset {name}")
        pair.trace.unset(name)
        pair.edits[name] = []

    def fork(self, index, pair):
        self.log.append(f"{index}: fork -> {len(self.pairs)}")
        edits = {name: list(entries) for name, entries in pair.edits.items()}
        self.pairs.append(Pair(pair.trace.fork(), pair.tokens, pair.mask, edits))

    def append(self, index, pair):
        count = self.random.randint(1, 3)
        if pair.trace.length + count > self.longest:
            return
        tokens = self.some_tokens(pair.tokens.shape[0], count)
        self.log.append(f"{index}: append {tokens.tolist()}")
        pair.trace.append(tokens)
        pair.tokens = torch.cat([pair.tokens, tokens], dim=1)

    def read_all(self, index, pair):
        del index, pair
        node = self.random.choice([*self.nodes, *self.nodes[-3:] * 6])
        positions = [-1] if self.random.random() < 0.4 else None
        self.log.append(f"read_all {node.name} {positions}")
        values = glassformer.read_all([pair.trace for pair in self.pairs], node.name, positions)
        for pair, value in zip(self.pairs, values, strict=True):
            self.check(pair, node, value, positions)

    def drop(self, index, pair):
        if len(self.pairs) > 1:
            self.log.append(f"{index}: drop")
            self.pairs.remove(pair)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "llama_grouped", "mistral_window", "llama_dynamic", "llama_longrope"]
)
def test_random_operations(name, seed):
    session = Session(subject(name), seed, LONGEST.get(name, 12))
    for _ in range(STEPS):
        try:
            session.step()
        except Exception as error:
            error.add_note("after\n  " + "\n  ".join(session.log))
            raise
