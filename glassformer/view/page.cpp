#include "glassformer/view/page.h"

#include <utility>

#include "glassformer/view/page_assets.h"
#include "glassformer/view/terminal.h"

namespace glassformer {
namespace {

std::string html_escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

// In JSON, `<` stands in strings only; so written, no token can end the script element or open a comment in it.
std::string script_safe(std::string_view json) {
  std::string result;
  result.reserve(json.size());
  for (const char c : json) {
    if (c == '<') {
      result += "\\u003c";
    } else {
      result += c;
    }
  }
  return result;
}

std::string title(const Explanation& explanation) {
  return html_escaped(in_quotes(explanation.prompt.text) + " – " + visible(explanation.model.name) + " – Glassformer");
}

}  // namespace

std::string render_page(const Explanation& explanation) {
  const std::pair<std::string_view, std::string> fields[] = {
      {"title", title(explanation)},    {"style", std::string(kPageCss)}, {"json", script_safe(to_json(explanation))},
      {"parts", std::string(kPartsJs)}, {"script", std::string(kPageJs)},
  };
  // In one pass over the page's frame, so that a token that spells "{{script}}" stays what it is.
  std::string page;
  std::string_view rest = kPageHtml;
  for (size_t open = rest.find("{{"); open != std::string_view::npos; open = rest.find("{{")) {
    const size_t close = rest.find("}}", open);
    page += rest.substr(0, open);
    const std::string_view name = rest.substr(open + 2, close - open - 2);
    for (const auto& [field, text] : fields) {
      if (field == name) page += text;
    }
    rest.remove_prefix(close + 2);
  }
  page += rest;
  return page;
}

}  // namespace glassformer
