#include "glassformer/graph/weights.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>

#include "glassformer/base/errors.h"
#include "glassformer/graph/changes.h"
#include "glassformer/graph/node.h"
#include "glassformer/io/model_files.h"
#include "glassformer/io/quantised.h"

namespace glassformer {

namespace {

// Where a weight of a file is to lie: in the map, if it can be used as it lies there, or in memory that is not the
// map's.
enum class Memory { kMapped, kOwn };

}  // namespace

struct Weights::Slot {
  WeightId same_as = -1;  // The weight that this one is another name of.
  std::mutex mutex;       // For what follows, until it is loaded.
  std::function<at::Tensor(Memory memory)> load;
  std::atomic<bool> loaded = false;
  at::Tensor value;
  int64_t first_version = 0;  // When it was loaded.
  // Where gradients flow back to somebody's tensor: that one, and how the weight is made of it or of its gradient.
  at::Tensor source;
  std::function<at::Tensor(const at::Tensor&)> arranged;

  void put(at::Tensor tensor);
  bool requires_grad() const {
    return loaded && (value.requires_grad() || (source.defined() && source.requires_grad()));
  }
};

namespace {

// In a caller's inference mode a tensor would count no versions, and refuse to be changed outside.
at::Tensor with_version(const std::function<at::Tensor()>& load) {
  const c10::InferenceMode no_inference(false);
  const at::NoGradGuard no_grad;
  return load().detach();  // A leaf, with the versions of what it is a view of.
}

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return at::kDouble;
    case DType::kFloat32:
      return at::kFloat;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kBFloat16:
      return at::kBFloat16;
    default:
      return at::ScalarType::Undefined;
  }
}

// The bytes of a tensor as they are on disk.
at::Tensor read_from_disk(const StoredTensor& stored) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(stored.bytes)}, at::kByte);
  auto* to = static_cast<std::byte*>(bytes.mutable_data_ptr());
  stored.file->read(static_cast<size_t>(stored.data - stored.file->bytes().data()), {to, stored.bytes});
  return bytes;
}

// The tensor where it lies in the map, or a copy where that, dtype or alignment ask for one.
at::Tensor to_tensor(StoredTensor stored, Memory memory) {
  at::Tensor bytes;
  if (memory == Memory::kOwn) {
    bytes = read_from_disk(stored);
    stored.data = static_cast<std::byte*>(bytes.mutable_data_ptr());
  }
  if (is_quantised(stored.dtype)) {
    at::Tensor values = at::empty(stored.shape, at::kFloat);
    dequantise(stored.dtype, stored.data, stored.count(), values.mutable_data_ptr<float>());
    return values;
  }
  const at::ScalarType type = scalar_type(stored.dtype);
  if (type == at::ScalarType::Undefined)
    throw UnsupportedError(str(stored.file->path(), ": weight '", stored.name, "' is of type ",
                               layout(stored.dtype).name, "; expected a floating-point or quantised one"));
  if (bytes.defined()) return bytes.view(type).view(stored.shape);  // Holds nothing of the file.
  const auto element = static_cast<uintptr_t>(layout(stored.dtype).block_bytes);
  if (reinterpret_cast<uintptr_t>(stored.data) % element != 0) {
    at::Tensor copy = at::empty(stored.shape, type);
    std::copy_n(stored.data, stored.bytes, static_cast<std::byte*>(copy.mutable_data_ptr()));
    return copy;
  }
  return at::from_blob(
      stored.data, stored.shape, [file = stored.file](void*) {}, at::TensorOptions(type));
}

at::Tensor arrange(const at::Tensor& tensor, const WeightSource& source, const WeightSpec& spec, int64_t d_head) {
  switch (source.layout) {
    case Layout::kByHead:
    case Layout::kScalar:
      return tensor.reshape(spec.shape);
    case Layout::kColumnsByHead:
      return tensor.transpose(1, 2).reshape(spec.shape);
    case Layout::kRowsByHead:
      return tensor.flatten(0, 1).t();
    default:
      break;
  }
  at::Tensor rows = source.layout == Layout::kColumns ? tensor.t() : tensor;
  rows = rows.narrow(0, source.first_row, spec.shape[0]);
  if (source.layout != Layout::kRotaryPairs) return rows;
  return rows.reshape({-1, d_head / 2, 2, rows.numel() / rows.size(0)}).transpose(1, 2).reshape(rows.sizes());
}

