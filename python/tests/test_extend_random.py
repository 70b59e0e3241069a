"""Random sequences of everything a trace can do, on models with autoencoders in them and forked onto such models."""

import functools
import types

import oracle
import pytest
import test_trace_random
from autoencoder import Autoencoder
from helpers import subject

SPLICES = {  # For each splice its name and the node that it is put onto.
    "residual": {"a": "blocks.1.hook_resid_post"},
    "many": {"a": "blocks.0.attn.hook_z", "b": "blocks.1.hook_mlp_out", "c": "blocks.1.hook_resid_pre"},
    "upon": {"a": "blocks.1.hook_mlp_out", "b": "a.hook_acts", "c": "blocks.1.hook_mlp_out"},
    "keys": {"a": "blocks.1.attn.hook_k", "b": "blocks.2.attn.hook_v", "c": "blocks.0.attn.hook_result"},
    "final": {"a": "ln_final.hook_normalized", "b": "unembed.hook_in", "c": "logits"},
}


class SplicedPass(oracle._Pass):
    """The oracle's pass with autoencoders: of several on one node the last one's name stands for the node."""

    def put(self, name, value):
        for splice, target in self.oracle.splices.items():
            if target == name:
                value = self.through(splice, value)
        return super().put(name, value)

    def through(self, splice, value):
        sae = self.oracle.autoencoders[splice]
        parts = [f"{splice}.hook_{part}" for part in ("in", "acts", "recon", "error")]
        value = self.put(parts[0], value)
        recon = self.put(parts[2], sae.decode(self.put(parts[1], sae.encode(value))))
        error = self.put(parts[3], value - sae.decode(sae.encode(value)))
        inner = [*parts[1:], *(name for name in self.edits if self.inside(name, splice))]
        return recon + error if any(self.edits.get(part) for part in inner) else value

    def inside(self, name, splice):
        """Whether a node belongs to a splice onto one of this splice's features."""
        target = self.oracle.splices.get(name.split(".")[0], "")
        return target.startswith(f"{splice}.")


class SplicedOracle(oracle.Oracle):
    def pass_type(self):
        return SplicedPass


@functools.cache
def spliced_subject(name):
    kind, splices = name.split("+")
    plain = subject.__wrapped__(kind)  # Its own: the sessions change its weights.
    judge = SplicedOracle(plain.reference)
    judge.splices, judge.autoencoders = SPLICES[splices], {}
    model = plain.model
    for seed, (splice, target) in enumerate(judge.splices.items()):
        width = next(node for node in model.nodes() if node.name == target).sizes[-1]
        sae = judge.autoencoders[splice] = Autoencoder(width, 5, seed=seed).requires_grad_(False)
        model = model.splice(target, splice, sae.encode, sae.decode)
    return types.SimpleNamespace(reference=plain.reference, model=model, oracle=judge)


class Session(test_trace_random.Session):
    """As the base, and now and then everything goes on in a fork onto a model that is extended further."""

    def fork(self, index, pair):
        if self.random.random() < 0.6:
            super().fork(index, pair)
            return
        sae = Autoencoder(self.tiny.model.config.d_model, 3).requires_grad_(False)
        target = self.random.choice(["resid_mid0", "resid_post0", "attn_out2"])
        if pair.trace.model.node_name(target) == pair.trace.begin_node:
            return  # What is given would go on under another name.
        name = f"more{len(self.log)}"
        model = pair.trace.model.splice(target, name, sae.encode, sae.decode)
        self.log.append(f"{index}: fork onto a model with {name} on {target}, alone from now on")
        pair.trace = pair.trace.fork(model)
        self.recomputed = object()
        pair.held = []
        self.pairs = [pair]
        # What it edits is found by name: edits of the node below have moved with it.
        if any(pair.edits.get(full) for full in [model.node_name(target)]):
            self.start()


@pytest.mark.parametrize("seed", test_trace_random.SEEDS)
@pytest.mark.parametrize("splices", SPLICES)
@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped", "llama_dynamic"])
def test_random_operations(kind, splices, seed, monkeypatch):
    monkeypatch.setattr(test_trace_random, "subject", spliced_subject)
    test_trace_random.LONGEST.setdefault(f"{kind}+{splices}", test_trace_random.LONGEST.get(kind, 12))
    test_trace_random.go_through(Session(f"{kind}+{splices}", seed))
