"""Two prompts that differ in one token. Puts that token's residual stream of the second prompt into the first, one
layer at a time, and prints how far the answer moves from the first prompt's to the second's.

python patch_and_compare.py <model> [text] [other text]
"""

import sys

import glassformer


def first_difference(trace, other):
    if trace.length != other.length:
        sys.exit("the prompts have different numbers of tokens")
    places = (trace.tokens != other.tokens).nonzero()  # Rows of batch and position.
    if len(places) != 1:
        sys.exit("expected prompts that differ in one token")
    return places[0, 1].item()


def main(path, text="The capital of France is", other_text="The capital of Italy is"):
    model = glassformer.load(path)
    trace, other = model.trace(text), model.trace(other_text)
    position = first_difference(trace, other)
    answer = trace.logits_at(-1).argmax().item()
    other_answer = other.logits_at(-1).argmax().item()

    def preference(of):
        logits = of.logits_at(-1)[0]
        return logits[answer].item() - logits[other_answer].item()

    print(f"logit of '{model.tokenizer.decode([answer])}' minus '{model.tokenizer.decode([other_answer])}'")
    print(f"first prompt   {preference(trace):8.3f}")
    print(f"second prompt  {preference(other):8.3f}")
    for layer in range(model.config.n_layers):
        node = f"resid_pre{layer}"
        patched = trace.fork()
        patched.at([position])[node] = other.at([position])[node]
        print(f"layer {layer:2}       {preference(patched):8.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
