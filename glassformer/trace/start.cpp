// How a trace starts: what is given for its first positions, checked and put where the steps find it.

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>

#include <algorithm>

#include "glassformer/base/errors.h"
#include "glassformer/trace/state.h"

namespace glassformer {
namespace {

void check_tokens(const at::Tensor& tokens, bool is_prompt, const ModelConfig& config) {
  if (tokens.size(1) == 0) throw InputError(is_prompt ? "the prompt has no tokens" : "no tokens to append");
  const auto lowest = tokens.min().item<int64_t>(), highest = tokens.max().item<int64_t>();
  if (lowest < 0 || highest >= config.d_vocab)
    throw InputError(str("token ", lowest < 0 ? lowest : highest, " is outside the vocabulary of ", config.d_vocab));
}

// How many positions a past has.
int64_t length_of(const Past& past, const ModelConfig& config) {
  if (past.empty()) return 0;
  if (static_cast<int64_t>(past.size()) != config.n_layers)
    throw ShapeError(str("past: expected keys and values of ", config.n_layers, " layers; found ", past.size()));
  const at::Tensor& first = past.front().k;
  const int64_t n_past = first.defined() && first.dim() == 4 ? first.size(1) : 0;
  for (size_t layer = 0; layer < past.size(); ++layer)
    for (const at::Tensor* part : {&past[layer].k, &past[layer].v}) {
      const std::string what = str("past, layer ", layer, part == &past[layer].k ? ", keys" : ", values");
      if (!part->defined() || part->is_sparse() || !part->is_floating_point())
        throw InputError(what + ": expected a dense tensor of floating-point numbers");
      const bool fits = part->dim() == 4 && part->size(0) == first.size(0) && part->size(1) == n_past && n_past > 0 &&
                        part->size(2) == config.n_shown_kv_heads() && part->size(3) == config.d_head;
      if (!fits)
        throw ShapeError(str(what, ": expected shape [batch, past_pos, ", config.n_shown_kv_heads(), ", ",
                             config.d_head, "], batch and past_pos (1 or more) the same everywhere; found ",
                             shape_text(part->sizes())));
    }
  return n_past;
}

}  // namespace

std::unique_ptr<TraceState> TraceState::started(std::shared_ptr<const Model> model, const at::Tensor& given,
                                                const TraceOptions& options, std::optional<NodeId> node) {
  const std::shared_ptr<const Graph> graph(model, &model->graph());
  const int64_t n_past = length_of(options.past, model->config());
  if (node && n_past > 0) throw InputError("a trace begins at a node or with a past, not with both");
  Begin begin = node ? Begin::at(graph, *node) : Begin(graph, n_past);
  const auto n_axes = static_cast<int64_t>(graph->node(begin.source()).axes.size());
  const int64_t batch = given.defined() && given.dim() == n_axes ? given.size(0) : 1;

  auto state = std::make_unique<TraceState>();
  state->family = std::make_shared<Family>(std::move(model), batch, std::move(begin));
  const InUse in_use(*state->family);
  state->length = n_past;
  const at::Tensor value = state->as_given(given);
  Family& family = *state->family;
  family.poll = options.poll;
  family.keep.what = static_cast<Keep::What>(options.keep);
  if (options.budget_bytes > 0) family.keep.budget_bytes = options.budget_bytes;
  if (n_past > 0) state->give_past(options.past);
  state->give(family.begin().source(), n_past, value.detach());
  if (value.requires_grad()) state->given_with_graph = value;
  state->length = n_past + value.size(1);
  if (family.model->config().bidirectional) {
    state->give_mask(state->mask_for_all(options.attention_mask));
  } else if (options.attention_mask.defined()) {
    state->give_mask(options.attention_mask);
  }
  if (options.positions.defined()) state->give_positions(options.positions);
  state->segments = {0};
  state->stem = std::make_shared<Stem>(Stem{state->length});
  state->update_length_class();
  return state;
}

at::Tensor TraceState::as_given(const at::Tensor& given) const {
  at::Tensor value = begin().at_tokens() ? as_tokens(given) : as_value(given);
  if (length + value.size(1) > graph().n_ctx())
    throw InputError(str("the input has ", length + value.size(1), begin().at_tokens() ? " tokens" : " positions",
                         "; the model's context is ", graph().n_ctx()));
  return value;
}

at::Tensor TraceState::as_tokens(const at::Tensor& given) const {
  if (!given.defined() || given.dim() < 1 || given.dim() > 2)
    throw ShapeError(
        str("tokens must be 'pos' or 'batch pos'; found ", given.defined() ? shape_text(given.sizes()) : "nothing"));
  if (!at::isIntegralType(given.scalar_type(), false))
    throw InputError(str("tokens must be integers; found ", c10::toString(given.scalar_type())));
  const at::Tensor tokens = (given.dim() == 1 ? given.unsqueeze(0) : given).to(at::kLong).clone();
  if (tokens.size(0) != family->batch || tokens.size(0) == 0)
    throw ShapeError(str("expected tokens for ", family->batch, " sequences; found ", shape_text(given.sizes())));
  check_tokens(tokens, segments.empty(), family->model->config());
  return tokens.to(family->model->weights().device());
}

at::Tensor TraceState::as_value(const at::Tensor& given) const {
  const Node& node = graph().node(begin().source());
  require_plain(given, node.name);
  if (!given.is_floating_point())
    throw InputError(str("the trace begins at ", node.name, " and takes its values ('", shape_words(node),
                         "'), no tokens; found ", c10::toString(given.scalar_type())));
  const auto n_axes = static_cast<int64_t>(node.axes.size());
  const at::Tensor value = given.dim() + 1 == n_axes ? given.unsqueeze(0) : given;
  bool fits = value.dim() == n_axes && value.size(0) == family->batch && family->batch > 0;
  for (int64_t axis = 2; axis < n_axes && fits; ++axis)
    fits = value.size(axis) == node.axes[static_cast<size_t>(axis)].size;
  if (!fits)
    throw ShapeError(str(node.name, ": expected values of shape '", shape_words(node), "', like ",
                         shape_text(shape_of(node, 1)), " for one position; found ", shape_text(given.sizes())));
  if (value.size(1) == 0) throw InputError(node.name + ": no positions given");
  const at::TensorOptions like(family->model->weights().device());
  return value.to(like.dtype(dtype_of(node)), false, true).contiguous();
}

at::Tensor TraceState::given_value() const {
  if (given_with_graph.defined()) return given_with_graph;
  const NodeId source = begin().source();
  const auto first_edit = std::find_if(entries.begin(), entries.end(), [source](const Entry& entry) {
    return entry.edit->node == source && entry.edit->is_put();
  });
  Lineage& unedited = lineage_of(source, first_edit == entries.end() ? nullptr : &*first_edit);
  return gather({family.get(), &unedited, source, RowSet(0, length)});
}

at::Tensor TraceState::mask_for_all(const at::Tensor& mask) const {
  if (mask.defined() && mask.dim() != 2) return mask;
  const int64_t n_queries = length - begin().n_past();
  if (!mask.defined()) return at::ones({family->batch, n_queries, length}, at::kBool);
  return mask.unsqueeze(1).expand({mask.size(0), n_queries, mask.size(1)});
}

void TraceState::give_mask(const at::Tensor& mask) {
  const int64_t n_past = begin().n_past();
  const bool by_query = mask.sizes() == at::IntArrayRef({family->batch, length - n_past, length});
  if (!by_query && mask.sizes() != at::IntArrayRef({family->batch, length}))
    throw ShapeError(str("attention_mask: expected shape ", shape_text({family->batch, length}), " (batch key_pos) or ",
                         shape_text({family->batch, length - n_past, length}), " (batch query_pos key_pos); found ",
                         shape_text(mask.sizes())));
  if (mask.ne(0).logical_and(mask.ne(1)).any().item<bool>())
    throw InputError(
        "attention_mask: expected 1 where a key may be seen and 0 elsewhere, or true and false; found other "
        "numbers");
  const at::TensorOptions like(family->model->weights().device());
  at::Tensor seen = mask.to(like.dtype(at::kBool), false, true);
  family->mask_given = true;
  if (by_query) {
    family->query_mask = QueryMask{seen, n_past};
    const bool ahead = seen.triu(n_past + 1).any().item<bool>();
    seen = seen.any(1);  // A key that no query sees is padding.
    if (ahead) family->lineages.look_ahead(seen.any(0).nonzero().max().item<int64_t>() + 1);
  }
  give(graph().attention_mask(), 0, seen);
}

void TraceState::give_positions(const at::Tensor& given) {
  if (given.sizes() != at::IntArrayRef({family->batch, length}))
    throw ShapeError(str("positions: expected shape ", shape_text({family->batch, length}), " (batch pos",
                         begin().n_past() > 0 ? ", those of the past too" : "", "); found ",
                         shape_text(given.sizes())));
  const at::TensorOptions like(family->model->weights().device());
  const at::Tensor positions = given.to(like.dtype(at::kLong), false, true);
  if (positions.min().item<int64_t>() < 0 || positions.max().item<int64_t>() >= graph().n_ctx())
    throw InputError(str("positions must lie from 0 to ", graph().n_ctx() - 1));
  family->positions_given = true;
  give(graph().positions(), 0, positions);
}

void TraceState::give_past(const Past& past) {
  if (past.front().k.size(0) != family->batch)
    throw ShapeError(
        str("past: expected keys and values of ", family->batch, " sequences; found ", past.front().k.size(0)));
  const at::TensorOptions like(family->model->weights().device());
  for (size_t layer = 0; layer < past.size(); ++layer) {
    const auto [k, v] = graph().keys_and_values(static_cast<int64_t>(layer));
    for (const auto& [node, part] : {std::pair(k, past[layer].k), std::pair(v, past[layer].v)})
      give(node, 0, part.detach().to(like.dtype(dtype_of(graph().node(node))), false, true).contiguous());
  }
}

}  // namespace glassformer