// `arrange` backwards, for tensors that hold one weight.
at::Tensor rearranged(const at::Tensor& weight, Layout layout, int64_t d_head) {
  switch (layout) {
    case Layout::kColumns:
      return weight.t();
    case Layout::kByHead:
      return weight.view({-1, d_head});
    case Layout::kColumnsByHead:
      return weight.unflatten(0, {-1, d_head}).transpose(1, 2);
    case Layout::kRowsByHead:
      return weight.t().unflatten(0, {-1, d_head});
    case Layout::kScalar:
      return weight.squeeze(0);
    default:
      return weight;
  }
}

// Tensors that checkpoints carry and that are no weights: causal masks, rotary frequencies.
bool is_buffer(const std::string& name) {
  for (const char* ending : {".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq", "rope_freqs.weight"})
    if (name.ends_with(ending)) return true;
  return false;
}

struct Place {
  WeightSource source;
  std::string name;  // As in the file, with or without the architecture's prefix; empty where it is missing.
};

template <typename Exists>
Place place_of(const WeightSpec& spec, const std::vector<WeightRule>& rules, const std::vector<WeightSpec>& specs,
               const std::string& prefix, const Exists& exists) {
  const auto is_there = [&](const std::string& name) { return exists(prefix + name) || exists(name); };
  Place place{find_source(rules, specs, spec, is_there), ""};
  if (place.source.tensor.empty()) return place;
  for (const std::string& candidate : {prefix + place.source.tensor, place.source.tensor})
    if (exists(candidate)) {
      place.name = candidate;
      break;
    }
  return place;
}

bool may_be_tied(const WeightSpec& spec, const ModelConfig& config) {
  return spec.name == "unembed.weight" && config.tied_unembed;
}

}  // namespace

void Weights::Slot::put(at::Tensor tensor) {
  value = std::move(tensor);
  first_version = changes_of(value);
  load = nullptr;
  loaded = true;
}

Weights::Weights(std::vector<WeightSpec> specs, at::ScalarType dtype, at::Device device)
    : dtype_(dtype), device_(device) {
  for (WeightSpec& spec : specs) add(std::move(spec), std::make_shared<Slot>());
}

void Weights::add(WeightSpec spec, std::shared_ptr<Slot> slot) {
  ids_.emplace(spec.name, static_cast<WeightId>(slots_.size()));
  specs_.push_back(std::move(spec));
  slots_.push_back(std::move(slot));
}

Weights::~Weights() = default;

void Weights::alias_tied(const ModelConfig& config) {
  if (config.tied_unembed) slots_[find("unembed.weight")]->same_as = find("embed.weight");
}

std::shared_ptr<Weights> Weights::from_files(const ModelFiles& files, const DescribedModel& model, at::ScalarType dtype,
                                             at::Device device) {
  std::shared_ptr<Weights> weights(new Weights(weight_specs(model.config), dtype, device));
  weights->alias_tied(model.config);
  const auto& rules = files.gguf ? model.architecture->gguf_weights : model.architecture->weights;
  const std::string prefix = files.gguf ? "" : model.architecture->prefix;
  const auto exists = [&](const std::string& name) { return files.tensors.contains(name); };
  std::set<std::string> used;
  for (const WeightSpec& spec : weights->specs_) {
    const Place place = place_of(spec, rules, weights->specs_, prefix, exists);
    if (!place.name.empty()) used.insert(place.name);
    if (may_be_tied(spec, model.config)) continue;
    if (place.name.empty())
      throw FileError(files.path, str("has no tensor '", prefix, place.source.tensor, "' (", spec.name,
                                      ") that its config asks for"));
    const StoredTensor& stored = files.tensors.find(place.name)->second;
    const std::vector<int64_t> expected = stored_shape(place.source, spec, model.config.d_head);
    if (stored.shape != expected)
      throw FileError(stored.file->path(), str("tensor '", place.name, "' has shape ", shape_text(stored.shape),
                                               "; expected ", shape_text(expected)));
    Slot& slot = *weights->slots_[weights->find(spec.name)];
    slot.load = [stored, source = place.source, spec, dtype, device, d_head = model.config.d_head](Memory memory) {
      return arrange(to_tensor(stored, memory), source, spec, d_head).to(at::TensorOptions(device).dtype(dtype));
    };
  }
  for (const auto& [name, stored] : files.tensors)
    if (!used.contains(name) && !is_buffer(name))
      throw UnsupportedError(str(stored.file->path(), ": tensor '", name, "' has no place in architecture '",
                                 model.config.architecture, "' with this config"));
  return weights;
}

