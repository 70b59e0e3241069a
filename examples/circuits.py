"""Which heads look back, what an induction head copies and whom it listens to, and which heads tell the names in two
sentences apart: processed weights, factored matrices, composition scores, the parts of the residual stream, patching.
In TransformerLens' vocabulary.

python circuits.py <model> [text] [text with one other token]
"""

import contextlib
import re
import sys

import torch

from glassformer.transformer_lens import HookedTransformer, patching, utils
from glassformer.transformer_lens.head_detector import detect_head

WORDS = " river copper window seven garden letter silver morning engine orange"


def print_heads(what, scores):
    """The largest of `layer head`, in a line; the first of them."""
    values, places = scores.flatten().topk(4)
    heads = [divmod(place, scores.shape[1]) for place in places.tolist()]
    line = [f"  {layer:2}.{head} {value:+.2f}" for (layer, head), value in zip(heads, values.tolist(), strict=True)]
    print(f"{what:<28}{''.join(line)}")
    return heads[0]


def process(given, model, text):
    before, after = given(text), model(text)
    change = after.log_softmax(-1) - before.log_softmax(-1)
    print("Weights processed: norms folded into what reads them, logits centred")
    print(
        f"largest change of a log-probability {change.abs().max():.3f}; "
        f"mean logit before {before.mean():.2f}, after {after.mean().abs():.2f}"
    )


def read_circuits(model, layer, head):
    """From the weights of one head alone; no matrix of d_model by d_model, let alone d_vocab by d_vocab, is laid
    out."""
    ov, qk = model.OV[layer, head], model.QK[layer, head]
    values = (model.W_E @ ov @ model.W_U).eigenvalues
    print(f"\nWhat {layer}.{head} does with what it sees (OV), of rank {ov.mdim}")
    print(f"copying: sum of eigenvalues over sum of their sizes {values.real.sum() / values.abs().sum():+.2f}")
    print("singular values " + " ".join(f"{value:.2f}" for value in ov.S[:5]))
    scores = utils.composition_scores(model.OV[:layer], qk.T)
    print(f"\nWhose output it reads as keys: composition scores, {scores.mean():.2f} in the mean")
    print_heads("earlier heads", scores)


def difference(tokens, other):
    """The tokens in which two sentences differ: answer and other token."""
    if tokens.shape != other.shape:
        sys.exit("the sentences have different numbers of tokens")
    places = (tokens[0] != other[0]).nonzero().flatten()
    if len(places) != 1:
        sys.exit("expected sentences that differ in one token")
    return other[0, places[0]].item(), tokens[0, places[0]].item()


def attribute(model, cache, answer, versus):
    """The logit of the answer minus that of the other token, as the sum of what each part writes at the last
    position. The head that writes most of it."""
    parts, labels = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=-1, return_labels=True)
    logits = cache.logit_attrs(parts, answer, incorrect_tokens=versus, pos_slice=-1).flatten()
    print(f"all parts {logits.sum():+.2f}; the largest:")
    for part in logits.abs().topk(5).indices.tolist():
        name = re.sub("L(.*)H", r"\1.", labels[part]).replace("_mlp_out", ".mlp")
        print(f"  {name:<8} {logits[part]:+.2f}")
    return divmod(logits[: model.cfg.n_layers * model.cfg.n_heads].abs().argmax().item(), model.cfg.n_heads)


def judge_copying(model, layer, head):
    """Whether a head writes the words that it sees in the stream, or writes against them."""
    words, stream = model.to_tokens(WORDS)[0], model.run_with_cache(WORDS)[1]["normalized", layer, "ln1"][0]
    written = (stream @ model.OV[layer, head] @ model.W_U).AB  # word d_vocab
    ranks = (written > written.gather(1, words[:, None])).sum(1)
    print(f"\nWhat {layer}.{head} writes for each of ten words that it sees: that word is")
    first, last = (ranks < 10).sum(), (ranks >= model.cfg.d_vocab - 10).sum()
    print(f"among the ten likeliest tokens {first} times, among the ten unlikeliest {last} times")


def patch_heads(model, clean, corrupted, metric):
    """Each head's output at all positions from the one sentence in the other."""
    (best, cache), worst = model.run_with_cache(clean), metric(model(corrupted))
    found = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
    recovered = (found - worst) / (metric(best) - worst)
    print_heads("heads that bring it back", recovered)
    print_heads("heads that work against it", -recovered)


def main(
    path,
    text="When Kate and James met at the station, James gave the ticket to",
    other_text="When Kate and James met at the station, Kate gave the ticket to",
):
    torch.set_grad_enabled(False)
    with contextlib.redirect_stdout(sys.stderr):  # It says that it has loaded the model.
        given = HookedTransformer.from_pretrained_no_processing(path, default_prepend_bos=False)
        model = HookedTransformer.from_pretrained(path, default_prepend_bos=False)
    process(given, model, text)

    print("\nHeads that look back, on ten words twice: part of their attention")
    print_heads("at the token before", detect_head(model, WORDS + WORDS, "previous_token_head"))
    induction = print_heads("behind the same token", detect_head(model, WORDS + WORDS, "induction_head"))
    read_circuits(model, *induction)

    clean, corrupted = model.to_tokens(text), model.to_tokens(other_text)
    answer, versus = difference(clean, corrupted)
    names = [model.to_single_str_token(token) for token in (answer, versus)]
    print(f"\n{text}: logit of '{names[0]}' minus '{names[1]}'")
    judge_copying(model, *attribute(model, model.run_with_cache(clean)[1], answer, versus))
    print(f"\nPatched into: {other_text}")
    patch_heads(model, clean, corrupted, lambda logits: logits[0, -1, answer] - logits[0, -1, versus])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
