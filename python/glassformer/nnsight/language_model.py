"""Language models in nnsight's vocabulary."""

from __future__ import annotations

import json
import os
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import glassformer
from glassformer import _core
from glassformer._hub import fetched
from glassformer.live import is_live
from glassformer.nnsight.envoy import Envoy, Rename
from glassformer.nnsight.generation import generation_options
from glassformer.nnsight.modules import EngineEnvoy, Place, torch_modules
from glassformer.nnsight.own_modules import OwnEnvoy
from glassformer.nnsight.prompts import read_prompts
from glassformer.nnsight.session import Session
from glassformer.nnsight.tracing import EngineScope, Tracer

_WITHOUT_EFFECT = {
    "allow_dispatch",
    "attn_implementation",
    "check_renaming",
    "dispatch",
    "force_download",
    "import_edits",
    "low_cpu_mem_usage",
    "meta_buffers",
    "proxies",
    "task",
    "trust_remote_code",
    "use_fast",
    "use_safetensors",
}
"""How nnsight and transformers load; it makes no difference here: weights are mapped, and read when they are used."""
_OF_THE_HUB = ("cache_dir", "local_files_only", "revision", "token")


class LanguageModel(EngineEnvoy):
    """A language model whose modules, by transformers' names, are read and changed in traces.

    `model` is a folder, a GGUF file, the name of a model, a live `transformers` model or a `glassformer.Model`.
    `rename` gives modules further names (see `Envoy`); `device_map` and `device` say where it computes ("auto": a GPU
    where there is one); `dtype` is that of weights and values (float32 for files, a live model's own).

        with model.trace("The Eiffel Tower is in the city of"):
            hidden = model.transformer.h[-1].output[0]

    Raises what `glassformer.load` raises, and TypeError for keywords that it doesn't know.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        rename: Rename | None = None,
        device_map: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        super().__init__("model", None)
        hub = {name: options.pop(name) for name in _OF_THE_HUB if name in options}
        unknown = [name for name, value in options.items() if name not in _WITHOUT_EFFECT and value is not None]
        if unknown:
            raise TypeError(f"LanguageModel(…) has no keyword {', '.join(sorted(unknown))}")
        place = _device(device_map if device is None else device)
        wanted = torch_dtype if dtype is None else dtype
        self.engine = _opened(model, tokenizer, place, None if wanted == "auto" else wanted, hub)
        self.tokenizer = self.engine.tokenizer if tokenizer is None or isinstance(tokenizer, str) else tokenizer
        self.repo_id = self.engine.name
        live = model if is_live(model) else None
        self._live = live if live is not None and _is_followed(live, self.engine) else None
        self.config = _config(self.engine, live)
        self.generation_config = _generation_config(self.engine, live)
        self.node_axes = {node.name: node for node in self.engine.nodes()}
        self.past_nodes = _past_nodes(self.node_axes, self.engine.config.n_layers)
        self.edits: tuple[Any, ...] = ()
        self._names = rename
        self._build()

    def _build(self) -> None:
        """Makes the tree of modules and what hangs on it: in a new model, and in an edited copy of one. Subclasses
        extend it."""
        self._modules: dict[str, torch.nn.Module] | None = None
        for info in self.engine.core.module_tree():
            self._put(info)
        self._add("generator", Generator("model.generator", self))
        self.generator._add("streamer", Streamer("model.generator.streamer", self.generator))
        self._rename(self._names)

    def _put(self, info: Any) -> None:
        place = Place.of(info)
        if not info.path:
            self.place = place
            return
        parent_path, _, name = info.path.rpartition(".")
        parent = self.get(parent_path)
        child = EngineEnvoy(f"{parent.path}.{name}", parent)
        child.__dict__["place"] = place
        parent._add(name, child)

    # --- running

    def trace(self, *inputs: Any, trace: bool = True, **given: Any) -> Any:
        """Opens a trace of a text, texts, token ids or transformers' keywords, as a `with` block; of nothing, for
        invokes. `trace=False` gives the model's output at once."""
        if not trace:
            with self.trace(*inputs, **given):
                return self.output.save()
        return Tracer(self, inputs, given)

    def generate(self, *inputs: Any, trace: bool = True, **given: Any) -> Any:
        """Opens a trace that generates, with transformers' keywords (`max_new_tokens`, `do_sample`, `temperature`,
        `top_k`, `top_p`, `min_p`, `repetition_penalty`, `eos_token_id`, `stop_strings`, …) and the model's generation
        config. Steps are generated as they are asked for: see `Tracer.iter`, `Tracer.next` and `Tracer.result`.
        `trace=False` gives the ids at once; so does a call without `with`, when its result is used."""
        # Only a length that counts the prompt needs it.
        options = generation_options(given, self.generation_config, self.tokenizer, self._prompt_length(inputs, given))
        tracer = Tracer(self, inputs, given, options)
        return tracer if trace else tracer.result

    def scan(self, *inputs: Any, **given: Any) -> Any:
        """Opens a trace on shapes alone, with the inputs of `trace`: nothing is computed. What is read has a shape, a
        dtype and a device, and can be computed with; whatever asks for values raises `UnsupportedError`."""
        from glassformer.nnsight.scan import ScanTracer

        return ScanTracer(self, inputs, given)

    # --- edits

    def edit(self, *, inplace: bool = False, backend: Any = None) -> Any:
        """Opens a `with` block that records changes for all later traces, of an edited copy or of this model itself.

        `with model.edit() as edited:` or `as (tracer, edited):`, with `inplace=True` `as tracer:`. The copy shares the
        engine, the tokenizer, modules of one's own and earlier edits. The body runs once, on shapes: what asks for
        values raises `UnsupportedError`. Changes are made in the prompt's step, or in a loop over `tracer.iter[…]` or
        `tracer.all()` at its steps; traces and generations make them, plain calls don't.
        """
        from glassformer.nnsight.editing import EditTracer

        if backend is not None:
            raise _core.UnsupportedError("edit(backend=…): edits are made on this machine")
        return EditTracer(self if inplace else self._copy(), self, inplace)

    def clear_edits(self) -> None:
        """Drops all edits of this model: traces that are opened from now on have none."""
        self.edits = ()

    def add_edit(self, edit: Any) -> None:
        """Internal: one more edit, behind the others."""
        self.edits = (*self.edits, edit)

    def _copy(self) -> LanguageModel:
        """The same model with a tree of its own."""
        copy = object.__new__(type(self))
        tree = {"_children", "_aliases", "root", *self._children}
        copy.__dict__.update({name: value for name, value in self.__dict__.items() if name not in tree})
        copy.__dict__.update(_children={}, _aliases={}, root=copy)
        copy._build()
        for envoy in [self, *self._all_below()]:
            for name, child in envoy._children.items():
                if isinstance(child, OwnEnvoy) and not isinstance(envoy, OwnEnvoy):
                    setattr(copy.get(envoy.path.partition(".")[2]), name, child._module)
        return copy

    def __iter__(self) -> Iterator[Any]:
        """The modules; while the model is the copy of an open `edit`: its tracer and the model."""
        tracer = self.__dict__.get("_editing")
        return super().__iter__() if tracer is None else iter((tracer, self))

    def _prompt_length(self, inputs: tuple[Any, ...], given: dict[str, Any]) -> int | None:
        if given.get("max_new_tokens") is not None:
            return None
        prompts = read_prompts(self, inputs, dict(given))
        return None if prompts is None else max(len(row) for row in prompts.rows)

    def session(self, **given: Any) -> Session:
        """A `with` block around several traces; it changes nothing."""
        self.refuse(given)
        return Session()

    def __call__(self, *inputs: Any, hook: bool = False, **given: Any) -> Any:
        """The model's output on an input, outside of any trace and without its edits."""
        return self.run(inputs, given)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with Tracer(self, args, kwargs, edited=False) as tracer:
            return tracer.read(self, "output").save()

    def refuse(self, given: dict[str, Any]) -> None:
        """Internal: raises for keywords that nobody took."""
        if given.pop("remote", False):
            raise _core.UnsupportedError("remote=True: everything runs on this machine")
        given.pop("backend", None)
        if given:
            raise _core.InputError(f"no keyword {', '.join(sorted(given))} is known here")

    # --- settings

    @property
    def _model(self) -> torch.nn.Module:
        """The model as a torch module: nnsight's name for it."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in."""
        return self.engine.dtype

    def to(self, *targets: Any, dtype: Any = None, device: Any = None) -> LanguageModel:
        """Turns the model, as `glassformer.Model.to` does, into another dtype or onto another device; returns it. A
        live model that it followed stays as it is, and is followed no more."""
        engine = self.engine.to(*targets, dtype=dtype, device=device)
        if engine is not self.engine:
            self.engine, self._live, self._modules = engine, None, None
        return self

    def cpu(self) -> LanguageModel:
        """`to("cpu")`."""
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> LanguageModel:
        """`to("cuda")`, or one GPU by its number."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def eval(self) -> LanguageModel:
        """The model itself: the engine has no training mode."""
        return self

    def train(self, mode: bool = True) -> LanguageModel:
        """Raises `UnsupportedError` for `mode=True`: the engine has no training mode (dropout)."""
        if mode:
            raise _core.UnsupportedError(
                "train(): the engine has no training mode; weights can be trained all the same"
            )
        return self

    @property
    def dispatched(self) -> bool:
        """Whether the weights are there: always."""
        return True

    def dispatch(self) -> None:
        """Does nothing: weights are mapped, and read when they are used."""

    def torch_module(self, envoy: EngineEnvoy) -> torch.nn.Module:
        """Internal: the torch module of a module: the live model's own, else one over the engine's weights."""
        if self._live is not None:
            return self._live.get_submodule(envoy.path.partition(".")[2])
        if self._modules is None:
            self._modules = torch_modules(self)
            self._modules[self.path].config = self.config
        return self._modules[envoy.path]


class Generator(Envoy):
    """`model.generator`: what a generation returns, as older versions of nnsight name it. `.output` is all token ids,
    `batch pos`: `tracer.result`."""

    def read_in(self, scope: EngineScope, what: str) -> Any:
        """Internal: its output in an open trace."""
        if what != "output" or scope.tracer.options is None:
            raise _core.UnavailableError(f"{self.path} has an output, in a generation; found {what} asked")
        return self._found(scope)

    def _found(self, scope: EngineScope) -> torch.Tensor:
        return scope.generated()

    @property
    def _module(self) -> torch.nn.Module:
        return type(type(self).__name__, (torch.nn.Module,), {})()  # It has nothing but a name.


class Streamer(Generator):
    """`model.generator.streamer`: what transformers' streamer is given. `.output` is the tokens of the present step:
    the prompt's at step 0 (batch pos), then those drawn last (batch)."""

    def _found(self, scope: EngineScope) -> torch.Tensor:
        tokens = scope.read_nodes(("hook_tokens",), scope.step)
        return tokens if scope.step == 0 else tokens[:, 0]


