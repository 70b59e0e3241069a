#include "glassformer/analysis/explanation.h"

#include <nlohmann/json.hpp>

namespace glassformer {
namespace {

using Json = nlohmann::ordered_json;

// Token pieces may end inside a character, so their bytes need not be UTF-8.
std::string dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json json_of(const ModelSummary& model) {
  return {{"name", model.name},       {"architecture", model.architecture},
          {"dtype", model.dtype},     {"n_layers", model.n_layers},
          {"n_heads", model.n_heads}, {"n_kv_heads", model.n_kv_heads},
          {"d_model", model.d_model}, {"d_head", model.d_head},
          {"d_mlp", model.d_mlp},     {"d_vocab", model.d_vocab},
          {"n_ctx", model.n_ctx},     {"n_parameters", model.n_parameters}};
}

Json json_of(const Prompt& prompt) { return {{"text", prompt.text}, {"ids", prompt.ids}, {"tokens", prompt.tokens}}; }

Json json_of(const TokenScore& score) {
  return {{"id", score.id}, {"token", score.token}, {"logit", score.logit}, {"probability", score.probability}};
}

Json json_of(const Component& component) {
  return {{"name", component.name}, {"kind", component.kind}, {"layer", component.layer}, {"logit", component.logit}};
}

Json json_of(const HeadPattern& head) {
  return {{"layer", head.layer}, {"head", head.head}, {"logit", head.logit}, {"pattern", head.pattern}};
}

template <typename Value>
Json list(const std::vector<Value>& values) {
  Json result = Json::array();
  for (const Value& value : values) result.push_back(json_of(value));
  return result;
}

Json table(const std::vector<std::vector<TokenScore>>& rows) {
  Json result = Json::array();
  for (const std::vector<TokenScore>& row : rows) result.push_back(list(row));
  return result;
}

Json json_of(const LensTable& lens) {
  return {{"layers", lens.layers}, {"top", table(lens.top)}, {"probability", lens.probability}, {"rank", lens.rank}};
}

Json json_of(const AttributionTable& attribution) {
  return {{"answer", json_of(attribution.answer)},
          {"components", list(attribution.components)},
          {"heads", attribution.heads},
          {"sum", attribution.sum}};
}

Json json_of(const PatchTable& patching) {
  return {{"answer", json_of(patching.answer)},
          {"versus_answer", json_of(patching.versus_answer)},
          {"clean_difference", patching.clean_difference},
          {"corrupted_difference", patching.corrupted_difference},
          {"layers", patching.layers},
          {"recovered", patching.recovered}};
}

// What holds only plain values (a row of a matrix, one token's scores) stands on one line: a matrix then looks like
// one.
void write(const Json& value, const std::string& indent, std::string& out) {
  bool plain = true;
  for (const Json& child : value) plain = plain && child.is_primitive();
  if (plain) {
    out += dump(value);
    return;
  }
  const std::string inner = indent + ' ';
  const char* separator = "\n";
  out += value.is_object() ? '{' : '[';
  for (const auto& [key, child] : value.items()) {
    out += separator + inner;
    if (value.is_object()) out += dump(key) + ": ";
    write(child, inner, out);
    separator = ",\n";
  }
  out += '\n' + indent + (value.is_object() ? '}' : ']');
}

}  // namespace

std::string to_json(const Explanation& explanation) {
  const Json json = {
      {"model", json_of(explanation.model)},
      {"prompt", json_of(explanation.prompt)},
      {"next_tokens", list(explanation.next_tokens)},
      {"lens", json_of(explanation.lens)},
      {"attribution", json_of(explanation.attribution)},
      {"heads", list(explanation.heads)},
      {"versus", explanation.versus ? json_of(*explanation.versus) : Json(nullptr)},
      {"versus_next_tokens", list(explanation.versus_next_tokens)},
      {"patching", explanation.patching ? json_of(*explanation.patching) : Json(nullptr)},
  };
  std::string text;
  write(json, "", text);
  return text + '\n';
}

}  // namespace glassformer
