"""Many steps, each with edits or hooks, and many forks: the numbers against the oracle, and what is held against the
budget."""

import pytest
import torch
from test_trace_random import STEPS, Session


class LongSession(Session):
    """Token after token with something put at the newest position, so that rows of one node lie in many lineages."""

    def __init__(self, name, seed):
        super().__init__(name, seed)
        self.longest = 40

    def step(self):
        if self.random.random() < 0.004 or len(self.pairs) > 5:
            self.start()
        choices = [self.append] * 12 + [self.set] * 6 + [self.read] * 4 + [self.hook, self.fork, self.truncate]
        choices += [self.read_all, self.unset, self.drop, self.run]
        operation = self.random.choice(choices)
        index = self.random.randrange(len(self.pairs))
        operation(index, self.pairs[index])

    def append(self, index, pair):
        if pair.trace.length >= self.longest:
            return
        tokens = self.some_tokens(pair.tokens.shape[0], 1)
        self.log.append(f"{index}: append {tokens.tolist()}")
        pair.trace.append(tokens)
        pair.begins.append(pair.tokens.shape[1])
        pair.tokens = torch.cat([pair.tokens, tokens], dim=1)
        if self.random.random() < 0.6:
            self.read(index, pair)

    def truncate(self, index, pair):
        if self.random.random() < 0.3:
            super().truncate(index, pair)

    def some_region(self, shape):
        """Mostly at the last position, as the steps of a generation are."""
        region = super().some_region(shape)
        if self.random.random() < 0.9:
            rows = 2 if len(shape) == 4 and shape[2] == shape[3] else 1
            region[rows] = [shape[rows] - 1]
        return region


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "mistral_window", "llama_dynamic"])
def test_random_long_traces(name, seed):
    session = LongSession(name, seed)
    for _ in range(STEPS):
        try:
            session.step()
        except Exception as error:
            error.add_note("after\n  " + "\n  ".join(session.log))
            raise
