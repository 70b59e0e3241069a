#pragma once
// A tensor as it lies in a mapped file: nothing is read before someone looks at `data`.

#include <memory>
#include <string>
#include <vector>

#include "glassformer/io/dtype.h"
#include "glassformer/io/mapped_file.h"

namespace glassformer {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // Outermost first, in both formats; row-major.
  std::byte* data = nullptr;   // Inside `file`; the map is private, so writing never reaches the disk.
  size_t bytes = 0;
  std::shared_ptr<MappedFile> file;

  int64_t count() const {
    int64_t product = 1;
    for (int64_t size : shape) product *= size;
    return product;
  }
};

}  // namespace glassformer
