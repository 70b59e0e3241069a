"""A first look into a language model in TransformerLens' vocabulary: what it foretells, where its heads look, which of
them do induction, and which parts of it know who was given something. Each `# %%` begins a cell, as in a notebook.

python first_demo.py <model>
"""

# %% A model
import re
import sys
from functools import partial

import torch

from glassformer.transformer_lens import HookedTransformer, patching, utils
from glassformer.transformer_lens.head_detector import detect_head

if len(sys.argv) < 2:
    sys.exit(__doc__)
torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained(sys.argv[1])
n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads


def top_heads(scores, count):
    """The largest of `layer head`: (layer, head) each."""
    return [divmod(place, n_heads) for place in scores.flatten().topk(count).indices.tolist()]


def shaded(shares):
    """Numbers from 0 to 1 as shades."""
    return "".join(" ░▒▓█"[round(4 * share)] for share in shares.tolist())


# %% A text, and how well the model foretells it
text = (
    "The old boat leaves at noon. On Monday Anna took the old boat to the island, and on Friday Anna took the old boat "
    "back to the town."
)
tokens = model.to_tokens(text)
words = model.to_str_tokens(text)
logits, loss = model(tokens, return_type="both")
token_losses = model(tokens, return_type="loss", loss_per_token=True)[0]
accuracy = utils.lm_accuracy(logits, tokens)
print(f"\n1. A text of {len(words)} tokens: loss {loss:.2f}, {accuracy:.0%} of the next tokens right")
for what, largest in (("hardest", True), ("easiest", False)):
    places = token_losses.topk(5, largest=largest).indices.tolist()
    print(f"   {what}: " + ", ".join(f"'{words[place + 1]}' {token_losses[place]:.2f}" for place in places))

# %% Where the heads of one layer look: that of the head that looks most at the token before
logits, cache = model.run_with_cache(tokens, remove_batch_dim=True)
looks_back = detect_head(model, text, "previous_token_head", cache=cache)
layer, head = top_heads(looks_back, 1)[0]
pattern = cache["pattern", layer]  # head query_pos key_pos
print(f"\n2. Where each head of layer {layer} looks most (· is the first token: a rest), and all of {layer}.{head}")
print(" " * 13 + "".join(f"{layer}.{each:<6}" for each in range(n_heads)))
for query in range(1, 19):
    keys = pattern[:, query].argmax(-1).tolist()
    looked_at = "".join(f"{words[key].strip() if key else '·':8.8} " for key in keys)
    print(f"   {words[query]:9}{looked_at} {shaded(pattern[head, query, : query + 1])}")
print(f"   {looks_back[layer, head]:.0%} of the attention of {layer}.{head} is at the token before")


# %% What a head is worth: the loss without it
def without_heads(value, hook, heads):
    value[:, :, heads] = 0  # batch pos head d_head
    return value


def loss_without(tokens, heads, places=slice(None)):
    """The loss at some places when what these heads, (layer, head) each, mix is set to 0."""
    hooks = [(utils.get_act_name("z", layer), partial(without_heads, heads=[head])) for layer, head in heads]
    losses = model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=hooks)
    return losses[:, places].mean().item()


costs = [loss_without(tokens, [(layer, head)]) - loss.item() for head in range(n_heads)]
print(f"\n3. What each head of layer {layer} is worth: by how much the loss grows without it")
print("   " + "  ".join(f"{layer}.{head} {cost:+.2f}" for head, cost in enumerate(costs)))

# %% Induction heads: random words, twice
n_words = 25
all_words = [word for word in model.to_str_tokens(torch.arange(model.cfg.d_vocab)) if re.fullmatch(" [a-z]{4,7}", word)]
generator = torch.Generator().manual_seed(0)
orders = torch.rand(4, len(all_words), generator=generator).argsort(-1)[:, :n_words]
texts = ["".join(all_words[word] for word in order) * 2 for order in orders.tolist()]
repeated = model.to_tokens(texts)
losses = model(repeated, return_type="loss", loss_per_token=True)
first, second = slice(0, n_words), slice(n_words + 1, None)  # The first word again can't be foretold.
print(f"\n4. Induction heads: {n_words} random words, twice")
print(f"   loss at the words {losses[:, first].mean():.2f}, and when they come again {losses[:, second].mean():.2f}")

_, cache = model.run_with_cache(repeated, return_type=None, names_filter=lambda name: name.endswith("pattern"))
# At a word that comes again, an induction head looks at what stood behind it the first time: n_words - 1 before.
stripes = [cache["pattern", layer].diagonal(1 - n_words, -2, -1)[..., -n_words:] for layer in range(n_layers)]
scores = torch.stack([stripe.mean((0, -1)) for stripe in stripes])  # layer head
detected = detect_head(model, texts, "induction_head")  # Its share in all attention, also where nothing comes again.
induction_heads = top_heads(scores, 8)
for what, of_heads in (("score", scores), ("detect_head", detected)):
    print(f"   {what:12}" + "  ".join(f"{layer}.{head} {of_heads[layer, head]:.2f}" for layer, head in induction_heads))
others = [(layer, (head + 4) % n_heads) for layer, head in induction_heads]
without_induction, without_others = (loss_without(repeated, heads, second) for heads in (induction_heads, others))
print(f"   loss without these {without_induction:.2f}, without 8 of their neighbours {without_others:.2f}")

# %% Who was given something: sentences in pairs, with the names swapped
sentences = [
    ("When{} and{} met at the station,{} gave the ticket to", " Kate", " James"),
    ("When{} and{} came to the office,{} gave the letter to", " Tom", " Lisa"),
]
prompts, answers = [], []
for sentence, one, other in sentences:
    for giver, receiver in ((other, one), (one, other)):
        prompts.append(sentence.format(one, other, giver))
        answers.append((receiver, giver))
