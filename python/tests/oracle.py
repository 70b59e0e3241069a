"""The judge of edits: a decoder in plain torch that computes every node at every position, each time anew.

It shares nothing with the engine but the names of the nodes: weights come from the `transformers` model, and an edit is
an assignment into the node's tensor at the moment when that node has been computed.
"""

import copy
import math

import torch

NEVER = -math.inf


class Oracle:
    """Evaluates one model; `run` gives all nodes as a dictionary."""

    norms_keys = False  # Whether a past's keys are what comes of a norm.

    def __init__(self, reference):
        self.config = reference.config
        self.kind = "gpt2" if self.config.model_type == "gpt2" else "llama"
        self.weights = {
            name.removeprefix("transformer.").removeprefix("model."): tensor.detach()
            for name, tensor in reference.state_dict().items()
        }
        self.rotary = None if self.kind == "gpt2" else copy.deepcopy(reference.model.rotary_emb)
        self.n_heads = self.config.num_attention_heads
        self.n_kv_heads = getattr(self.config, "num_key_value_heads", self.n_heads)
        d_model = self.config.hidden_size
        self.d_head = getattr(self.config, "head_dim", None) or d_model // self.n_heads
        self.n_layers = self.config.num_hidden_layers
        unembed = self.weights.get("lm_head.weight")
        self.unembed = self._first("wte.weight", "embed_tokens.weight") if unembed is None else unembed

    def _first(self, *names):
        return next(self.weights[name] for name in names if name in self.weights)

    def run(self, tokens, edits=None, mask=None, positions=None, length=None, segments=None, n_past=0):
        """All nodes for `tokens` (batch pos). `edits` has for a node's name a list of (index or mask, values), of
        functions of a segment's value and number, of `Derived` and of `Leaf`; `segments` has (begin, end) of each
        segment. The first `n_past` positions are a past, whose keys and values are edits too."""
        made = self.pass_type()(self, edits or {}, segments or [(0, tokens.shape[1])], n_past)
        return made.run(tokens, mask, positions, length)

    def pass_type(self):
        return _Pass


class Derived:
    """A change in place of some rows, and keys up to a number: what it was made from, and what it made of it."""

    def __init__(self, before, after, n_keys, rows):
        self.before, self.after, self.n_keys, self.rows = before, after, n_keys, list(rows)

    def plus(self, number):
        """Other numbers, whatever they were made from."""
        after = self.after + number if self.after.is_floating_point() else self.after
        return Derived(None, after, self.n_keys, self.rows)

    @property
    def index(self):
        if self.n_keys is None:
            return (slice(None), self.rows)
        return (slice(None), slice(None), self.rows, slice(self.n_keys))


class Leaf:
    """Zeros that are added to a whole node, to differentiate by them."""

    def __init__(self, zeros):
        self.zeros = zeros


class Ambiguous(Exception):
    """A derived edit of a value that is another one by now."""


