"""The snippets of three pages of nnsight's documentation, as they stand there.

Nothing is changed in them but the import and the name of the model, and for a Llama the paths of modules.
"""

TOKENS_SETUP = """
from nnsight import LanguageModel

model = LanguageModel('openai-community/gpt2', device_map='cuda')
"""

SETUP = """
from nnsight import LanguageModel
model = LanguageModel("openai-community/gpt2", device_map="auto", dispatch=True)
"""

# "Token Based Indexing", for versions up to 0.2.
TOKENS = {
    "tokens": """
with model.trace('The Eiffel Tower is in the city of') as tracer:

    hidden_states = model.transformer.h[-1].output[0].t[0].save()
    output = model.output.save()

print(hidden_states.shape)
print(output.shape)
""",
    "positions of invokes": """
from rich import print

with model.trace() as tracer:
    with tracer.invoke('The') as invoker:
        incorrect_a =  model.transformer.input[0][0][:,0].save()

    with tracer.invoke('The Eiffel Tower is in the city of''The Eiffel Tower is in the city of') as invoker:
        incorrect_b = model.transformer.input[0][0][:,0].save()

print(f"Shorter input: {incorrect_a.value}")
print(f"Longer input: {incorrect_b.value}")
""",
    "tokens of invokes": """
with model.trace() as tracer:
    with tracer.invoke('The') as invoker:
        correct_a =  model.transformer.input[0][0].t[0].save()

    with tracer.invoke('The Eiffel Tower is in the city of') as invoker:
        correct_b = model.transformer.input[0][0].t[0].save()

print(f"Shorter input: {correct_a.value}")
print(f"Longer input: {correct_b.value}")
""",
}  # fmt: skip

# "Multiple Token Generation", for versions 0.5 to 0.7.
GENERATION = {
    "basic": """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=5) as tracer:
    output = model.generator.output.save()
print(model.tokenizer.decode(output[0]))
""",
    "every step": """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=5) as tracer:
    tokens = list().save()
    for step in tracer.iter[:]:
        token = model.lm_head.output[0, -1].argmax(dim=-1)
        tokens.append(token)
for i, t in enumerate(tokens):
    print(f"Step {i}: {model.tokenizer.decode(t)}")
""",
    "bounded": """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=5) as tracer:
    tokens = list().save()
    for step in tracer.iter[1:3]:
        tokens.append(model.lm_head.output[0, -1].argmax(dim=-1))
    output = model.generator.output.save()
print(f"Full output: {model.tokenizer.decode(output[0])}")
print(f"Collected {len(tokens)} tokens from steps 1-2")
""",
    "conditional": """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=5) as tracer:
    for step in tracer.iter[:]:
        if step == 0:
            # Only intervene on the first generation step
            model.transformer.h[0].output[0][:] = 0
    output = model.generator.output.save()
print(model.tokenizer.decode(output[0]))
""",
    "next": """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=3) as tracer:
    # First step (default)
    hs0 = model.transformer.h[-1].output[0].save()
    # Advance to second step
    tracer.next()
    hs1 = model.transformer.h[-1].output[0].save()
    # Advance to third step
    tracer.next()
    hs2 = model.transformer.h[-1].output[0].save()
print(f"Step 0 shape: {hs0.shape}")
print(f"Step 1 shape: {hs1.shape}")
print(f"Step 2 shape: {hs2.shape}")
""",
    "all steps": """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=5) as tracer:
    hidden_states = list().save()
    for step in tracer.all():
        # This runs on every step
        model.transformer.h[0].output[0][:] = 0
        hidden_states.append(model.transformer.h[-1].output[0])
    output = model.generator.output.save()
print(f"Collected {len(hidden_states)} hidden states")
print(f"Output: {model.tokenizer.decode(output[0])}")
""",
}

# "Getting Activations", for version 0.5.15.
ACTIVATIONS = {
    "layer output": """
with model.trace("The Eiffel Tower is in the city of"):
    hidden_states = model.transformer.h[-1].output[0].save()
print(hidden_states.shape)
""",
    "layer input": """
with model.trace("The Eiffel Tower is in the city of"):
    layer_input = model.transformer.h[0].input.save()
print(layer_input.shape)
""",
    "all inputs": """
with model.trace("The Eiffel Tower is in the city of"):
    detailed_inputs = model.transformer.h[0].inputs.save()
args, kwargs = detailed_inputs
print(f"Positional args: {len(args)}")
print(f"Keyword args: {list(kwargs.keys())}")
""",
    "save": """
import nnsight
with model.trace("The Eiffel Tower is in the city of"):
    hidden_states = nnsight.save(model.transformer.h[-1].output[0])
print(hidden_states.shape)
""",
    "several layers": """
with model.trace("The Eiffel Tower is in the city of"):
    hidden_states_per_layer = list().save()
    for layer in model.transformer.h:
        hidden_states_per_layer.append(layer.output[0])
for i, hs in enumerate(hidden_states_per_layer):
    print(f"Layer {i}: {hs.shape}")
""",
    "used afterwards": """
with model.trace("The Eiffel Tower is in the city of"):
    logits = model.lm_head.output.save()
predicted_token = logits[0, -1].argmax(dim=-1)
print(f"Predicted next token: {model.tokenizer.decode(predicted_token)}")
""",
}

SNIPPETS = TOKENS | GENERATION | ACTIVATIONS


def adapted(text, place, is_llama):
    """A snippet for a model at `place`."""
    for name in ("'openai-community/gpt2'", '"openai-community/gpt2"'):
        text = text.replace(name, repr(str(place)))
    text = text.replace("from nnsight import", "from glassformer.nnsight import")
    text = text.replace("import nnsight\n", "import glassformer.nnsight as nnsight\n")
    if is_llama:
        text = text.replace("model.transformer.h", "model.model.layers").replace("model.transformer.", "model.model.")
    return text
