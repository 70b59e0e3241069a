// Lays out the universal decoder block as nodes, in computing order.

#include <limits>

#include "glassformer/base/errors.h"
#include "glassformer/graph/graph_editor.h"

namespace glassformer {
namespace {

constexpr Reach kSame = Reach::kSameRow, kUpTo = Reach::kUpToRow;

const Axis kBatch{"batch", 0}, kPos{"pos", 0}, kQueryPos{"query_pos", 0}, kKeyPos{"key_pos", 0};

class GraphBuilder {
 public:
  GraphBuilder(const ModelConfig& config, const Weights& weights)
      : config_(config), weights_(weights), editor_(weights) {}

  std::shared_ptr<const Graph> build() {
    editor_.set_sizes(config_.n_ctx, config_.n_layers);
    NodeId residual = embedding();
    for (int64_t layer = 0; layer < config_.n_layers; ++layer) residual = block(layer, residual);
    head(residual);
    return editor_.finish();
  }

 private:
  using StepSpec = GraphEditor::StepSpec;

  NodeId add(std::string name, std::vector<Axis> axes, StepSpec open) {
    return editor_.add(std::move(name), std::move(axes), std::move(open));
  }
  void shortcut(NodeId id, std::vector<NodeId> skipped, StepSpec fast) {
    editor_.shortcut(id, std::move(skipped), std::move(fast));
  }

  WeightId weight(const std::string& name) const { return weights_.find(name); }
  WeightId optional_weight(const std::string& name) const { return weights_.has(name) ? weights_.find(name) : -1; }

  std::vector<Axis> stream() const { return {kBatch, kPos, {"d_model", config_.d_model}}; }
  std::vector<Axis> heads(int64_t count, const char* word, int64_t width, const char* of) const {
    return {kBatch, kPos, {word, count}, {of, width}};
  }
  std::vector<Axis> queries(const char* of, int64_t width) const { return heads(config_.n_heads, "head", width, of); }
  std::vector<Axis> keys(const char* of, int64_t width) const {
    return heads(config_.n_kv_heads, "kv_head", width, of);
  }

  NodeId embedding() {
    const WeightId table = weight("embed.weight");
    const NodeId embed = add("hook_embed", stream(), {"embed", {{graph_.tokens()}}, steps::embed(table), {table}});
    sum_of_embeddings_ = {{embed}};
    if (config_.positions == PositionEmbedding::kRotary) rotary_tables();
    if (const WeightId places = optional_weight("pos_embed.weight"); places >= 0) {
      const NodeId pos =
          add("hook_pos_embed", stream(), {"embed", {{graph_.positions()}}, steps::embed(places), {places}});
      (config_.positions == PositionEmbedding::kLearned ? sum_of_embeddings_ : beside_norm_).push_back({pos});
    }
    return -1;
  }

  void rotary_tables() {
    editor_.set_rope(config_.rope);
    const std::vector<Axis> axes = {kBatch, kPos, {"d_rotary", config_.rope.dims}};
    const auto table_of = [&](const char* name, bool sine) {
      return add(name, axes,
                 {sine ? "sine" : "cosine",
                  {{graph_.positions()}},
                  steps::rotary_table(config_.rope, sine, weights_.dtype())});
    };
    cos_ = table_of("rotary.hook_cos", false);
    editor_.set_rotary(cos_);
    sin_ = table_of("rotary.hook_sin", true);
  }

  struct NormNodes {
    NodeId scale, normalized, out;
  };

  NormNodes norm(const std::string& name, NodeId input, Norm norm, const std::vector<Axis>& axes) {
    if (norm == Norm::kNone) return {-1, -1, input};
    const WeightId w = optional_weight(name + ".weight"), b = optional_weight(name + ".bias");
    NormNodes nodes;
    nodes.scale = add(name + ".hook_scale", {kBatch, kPos, {"1", 1}},
                      {"norm_scale", {{input}}, steps::norm_scale(norm, config_.norm_eps)});
    editor_.node(nodes.scale).is_wide = true;
    nodes.normalized =
        add(name + ".hook_normalized", axes, {"norm_divide", {{input}, {nodes.scale}}, steps::norm_divide(norm)});
    shortcut(nodes.normalized, {nodes.scale}, {"norm", {{input}}, steps::norm_whole(norm, config_.norm_eps)});
    nodes.out = add(name + ".hook_out", axes, {"norm_apply", {{nodes.normalized}}, steps::norm_apply(w, b), {w, b}});
    shortcut(nodes.out, {nodes.scale, nodes.normalized},
             {"norm", {{input}}, steps::norm_fused(norm, config_.norm_eps, w, b), {w, b}});
    return nodes;
  }

