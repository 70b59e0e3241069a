#include "glassformer/analysis/weight_processing.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <map>

#include "glassformer/analysis/factored_matrix.h"
#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

class Processor {
 public:
  Processor(const Model& model, const ProcessOptions& options)
      : model_(model), options_(options), config_(model.config()) {
    centres_ = config_.norm == Norm::kLayerNorm;
    folds_ = options.fold_norms && config_.norm_weights && config_.norm != Norm::kNone && !config_.norms_after;
    writes_centred_ = options.center_writing_weights && centres_ && !config_.final_rms;
  }

  std::shared_ptr<const Model> run() {
    if (options_.refactor_attention) check_refactoring();
    if (folds_) folded_config();
    config_.tied_unembed = false;
    for (const char* table : {"embed.weight", "pos_embed.weight"})
      if (writes_centred_ && !config_.norms_after && model_.weights().has(table)) {
        subtract(table, weight(table).mean(1, true));
        narrow();
      }
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) {
      attention(str("blocks.", layer, "."));
      if (!config_.attention_only) mlp(str("blocks.", layer, "."));
      narrow();
    }
    unembedding();
    for (const WeightSpec& spec : weight_specs(config_))  // What nothing was done to.
      if (!made_.contains(spec.name)) weight(spec.name);
    narrow();
    return model_.with_weights(config_, made_);
  }

 private:
  // What it is now, in memory of our own.
  at::Tensor& weight(const std::string& name) {
    const auto found = open_.find(name);
    if (found != open_.end()) return found->second;
    const at::ScalarType wide = model_.weights().dtype() == at::kDouble ? at::kDouble : at::kFloat;
    return open_.emplace(name, model_.weights().copy(name).to(wide)).first->second;
  }

  at::Tensor& bias(const std::string& linear) {
    const std::string name = linear + ".bias";
    if (open_.contains(name) || model_.weights().has(name)) return weight(name);
    const at::Tensor& rows = weight(linear + ".weight");
    return open_.emplace(name, at::zeros({rows.size(0)}, rows.options())).first->second;
  }

  void multiply(const std::string& name, const at::Tensor& by) { weight(name).mul_(by); }
  void subtract(const std::string& name, const at::Tensor& what) { weight(name).sub_(what); }

  // Done with these: kept in the model's dtype.
  void narrow() {
    for (auto& [name, value] : open_) {
      const at::Tensor kept = value.to(model_.weights().dtype());
      made_[name] = kept.is_non_overlapping_and_dense() ? kept : kept.contiguous();
    }
    open_.clear();
  }

  void folded_config() {
    config_.norm_weights = config_.mlp_norm_weights = false;
    if (!centres_) return;
    Biases& biases = config_.biases;
    biases.q = biases.k = biases.v = biases.unembed = biases.mlp_in = true;
    biases.mlp_gate = biases.mlp_gate || config_.gated_mlp;
    biases.experts = biases.experts || config_.experts.count > 0;
    biases.mlp_out = biases.mlp_out || config_.mlp_norm;
  }

  void check_refactoring() const {
    if (config_.positions == PositionEmbedding::kRotary)
      throw UnsupportedError(
          "queries and keys can't be refactored with rotary positions: their product depends on the positions");
    if (config_.grouped_query()) throw UnsupportedError("heads that share their keys can't be refactored one by one");
    if (config_.qk_norm != QkNorm::kNone || !patterns_are_plain())
      throw UnsupportedError(
          "attention can't be refactored where queries and keys have norms or bounds, or heads have sinks: what a head "
          "does is no product of its weights");
  }

  // Whether patterns sum to 1 and mix values as they are made.
  bool patterns_are_plain() const { return !config_.attention_sinks && config_.qkv_clip == 0; }

  // The norm's weight and bias into the linears that read it.
  void fold(const std::string& norm, const std::vector<std::string>& linears, bool centres) {
    const at::Tensor scale = weight(norm + ".weight");
    const bool shifts = model_.weights().has(norm + ".bias");
    const at::Tensor shift = shifts ? weight(norm + ".bias") : at::Tensor();
    for (const std::string& linear : linears) {
      at::Tensor& rows = weight(linear + ".weight");
      if (shifts) {
        at::Tensor& added = bias(linear);
        added = added + rows.matmul(shift);
      }
      multiply(linear + ".weight", scale);
      if (centres) subtract(linear + ".weight", rows.mean(1, true));
    }
    open_.erase(norm + ".weight");
    open_.erase(norm + ".bias");
  }

  void centre_output(const std::string& linear, bool has_bias) {
    if (!writes_centred_) return;
    subtract(linear + ".weight", weight(linear + ".weight").mean(0, true));
    if (has_bias) bias(linear) = bias(linear) - bias(linear).mean();
  }

  void attention(const std::string& block) {
    const std::string attn = block + "attn.";
    const std::vector<std::string> readers = {attn + "q", attn + "k", attn + "v"};
    if (folds_) fold(block + "ln1", readers, centres_);
    if (options_.fold_value_biases && config_.biases.v && patterns_are_plain()) {
      const at::Tensor by_head = bias(attn + "v").unflatten(0, {config_.n_kv_heads, config_.d_head});
      const at::Tensor values = by_head.repeat_interleave(config_.n_heads / config_.n_kv_heads, 0).flatten();
      at::Tensor& out = bias(attn + "o");
      out = out + weight(attn + "o.weight").matmul(values);
      bias(attn + "v") = at::zeros_like(bias(attn + "v"));
      config_.biases.o = true;
    }
    centre_output(attn + "o", config_.biases.o);
    if (options_.refactor_attention) refactor(attn);
  }

  void experts(const std::string& block) {
    const std::string mlp = block + "mlp.";
    std::vector<std::string> readers = {mlp + "router"}, writers;
    for (int64_t number = 0; number < config_.experts.count; ++number) {
      const std::string expert = str(mlp, "experts.", number, ".");
      readers.insert(readers.end(), {expert + "gate", expert + "in"});
      writers.push_back(expert + "out");
    }
    if (folds_) fold(block + "ln2", readers, centres_);
    for (const std::string& writer : writers) {
      if (config_.biases.experts) bias(writer);  // There, if only to be 0.
      centre_output(writer, config_.biases.experts);
    }
  }

  void mlp(const std::string& block) {
    if (config_.experts.count > 0) {
      experts(block);
      return;
    }
    const std::string mlp = block + "mlp.";
    std::vector<std::string> readers = {mlp + "in"};
    if (config_.gated_mlp) readers.insert(readers.begin(), mlp + "gate");
    if (folds_) {
      if (config_.bias_after_gate && model_.weights().has(block + "ln2.bias"))
        throw UnsupportedError(
            str("the bias of ", block, "ln2 can't be folded: mlp.in has a bias after the gate only"));
      fold(block + "ln2", readers, centres_);
      if (model_.weights().has(mlp + "ln.weight")) fold(mlp + "ln", {mlp + "out"}, true);
    }
    centre_output(mlp + "out", config_.biases.mlp_out);
  }

  void unembedding() {
    if (folds_) fold("ln_final", {"unembed"}, config_.last_norm() == Norm::kLayerNorm);
    if (!options_.center_unembed || config_.logit_cap > 0) return;
    subtract("unembed.weight", weight("unembed.weight").mean(0, true));
    if (config_.biases.unembed) bias("unembed") = bias("unembed") - bias("unembed").mean();
  }

  // rows: `head*d_head d_model` -> `head d_model d_head`
  at::Tensor by_head(const at::Tensor& rows) const {
    return rows.unflatten(0, {config_.n_heads, config_.d_head}).transpose(1, 2);
  }

  at::Tensor as_rows(const at::Tensor& heads) const { return heads.transpose(1, 2).flatten(0, 1); }

  // The biases are the weights of one more input, which is always 1.
  void refactor(const std::string& attn) {
    const auto with_bias = [&](const char* part) {
      const at::Tensor heads = by_head(weight(attn + part + ".weight"));
      return at::cat({heads, bias(attn + part).unflatten(0, {config_.n_heads, 1, config_.d_head})}, 1);
    };
    const FactoredMatrix even = FactoredMatrix(with_bias("q"), with_bias("k").transpose(1, 2)).made_even();
    const auto put = [&](const char* part, const at::Tensor& heads) {
      weight(attn + part + ".weight") = as_rows(heads.narrow(1, 0, config_.d_model));
      bias(attn + part) = heads.select(1, config_.d_model).flatten();
    };
    put("q", even.a());
    put("k", even.b().transpose(1, 2));
    config_.biases.q = config_.biases.k = config_.biases.v = config_.biases.o = true;
    at::Tensor& out = weight(attn + "o.weight");
    const at::Tensor outputs = out.t().unflatten(0, {config_.n_heads, config_.d_head});
    at::Tensor& added = bias(attn + "o");
    added = added + out.matmul(bias(attn + "v"));
    bias(attn + "v") = at::zeros_like(bias(attn + "v"));
    const SingularValues parts = FactoredMatrix(by_head(weight(attn + "v.weight")), outputs).svd();
    weight(attn + "v.weight") = as_rows(parts.U * parts.S.unsqueeze(1));
    out = parts.V.transpose(1, 2).flatten(0, 1).t();
  }

  const Model& model_;
  ProcessOptions options_;
  ModelConfig config_;
  bool centres_ = false, folds_ = false, writes_centred_ = false;
  std::map<std::string, at::Tensor> open_, made_;
};

}  // namespace

std::shared_ptr<const Model> process_weights(const Model& model, const ProcessOptions& options) {
  const at::NoGradGuard no_grad;
  return Processor(model, options).run();
}

}  // namespace glassformer
