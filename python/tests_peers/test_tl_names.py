"""The judge's top-level names: each is here, or says what to do without it."""

import transformer_lens as judge

import glassformer.transformer_lens as ours
from glassformer.transformer_lens._install import absent


def test_every_public_name_is_here_or_says_why_not():
    names = {name for name in vars(judge) if not name.startswith("_")} - {"deprecated", "lit"}
    missing = {name for name in names if not hasattr(ours, name) and absent(name) is None}
    assert not missing - {"patching", "past_key_value_caching"}
    assert all(hasattr(ours, name) for name in ours.__all__)
    assert not [name for name in names if hasattr(ours, name) and absent(name)]