std::shared_ptr<Weights> Weights::from_tensors(const std::map<std::string, at::Tensor>& tensors,
                                               const DescribedModel& model, at::ScalarType dtype, at::Device device,
                                               bool differentiable) {
  std::shared_ptr<Weights> weights(new Weights(weight_specs(model.config), dtype, device));
  weights->alias_tied(model.config);
  const auto exists = [&](const std::string& name) { return tensors.contains(name); };
  for (const WeightSpec& spec : weights->specs_) {
    if (may_be_tied(spec, model.config)) continue;
    const Place place =
        place_of(spec, model.architecture->weights, weights->specs_, model.architecture->prefix, exists);
    if (place.name.empty())
      throw NameError(
          str("the model has no tensor '", model.architecture->prefix, place.source.tensor, "' (", spec.name, ")"));
    const at::Tensor& tensor = tensors.at(place.name);
    const std::vector<int64_t> expected = stored_shape(place.source, spec, model.config.d_head);
    if (tensor.sizes() != at::IntArrayRef(expected))
      throw ShapeError(
          str("tensor '", place.name, "' has shape ", shape_text(tensor.sizes()), "; expected ", shape_text(expected)));
    const auto arranged = [source = place.source, spec, d_head = model.config.d_head](const at::Tensor& given) {
      return arrange(given, source, spec, d_head);
    };
    Slot& slot = *weights->slots_[weights->find(spec.name)];
    // At once: a copy made later could mix what its owner makes of the tensors in between.
    slot.put(with_version([&] { return arranged(tensor).to(at::TensorOptions(device).dtype(dtype)); }));
    if (!differentiable) continue;
    if (!slot.value.is_alias_of(tensor))
      throw InputError(str("tensor '", place.name, "' would be copied into '", spec.name,
                           "': for gradients to flow back to it, it must be of the model's dtype, on its device, and "
                           "laid out as the weight is"));
    slot.source = tensor;
    slot.arranged = arranged;
  }
  return weights;
}

std::shared_ptr<Weights> Weights::by_name(const ModelConfig& config, const std::map<std::string, at::Tensor>& tensors,
                                          at::ScalarType dtype, at::Device device) {
  std::shared_ptr<Weights> weights(new Weights(weight_specs(config), dtype, device));
  weights->alias_tied(config);
  for (const WeightSpec& spec : weights->specs_) {
    if (may_be_tied(spec, config)) continue;
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) throw NameError(str("no weight is called '", spec.name, "'; the config asks for it"));
    if (found->second.sizes() != at::IntArrayRef(spec.shape))
      throw ShapeError(str("weight '", spec.name, "' has shape ", shape_text(found->second.sizes()), "; expected ",
                           shape_text(spec.shape)));
    weights->slots_[weights->find(spec.name)]->put(
        with_version([&] { return found->second.to(at::TensorOptions(device).dtype(dtype)); }));
  }
  return weights;
}

std::shared_ptr<Weights> Weights::converted(at::ScalarType dtype, at::Device device) const {
  std::shared_ptr<Weights> made(new Weights(specs_, dtype, device));
  const auto options = at::TensorOptions(device).dtype(dtype);
  for (size_t id = 0; id < slots_.size(); ++id) {
    Slot &from = *slots_[id], &to = *made->slots_[id];
    to.same_as = from.same_as;
    if (to.same_as >= 0) continue;
    const std::scoped_lock lock(from.mutex);
    if (!from.loaded) {
      to.load = [load = from.load, options](Memory) { return load(Memory::kOwn).to(options); };
      continue;
    }
    to.put(with_version([&] { return from.value.to(options, false, /*copy=*/true); }));
    if (from.requires_grad()) to.value.set_requires_grad(true);
  }
  return made;
}

std::shared_ptr<Weights> Weights::without_values(const DescribedModel& model) {
  return std::shared_ptr<Weights>(new Weights(weight_specs(model.config), at::kFloat, at::kCPU));
}

std::shared_ptr<Weights> Weights::of(const std::vector<at::Tensor>& tensors) {
  std::shared_ptr<Weights> weights(new Weights({}, at::kFloat, at::kCPU));
  for (const at::Tensor& tensor : tensors) {
    auto slot = std::make_shared<Slot>();
    slot->value = tensor;
    slot->loaded = true;
    weights->add({str(weights->slots_.size()), {}}, std::move(slot));
  }
  return weights;
}

std::shared_ptr<Weights> Weights::none(at::ScalarType dtype, at::Device device) {
  return std::shared_ptr<Weights>(new Weights({}, dtype, device));
}