clean = model.to_tokens(prompts)
swapped = clean.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
answer_tokens = torch.tensor([[model.to_single_token(name) for name in names] for names in answers])


def logit_difference(logits, per_prompt=False):
    """How much more the model expects the receiver than the giver."""
    of_names = logits[:, -1].gather(-1, answer_tokens)  # batch name
    differences = of_names[:, 0] - of_names[:, 1]
    return differences if per_prompt else differences.mean()


logits, cache = model.run_with_cache(clean)
clean_difference = logit_difference(logits)
swapped_difference = logit_difference(model(swapped))
print("\n5. Who was given something: logit of the receiver minus that of the giver")
for prompt, (receiver, _), difference in zip(prompts, answers, logit_difference(logits, per_prompt=True), strict=True):
    print(f"   {difference:+.2f}  {prompt} [{receiver.strip()}]")
print(f"   {clean_difference:+.2f}  in the mean; {swapped_difference:+.2f} with the names swapped")


# %% Which parts write the difference into the residual stream
def attributed(stack):
    """What each part of a stack `part batch d_model` adds to the logit difference."""
    return cache.logit_attrs(stack, answer_tokens[:, 0], incorrect_tokens=answer_tokens[:, 1], pos_slice=-1).mean(-1)


streams, stream_labels = cache.accumulated_resid(incl_mid=False, pos_slice=-1, return_labels=True)
parts, part_labels = cache.decompose_resid(pos_slice=-1, return_labels=True)
heads, head_labels = cache.stack_head_results(pos_slice=-1, return_labels=True)
by_stream, by_part, by_head = attributed(streams), attributed(parts), attributed(heads)
# The same by hand: through the final norm, times the difference of the names' directions.
directions = model.tokens_to_residual_directions(answer_tokens)  # batch name d_model
scaled = cache.apply_ln_to_stack(streams, layer=-1, pos_slice=-1)
by_hand = (scaled * (directions[:, 0] - directions[:, 1])).sum(-1).mean(-1)
assert torch.allclose(by_hand, by_stream, atol=1e-4)
by_attention, by_mlp = (by_part[[label.endswith(of) for label in part_labels]] for of in ("attn_out", "mlp_out"))
print(f"\n6. Where it is written: all parts sum to {by_part.sum():+.2f}; layers that add 0.1 or more")
print("   layer  attention    MLP  stream")
for layer, (attention, mlp, stream) in enumerate(zip(by_attention, by_mlp, by_stream[1:], strict=True)):
    if max(abs(attention), abs(mlp)) > 0.1:
        print(f"   {layer:5}      {attention:+.2f}  {mlp:+.2f}   {stream:+.2f}  {'█' * round(6 * stream.item())}")
best = by_head.topk(5).indices.tolist()
print("   heads: " + ", ".join(f"{head_labels[place]} {by_head[place]:+.2f}" for place in best))

# %% What the strongest heads do: where they look from the last token, and what they add to either name's logit
asked = list(zip(answers, clean, strict=True))
receiver_places = [model.get_token_position(receiver, tokens_of_one) for (receiver, _), tokens_of_one in asked]
giver_places = [model.get_token_position(giver, tokens_of_one, "last") for (_, giver), tokens_of_one in asked]
receiver_logits, giver_logits = (cache.logit_attrs(heads, names, pos_slice=-1).mean(-1) for names in answer_tokens.T)
rows = torch.arange(len(prompts))
print("\n7. What the strongest heads do at the last token")
print("   head  attention to receiver, to giver  logit of receiver, of giver")
for place in best[:3]:
    layer, head = divmod(place, n_heads)
    attention = cache["pattern", layer][:, head, -1]  # batch key_pos
    to_receiver, to_giver = (attention[rows, places].mean() for places in (receiver_places, giver_places))
    numbers = f"{to_receiver:19.0%} {to_giver:9.0%} {receiver_logits[place]:+18.2f} {giver_logits[place]:+10.2f}"
    print(f"   {head_labels[place]:6} {numbers}")


# %% Which activations carry it: those of the right names, patched into the sentences with the names swapped
def recovered(logits):
    """0 as with the names swapped, 1 as with the right ones."""
    return (logit_difference(logits) - swapped_difference) / (clean_difference - swapped_difference)


by_place = patching.get_act_patch_resid_pre(model, swapped, cache, recovered)  # layer pos
by_output = patching.get_act_patch_attn_head_out_all_pos(model, swapped, cache, recovered)  # layer head
first_prompt = model.to_str_tokens(prompts[0])
places = [place for place in range(len(first_prompt)) if by_place[:, place].max() > 0.1]
print("\n8. Which activations carry it: 0 with the names swapped, 1 with the right ones")
print("   the residual stream before a layer, at places of the first sentence that matter")
print("   layer  " + "".join(f"{place:2}{first_prompt[place]:<9}" for place in places))
before = None
for layer, row in enumerate(by_place[:, places]):
    if before is None or layer == n_layers - 1 or (row - before).abs().max() > 0.1:
        print(f"   {layer:5}  " + "".join(f"{number:+.2f}      " for number in row))
        before = row
print("   heads' outputs, at all places")
for what, sign in (("most", 1), ("least", -1)):
    heads = [f"{layer}.{head} {by_output[layer, head]:+.2f}" for layer, head in top_heads(sign * by_output, 5)]
    print(f"   {what:5}  " + "  ".join(heads))