class _Pass:
    def __init__(self, oracle, edits, segments, n_past):
        self.oracle = oracle
        self.edits = edits
        self.segments = segments
        self.n_past = n_past
        self.nodes = {}
        self.key_mask = self.query_mask = self.first_query = None

    def put(self, name, value):
        value = value.clone()
        for change in self.edits.get(name, ()):
            if isinstance(change, Derived):
                self.derived(name, value, change)
            elif isinstance(change, Leaf):
                value += change.zeros
            elif callable(change):
                self.hooked(name, value, change)
            else:
                apply_edit(value, *change)
        self.nodes[name] = value
        return value

    def derived(self, name, value, change):
        if change.before is None:
            value[change.index] = change.after
            return
        finite = [numbers.double().nan_to_num(neginf=-1e3) for numbers in (value[change.index], change.before)]
        if (finite[0] - finite[1]).abs().max() > 1e-9 * finite[0].abs().max().clamp(min=1):
            raise Ambiguous(name)
        value[change.index] = change.after

    def hooked(self, name, value, function):
        for number, (begin, end) in enumerate(self.segments):
            rows = rows_of(name, max(begin, first_row(name, self.n_past, self.oracle.norms_keys)), end)
            value[rows] = function(value[rows].clone(), number)

    def run(self, tokens, mask, positions, length):
        oracle = self.oracle
        batch, count = tokens.shape
        tokens = self.put("hook_tokens", tokens)
        default = torch.arange(count).expand(batch, count)
        positions = self.put("positions", default if positions is None else positions)
        mask = torch.ones(batch, count, dtype=torch.bool) if mask is None else mask.bool()
        if mask.ndim == 3:  # Of the last queries that it has keys for; what comes later sees what any of them saw.
            self.first_query = mask.shape[2] - mask.shape[1]
            self.query_mask = torch.nn.functional.pad(mask, (0, count - mask.shape[2]))
            mask = torch.nn.functional.pad(mask.any(1), (0, count - mask.shape[2]), value=True)
        self.key_mask = self.put("attention_mask", mask)
        residual = self.put("hook_embed", oracle._first("wte.weight", "embed_tokens.weight")[tokens])
        if oracle.kind == "gpt2":
            residual = residual + self.put("hook_pos_embed", oracle.weights["wpe.weight"][positions])
        else:
            self.rotary_tables(residual, positions, count if length is None else length)
        for layer in range(oracle.n_layers):
            residual = self.block(layer, residual)
        out = self.norm("ln_final", residual, "ln_f" if oracle.kind == "gpt2" else "norm")
        hidden = self.put("unembed.hook_in", out)
        self.put("logits", self.put("unembed.hook_out", hidden @ oracle.unembed.T))
        return self.nodes

    def rotary_tables(self, like, positions, length):
        # The tables' scaling looks at the largest position id, so ask for a sequence that has the whole length.
        asked = torch.cat([positions, torch.full_like(positions[:, :1], length - 1)], dim=1)
        table = self.oracle.rotary
        if table.rope_type == "dynamic":
            table = copy.deepcopy(table)  # It remembers the lengths that it saw.
        cos, sin = table(like, asked)
        self.put("rotary.hook_cos", cos[:, :-1])
        self.put("rotary.hook_sin", sin[:, :-1])

    def normalise(self, x):
        if self.oracle.kind == "gpt2":
            x = x - x.mean(-1, keepdim=True)
        return x, (x.square().mean(-1, keepdim=True) + self.eps()).sqrt()

    def eps(self):
        config = self.oracle.config
        return config.layer_norm_epsilon if self.oracle.kind == "gpt2" else config.rms_norm_eps

    def affine(self, x, name):
        weights = self.oracle.weights
        return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def norm(self, node, x, name):
        centred, scale = self.normalise(x)
        normalized = self.put(f"{node}.hook_normalized", centred / self.put(f"{node}.hook_scale", scale))
        return self.put(f"{node}.hook_out", self.affine(normalized, name))

    def projection(self, name):
        """A linear layer's weight (outputs first) and bias, split out of GPT-2's fused one where need be."""
        weights = self.oracle.weights
        if self.oracle.kind == "llama":
            return weights[f"{name}.weight"], weights.get(f"{name}.bias", torch.zeros(()))
        if name[-2:] in ("_q", "_k", "_v"):
            part = "qkv".index(name[-1])
            fused = f"{name[:-2]}c_attn"
            return weights[f"{fused}.weight"].T.chunk(3)[part], weights[f"{fused}.bias"].chunk(3)[part]
        return weights[f"{name}.weight"].T, weights[f"{name}.bias"]

    def block(self, layer, resid_pre):
        block, gpt2 = f"blocks.{layer}.", self.oracle.kind == "gpt2"
        base = f"h.{layer}." if gpt2 else f"layers.{layer}."
        resid_pre = self.put(f"{block}hook_resid_pre", resid_pre)
        attn_out = self.attention(block, base, layer, resid_pre)
        resid_mid = self.put(f"{block}hook_resid_mid", resid_pre + attn_out)
        mlp_in = self.put(f"{block}hook_mlp_in", resid_mid)
        normed = self.norm(f"{block}ln2", mlp_in, base + ("ln_2" if gpt2 else "post_attention_layernorm"))
        mlp_out = self.mlp(f"{block}mlp.", f"{base}mlp.", normed)
        mlp_out = self.put(f"{block}hook_mlp_out", mlp_out)
        return self.put(f"{block}hook_resid_post", resid_mid + mlp_out)

    def mlp(self, node, base, x):
        def linear(x, name):
            weight, bias = self.projection(base + name)
            return x @ weight.T + bias

        if self.oracle.kind == "gpt2":
            pre = self.put(f"{node}hook_pre", linear(x, "c_fc"))
            return linear(self.put(f"{node}hook_post", self.activation(pre)), "c_proj")
        pre = self.put(f"{node}hook_pre", linear(x, "gate_proj"))
        factor = self.put(f"{node}hook_act", self.activation(pre))
        other = self.put(f"{node}hook_pre_linear", linear(x, "up_proj"))
        return linear(self.put(f"{node}hook_post", factor * other), "down_proj")

    def activation(self, x):
        config = self.oracle.config
        name = config.activation_function if self.oracle.kind == "gpt2" else config.hidden_act
        if name == "silu":
            return x / (1 + torch.exp(-x))
        if name == "relu":
            return x.clamp(min=0)
        if name == "gelu":
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def head_inputs(self, block, resid_pre):
        """The inputs of q, k and v: None where the shared norm serves, else each head's own."""
        oracle = self.oracle
        heads = resid_pre[:, :, None, :]
        names = [f"{block}hook_{part}_input" for part in "qkv"]
        edited = [name in self.edits for name in names]
        if oracle.n_kv_heads == oracle.n_heads:
            shared = f"{block}hook_attn_in"
            heads = self.put(shared, heads.expand(-1, -1, oracle.n_heads, -1))
            edited = [one or shared in self.edits for one in edited]
        counts = [oracle.n_heads, oracle.n_kv_heads, oracle.n_kv_heads]
        inputs = [self.put(name, heads.expand(-1, -1, count, -1)) for name, count in zip(names, counts, strict=True)]
        return [value if own else None for value, own in zip(inputs, edited, strict=True)]

    def attention(self, block, base, layer, resid_pre):
        oracle, gpt2 = self.oracle, self.oracle.kind == "gpt2"
        attn, source = f"{block}attn.", base + ("attn." if gpt2 else "self_attn.")
        norm_name = base + ("ln_1" if gpt2 else "input_layernorm")
        inputs = self.head_inputs(block, resid_pre)
        normed = self.norm(f"{block}ln1", resid_pre, norm_name)
        names = ["_q", "_k", "_v"] if gpt2 else ["q_proj", "k_proj", "v_proj"]
        q, k, v = (
            self.put(f"{attn}hook_{part}", self.project(source + name, own, normed, norm_name))
            for part, name, own in zip("qkv", names, inputs, strict=True)
        )
        q, k = (self.before_rotation(attn, source, part, x) for part, x in (("q", q), ("k", k)))
        if not gpt2:
            q, k = (self.put(f"{attn}hook_rot_{part}", self.rotate(x)) for part, x in (("q", q), ("k", k)))
        z = self.mix(attn, source, layer, q, k, v)
        weight, bias = self.projection(source + ("c_proj" if gpt2 else "o_proj"))
        by_head = weight.reshape(weight.shape[0], oracle.n_heads, oracle.d_head)
        result = self.put(f"{attn}hook_result", torch.einsum("bphe,dhe->bphd", z, by_head))
        return self.put(f"{block}hook_attn_out", result.sum(2) + bias)

    def project(self, name, own, normed, norm_name):
        weight, bias = self.projection(name)
        by_head = weight.reshape(-1, self.oracle.d_head, weight.shape[1])
        if own is None:
            out = torch.einsum("bpd,hed->bphe", normed, by_head)
        else:
            centred, scale = self.normalise(own)
            out = torch.einsum("bphd,hed->bphe", self.affine(centred / scale, norm_name), by_head)
        return out + bias.reshape(-1, self.oracle.d_head) if bias.ndim else out

    def rotate(self, x):
        cos, sin = (self.nodes[f"rotary.hook_{part}"][:, :, None] for part in ("cos", "sin"))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def before_rotation(self, attn, source, part, x):
        del attn, source, part
        return x

    def soften(self, source, scores):
        del source
        return scores.softmax(-1)

    def mix(self, attn, source, layer, q, k, v):
        oracle = self.oracle
        group = oracle.n_heads // oracle.n_kv_heads
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * self.scale(layer)
        scores = self.put(f"{attn}hook_attn_scores", scores.masked_fill(~self.allowed(q.shape[1]), NEVER))
        pattern = self.put(f"{attn}hook_pattern", self.soften(source, scores).nan_to_num(nan=0.0))
        return self.put(f"{attn}hook_z", torch.einsum("bhqk,bkhe->bqhe", pattern, v))

    def scale(self, layer):
        config = self.oracle.config
        scaled = getattr(config, "scale_attn_weights", True)
        by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
        return (self.oracle.d_head**-0.5 if scaled else 1.0) / (layer + 1 if by_layer else 1)

    def allowed(self, count):
        query, key = torch.arange(count)[:, None], torch.arange(count)[None, :]
        allowed = key <= query
        window = getattr(self.oracle.config, "sliding_window", None)
        if window:
            allowed = allowed & (key > query - window)
        if self.query_mask is not None:
            own, begin = self.query_mask, self.first_query
            allowed = allowed.repeat(own.shape[0], 1, 1)
            allowed[:, begin : begin + own.shape[1]] = own
            allowed = allowed[:, None]
        return allowed & self.key_mask[:, None, None, :]


