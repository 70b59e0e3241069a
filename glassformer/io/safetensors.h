#pragma once

#include <memory>
#include <vector>

#include "glassformer/io/stored_tensor.h"

namespace glassformer {

/// The tensors of one safetensors file, in the order of its header, after every length, offset, dtype and shape was
/// checked (in the order in which the format's own reader checks them). Raises `FileError` with the tensor's name.
std::vector<StoredTensor> read_safetensors(const std::shared_ptr<MappedFile>& file);

}  // namespace glassformer
