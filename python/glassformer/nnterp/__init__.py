"""nnterp's vocabulary over Glassformer: what version 1.3.0 of it understands by its names.

from glassformer.nnterp import StandardizedTransformer

model = StandardizedTransformer("path/to/model")
with model.trace("The Eiffel Tower is in the city of"):
    stream = model.layers_output[5]
print(stream.shape)
"""

from glassformer.nnterp._install import install
from glassformer.nnterp.module_accessor import ModuleAccessor
from glassformer.nnterp.names import get_rename_dict
from glassformer.nnterp.standardized_transformer import StandardizedTransformer

__all__ = ["ModuleAccessor", "StandardizedTransformer", "get_rename_dict", "install"]
