#include "glassformer/graph/model.h"

#include <ATen/ops/empty.h>

#include <filesystem>

#include "glassformer/arch/architecture.h"
#include "glassformer/base/errors.h"
#include "glassformer/io/model_files.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer {
namespace {

void check(const LoadOptions& options) {
  const at::ScalarType dtype = options.dtype;
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kHalf && dtype != at::kBFloat16)
    throw UnsupportedError(
        str("dtype ", dtype_name(dtype), " is not supported; supported: float32, float64, bfloat16, float16"));
  if (options.device.is_cpu()) return;
  if (options.device.is_meta()) throw UnsupportedError("device meta holds no numbers; expected one that computes");
  try {
    at::empty({1}, at::TensorOptions(options.device));
  } catch (const c10::Error&) {
    throw UnsupportedError(
        str("device ", options.device.str(), " is not there: this torch or this machine has none; use cpu"));
  }
}

}  // namespace

const char* dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      return c10::toString(dtype);
  }
}

std::shared_ptr<const Model> Model::load(const std::string& name_or_path, const LoadOptions& options) {
  check(options);
  const ModelFiles files = open_model(name_or_path);
  const DescribedModel described = describe(files);
  std::shared_ptr<Model> model(new Model());
  model->path_ = files.path;
  model->name_ = std::filesystem::path(files.path).filename().string();
  model->config_ = described.config;
  model->weights_ = Weights::from_files(files, described, options.dtype, options.device);
  model->graph_ = Graph::build(described.config, *model->weights_);
  model->tokenizer_ = find_tokenizer(files);
  model->eos_ids_ = end_tokens(files);
  if (model->eos_ids_.empty() && model->tokenizer_ && model->tokenizer_->eos_id())
    model->eos_ids_ = {*model->tokenizer_->eos_id()};
  return model;
}

std::shared_ptr<const Model> Model::from_tensors(const std::string& config_json,
                                                 const std::map<std::string, at::Tensor>& tensors,
                                                 std::shared_ptr<const Tokenizer> tokenizer,
                                                 const LoadOptions& options) {
  check(options);
  const DescribedModel described = describe(config_json, "config");
  std::shared_ptr<Model> model(new Model());
  model->name_ = described.config.architecture;
  model->config_ = described.config;
  model->weights_ = Weights::from_tensors(tensors, described, options.dtype, options.device);
  model->graph_ = Graph::build(described.config, *model->weights_);
  model->tokenizer_ = std::move(tokenizer);
  model->eos_ids_ = end_tokens(config_json);
  return model;
}

std::shared_ptr<const Model> Model::to(const LoadOptions& options) const {
  check(options);
  const at::Device device = weights_->device();
  const bool same_device =
      options.device == device || (options.device.type() == device.type() && !options.device.has_index());
  if (same_device && options.dtype == weights_->dtype()) return shared_from_this();
  std::shared_ptr<Model> model(new Model(*this));
  model->weights_ = weights_->converted(options.dtype, same_device ? device : options.device);
  model->graph_ = Graph::build(config_, *model->weights_);
  return model;
}

const Tokenizer& Model::tokenizer() const {
  if (!tokenizer_)
    throw InputError(str("model '", name_, "' came without a tokenizer; give token ids instead of text"));
  return *tokenizer_;
}

}  // namespace glassformer
