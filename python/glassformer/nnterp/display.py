"""Pictures and tables of what the other modules compute. Needs plotly or pandas, where a function says so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glassformer import _core
from glassformer.nnterp.prompt_utils import Prompt

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

_MOST_COLUMNS = 3


def plot_topk_tokens(
    next_token_probs: torch.Tensor,
    tokenizer: Any,
    k: int = 4,
    title: str | None = None,
    use_token_ids: bool = False,
    file: str | os.PathLike[str] | None = None,
    save_html: bool = True,
    height: int = 300,
    width: int = 400,
) -> plotly.graph_objects.Figure:
    """A heat map of the `k` most likely tokens at each layer, one beside the other for each prompt; needs plotly.

    The probabilities are `batch layer d_vocab`, `layer d_vocab` or `d_vocab`. A notebook shows the figure that is
    returned; elsewhere its `show()` does. With `file` it is written there, as HTML or as an image (which needs
    kaleido), and with `save_html` beside an image as HTML too. `height` and `width` are those of one map, in pixels.

    Raises `ImportError` without plotly, and `InputError` for other shapes, or fewer than `k` tokens.
    """
    try:
        import plotly.graph_objects as graphs
        from plotly.subplots import make_subplots
    except ImportError:
        raise ImportError("plot_topk_tokens needs plotly: pip install plotly") from None
    if not 1 <= next_token_probs.ndim <= 3 or not 1 <= k <= next_token_probs.shape[-1]:
        raise _core.InputError(
            f"probabilities of shape {list(next_token_probs.shape)} and k={k}; expected batch layer d_vocab, layer "
            "d_vocab or d_vocab, and k from 1 to d_vocab"
        )
    while next_token_probs.ndim < 3:
        next_token_probs = next_token_probs.unsqueeze(0)
    batch = len(next_token_probs)
    n_columns = max(1, min(_MOST_COLUMNS, batch))
    n_rows = max(1, -(-batch // n_columns))
    figure = make_subplots(rows=n_rows, cols=n_columns, vertical_spacing=0.1, horizontal_spacing=0.05)
    top = next_token_probs.topk(k)
    for number, (values, ids) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
        place = {"row": number // n_columns + 1, "col": number % n_columns + 1}
        spelled = [[_spelled(tokenizer, token) for token in row] for row in ids]
        figure.add_trace(
            graphs.Heatmap(
                z=values,
                x=list(range(k)),
                y=list(range(len(values))),
                zmin=0,
                zmax=1,
                text=[[str(token) for token in row] for row in ids] if use_token_ids else spelled,
                texttemplate="%{text}",
                customdata=[list(map(list, zip(*rows, strict=True))) for rows in zip(ids, spelled, strict=True)],
                hovertemplate="layer %{y}<br>token %{customdata[1]}<br>id %{customdata[0]}<br>probability %{z}"
                "<extra></extra>",
                colorscale="RdBu_r",
                colorbar={"title": "Probability", "thickness": 15, "len": 0.9},
            ),
            **place,
        )
        figure.update_xaxes(title_text="Tokens", **place)
        figure.update_yaxes(title_text="Layers", **place)
    figure.update_layout(
        title=title or f"The {k} most likely tokens at each layer",
        height=height * n_rows,
        width=width * n_columns,
        showlegend=False,
    )
    if file is not None:
        _write(figure, Path(file), save_html)
    return figure


def _spelled(tokenizer: Any, token: int) -> str:
    """A token in quotes; the bare number where a model has more tokens than its tokenizer."""
    try:
        spelling = tokenizer.convert_ids_to_tokens(token)
    except _core.InputError:
        spelling = None
    return str(token) if spelling is None else f"'{spelling}'"


def _write(figure: Any, file: Path, save_html: bool) -> None:
    if file.suffix != ".html":
        figure.write_image(file, scale=3)
    if save_html or file.suffix == ".html":
        figure.write_html(file.with_suffix(".html"))


def prompts_to_df(prompts: Sequence[Prompt], tokenizer: Any = None) -> pandas.DataFrame:
    """A table with a column for each prompt: its text, `<target>_string` as given, and with a `tokenizer`
    `<target>_tokens`, the tokens' spellings; needs pandas (`ImportError` without it)."""
    try:
        import pandas
    except ImportError:
        raise ImportError("prompts_to_df needs pandas: pip install pandas") from None
    columns: dict[int, dict[str, Any]] = {}
    for number, prompt in enumerate(prompts):
        column: dict[str, Any] = {"prompt": prompt.prompt}
        column |= {f"{name}_string": words for name, words in (prompt.target_strings or {}).items()}
        if tokenizer is not None:
            for name, ids in prompt.target_tokens.items():
                column[f"{name}_tokens"] = tokenizer.convert_ids_to_tokens(ids)
        columns[number] = column
    return pandas.DataFrame.from_dict(columns)