def _device(wanted: Any) -> Any:
    if isinstance(wanted, dict):
        places = {str(place) for place in wanted.values()}
        if len(places) > 1:
            raise _core.UnsupportedError(f"device_map: models on several devices are not supported; found {places}")
        wanted = next(iter(places), None)
    if wanted in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else None
    if isinstance(wanted, int):
        wanted = f"cuda:{wanted}"
    if wanted is not None and str(wanted).startswith("cuda") and not torch.cuda.is_available():
        warnings.warn(f"device_map={str(wanted)!r}: there is no GPU here; the model is on the CPU", stacklevel=3)
        return None
    return wanted


def _opened(model: Any, tokenizer: Any, device: Any, dtype: Any, hub: dict[str, Any]) -> glassformer.Model:
    if isinstance(model, glassformer.Model):
        return model if dtype is None and device is None else model.to(dtype=dtype, device=device)
    is_ours = isinstance(tokenizer, glassformer.Tokenizer | str | os.PathLike)
    usable = tokenizer if is_ours or hasattr(tokenizer, "backend_tokenizer") else None
    is_name = isinstance(model, str) and model.count("/") < 2 and not model.startswith(("/", ".", "~"))
    if is_name and not model.endswith(".gguf") and not os.path.exists(model):
        from glassformer.transformer_lens.loading_from_pretrained import hub_name  # It takes what that dialect takes.

        model = fetched(hub_name(model), **hub)
    return glassformer.load(model, dtype, device, usable)