  // q, k or v: from the shared norm, or from each head's own input where one of these is edited.
  NodeId projection(const std::string& block, const char* part, std::vector<NodeId> own_inputs, NodeId shared,
                    bool is_query) {
    const std::string name = block + "attn." + part;
    const WeightId w = weight(name + ".weight"), b = optional_weight(name + ".bias");
    const WeightId norm_w = optional_weight(block + "ln1.weight"), norm_b = optional_weight(block + "ln1.bias");
    const int64_t count = is_query ? config_.n_heads : config_.n_kv_heads;
    const steps::HeadInput by_head{config_.norm, config_.norm_eps, norm_w, norm_b, w, b, count};
    std::vector<StepInput> own = {{own_inputs.front()}}, all = {{shared}};
    if (part != std::string_view("v"))
      for (std::vector<StepInput>* inputs : {&own, &all})
        inputs->insert(inputs->end(), beside_norm_.begin(), beside_norm_.end());
    const NodeId id =
        add(block + "attn.hook_" + part, is_query ? queries("d_head", config_.d_head) : keys("d_head", config_.d_head),
            {"norm_linear_by_head", std::move(own), steps::linear_by_head(by_head), {norm_w, norm_b, w, b}});
    shortcut(id, std::move(own_inputs), {"linear", std::move(all), steps::linear(w, b, count), {w, b}});
    return id;
  }

  NodeId rotated(const std::string& name, NodeId x, std::vector<Axis> axes) {
    return add(name, std::move(axes), {"rotate", {{x}, {cos_}, {sin_}}, steps::rotate(config_.rope)});
  }

  NodeId attention(const std::string& block, int64_t layer, NodeId resid_pre) {
    const std::string attn = block + "attn.";
    std::vector<NodeId> shared_input;
    if (!config_.grouped_query())
      shared_input = {add(block + "hook_attn_in", queries("d_model", config_.d_model),
                          {"repeat_heads", {{resid_pre}}, steps::repeat_heads(config_.n_heads)})};
    const auto own_input = [&](const char* part, bool is_query) {
      const std::string name = block + "hook_" + part + "_input";
      std::vector<Axis> axes = is_query ? queries("d_model", config_.d_model) : keys("d_model", config_.d_model);
      std::vector<NodeId> inputs = shared_input;
      const NodeId id = shared_input.empty()
                            ? add(name, axes,
                                  {"repeat_heads",
                                   {{resid_pre}},
                                   steps::repeat_heads(is_query ? config_.n_heads : config_.n_kv_heads)})
                            : add(name, axes, {"identity", {{shared_input[0]}}, steps::identity()});
      inputs.insert(inputs.begin(), id);
      return inputs;
    };
    const auto q_input = own_input("q", true), k_input = own_input("k", false), v_input = own_input("v", false);
    const NodeId ln1 = norm(block + "ln1", resid_pre, config_.norm, stream()).out;
    NodeId q = projection(block, "q", q_input, ln1, true);
    NodeId k = projection(block, "k", k_input, ln1, false);
    const NodeId v = projection(block, "v", v_input, ln1, false);
    if (cos_ >= 0) {
      q = rotated(attn + "hook_rot_q", q, queries("d_head", config_.d_head));
      k = rotated(attn + "hook_rot_k", k, keys("d_head", config_.d_head));
    }
    const LayerConfig& options = config_.layers[static_cast<size_t>(layer)];
    const bool upcast = config_.upcast_attention;
    const steps::Attention how{config_.n_heads,
                               config_.n_kv_heads,
                               options.attention_scale,
                               options.window,
                               upcast,
                               config_.score_cap,
                               config_.positions == PositionEmbedding::kAlibi};
    const std::vector<Axis> square = {kBatch, {"head", config_.n_heads}, kQueryPos, kKeyPos};
    const StepInput mask{graph_.attention_mask(), kUpTo, true};
    const NodeId scores =
        add(attn + "hook_attn_scores", square, {"scores", {{q}, {k, kUpTo}, mask}, steps::scores(how), {}, false});
    const NodeId pattern =
        add(attn + "hook_pattern", square, {"softmax", {{scores}}, steps::pattern(weights_.dtype()), {}, false});
    editor_.node(scores).absent = -std::numeric_limits<float>::infinity();
    const NodeId z = add(attn + "hook_z", queries("d_head", config_.d_head),
                         {"mix_values", {{pattern}, {v, kUpTo}}, steps::mix_values(how), {}, false});
    for (NodeId id : {scores, pattern}) editor_.node(id).mixed_by = z;
    const bool as_one_kernel = !how.alibi && how.score_cap == 0;
    if (as_one_kernel && (weights_.dtype() == at::kFloat || weights_.dtype() == at::kDouble))
      shortcut(z, {scores, pattern},
               {"attention", {{q}, {k, kUpTo}, {v, kUpTo}, mask}, steps::fused_attention(how), {}, false});
    const WeightId w = weight(attn + "o.weight"), b = optional_weight(attn + "o.bias");
    const NodeId result = add(attn + "hook_result", queries("d_model", config_.d_model),
                              {"head_results", {{z}}, steps::head_results(w), {w}});
    const NodeId out = add(block + "hook_attn_out", stream(), {"sum_heads", {{result}}, steps::sum_heads(b), {b}});
    shortcut(out, {result}, {"linear", {{z}}, steps::merge_heads(w, b), {w, b}});
    return out;
  }

