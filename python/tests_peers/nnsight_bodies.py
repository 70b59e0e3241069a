"""Bodies of traces that run on nnsight and on ours alike: parts of a model, reads, and edits.

What is changed in place was copied first if it is also given back: the judge gives the same tensor twice.
"""

import torch


def hidden(output):
    """The hidden state in what a block or attention returns: a bare tensor in the judge with `transformers` 5."""
    return output[0] if isinstance(output, tuple) else output


def put(module, value):
    """Sets the hidden state in what a module returns."""
    found = module.output
    module.output = (value, *found[1:]) if isinstance(found, tuple) else value


def trunk(model):
    return model.transformer if hasattr(model, "transformer") else model.model


def blocks(model):
    return trunk(model).h if hasattr(model, "transformer") else trunk(model).layers


def attention(block):
    return block.attn if hasattr(block, "attn") else block.self_attn


def first_norm(block):
    return block.ln_1 if hasattr(block, "ln_1") else block.input_layernorm


def second_norm(block):
    return block.ln_2 if hasattr(block, "ln_2") else block.post_attention_layernorm


def embedding(model):
    return trunk(model).wte if hasattr(model, "transformer") else trunk(model).embed_tokens


def final_norm(model):
    return trunk(model).ln_f if hasattr(model, "transformer") else trunk(model).norm


def heads_input(block):
    """The module whose input are the heads' outputs side by side."""
    return attention(block).c_proj if hasattr(block, "attn") else attention(block).o_proj


def last_of_mlp(block):
    return block.mlp.c_proj if hasattr(block, "attn") else block.mlp.down_proj


def n_heads(model):
    return model.config.num_attention_heads


# --- reads


def read_module(model, prompt, path, what):
    """One value of one module ("output", "input")."""
    with model.trace(prompt):
        found = hidden(model.get(f"{path}.{what}")).save()
    return found


def read_everything(model, prompt):
    """The residual stream at every block, patterns, logits."""
    with model.trace(prompt):
        stream = [].save()
        patterns = [].save()
        for block in blocks(model):
            patterns.append(attention(block).output[1])
            stream.append(hidden(block.output))
        normed = final_norm(model).output.save()
        logits = model.lm_head.output.save()
        whole = model.output.logits.save()
    return stream, patterns, normed, logits, whole


def read_inputs(model, prompt):
    """Arguments of modules with one tensor, and of a block its first."""
    with model.trace(prompt):
        block = blocks(model)[1]
        args, _ = block.inputs
        first = args[0].save()
        norm_args, norm_kwargs = first_norm(block).inputs
        n_norm = (len(norm_args), len(norm_kwargs)).save()
        norm = norm_args[0].save()
        mlp = block.mlp.inputs[0][0].save()
    return first, n_norm, norm, mlp


def read_result(model, prompt, **options):
    """What the traced call returns."""
    with model.trace(prompt, **options) as tracer:
        logits = tracer.result.logits.save()
    return logits


# --- edits, each a function of a model inside a trace; the number says where in the forward pass it belongs


def _assign_block(model):
    put(blocks(model)[1], hidden(blocks(model)[1].output) * 0.5 + 1)


def _assign_block_constant(model):
    value = hidden(blocks(model)[1].output)
    put(blocks(model)[1], torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape))


def _assign_block_in_several_steps(model):
    put(blocks(model)[1], hidden(blocks(model)[1].output) + 1)
    put(blocks(model)[1], hidden(blocks(model)[1].output) * 2)
    hidden(blocks(model)[1].output)[:, -1] = 0.25


def _zero_block(model):
    hidden(blocks(model)[0].output)[:] = 0


def _zero_first_position(model):
    hidden(blocks(model)[0].output)[:, 0] = 0


def _corner(model):
    hidden(blocks(model)[1].output)[:, 1:4, 3:9] = 1.5


def _strided(model):
    hidden(blocks(model)[1].output)[..., ::3] *= -2


def _by_mask(model):
    value = hidden(blocks(model)[0].output)
    value[value > 0.3] = 0.1


def _by_index_tensor(model):
    hidden(blocks(model)[0].output)[:, torch.tensor([0, 2, -1])] = 0.75


def _by_method(model):
    hidden(blocks(model)[0].output).mul_(1.5).add_(0.25)


def _by_view_of_row(model):
    hidden(blocks(model)[0].output)[0].mul_(-1)


