#include "glassformer/graph/graph.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "glassformer/base/errors.h"

namespace glassformer {
namespace {

// TransformerLens' other names of nodes and of the parts of a layer.
constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kOtherNames = {{{"attn", "pattern"},
                                                                                       {"attn_logits", "attn_scores"},
                                                                                       {"key", "k"},
                                                                                       {"query", "q"},
                                                                                       {"value", "v"},
                                                                                       {"mlp_pre", "pre"},
                                                                                       {"mlp_mid", "mid"},
                                                                                       {"mlp_post", "post"}}};
constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kOtherParts = {
    {{"a", "attn"}, {"attention", "attn"}, {"m", "mlp"}, {"b", ""}, {"block", ""}, {"blocks", ""}}};

template <size_t kSize>
std::string usual(const std::array<std::pair<std::string_view, std::string_view>, kSize>& others,
                  std::string_view name) {
  for (const auto& [other, usual_name] : others)
    if (other == name) return std::string(usual_name);
  return std::string(name);
}

// "resid_pre3" -> ("resid_pre", 3), "z-1" -> ("z", -1), "key2" -> ("k", 2), "scale4ln1" -> ("ln1.hook_scale", 4).
struct ShortName {
  std::string name;
  int64_t layer = 0;
};

std::optional<ShortName> parse_short(std::string_view text) {
  const size_t digits = text.find_first_of("0123456789");
  if (digits == std::string_view::npos || digits == 0) return std::nullopt;
  const size_t start = text[digits - 1] == '-' ? digits - 1 : digits;
  ShortName parsed{usual(kOtherNames, text.substr(0, start)), 0};
  const auto [end, error] = std::from_chars(text.data() + start, text.data() + text.size(), parsed.layer);
  if (error != std::errc() || parsed.name.empty()) return std::nullopt;
  const std::string part = usual(kOtherParts, {end, static_cast<size_t>(text.data() + text.size() - end)});
  if (!part.empty()) parsed.name = part + ".hook_" + parsed.name;
  return parsed;
}

}  // namespace

int axis_named(const Node& node, std::string_view word) {
  for (size_t axis = 0; axis < node.axes.size(); ++axis)
    if (node.axes[axis].word == word) return static_cast<int>(axis);
  throw InputError(str(node.name, " has no axis '", word, "'; its axes are: ", shape_words(node)));
}

std::optional<int64_t> layer_of(const Node& node) {
  constexpr std::string_view kBlocks = "blocks.";
  if (!node.name.starts_with(kBlocks)) return std::nullopt;
  int64_t layer = 0;
  const char* last = node.name.data() + node.name.size();
  const auto [end, error] = std::from_chars(node.name.data() + kBlocks.size(), last, layer);
  if (error != std::errc() || end == last || *end != '.' || layer < 0) return std::nullopt;
  return layer;
}

std::string shape_words(const Node& node) {
  std::string words;
  for (const Axis& axis : node.axes) words += (words.empty() ? "" : " ") + axis.word;
  return words;
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::string Graph::short_form(const std::string& name) {
  const size_t hook = name.find("hook_");
  if (!name.starts_with("blocks.") || hook == std::string::npos) return {};
  const size_t layer_end = name.find('.', 7);
  const std::string part = name.substr(layer_end + 1, hook - layer_end - 1);
  if (!part.empty() && part != "attn." && part != "mlp.") return {};
  return name.substr(hook + 5) + name.substr(7, layer_end - 7);
}

std::string Graph::resolve(std::string_view name) const {
  if (ids_.contains(name)) return std::string(name);
  const auto with_hook = [&](const std::string& whole) -> std::string {
    if (ids_.contains(whole)) return whole;
    const size_t dot = whole.rfind('.');
    const std::string hooked =
        dot == std::string::npos ? "hook_" + whole : whole.substr(0, dot + 1) + "hook_" + whole.substr(dot + 1);
    return ids_.contains(hooked) ? hooked : "";
  };
  if (std::string found = with_hook(std::string(name)); !found.empty()) return found;
  const std::optional<ShortName> parsed = parse_short(name);
  if (!parsed) return name == "scale" || name == "normalized" ? with_hook("ln_final." + std::string(name)) : "";
  const int64_t layer = parsed->layer < 0 ? parsed->layer + n_layers_ : parsed->layer;
  const std::string block = "blocks." + std::to_string(layer) + ".";
  for (const char* part : {"", "attn.", "mlp."})
    if (std::string found = with_hook(block + part + parsed->name); !found.empty()) return found;
  return "";
}

bool Graph::has(std::string_view name) const { return !resolve(name).empty(); }

NodeId Graph::find(std::string_view name) const {
  const std::string found = resolve(name);
  if (!found.empty()) return ids_.find(found)->second;
  std::vector<std::string> names;
  for (const Node& node : nodes_) names.push_back(node.name);
  for (const Node& node : nodes_)
    if (const std::string shorter = short_form(node.name); !shorter.empty()) names.push_back(shorter);
  throw NameError(str("no node is called '", name, "'", did_you_mean(name, names)));
}

std::pair<NodeId, NodeId> Graph::keys_and_values(int64_t layer) const {
  const auto last_of = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (const auto found = ids_.find(str("blocks.", layer, ".attn.", name)); found != ids_.end())
        return found->second;
    return find(str("blocks.", layer, ".attn.", *names.begin()));
  };
  return {last_of({"hook_clipped_k", "k_norm.hook_by_head", "k_norm.hook_out", "hook_k"}),
          last_of({"hook_clipped_v", "hook_v"})};
}

void Graph::finish() {
  const size_t count = nodes_.size();
  for (Node& node : nodes_) node.attended = false;
  reach_.assign(count, std::vector<bool>(count, false));
  for (size_t to = 0; to < count; ++to) {
    const auto absorb = [&](const Step& step) {
      for (const StepInput& input : step.inputs) {
        const auto from = static_cast<size_t>(input.node);
        reach_[to][from] = true;
        for (size_t i = 0; i < from; ++i)
          if (reach_[from][i]) reach_[to][i] = true;
        if (input.reach == Reach::kUpToRow) nodes_[from].attended = true;
      }
    };
    absorb(nodes_[to].open);
    absorb(nodes_[to].fast);
  }
}

}  // namespace glassformer