  NodeId mlp(const std::string& block, NodeId residual) {
    const std::string mlp = block + "mlp.";
    const NodeId input = add(block + "hook_mlp_in", stream(), {"identity", {{residual}}, steps::identity()});
    const NodeId normed = norm(block + "ln2", input, config_.norm, stream()).out;
    const std::vector<Axis> wide = {kBatch, kPos, {"d_mlp", config_.d_mlp}};
    const auto projected = [&](const char* hook, const char* part) {
      const WeightId w = weight(mlp + part + ".weight"), b = optional_weight(mlp + part + ".bias");
      const bool later = config_.bias_after_gate && part == std::string_view("in");
      return add(mlp + hook, wide, {"linear", {{normed}}, steps::linear(w, later ? -1 : b), {w, later ? -1 : b}});
    };
    const NodeId pre = projected("hook_pre", config_.gated_mlp ? "gate" : "in");
    const char* const active = config_.mlp_norm ? "hook_mid" : "hook_post";
    const std::string op = name_of(config_.activation);
    NodeId post;
    if (config_.gated_mlp) {
      const WeightId b = config_.bias_after_gate ? optional_weight(mlp + "in.bias") : -1;
      const NodeId pre_linear = projected("hook_pre_linear", "in");
      post = add(mlp + active, wide, {op + "_times", {{pre}, {pre_linear}}, steps::gate(config_.activation, b), {b}});
    } else {
      post = add(mlp + active, wide, {op, {{pre}}, steps::activate(config_.activation)});
    }
    if (config_.mlp_norm)
      post = add(mlp + "hook_post", wide,
                 {"identity", {{norm(mlp + "ln", post, Norm::kLayerNorm, wide).out}}, steps::identity()});
    const WeightId w = weight(mlp + "out.weight"), b = optional_weight(mlp + "out.bias");
    return add(block + "hook_mlp_out", stream(), {"linear", {{post}}, steps::linear(w, b), {w, b}});
  }

  NodeId block(int64_t layer, NodeId previous) {
    const std::string name = str("blocks.", layer, ".");
    StepSpec start = previous >= 0                   ? StepSpec{"identity", {{previous}}, steps::identity()}
                     : sum_of_embeddings_.size() > 1 ? StepSpec{"sum", sum_of_embeddings_, steps::sum()}
                                                     : StepSpec{"identity", sum_of_embeddings_, steps::identity()};
    const NodeId resid_pre = add(name + "hook_resid_pre", stream(), std::move(start));
    editor_.node(resid_pre).starts_block = true;
    const NodeId attn_out = attention(name, layer, resid_pre);
    std::vector<StepInput> parts = {{resid_pre}, {attn_out}};
    if (config_.attention_only) return add(name + "hook_resid_post", stream(), {"sum", std::move(parts), steps::sum()});
    if (config_.parallel) {
      parts.push_back({mlp(name, resid_pre)});
      return add(name + "hook_resid_post", stream(), {"sum", std::move(parts), steps::sum()});
    }
    const NodeId resid_mid = add(name + "hook_resid_mid", stream(), {"sum", {{resid_pre}, {attn_out}}, steps::sum()});
    const NodeId mlp_out = mlp(name, resid_mid);
    return add(name + "hook_resid_post", stream(), {"sum", {{resid_mid}, {mlp_out}}, steps::sum()});
  }

  void head(NodeId residual) {
    const NodeId normed = norm("ln_final", residual, config_.norm, stream()).out;
    const NodeId in = add("unembed.hook_in", stream(), {"identity", {{normed}}, steps::identity()});
    const WeightId w = weight("unembed.weight"), b = optional_weight("unembed.bias");
    const std::vector<Axis> vocabulary = {kBatch, kPos, {"d_vocab", config_.d_vocab_out}};
    const NodeId out = add("unembed.hook_out", vocabulary, {"linear", {{in}}, steps::linear(w, b), {w, b}});
    const StepSpec capped{"soft_cap", {{out}}, steps::soft_cap(config_.logit_cap)};
    editor_.set_logits(
        add("logits", vocabulary, config_.logit_cap > 0 ? capped : StepSpec{"identity", {{out}}, steps::identity()}));
  }

  const ModelConfig& config_;
  const Weights& weights_;
  GraphEditor editor_;
  const Graph& graph_ = editor_.graph();
  std::vector<StepInput> sum_of_embeddings_;
  std::vector<StepInput> beside_norm_;  // Added to what the first norm makes for queries and keys.
  NodeId cos_ = -1, sin_ = -1;
};

}  // namespace

std::shared_ptr<const Graph> Graph::build(const ModelConfig& config, const Weights& weights) {
  return GraphBuilder(config, weights).build();
}

}  // namespace glassformer
