// Lays out the universal decoder block as nodes, in computing order.

#include <limits>

#include "glassformer/base/errors.h"
#include "glassformer/graph/experts.h"
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
    return heads(config_.n_shown_kv_heads(), config_.repeats_kv ? "head" : "kv_head", width, of);
  }

  NodeId embedding() {
    const WeightId table = weight("embed.weight");
    const StepSpec look_up{"embed", {{graph_.tokens()}}, steps::embed(table), {table}};
    NodeId embed;
    if (config_.embed_norm) {
      const NodeId in = add("embed.ln.hook_in", stream(), look_up);
      const NodeId normed = norm("embed.ln", in, Norm::kLayerNorm, stream()).out;
      embed = add("hook_embed", stream(), {"identity", {{normed}}, steps::identity()});
    } else {
      embed = add("hook_embed", stream(), look_up);
    }
    sum_of_embeddings_ = {{embed}};
    if (config_.positions == PositionEmbedding::kRotary) rotary_tables();
    if (const WeightId places = optional_weight("pos_embed.weight"); places >= 0) {
      const NodeId pos =
          add("hook_pos_embed", stream(), {"embed", {{graph_.positions()}}, steps::embed(places), {places}});
      (config_.positions == PositionEmbedding::kLearned ? sum_of_embeddings_ : beside_norm_).push_back({pos});
    }
    return -1;
  }

  struct Tables {
    NodeId cos = -1, sin = -1;
  };

  void rotary_tables() {
    const auto tables_of = [&](const std::string& name, const Rope& rope) {
      const std::vector<Axis> axes = {kBatch, kPos, {"d_rotary", rope.dims}};
      const auto table_of = [&](const char* hook, const char* op, bool sine) {
        const StepSpec step{op, {{graph_.positions()}}, steps::rotary_table(rope, sine, weights_.dtype())};
        return add(name + hook, axes, step);
      };
      return Tables{table_of(".hook_cos", "cosine", false), table_of(".hook_sin", "sine", true)};
    };
    editor_.set_rope(config_.rope);
    rotary_ = tables_of("rotary", config_.rope);
    editor_.set_rotary(rotary_.cos);
    if (config_.has_local_rope()) local_rotary_ = tables_of("rotary_local", config_.local_rope);
  }

  struct NormNodes {
    NodeId scale, normalized, out;
  };

  NormNodes norm(const std::string& name, NodeId input, Norm norm, const std::vector<Axis>& axes) {
    if (norm == Norm::kNone) return {-1, -1, input};
    const WeightId w = optional_weight(name + ".weight"), b = optional_weight(name + ".bias");
    NormNodes nodes;
    std::vector<Axis> one = axes;
    one.back() = {"1", 1};
    nodes.scale =
        add(name + ".hook_scale", std::move(one), {"norm_scale", {{input}}, steps::norm_scale(norm, config_.norm_eps)});
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
    const bool normed = !config_.norms_after;
    const WeightId norm_w = normed ? optional_weight(block + "ln1.weight") : -1;
    const WeightId norm_b = normed ? optional_weight(block + "ln1.bias") : -1;
    const int64_t count = is_query ? config_.n_heads : config_.n_kv_heads;
    const int64_t repeat = is_query ? 1 : config_.n_shown_kv_heads() / config_.n_kv_heads;
    const Norm norm = normed ? config_.norm : Norm::kNone;
    const steps::HeadInput by_head{norm, config_.norm_eps, norm_w, norm_b, w, b, count, repeat};
    std::vector<StepInput> own = {{own_inputs.front()}}, all = {{shared}};
    if (part != std::string_view("v"))
      for (std::vector<StepInput>* inputs : {&own, &all})
        inputs->insert(inputs->end(), beside_norm_.begin(), beside_norm_.end());
    const NodeId id =
        add(block + "attn.hook_" + part, is_query ? queries("d_head", config_.d_head) : keys("d_head", config_.d_head),
            {"norm_linear_by_head", std::move(own), steps::linear_by_head(by_head), {norm_w, norm_b, w, b}});
    shortcut(id, std::move(own_inputs), {"linear", std::move(all), steps::linear(w, b, count, repeat), {w, b}});
    return id;
  }

  // What of a head's queries or keys goes into their product: through their norm, within bounds, turned.
  NodeId prepared(const std::string& attn, const char* part, NodeId x, const std::vector<Axis>& axes) {
    const std::string name = attn + part + "_norm";
    if (config_.qk_norm == QkNorm::kByHead) x = norm(name, x, Norm::kRmsNorm, axes).out;
    if (config_.qk_norm == QkNorm::kWhole) {
      const std::vector<Axis> whole = {kBatch, kPos, {axes[2].word + "*" + axes[3].word, axes[2].size * axes[3].size}};
      const NodeId joined = add(name + ".hook_in", whole, {"join_heads", {{x}}, steps::join_heads()});
      const NodeId normed = norm(name, joined, Norm::kRmsNorm, whole).out;
      x = add(name + ".hook_by_head", axes, {"split_heads", {{normed}}, steps::split_heads(axes[2].size)});
    }
    return clipped(attn, part, x, axes);
  }

  NodeId clipped(const std::string& attn, const char* part, NodeId x, const std::vector<Axis>& axes) {
    if (config_.qkv_clip == 0) return x;
    return add(attn + "hook_clipped_" + part, axes, {"clamp", {{x}}, steps::clamp(config_.qkv_clip)});
  }

  NodeId rotated(const std::string& attn, const char* part, NodeId x, std::vector<Axis> axes, bool local) {
    const Tables& tables = local ? local_rotary_ : rotary_;
    if (tables.cos < 0) return x;
    const StepSpec turn{"rotate", {{x}, {tables.cos}, {tables.sin}}, steps::rotate(config_.rope)};
    return add(attn + "hook_rot_" + part, std::move(axes), turn);
  }

  // q, k and v of a block, as attention takes them.
  struct Projections {
    NodeId q, k, v;
  };

  Projections projections(const std::string& block, NodeId resid_pre, bool local_rope) {
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
                                   steps::repeat_heads(is_query ? config_.n_heads : config_.n_shown_kv_heads())})
                            : add(name, axes, {"identity", {{shared_input[0]}}, steps::identity()});
      inputs.insert(inputs.begin(), id);
      return inputs;
    };
    const auto q_input = own_input("q", true), k_input = own_input("k", false), v_input = own_input("v", false);
    const NodeId in = config_.norms_after ? resid_pre : norm(block + "ln1", resid_pre, config_.norm, stream()).out;
    NodeId q = projection(block, "q", q_input, in, true);
    NodeId k = projection(block, "k", k_input, in, false);
    NodeId v = projection(block, "v", v_input, in, false);
    const std::string attn = block + "attn.";
    const std::vector<Axis> q_axes = queries("d_head", config_.d_head), k_axes = keys("d_head", config_.d_head);
    q = prepared(attn, "q", q, q_axes);
    k = prepared(attn, "k", k, k_axes);
    v = clipped(attn, "v", v, k_axes);
    q = rotated(attn, "q", q, q_axes, local_rope);
    k = rotated(attn, "k", k, k_axes, local_rope);
    if (config_.log_n_length > 0) {
      const StepSpec scale{"scale_by_log", {{q}}, steps::scale_by_log(config_.log_n_length), {}, false};
      q = add(attn + "hook_log_scaled_q", q_axes, scale);
    }
    return {q, k, v};
  }

  // The values that a query mixes.
  NodeId mixed_values(const std::string& attn, const LayerConfig& options, const Projections& from) {
    const steps::Attention how{config_.n_heads,
                               config_.n_shown_kv_heads(),
                               options.attention_scale,
                               options.window,
                               config_.upcast_attention,
                               config_.score_cap,
                               config_.positions == PositionEmbedding::kAlibi};
    const auto& [q, k, v] = from;
    const std::vector<Axis> square = {kBatch, {"head", config_.n_heads}, kQueryPos, kKeyPos};
    const StepInput mask{graph_.attention_mask(), kUpTo, true};
    const WeightId sinks = optional_weight(attn + "sinks");
    const NodeId scores =
        add(attn + "hook_attn_scores", square, {"scores", {{q}, {k, kUpTo}, mask}, steps::scores(how), {}, false});
    const NodeId pattern = add(attn + "hook_pattern", square,
                               {"softmax", {{scores}}, steps::pattern(weights_.dtype(), sinks), {sinks}, false});
    editor_.node(scores).absent = -std::numeric_limits<float>::infinity();
    const NodeId z = add(attn + "hook_z", queries("d_head", config_.d_head),
                         {"mix_values", {{pattern}, {v, kUpTo}}, steps::mix_values(how), {}, false});
    for (NodeId id : {scores, pattern}) editor_.node(id).mixed_by = z;
    const bool as_one_kernel = !how.alibi && how.score_cap == 0 && sinks < 0;
    if (as_one_kernel && (weights_.dtype() == at::kFloat || weights_.dtype() == at::kDouble))
      shortcut(z, {scores, pattern},
               {"attention", {{q}, {k, kUpTo}, {v, kUpTo}, mask}, steps::fused_attention(how), {}, false});
    return z;
  }

  // What a part of a block makes, and through the norms behind it what it adds: `name`.
  template <typename Make>
  NodeId added(const std::string& block, const std::string& ln, const std::string& name, const Make& make) {
    const std::vector<std::string> behind = config_.norms_behind(ln);
    if (behind.empty()) return make(name);
    NodeId x = make(block + behind.front() + ".hook_in");
    for (const std::string& each : behind) x = norm(block + each, x, config_.norm, stream()).out;
    return add(name, stream(), {"identity", {{x}}, steps::identity()});
  }

  NodeId attention(const std::string& block, const LayerConfig& options, NodeId resid_pre) {
    const std::string attn = block + "attn.";
    const NodeId z = mixed_values(attn, options, projections(block, resid_pre, options.local_rope));
    const WeightId w = weight(attn + "o.weight"), b = optional_weight(attn + "o.bias");
    const NodeId result = add(attn + "hook_result", queries("d_model", config_.d_model),
                              {"head_results", {{z}}, steps::head_results(w), {w}});
    return added(block, "ln1", block + "hook_attn_out", [&](const std::string& name) {
      const NodeId out = add(name, stream(), {"sum_heads", {{result}}, steps::sum_heads(b), {b}});
      shortcut(out, {result}, {"linear", {{z}}, steps::merge_heads(w, b), {w, b}});
      return out;
    });
  }

  steps::ActivationStep activation(const std::string& mlp) const {
    return {config_.activation, optional_weight(mlp + "act.alpha_p"), optional_weight(mlp + "act.alpha_n")};
  }

  NodeId mlp(const std::string& block, NodeId residual) {
    const NodeId input = add(block + "hook_mlp_in", stream(), {"identity", {{residual}}, steps::identity()});
    const NodeId in = config_.norms_after ? input : norm(block + "ln2", input, config_.norm, stream()).out;
    return added(block, "ln2", block + "hook_mlp_out", [&](const std::string& name) {
      return config_.experts.count > 0 ? experts(block + "mlp.", in, name) : neurons(block + "mlp.", in, name);
    });
  }

  NodeId neurons(const std::string& mlp, NodeId in, const std::string& name) {
    const std::vector<Axis> wide = {kBatch, kPos, {"d_mlp", config_.d_mlp}};
    const auto projected = [&](const char* hook, const char* part) {
      const WeightId w = weight(mlp + part + ".weight"), b = optional_weight(mlp + part + ".bias");
      const bool later = config_.bias_after_gate && part == std::string_view("in");
      return add(mlp + hook, wide, {"linear", {{in}}, steps::linear(w, later ? -1 : b), {w, later ? -1 : b}});
    };
    const char* const active = config_.mlp_norm ? "hook_mid" : "hook_post";
    const std::string op = name_of(config_.activation);
    const steps::ActivationStep act = activation(mlp);
    const NodeId pre = projected("hook_pre", config_.gated_mlp ? "gate" : "in");
    const auto activated = [&](const char* hook) {
      return add(mlp + hook, wide, {op, {{pre}}, steps::activate(act), {act.alpha_p, act.alpha_n}});
    };
    NodeId post;
    if (config_.gated_mlp && !config_.mlp_norm) {
      const WeightId b = config_.bias_after_gate ? optional_weight(mlp + "in.bias") : -1;
      const NodeId factor = act.kind == Activation::kClampedGlu ? -1 : activated("hook_act");
      const NodeId pre_linear = projected("hook_pre_linear", "in");
      StepSpec whole{op + "_times", {{pre}, {pre_linear}}, steps::gate(act, b), {act.alpha_p, act.alpha_n, b}};
      if (factor < 0) {
        post = add(mlp + active, wide, std::move(whole));
      } else {
        post = add(mlp + active, wide, {"times", {{factor}, {pre_linear}}, steps::times(b), {b}});
        shortcut(post, {factor}, std::move(whole));
      }
    } else {
      post = activated(active);
    }
    if (config_.mlp_norm)
      post = add(mlp + "hook_post", wide,
                 {"identity", {{norm(mlp + "ln", post, Norm::kLayerNorm, wide).out}}, steps::identity()});
    const WeightId w = weight(mlp + "out.weight"), b = optional_weight(mlp + "out.bias");
    return add(name, stream(), {"linear", {{post}}, steps::linear(w, b), {w, b}});
  }

  steps::ExpertWeights of_experts(const std::string& mlp, const char* part) const {
    steps::ExpertWeights found;
    for (int64_t number = 0; number < config_.experts.count; ++number) {
      const std::string name = str(mlp, "experts.", number, ".", part);
      found.weights.push_back(weight(name + ".weight"));
      if (weights_.has(name + ".bias")) found.biases.push_back(weight(name + ".bias"));
    }
    return found;
  }

  NodeId experts(const std::string& mlp, NodeId in, const std::string& name) {
    const Experts& experts = config_.experts;
    const steps::ExpertMlps mlps{of_experts(mlp, "gate"), of_experts(mlp, "in"), of_experts(mlp, "out")};
    std::vector<WeightId> all;
    const auto slots = [&](const char* of, int64_t width) { return heads(experts.per_token, "slot", width, of); };
    const std::vector<Axis> by_expert = {kBatch, kPos, {"expert", experts.count}};
    const WeightId w = weight(mlp + "router.weight"), b = optional_weight(mlp + "router.bias");
    const NodeId router = add(mlp + "hook_router_logits", by_expert, {"linear", {{in}}, steps::linear(w, b), {w, b}});
    const NodeId shares =
        add(mlp + "hook_expert_weights", by_expert, {"expert_weights", {{router}}, steps::expert_weights(experts)});
    editor_.node(shares).is_single = true;
    const NodeId chosen = add(mlp + "hook_expert_indices", {kBatch, kPos, {"slot", experts.per_token}},
                              {"choose", {{experts.top_first ? router : shares}}, steps::choose(experts.per_token)});
    editor_.node(chosen).choices = experts.count;
    const auto projected = [&](const char* hook, NodeId x, const steps::ExpertWeights& weights,
                               std::vector<Axis> axes) {
      std::vector<WeightId> used = weights.weights;
      used.insert(used.end(), weights.biases.begin(), weights.biases.end());
      all.insert(all.end(), used.begin(), used.end());
      return add(mlp + hook, std::move(axes),
                 {"expert_linear", {{x}, {chosen}}, steps::expert_linear(weights), std::move(used)});
    };
    const NodeId gate = projected("hook_expert_gate", in, mlps.gate, slots("d_mlp", config_.d_mlp));
    const NodeId pre = projected("hook_expert_pre", in, mlps.in, slots("d_mlp", config_.d_mlp));
    const steps::ActivationStep act = activation(mlp);
    const NodeId post = add(mlp + "hook_expert_post", slots("d_mlp", config_.d_mlp),
                            {name_of(act.kind) + std::string("_times"), {{gate}, {pre}}, steps::gate(act)});
    const NodeId made = projected("hook_expert_out", post, mlps.out, slots("d_model", config_.d_model));
    const NodeId out = add(name, stream(), {"mix_experts", {{made}, {chosen}, {shares}}, steps::mix_experts(experts)});
    shortcut(out, {gate, pre, post, made},
             {"experts", {{in}, {chosen}, {shares}}, steps::fused_experts(experts, mlps, act), all});
    return out;
  }

  NodeId block(int64_t layer, NodeId previous) {
    const std::string name = str("blocks.", layer, ".");
    StepSpec start = previous >= 0                   ? StepSpec{"identity", {{previous}}, steps::identity()}
                     : sum_of_embeddings_.size() > 1 ? StepSpec{"sum", sum_of_embeddings_, steps::sum()}
                                                     : StepSpec{"identity", sum_of_embeddings_, steps::identity()};
    const NodeId resid_pre = add(name + "hook_resid_pre", stream(), std::move(start));
    editor_.node(resid_pre).starts_block = true;
    const NodeId attn_out = attention(name, config_.layers[static_cast<size_t>(layer)], resid_pre);
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
    const NodeId normed = norm("ln_final", residual, config_.last_norm(), stream()).out;
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
  Tables rotary_, local_rotary_;
};

}  // namespace

std::shared_ptr<const Graph> Graph::build(const ModelConfig& config, const Weights& weights) {
  return GraphBuilder(config, weights).build();
}

}  // namespace glassformer
