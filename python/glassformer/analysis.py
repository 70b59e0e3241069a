"""Analyses, each one call: logit lens, direct logit attribution, activation patching, and the whole explanation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from glassformer import _core
from glassformer._arguments import NodeName, Positions, node_name, positions_list
from glassformer.trace import Trace

if TYPE_CHECKING:
    from glassformer.model import Model


def logit_lens(
    trace: Trace,
    positions: Positions | None = None,
    top_k: int = 1,
    target: int | str | None = None,
    return_logits: bool = False,
) -> _core.LensResult:
    """The residual stream of each layer read as if it were the last (the logit lens, nostalgebraist 2020).

    Gives `layers` ("embed", "0", "1", …; the last is the model's own output), `top_ids`, `top_logits` and
    `top_probabilities` (`layer batch pos k`); with a `target` token its `target_logit`, `target_probability` and
    `target_rank` (`layer batch pos`; rank 0 is the most likely); with `return_logits` all `logits`
    (`layer batch pos d_vocab`). Raises `InputError` for a target that is no single token.
    """
    wanted = None if target is None else single_token(trace.model, target)
    return _core.logit_lens(trace.core, positions_list(positions), top_k, wanted, return_logits)


def process_weights(
    model: Model,
    *,
    fold_norms: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_attention: bool = False,
) -> Model:
    """A model that predicts the same from weights that are easier to read, as TransformerLens rewrites them.

    `fold_norms`: norms only divide, their weights are in what follows. `center_writing_weights`: what writes into the
    residual stream writes vectors of mean 0 (where all norms centre). `center_unembed`: logits of mean 0 at each
    position, so they move by one number (not before a soft cap). `fold_value_biases`: they are in the bias of
    attention's output. `refactor_attention`: queries' and keys' weights equally large, values' and outputs' orthogonal
    (not with rotary positions or shared keys: `UnsupportedError`).

    The new model has weights of its own, in the same dtype; what is changed afterwards in one doesn't reach the other.
    """
    core = _core.process_weights(
        model.core, fold_norms, center_writing_weights, center_unembed, fold_value_biases, refactor_attention
    )
    return type(model)(core, model.tokenizer, model.name)


def direct_logit_attribution(
    trace: Trace, token: int | str, versus: int | str | None = None, position: int = -1
) -> _core.AttributionResult:
    """What each part of the model adds to the logit of `token` (minus that of `versus`) at a position, with the final
    norm's scale held as it is (Elhage et al. 2021).

    Gives `components` (each with `name`, `kind`, `layer` and `logit`: `batch`), which sum to `logit` (`batch`), and
    `heads` (`layer head batch`), each head's share of its block's attention output.
    """
    other = None if versus is None else single_token(trace.model, versus)
    return _core.direct_logit_attribution(trace.core, single_token(trace.model, token), other, position)


def activation_patching(
    clean: Trace,
    corrupted: Trace,
    metric: _core.Metric | Callable[[torch.Tensor], Any],
    activation: str = "resid_pre",
    by_position: bool = True,
    by_head: bool = False,
    layers: Sequence[int] = (),
    positions: Positions | None = -1,
    progress: Callable[[int, int], None] | None = None,
) -> _core.PatchResult:
    """For each place, the metric of the corrupted run with the clean run's value there (activation patching, Meng et
    al. 2022).

    `activation` is a node of the blocks by its short name: "resid_pre", "resid_mid", "attn_out", "mlp_out" by position,
    "z" with `by_head=True` for heads (with `by_position=False`: at all positions at once). `metric` is
    `logit_difference(…)` or a function of the logits at `positions` (`batch pos d_vocab`; the last by default, None for
    all) that gives a number. Gives `values` (float64, with the axes named in `axes`), the metric of both runs as
    `clean` and `corrupted`, and `recovered()`: 0 where a patch does nothing, 1 where it restores the clean run.

    Raises `ShapeError` for prompts of different lengths.
    """
    if not isinstance(metric, _core.Metric):
        metric = _core.Metric(metric, positions_list(positions))
    return _core.activation_patching(
        clean.core, corrupted.core, metric, activation, by_position, by_head, list(layers), progress
    )


def attribution_patching(
    clean: Trace,
    corrupted: Trace,
    metric: _core.Metric | Callable[[torch.Tensor], torch.Tensor],
    nodes: Sequence[NodeName] = (),
    positions: Positions | None = -1,
) -> dict[str, torch.Tensor]:
    """For every node the first-order estimate of what activation patching would change, from one backward pass
    (attribution patching, Nanda 2023): (clean - corrupted) times the metric's gradient in the corrupted run, summed
    over the node's last axis. By the nodes' full names, in computing order; `nodes` picks some.

    `metric` is `logit_difference(…)` or a function of the logits at `positions` that torch can differentiate. Raises
    `ShapeError` for prompts of different lengths, `InputError` for a named node that the metric does not depend on.
    """
    if not isinstance(metric, _core.Metric):
        metric = _core.Metric(metric, positions_list(positions))
    return _core.attribution_patching(clean.core, corrupted.core, metric, [node_name(name) for name in nodes])


def logit_difference(model: Model, answer: int | str, versus: int | str, position: int = -1) -> _core.Metric:
    """The metric logit(answer) - logit(versus) at one position; tokens as ids or as texts of one token."""
    return _core.logit_difference(single_token(model, answer), single_token(model, versus), position)


class Explanation:
    """Why a model says what it says: as text for a terminal, as JSON or as a self-contained HTML page."""

    def __init__(self, core: _core.Explanation):
        self._core = core

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as `glassformer explain --json` gives them."""
        return json.loads(self._core.to_json())

    def to_json(self) -> str:
        """The same as text."""
        return self._core.to_json()

    def to_html(self) -> str:
        """A page that needs nothing beside it."""
        return self._core.to_html()

    def save(self, path: str) -> None:
        """Writes the page."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.to_html())

    def __str__(self) -> str:
        return self._core.to_text(100)

    def _repr_html_(self) -> str:
        page = self.to_html().replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe srcdoc="{page}" style="width:100%;height:900px;border:0"></iframe>'


def explain(
    model: Model,
    prompt: str,
    versus: str | None = None,
    n_next_tokens: int = 10,
    n_heads: int = 6,
    answer: int | str | None = None,
    versus_answer: int | str | None = None,
) -> Explanation:
    """The next tokens, the logit lens, direct logit attribution and the strongest heads of a prompt; with a second
    prompt of equal length in tokens, the patching map between the two.

    `answer` is the token that is explained (the prompt's most likely one unless given), `versus_answer` the one that
    patching compares it with (the second prompt's most likely other one); as ids or as texts of one token.

    Raises `InputError` for prompts of different lengths or with the same tokens, and for an answer compared with
    itself.
    """
    ids = [None if token is None else single_token(model, token) for token in (answer, versus_answer)]
    return Explanation(_core.explain(model.core, prompt, versus, n_next_tokens, n_heads, *ids))


def single_token(model: Model, token: int | str) -> int:
    """The id of a token given as an id or as a text that is one token, by itself or with a space before it;
    `InputError` shows the tokens it has.
    """
    if not isinstance(token, str):
        return int(token)
    tokenizer = model.needed_tokenizer()
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) == 1:
        return ids[0]
    spaced = tokenizer.encode(f" {token}", add_special_tokens=False) if token else []
    if len(spaced) != 1:
        pieces = ", ".join(repr(tokenizer.decode([id])) for id in ids)
        raise _core.InputError(f"{token!r} is {len(ids)} tokens ({pieces}); expected one")
    return spaced[0]