def _by_view_of_position(model):
    row = hidden(blocks(model)[0].output)[0, 2]
    row += 3


def _by_views_of_views(model):
    hidden(blocks(model)[0].output)[:, 1:].transpose(1, 2)[:, 2:5].fill_(0.5)


def _by_select(model):
    hidden(blocks(model)[0].output).select(1, 1).zero_()


def _by_copy(model):
    value = hidden(blocks(model)[1].output)
    value.copy_(torch.full_like(value, 0.125))


def _iadd_of_part(model):
    value = hidden(blocks(model)[1].output)
    value[:, 1] += value[:, 0]


def _swap_positions(model):
    value = hidden(blocks(model)[0].output)
    value[:, [0, 1]] = value[:, [1, 0]]


def _block_input(model):
    blocks(model)[1].input = blocks(model)[1].input * 0.5


def _block_input_in_place(model):
    blocks(model)[1].input[:, 1] = 2


def _block_inputs(model):
    args, kwargs = blocks(model)[1].inputs
    blocks(model)[1].inputs = ((args[0] + 1, *args[1:]), kwargs)


def _first_norm_input(model):
    norm = first_norm(blocks(model)[1])
    norm.input = norm.input * 0.5 + 0.1


def _second_norm_input(model):
    norm = second_norm(blocks(model)[1])
    norm.input = -norm.input


def _first_norm_output(model):
    first_norm(blocks(model)[1]).output[:, :, :5] = 0


def _second_norm_output(model):
    norm = second_norm(blocks(model)[1])
    norm.output = norm.output.flip(-1)


def _attention_input(model):
    attention(blocks(model)[1]).input = attention(blocks(model)[1]).input * 1.25


def _attention_output(model):
    put(attention(blocks(model)[1]), torch.zeros_like(hidden(attention(blocks(model)[1]).output)))


def _attention_output_in_place(model):
    attention(blocks(model)[1]).output[0][:, -1] = 1


def _attention_output_tuple(model):
    found = attention(blocks(model)[0]).output
    attention(blocks(model)[0]).output = (found[0] * 2, *found[1:])


def _head_off(model):
    value = heads_input(blocks(model)[1]).input
    value.view(*value.shape[:2], n_heads(model), -1)[:, :, 1] = 0


def _head_off_by_slice(model):
    module = heads_input(blocks(model)[0])
    size = module.input.shape[-1] // n_heads(model)
    module.input[:, :, size : 2 * size] = 0


