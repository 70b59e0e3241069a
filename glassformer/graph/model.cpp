#include "glassformer/graph/model.h"

#include <filesystem>

#include "glassformer/arch/architecture.h"
#include "glassformer/base/errors.h"
#include "glassformer/io/model_files.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer {
namespace {

void check_dtype(at::ScalarType dtype) {
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kHalf && dtype != at::kBFloat16)
    throw UnsupportedError(
        str("dtype ", dtype_name(dtype), " is not supported; supported: float32, float64, bfloat16, float16"));
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
  check_dtype(options.dtype);
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
  check_dtype(options.dtype);
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

std::shared_ptr<const Model> Model::define(const std::vector<NodeSpec>& nodes,
                                           const std::map<std::string, at::Tensor>& weights,
                                           const DefineOptions& options) {
  check_dtype(options.load.dtype);
  if (options.d_vocab < 1 || options.n_ctx < 1)
    throw InputError(
        str("a model needs d_vocab and n_ctx of at least 1; found ", options.d_vocab, " and ", options.n_ctx));
  std::shared_ptr<Model> model(new Model());
  model->name_ = model->config_.architecture = options.name;
  model->config_.d_vocab = options.d_vocab;
  model->config_.n_ctx = options.n_ctx;
  model->weights_ = Weights::none(options.load.dtype, options.load.device)->extended(weights);
  model->graph_ = define_graph(nodes, *model->weights_, options.n_ctx);
  model->config_.n_layers = model->graph_->n_layers();
  model->tokenizer_ = options.tokenizer;
  if (model->tokenizer_ && model->tokenizer_->eos_id()) model->eos_ids_ = {*model->tokenizer_->eos_id()};
  return model;
}

std::shared_ptr<const Model> Model::extended(const Extension& extension) const {
  std::shared_ptr<Model> model(new Model(*this));
  model->weights_ = weights_->extended(extension.weights);
  model->graph_ = extend_graph(*graph_, extension, *model->weights_);
  return model;
}

const Tokenizer& Model::tokenizer() const {
  if (!tokenizer_)
    throw InputError(str("model '", name_, "' came without a tokenizer; give token ids instead of text"));
  return *tokenizer_;
}

}  // namespace glassformer
