"""Helpers around models; the same names as in `utilities`."""

from glassformer.transformer_lens.utilities import *  # noqa: F403
from glassformer.transformer_lens.utilities import __all__  # noqa: F401