std::shared_ptr<Weights> Weights::extended(const std::map<std::string, at::Tensor>& more) const {
  std::shared_ptr<Weights> weights(new Weights({}, dtype_, device_));
  weights->declared_changes_ = declared_changes_;
  for (size_t id = 0; id < specs_.size(); ++id) weights->add(specs_[id], slots_[id]);
  for (const auto& [name, tensor] : more) {
    if (weights->has(name)) throw InputError(str("a weight is called '", name, "' already"));
    if (!tensor.defined() || tensor.is_sparse()) throw InputError(str("weight '", name, "' must be a dense tensor"));
    auto slot = std::make_shared<Slot>();
    const at::ScalarType dtype = tensor.is_floating_point() ? dtype_ : tensor.scalar_type();
    slot->put(with_version([&] { return tensor.to(at::TensorOptions(device_).dtype(dtype)); }));
    weights->add({name, tensor.sizes().vec()}, std::move(slot));
  }
  return weights;
}

at::Tensor Weights::get(WeightId id) const {
  Slot& slot = *slots_[static_cast<size_t>(id)];
  if (slot.same_as >= 0) return get(slot.same_as);
  if (!slot.loaded) {
    const std::scoped_lock lock(slot.mutex);
    if (!slot.loaded) slot.put(with_version([&] { return slot.load(Memory::kMapped); }));
  }
  if (slot.source.defined() && slot.source.requires_grad() && at::GradMode::is_enabled())
    return slot.arranged(slot.source);
  return slot.value;
}

at::Tensor Weights::copy(WeightId id) const {
  Slot& slot = *slots_[static_cast<size_t>(id)];
  if (slot.same_as >= 0) return copy(slot.same_as);
  const std::scoped_lock lock(slot.mutex);
  return with_version([&] {
    if (slot.loaded) return slot.value.detach().clone();
    const at::Tensor value = slot.load(Memory::kOwn);
    const bool is_part = value.nbytes() < value.storage().nbytes();
    return is_part ? value.clone() : value;
  });
}

at::Tensor Weights::leaf(WeightId id) const {
  const Slot& slot = *slots_[static_cast<size_t>(id)];
  if (slot.same_as >= 0) return leaf(slot.same_as);
  return slot.source.defined() ? slot.source : get(id);
}

at::Tensor Weights::of_leaf(WeightId id, const at::Tensor& gradient) const {
  const Slot& slot = *slots_[static_cast<size_t>(id)];
  if (slot.same_as >= 0) return of_leaf(slot.same_as, gradient);
  return slot.source.defined() ? slot.arranged(gradient) : gradient;
}

bool Weights::requires_grad(WeightId id) const {
  const Slot& slot = *slots_[static_cast<size_t>(id)];
  if (slot.same_as >= 0) return requires_grad(slot.same_as);
  return slot.requires_grad();
}

bool Weights::any_requires_grad() const {
  return std::any_of(slots_.begin(), slots_.end(), [](const auto& slot) { return slot->requires_grad(); });
}

int64_t Weights::changes(WeightId id) const {
  const Slot& slot = *slots_[static_cast<size_t>(id)];
  if (slot.same_as >= 0) return changes(slot.same_as);
  return slot.loaded ? changes_of(slot.value) - slot.first_version : 0;
}

WeightId Weights::find(const std::string& name) const {
  const auto found = ids_.find(name);
  if (found != ids_.end()) return found->second;
  std::vector<std::string> names;
  for (const WeightSpec& spec : specs_) names.push_back(spec.name);
  throw NameError(str("no weight is called '", name, "'", did_you_mean(name, names)));
}

bool Weights::has(const std::string& name) const { return ids_.contains(name); }

std::map<std::string, at::Tensor> Weights::arranged_as(const Architecture& architecture, int64_t d_head,
                                                       const std::set<std::string>& names) const {
  std::map<std::string, at::Tensor> tensors;
  const auto exists = [&](const std::string& name) { return names.contains(name); };
  for (const WeightSpec& spec : specs_) {
    const WeightSource source = find_source(architecture.weights, specs_, spec, exists);
    if (!exists(source.tensor) || source.layout == Layout::kRotaryPairs || source.tensor_rows != spec.shape[0])
      continue;
    tensors[source.tensor] = rearranged(get(find(spec.name)), source.layout, d_head);
  }
  return tensors;
}

int64_t Weights::count() const {
  int64_t total = 0;
  for (size_t id = 0; id < specs_.size(); ++id) {
    if (slots_[id]->same_as >= 0) continue;
    int64_t product = 1;
    for (int64_t size : specs_[id].shape) product *= size;
    total += product;
  }
  return total;
}

}  // namespace glassformer