def _head_scaled_by_split(model):
    value = heads_input(blocks(model)[1]).input
    with torch.no_grad():  # torch refuses it for one of several views.
        value.split(value.shape[-1] // n_heads(model), dim=-1)[-1].mul_(3)


def _heads_assigned(model):
    module = heads_input(blocks(model)[1])
    module.input = module.input.flip(-1)


def _attention_projection_output(model):
    heads_input(blocks(model)[1]).output[:, 0] = -1


def _mlp_input(model):
    blocks(model)[1].mlp.input = blocks(model)[1].mlp.input + 0.5


def _mlp_input_in_place(model):
    blocks(model)[1].mlp.input[:, :, 0] = 3


def _mlp_output(model):
    blocks(model)[1].mlp.output = blocks(model)[1].mlp.output * 2


def _mlp_output_iadd(model):
    blocks(model)[0].mlp.output += 0.5


def _mlp_output_in_place(model):
    blocks(model)[1].mlp.output[0][1] = 0.5


def _mlp_last_input(model):
    last_of_mlp(blocks(model)[1]).input[:, :, :7] = 0


def _mlp_last_output(model):
    module = last_of_mlp(blocks(model)[1])
    module.output = module.output.clamp(-0.5, 0.5)


def _embedding(model):
    embedding(model).output[:, 1] = 0.3


def _embedding_assigned(model):
    embedding(model).output = embedding(model).output.flip(1)


def _tokens(model):
    embedding(model).input[:, 1] = 7


def _tokens_assigned(model):
    embedding(model).input = (embedding(model).input + 3) % 50


def _final_norm_input(model):
    final_norm(model).input = final_norm(model).input * 2 + 0.3


def _final_norm_output(model):
    final_norm(model).output[:, -1] = 1


def _head_input(model):
    model.lm_head.input = model.lm_head.input.flip(1)


def _head_output(model):
    model.lm_head.output[:, :, 3] = 100


def _head_output_iadd(model):
    model.lm_head.output += 1


def _logits_of_the_model(model):
    model.output.logits[:, 0] = 5


def _trunk_output(model):
    trunk(model).output[0][:, 1] = 0.5


EDITS = {
    "tokens": (-3, _tokens),
    "tokens assigned": (-3, _tokens_assigned),
    "embedding": (-2, _embedding),
    "embedding assigned": (-2, _embedding_assigned),
    "head off by slice": (4, _head_off_by_slice),
    "attention output tuple": (5, _attention_output_tuple),
    "mlp output +=": (8, _mlp_output_iadd),
    "zero block": (9, _zero_block),
    "zero first position": (9, _zero_first_position),
    "by mask": (9, _by_mask),
    "by index tensor": (9, _by_index_tensor),
    "by method": (9, _by_method),
    "by view of row": (9, _by_view_of_row),
    "by view of position": (9, _by_view_of_position),
    "by views of views": (9, _by_views_of_views),
    "by select": (9, _by_select),
    "swap positions": (9, _swap_positions),
    "block input": (10, _block_input),
    "block input in place": (10, _block_input_in_place),
    "block inputs": (10, _block_inputs),
    "first norm input": (11, _first_norm_input),
    "first norm output": (12, _first_norm_output),
    "attention input": (13, _attention_input),
    "head off": (14, _head_off),
    "head scaled by split": (14, _head_scaled_by_split),
    "heads assigned": (14, _heads_assigned),
    "attention projection output": (14.5, _attention_projection_output),
    "attention output": (15, _attention_output),
    "attention output in place": (15, _attention_output_in_place),
    "second norm input": (16, _second_norm_input),
    "second norm output": (16.5, _second_norm_output),
    "mlp input": (17, _mlp_input),
    "mlp input in place": (17, _mlp_input_in_place),
    "mlp last input": (17.5, _mlp_last_input),
    "mlp last output": (17.7, _mlp_last_output),
    "mlp output": (18, _mlp_output),
    "mlp output in place": (18, _mlp_output_in_place),
    "assign block": (19, _assign_block),
    "assign block constant": (19, _assign_block_constant),
    "assign block in several steps": (19, _assign_block_in_several_steps),
    "corner": (19, _corner),
    "strided": (19, _strided),
    "by copy": (19, _by_copy),
    "+= of part": (19, _iadd_of_part),
    "final norm input": (90, _final_norm_input),
    "final norm output": (91, _final_norm_output),
    "trunk output": (92, _trunk_output),
    "head input": (93, _head_input),
    "head output": (94, _head_output),
    "head output +=": (94, _head_output_iadd),
    "logits of the model": (95, _logits_of_the_model),
}


def _gpt2_qkv(model):
    value = blocks(model)[1].attn.c_attn.output
    size = value.shape[-1] // 3
    value[:, :, :size] *= 0.5
    value[:, 1, size : 2 * size] = 1
    value[:, :, 2 * size :][:, 0] = -1


def _gpt2_qkv_input(model):
    blocks(model)[1].attn.c_attn.input = blocks(model)[1].attn.c_attn.input * 2


def _gpt2_pre(model):
    blocks(model)[1].mlp.c_fc.output[:, :, ::2] = 0.5


def _gpt2_pre_input(model):
    blocks(model)[1].mlp.c_fc.input[:, 1] = 0.5


def _gpt2_act(model):
    blocks(model)[1].mlp.act.output = blocks(model)[1].mlp.act.output * 3


def _gpt2_act_input(model):
    blocks(model)[1].mlp.act.input = -blocks(model)[1].mlp.act.input


def _gpt2_mlp_dropout(model):
    blocks(model)[1].mlp.dropout.output[:, 0] = 0


def _gpt2_attention_dropout(model):
    blocks(model)[1].attn.resid_dropout.output[:, 0] = 0.5


def _gpt2_positions(model):
    model.transformer.wpe.output = model.transformer.wpe.output.flip(1)


def _gpt2_embedded(model):
    model.transformer.drop.output[:, 2] = 1


def _gpt2_embedded_input(model):
    model.transformer.drop.input = model.transformer.drop.input * 2


def _llama_q(model):
    blocks(model)[1].self_attn.q_proj.output[:, :, :4] = 0.5


def _llama_k(model):
    blocks(model)[1].self_attn.k_proj.output *= 2


def _llama_v(model):
    value = blocks(model)[1].self_attn.v_proj.output
    blocks(model)[1].self_attn.v_proj.output = value.roll(1, dims=1)


def _llama_q_input(model):
    blocks(model)[1].self_attn.q_proj.input = blocks(model)[1].self_attn.q_proj.input * 2


def _llama_k_input(model):
    blocks(model)[1].self_attn.k_proj.input = blocks(model)[1].self_attn.k_proj.input + 1


def _llama_gate(model):
    blocks(model)[1].mlp.gate_proj.output[:, :, ::2] = 1


def _llama_gate_input(model):
    blocks(model)[1].mlp.gate_proj.input = blocks(model)[1].mlp.gate_proj.input * 2


def _llama_act(model):
    blocks(model)[1].mlp.act_fn.output[:, 1] = 2


def _llama_up(model):
    blocks(model)[1].mlp.up_proj.output = blocks(model)[1].mlp.up_proj.output - 1


def _llama_up_input(model):
    blocks(model)[1].mlp.up_proj.input = blocks(model)[1].mlp.up_proj.input - 1


GPT2_EDITS = {
    "positions": (-1, _gpt2_positions),
    "embedded input": (-0.6, _gpt2_embedded_input),
    "embedded": (-0.5, _gpt2_embedded),
    "qkv input": (13.2, _gpt2_qkv_input),
    "qkv": (13.5, _gpt2_qkv),
    "attention dropout": (14.7, _gpt2_attention_dropout),
    "pre input": (17.1, _gpt2_pre_input),
    "pre": (17.2, _gpt2_pre),
    "act input": (17.3, _gpt2_act_input),
    "act": (17.4, _gpt2_act),
    "mlp dropout": (17.8, _gpt2_mlp_dropout),
}
LLAMA_EDITS = {
    "q input": (13.1, _llama_q_input),
    "q": (13.2, _llama_q),
    "k input": (13.3, _llama_k_input),
    "k": (13.4, _llama_k),
    "v": (13.5, _llama_v),
    "gate input": (17.1, _llama_gate_input),
    "gate": (17.2, _llama_gate),
    "act of a position": (17.3, _llama_act),
    "up input": (17.35, _llama_up_input),
    "up": (17.4, _llama_up),
}


def edits_of(kind):
    """Name of an edit -> (place in the forward pass, function)."""
    return EDITS | (GPT2_EDITS if kind.startswith("gpt2") else LLAMA_EDITS)


def edited_stream(model, prompt, functions_by_block, before, after, last):
    """Every block's input and output with edits: those of `before`, each block's own, those of `after`, and those of
    the logits that the model returns."""
    with model.trace(prompt):
        stream = [].save()
        for function in before:
            function(model)
        for number, block in enumerate(blocks(model)):
            stream.append(block.input.clone())
            for function in functions_by_block.get(number, []):
                function(model)
            stream.append(hidden(block.output).clone())
        for function in after:
            function(model)
        logits = model.lm_head.output.clone().save()
        for function in last:
            function(model)
        whole = model.output.logits.clone().save()
    return stream, logits, whole


def moved(model, prompt, source, target):
    """Puts what a block takes in into the place of what a later one gives."""
    with model.trace(prompt):
        taken = blocks(model)[source].input.clone()
        hidden(blocks(model)[target].output)[:, 1:] = taken[:, :-1]
        logits = model.lm_head.output.save()
    return logits


def from_another_trace(model, prompt, other, layer):
    """Activation patching: one trace's values in another one."""
    with model.trace(other):
        clean = hidden(blocks(model)[layer].output)[:, -1].save()
    with model.trace(prompt):
        hidden(blocks(model)[layer].output)[:, -1] = clean
        logits = model.lm_head.output.save()
    return clean, logits


def with_numpy_and_python(model, prompt):
    """Values in ordinary Python: conditions, loops, numbers, strings."""
    with model.trace(prompt):
        kept = {}.save()
        for number, block in enumerate(blocks(model)):
            value = hidden(block.output)
            norm = float(value[:, -1].norm())
            kept[f"block {number}"] = torch.tensor(norm)
            if norm > 3:
                value[:, -1] *= 3 / norm
            elif number % 2:
                value[:, -1] += 1
        best = model.lm_head.output[0, -1].argmax().item().save()
        word = model.tokenizer.decode(best).save()
        shape = tuple(model.lm_head.output.shape).save()
    return kept, best, word, shape