def _is_followed(live: Any, engine: glassformer.Model) -> bool:
    """Whether the engine uses a live model's weights in place: a change of dtype or device copies them."""
    first = next(parameter for parameter in live.parameters() if parameter.is_floating_point())
    return first.dtype == engine.dtype and first.device.type == engine.device.type


def _config(engine: glassformer.Model, live: Any) -> Any:
    if live is not None:
        return live.config
    path = os.path.join(engine.core.path, "config.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return types.SimpleNamespace(**json.load(file))
    own = engine.config
    return types.SimpleNamespace(
        model_type=own.architecture,
        num_hidden_layers=own.n_layers,
        hidden_size=own.d_model,
        num_attention_heads=own.n_heads,
        num_key_value_heads=own.n_kv_heads,
        head_dim=own.d_head,
        intermediate_size=own.d_mlp,
        vocab_size=own.d_vocab,
        max_position_embeddings=own.n_ctx,
    )


def _generation_config(engine: glassformer.Model, live: Any) -> dict[str, Any]:
    if live is not None:
        own = getattr(live, "generation_config", None)
        return {} if own is None else own.to_diff_dict()
    path = os.path.join(engine.core.path, "generation_config.json")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _past_nodes(nodes: dict[str, Any], n_layers: int) -> list[tuple[str, str]]:
    """The keys, as attention uses them, and values of each layer."""
    found = []
    for layer in range(n_layers):
        rotated = f"blocks.{layer}.attn.hook_rot_k"
        keys = rotated if rotated in nodes else f"blocks.{layer}.attn.hook_k"
        found.append((keys, f"blocks.{layer}.attn.hook_v"))
    return found
