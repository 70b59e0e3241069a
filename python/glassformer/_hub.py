"""Models on the Hugging Face hub, by name: where the local cache has them, or where `huggingface_hub` puts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glassformer import _core

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_TORCH_FILES = ["*.bin", "*.pth"]


def fetched(name: str, revision: str | None = None, **options: Any) -> str:
    """The folder of a model on the hub: where the local cache has it, else where it was fetched to.

    Of `options`, `cache_dir`, `token` and `local_files_only` count, as `huggingface_hub` has them. Raises `FileError`
    where it can't be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise _core.FileError(
            f"{name}: no such folder, and huggingface_hub, which could fetch it, is not installed: pip install "
            "huggingface_hub, or give a folder or a GGUF file"
        ) from None
    wanted = {key: options[key] for key in ("cache_dir", "token") if key in options}
    tries = [(True, _FILES)]
    if not options.get("local_files_only", False):
        tries += [(False, _FILES), (False, _FILES + _TORCH_FILES)]
    why = ""
    for is_local, patterns in tries:
        try:
            place = snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=is_local, **wanted
            )
        except Exception as error:  # Whatever the hub's library raises: offline, unknown, gated.
            why = f" ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
            continue
        if any(path.suffix in (".safetensors", ".bin", ".pth") for path in Path(place).iterdir()):
            return place
        why = ""
    raise _core.FileError(f"{name}: not in the local cache, and it could not be fetched{why}: give a folder or a file")
