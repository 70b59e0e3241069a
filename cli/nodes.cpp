#include <fnmatch.h>

#include "cli/session.h"
#include "glassformer/base/errors.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

bool matches(const std::string& name, const std::string& pattern) {
  if (pattern.find_first_of("*?[") == std::string::npos) return name.find(pattern) != std::string::npos;
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

std::vector<const Node*> matching(const Graph& graph, const std::string& pattern) {
  std::vector<const Node*> found;
  std::vector<std::string> names;
  for (const Node& node : graph.nodes()) {
    if (matches(node.name, pattern)) found.push_back(&node);
    names.push_back(node.name);
  }
  if (found.empty()) {
    const std::string near = did_you_mean(pattern, names);
    throw NameError("no node matches '" + pattern + "'" + (near.empty() ? "; without a pattern all are listed" : near));
  }
  return found;
}

// "batch pos 9 64": the word where the input decides.
std::string sizes(const Node& node) {
  std::string text;
  for (const Axis& axis : node.axes) {
    text += (text.empty() ? "" : " ") + (axis.size > 0 ? std::to_string(axis.size) : axis.word);
  }
  return text;
}

Json json_of(const Node& node) {
  Json axes = Json::array(), lengths = Json::array();
  for (const Axis& axis : node.axes) {
    axes.push_back(axis.word);
    lengths.push_back(axis.size > 0 ? Json(axis.size) : Json(nullptr));
  }
  Json json = {{"name", node.name}, {"axes", axes}, {"sizes", lengths}};
  json["step"] = node.is_input ? Json(nullptr) : Json(node.open.text);
  return json;
}

}  // namespace

int run(const NodesArguments& arguments) {
  const auto model = load(arguments);
  const std::vector<const Node*> nodes = matching(model->graph(), arguments.pattern);
  if (arguments.json) {
    Json list = Json::array();
    for (const Node* node : nodes) list.push_back(json_of(*node));
    print_json(list);
    return kSuccess;
  }
  std::vector<Column> columns = {{"node"}, {"shape"}, {"sizes"}};
  if (arguments.steps) columns.push_back({"step"});
  Table table(columns);
  for (const Node* node : nodes) {
    table.add({node->name, shape_words(*node), sizes(*node), node->is_input ? "given" : node->open.text});
  }
  print(table.text());
  return kSuccess;
}

}  // namespace glassformer::cli