def first_row(name, n_past, norms_keys=False):
    """The first position of a node that there is after a past, of a model that has norms of keys or not."""
    keys = ("k_norm.hook_out" if norms_keys else "hook_k", "hook_v", "hook_rot_k")
    inputs = ("positions", "attention_mask", "hook_cos", "hook_sin", "hook_pos_embed")
    return 0 if name.endswith((*inputs, *keys)) else n_past


def has_keys(name):
    """Whether a node's last axis counts keys."""
    return name.endswith(("hook_attn_scores", "hook_pattern"))


def rows_of(name, begin, end):
    """The index of positions [begin, end) of a node, with the keys up to there where it has keys."""
    if has_keys(name):
        return (slice(None), slice(None), slice(begin, end), slice(end))
    return (slice(None), slice(begin, end))


def apply_edit(value, region, numbers):
    """Assigns into a tensor in place: `region` is a bool mask or one list of indices for each axis (their product)."""
    numbers = torch.as_tensor(numbers, dtype=value.dtype)
    if isinstance(region, torch.Tensor):  # The node may have grown since.
        part = value[tuple(slice(size) for size in region.shape)]
        part[region] = numbers.expand(region.shape)[region]
        return
    grid = torch.meshgrid(*(torch.tensor(indices, dtype=torch.int64) for indices in region), indexing="ij")
    value[grid] = numbers.expand(grid[0].shape)
