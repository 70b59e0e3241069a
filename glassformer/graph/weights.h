#pragma once
// The weights of a model as tensors: loaded when a step first needs them, in place in the mapped file where that can
// be. They may be changed in place between reads; traces find out by the versions that torch counts.

#include <ATen/core/Tensor.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
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
  /// Weights that someone else holds (a live transformers model): used in place where dtype and device agree, and
  /// copied at once where they don't. Their own `requires_grad` and `grad` are not those of the tensors given, unless
  /// `differentiable`: then the tensors given are the leaves to which gradients flow, and `InputError` says which of
  /// them would have to be copied.
  static std::shared_ptr<Weights> from_tensors(const std::map<std::string, at::Tensor>& tensors,
                                               const DescribedModel& model, at::ScalarType dtype, at::Device device,
                                               bool differentiable = false);
  /// Weights by our own names, each of the shape that the config asks for. `NameError`, `ShapeError`.
  static std::shared_ptr<Weights> by_name(const ModelConfig& config, const std::map<std::string, at::Tensor>& tensors,
                                          at::ScalarType dtype, at::Device device);
  /// Names and shapes alone, for looking at a graph; `get` must not be called.
  static std::shared_ptr<Weights> without_values(const DescribedModel& model);
  /// The same weights in another dtype or on another device, as they are at this moment: later changes of either side
  /// don't touch the other. What is not loaded yet stays so.
  std::shared_ptr<Weights> converted(at::ScalarType dtype, at::Device device) const;
  /// These tensors as they are, graphs and all, by their places: for a step that is run by itself. Undefined ones may
  /// stand among them where a step takes none.
  static std::shared_ptr<Weights> of(const std::vector<at::Tensor>& tensors);
  /// None at all, for a model of one's own.
  static std::shared_ptr<Weights> none(at::ScalarType dtype, at::Device device);
  /// The same weights and further ones, of any shape: in place where dtype and device agree; integers stay integers.
  /// `InputError` for a name that is there already.
  std::shared_ptr<Weights> extended(const std::map<std::string, at::Tensor>& more) const;
  ~Weights();

  /// The weight as steps use it: outputs first, in the model's dtype and on its device. Loads it at the first call; any
  /// number of threads may ask. It may be changed in place while no thread computes with it.
  at::Tensor get(WeightId id) const;
  at::Tensor get(const std::string& name) const { return get(find(name)); }
  /// Its values as they are now, in memory that is the caller's alone. A weight that lies in a file and is not loaded
  /// yet is read from there and stays so.
  at::Tensor copy(WeightId id) const;
  at::Tensor copy(const std::string& name) const { return copy(find(name)); }
  /// The tensor that gradients for a weight flow to: itself, or the tensor that it was made from.
  at::Tensor leaf(WeightId id) const;
  /// The gradient of that tensor as one of the weight, in its shape.
  at::Tensor of_leaf(WeightId id, const at::Tensor& gradient) const;
  /// Whether gradients are asked for it: it is loaded, and a user said so.
  bool requires_grad(WeightId id) const;
  bool any_requires_grad() const;
  /// `NameError` with the nearest names.
  WeightId find(const std::string& name) const;
  bool has(const std::string& name) const;

  /// How often a weight was changed in place since it was loaded, as torch counts it.
  int64_t changes(WeightId id) const;
  /// Says that weights were changed in ways that torch does not count.
  void declare_change() const { ++*declared_changes_; }
  int64_t declared_changes() const { return *declared_changes_; }

  const std::vector<WeightSpec>& specs() const { return specs_; }
  at::ScalarType dtype() const { return dtype_; }
  at::Device device() const { return device_; }
  /// The weights in the names and layouts of an architecture's tensors, as far as it has them: those of `names` that
  /// are one weight each. Views, so that either changes with the other.
  std::map<std::string, at::Tensor> arranged_as(const Architecture& architecture, int64_t d_head,
                                                const std::set<std::string>& names) const;
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
  std::shared_ptr<std::atomic<int64_t>> declared_changes_ = std::make_shared<std::atomic<int64_t>>(0);  // Shared too.
};

}  // namespace glassformer
