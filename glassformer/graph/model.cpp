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
  try {
    model->tokenizer_ = options.tokenizer ? options.tokenizer : find_tokenizer(files);
  } catch (const UnsupportedError& error) {
    model->why_no_tokenizer_ = error.what();
  }
  model->eos_ids_ = end_tokens(files);
  if (model->eos_ids_.empty() && model->tokenizer_ && model->tokenizer_->eos_id())
    model->eos_ids_ = {*model->tokenizer_->eos_id()};
  return model;
}

std::shared_ptr<const Model> Model::from_tensors(const std::string& config_json,
                                                 const std::map<std::string, at::Tensor>& tensors,
                                                 const LoadOptions& options) {
  check(options);
  const DescribedModel described = describe(config_json, "config");
  std::shared_ptr<Model> model(new Model());
  model->name_ = described.config.architecture;
  model->config_ = described.config;
  model->weights_ = Weights::from_tensors(tensors, described, options.dtype, options.device, options.differentiable);
  model->graph_ = Graph::build(described.config, *model->weights_);
  model->tokenizer_ = options.tokenizer;
  model->eos_ids_ = end_tokens(config_json);
  return model;
}

std::shared_ptr<const Model> Model::to(const LoadOptions& options) const {
  check(options);
  const at::Device device = weights_->device();
  const bool same_device =
      options.device == device || (options.device.type() == device.type() && !options.device.has_index());
  if (same_device && options.dtype == weights_->dtype()) return shared_from_this();
  if (graph_is_own_)
    throw UnsupportedError(str("model '", name_, "' has nodes of its own, which were made for ",
                               dtype_name(weights_->dtype()), ": convert the model that it was extended from first"));
  std::shared_ptr<Model> model(new Model(*this));
  model->weights_ = weights_->converted(options.dtype, same_device ? device : options.device);
  model->graph_ = Graph::build(config_, *model->weights_);
  return model;
}

std::shared_ptr<const Model> Model::with_weights(const ModelConfig& config,
                                                 const std::map<std::string, at::Tensor>& weights) const {
  if (graph_is_own_)
    throw UnsupportedError(
        str("model '", name_, "' has nodes of its own: give weights to the model that it was extended from"));
  std::shared_ptr<Model> model(new Model(*this));
  model->config_ = config;
  model->weights_ = Weights::by_name(config, weights, weights_->dtype(), weights_->device());
  model->graph_ = Graph::build(config, *model->weights_);
  return model;
}

std::shared_ptr<const Model> Model::define(const std::vector<NodeSpec>& nodes,
                                           const std::map<std::string, at::Tensor>& weights,
                                           const DefineOptions& options) {
  check(options.load);
  if (options.d_vocab < 1 || options.n_ctx < 1)
    throw InputError(
        str("a model needs d_vocab and n_ctx of at least 1; found ", options.d_vocab, " and ", options.n_ctx));
  std::shared_ptr<Model> model(new Model());
  model->name_ = model->config_.architecture = options.name;
  model->config_.d_vocab = model->config_.d_vocab_out = options.d_vocab;
  model->config_.n_ctx = options.n_ctx;
  model->weights_ = Weights::none(options.load.dtype, options.load.device)->extended(weights);
  model->graph_ = define_graph(nodes, *model->weights_, options.n_ctx);
  model->graph_is_own_ = true;
  model->config_.n_layers = model->graph_->n_layers();
  model->tokenizer_ = options.load.tokenizer;
  if (model->tokenizer_ && model->tokenizer_->eos_id()) model->eos_ids_ = {*model->tokenizer_->eos_id()};
  return model;
}

std::shared_ptr<const Model> Model::extended(const Extension& extension) const {
  std::shared_ptr<Model> model(new Model(*this));
  model->weights_ = weights_->extended(extension.weights);
  model->graph_ = extend_graph(*graph_, extension, *model->weights_);
  model->graph_is_own_ = true;
  return model;
}

const Tokenizer& Model::tokenizer() const {
  if (!why_no_tokenizer_.empty()) throw UnsupportedError(why_no_tokenizer_);
  if (!tokenizer_)
    throw InputError(str("model '", name_, "' came without a tokenizer; give token ids instead of text"));
  return *tokenizer_;
}

}  // namespace glassformer
