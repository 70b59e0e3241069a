"""Files and data sets of the Hugging Face hub."""

from __future__ import annotations

import inspect
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from glassformer import _core
from glassformer.transformer_lens.utilities.library_utils import needed

T = TypeVar("T")

_DATASETS = {
    "openwebtext": "stas/openwebtext-10k",
    "owt": "stas/openwebtext-10k",
    "pile": "NeelNanda/pile-10k",
    "c4": "NeelNanda/c4-10k",
    "code": "NeelNanda/code-10k",
    "python": "NeelNanda/code-10k",
    "c4_code": "NeelNanda/c4-code-20k",
    "c4-code": "NeelNanda/c4-code-20k",
    "wiki": "NeelNanda/wiki-10k",
}
_TOO_MANY_REQUESTS = 429
_LONGEST_WAIT = 120.0


def call_hf_with_retry(
    func: Callable[..., T], *args: Any, max_attempts: int = 3, base_delay: float = 10.0, **kwargs: Any
) -> T:
    """`func(*args, **kwargs)`, again after a while where the hub says that there were too many requests (HTTP 429): as
    long as its `Retry-After` says, else `base_delay` seconds, and twice as long each time. Other errors go through, and
    so does that of the last attempt. Less than one attempt is a RuntimeError."""
    for attempt in range(max_attempts):
        try:
            return func(*args, **kwargs)
        except Exception as error:
            response = getattr(error, "response", None)
            if getattr(response, "status_code", None) != _TOO_MANY_REQUESTS or attempt == max_attempts - 1:
                raise
            wait = _retry_after(response)
            if wait is None:
                wait = min(base_delay * 2**attempt, _LONGEST_WAIT) * random.uniform(0.8, 1.2)
            logging.getLogger(__name__).warning(
                "the hub has too many requests (HTTP 429); trying again in %.1fs (%d of %d)",
                wait,
                attempt + 1,
                max_attempts,
            )
            time.sleep(wait)
    raise RuntimeError(f"max_attempts is at least 1; found {max_attempts}")


def _retry_after(response: Any) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def get_hf_token() -> str | None:
    """The hub's token in the environment's HF_TOKEN, or None."""
    return os.environ.get("HF_TOKEN") or None


def get_rotary_pct_from_config(config: Any) -> float:
    """Which part of a head's dimensions turns, from a `transformers` config; 1.0 where it says nothing."""
    if hasattr(config, "rotary_pct"):
        return config.rotary_pct
    parameters = getattr(config, "rope_parameters", None)
    return parameters.get("partial_rotary_factor", 1.0) if isinstance(parameters, dict) else 1.0


def select_compatible_kwargs(kwargs_dict: dict[str, Any], callable: Callable[..., Any]) -> dict[str, Any]:
    """The entries that are parameters of `callable`."""
    known = inspect.getfullargspec(callable).args
    return {name: value for name, value in kwargs_dict.items() if name in known}


def download_file_from_hf(
    repo_name: str,
    file_name: str,
    subfolder: str = ".",
    cache_dir: str | os.PathLike[str] | None = None,
    force_is_torch: bool = False,
    **kwargs: Any,
) -> Any:
    """What a file of a repository on the hub holds, if it is JSON (.json) or torch's (.pth, or `force_is_torch`); else
    its path, and its kind is printed. Further arguments go to `huggingface_hub.hf_hub_download`.

    torch's files are read with pickle: don't open any that you don't trust. ImportError without `huggingface_hub`.
    """
    download = needed("huggingface_hub", "download_file_from_hf()").hf_hub_download
    path = call_hf_with_retry(
        download,
        repo_id=repo_name,
        filename=file_name,
        subfolder=subfolder,
        cache_dir=cache_dir,
        **select_compatible_kwargs(kwargs, download),
    )
    if path.endswith(".pth") or force_is_torch:
        return torch.load(path, map_location="cpu", weights_only=False)
    if path.endswith(".json"):
        return json.loads(Path(path).read_text())
    print("File type not supported:", path.split(".")[-1])
    return path


def clear_huggingface_cache() -> None:
    """Delete the folder in which the hub's files are kept, whole. ImportError without `huggingface_hub`.

    What another process deletes at the same time is no error; what can't be deleted is printed.
    """
    folder = needed("huggingface_hub.constants", "clear_huggingface_cache()").HF_HUB_CACHE
    print("Deleting Hugging Face cache directory and all its contents.")
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        print(f"Warning: Could not fully clear cache: {error}")


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """A data set of `datasets` without its other columns."""
    for name in list(dataset.features):
        if name != col_name:
            dataset = dataset.remove_columns(name)
    return dataset


def get_dataset(dataset_name: str, **kwargs: Any) -> Any:
    """A data set of about 10,000 texts in a column "text": "openwebtext" ("owt"), "pile", "c4", "code" ("python"),
    "c4_code" or "wiki". Further arguments go to `datasets.load_dataset`.

    Another name is a ValueError; ImportError without `datasets`.
    """
    if dataset_name not in _DATASETS:
        raise _core.InputError(f"there is no data set '{dataset_name}'; expected one of {', '.join(_DATASETS)}")
    return needed("datasets", "get_dataset()").load_dataset(_DATASETS[dataset_name], split="train", **kwargs)
