#pragma once
// The weights of a model as tensors: loaded when a step first needs them, in place in the mapped file where that can
// be.

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "glassformer/arch/architecture.h"

namespace glassformer {

struct ModelFiles;
using WeightId = int32_t;

class Weights {
 public:
  /// Weights that lie in files. `FileError` where one is missing or has the wrong shape, or a tensor has no place here.
  static std::shared_ptr<Weights> from_files(const ModelFiles& files, const DescribedModel& model, at::ScalarType dtype,
                                             at::Device device);
  /// Weights that someone else holds (a live transformers model): used in place where dtype and device agree.
  static std::shared_ptr<Weights> from_tensors(const std::map<std::string, at::Tensor>& tensors,
                                               const DescribedModel& model, at::ScalarType dtype, at::Device device);
  /// Names and shapes alone, for looking at a graph; `get` must not be called.
  static std::shared_ptr<Weights> without_values(const DescribedModel& model);
  /// None at all, for a model of one's own.
  static std::shared_ptr<Weights> none(at::ScalarType dtype, at::Device device);
  /// The same weights and further ones, of any shape: in place where dtype and device agree; integers stay integers.
  /// `InputError` for a name that is there already.
  std::shared_ptr<Weights> extended(const std::map<std::string, at::Tensor>& more) const;
  ~Weights();

  /// The weight as steps use it: outputs first, in the model's dtype and on its device. Loads it at the first call; any
  /// number of threads may ask.
  const at::Tensor& get(WeightId id) const;
  const at::Tensor& get(const std::string& name) const { return get(find(name)); }
  /// `NameError` with the nearest names.
  WeightId find(const std::string& name) const;
  bool has(const std::string& name) const;

  const std::vector<WeightSpec>& specs() const { return specs_; }
  at::ScalarType dtype() const { return dtype_; }
  at::Device device() const { return device_; }
  /// Parameters, each counted once where a tensor serves twice.
  int64_t count() const;

 private:
  struct Slot;
  Weights(std::vector<WeightSpec> specs, at::ScalarType dtype, at::Device device);
  void add(WeightSpec spec, std::shared_ptr<Slot> slot);
  void alias_tied(const ModelConfig& config);

  std::vector<WeightSpec> specs_;
  std::map<std::string, WeightId, std::less<>> ids_;
  std::vector<std::shared_ptr<Slot>> slots_;  // Shared by all that were extended from one another.
  at::ScalarType dtype_;
  at::Device device_;
};

}  // namespace glassformer
