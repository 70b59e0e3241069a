"""Trains two layers of attention until they do induction, and takes the circuit apart: a head of layer 0 that looks at
the token before, and heads of layer 1 that find by it what stood behind the same token last time. Each `# %%` begins a
cell, as in a notebook.

python train_induction.py [steps]
"""

# %% A model of two layers, and letters as tokens
import json
import math
import string
import sys

import torch

from glassformer import Tokenizer
from glassformer.transformer_lens import HookedTransformer, HookedTransformerConfig, utils
from glassformer.transformer_lens.head_detector import detect_head

torch.set_num_threads(1)  # So small a model is fastest on one.
letters = string.ascii_letters
vocabulary = {token: number for number, token in enumerate(["<s>", *letters])}
tokenizer = Tokenizer.from_texts(
    json.dumps(
        {
            "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        }
    ),
    json.dumps({"bos_token": "<s>", "eos_token": "<s>"}),
)
cfg = HookedTransformerConfig(
    n_layers=2,
    n_heads=2,
    d_model=64,
    d_head=16,
    n_ctx=50,
    d_vocab=len(vocabulary),
    attn_only=True,
    normalization_type=None,
    positional_embedding_type="shortformer",  # Positions for queries and keys alone: none in the residual stream.
    seed=0,
)
model = HookedTransformer(cfg, tokenizer)
untrained = model.all_composition_scores("K").detach()[0, :, 1].mean().item()


# %% Training: each sequence is an order of some letters, again and again; how many, changes from step to step
def repeated(rows, period, length, generator):
    """Begin-of-text and letters, all different until they come again behind `period` of them: rows pos."""
    order = torch.rand(rows, len(letters), generator=generator).argsort(1)[:, :period] + 1
    sequence = order.repeat(1, math.ceil(length / period))[:, :length]
    return torch.cat([torch.zeros(rows, 1, dtype=torch.int64), sequence], 1)


def loss_of_known(tokens, period, hooks=()):
    """The mean loss at what can be foretold: not at letters that are new, nor at the first that comes again."""
    losses = model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=list(hooks))
    return losses[:, period + 1 :].mean()


n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
generator = torch.Generator().manual_seed(0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20, 2 - 2 * step / n_steps))
chance = math.log(len(letters))
print(f"1. Training: {n_steps} steps; guessing has a loss of {chance:.2f}")
for step in range(n_steps):
    period = torch.randint(8, 25, (), generator=generator).item()
    loss = loss_of_known(repeated(64, period, 48, generator), period)
    if step % 30 == 0:
        print(f"   step {step:3}  {loss:4.2f}  {'█' * round(10 * loss.item())}")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    rate.step()
torch.set_grad_enabled(False)

# %% Which heads have become what
period = 20
tokens = repeated(32, period, 2 * period, generator)
texts = ["".join(letters[token - 1] for token in row[1:].tolist()) for row in tokens]
assert torch.equal(model.to_tokens(texts), tokens)
loss = loss_of_known(tokens, period).item()
print(f"\n2. Heads, on {period} letters twice, in orders that it has never seen: loss {loss:.2f}")
looks_back = detect_head(model, texts, "previous_token_head")  # Part of the attention: layer head.
does_induction = detect_head(model, texts, "induction_head")
print(f"   {'':24}" + "  ".join(model.all_head_labels()))
for what, scores in (("at the token before", looks_back), ("behind the same token", does_induction)):
    print(f"   {what:24}" + "  ".join(f"{score:.2f}" for score in scores.flatten()))
_, cache = model.run_with_cache(tokens)
# By hand: the attention to period - 1 places before, from where letters come again. It is less than half of all.
stripes = torch.stack([cache["pattern", layer].diagonal(1 - period, -2, -1)[..., -period:] for layer in range(2)])
by_hand = stripes.sum(-1).mean(1) / tokens.shape[1]
print(f"   {'by hand':24}" + "  ".join(f"{score:.2f}" for score in by_hand.flatten()) + f"  at most {period / 41:.2f}")


# %% What they are worth
def loss_without(layer, heads):
    def zero(value, hook):
        value[:, :, heads] = 0  # batch pos head d_head

    return loss_of_known(tokens, period, [(utils.get_act_name("z", layer), zero)]).item()


previous = looks_back[0].argmax().item()
print(f"\n3. Loss without heads ({loss:.2f} with all, {chance:.2f} by guessing)")
without_previous, without_other = loss_without(0, [previous]), loss_without(0, [1 - previous])
without_one, without_both = [loss_without(1, [head]) for head in (0, 1)], loss_without(1, [0, 1])
print(
    f"   without 0.{previous}, which looks back: {without_previous:.2f}; without 0.{1 - previous}: {without_other:.2f}"
)
print(f"   without 1.0: {without_one[0]:.2f}; without 1.1: {without_one[1]:.2f}; without both: {without_both:.2f}")

# %% How they are connected: what layer 1 reads, as keys, queries and values, of what each head of layer 0 writes
print(f"\n4. Composition scores with heads of layer 1 (as keys before training {untrained:.2f})")
composition = {mode: model.all_composition_scores(mode)[0, :, 1].mean(-1) for mode in "KQV"}
for mode, of_heads in composition.items():
    print(f"   {mode}  " + "  ".join(f"0.{head} {score:.2f}" for head, score in enumerate(of_heads)))
