#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "glassformer/view/page.h"
#include "glassformer/view/terminal.h"
#include "view_sample.h"

using namespace glassformer;
using nlohmann::json;

namespace {

SampleShape capitals() {
  SampleShape shape;
  shape.layers = 6;
  shape.versus_tokens = {"The", " capital", " of", " Italy", " is"};
  return shape;
}

SampleShape hostile() {
  SampleShape shape;
  shape.tokens = hostile_tokens();
  shape.versus_tokens = shape.tokens;
  shape.versus_tokens[3] = "</SCRIPT >";
  shape.answer = "</script>";
  return shape;
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

size_t count(const std::string& text, std::string_view part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

std::string json_in(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"explanation\">";
  const size_t start = page.find(open) + open.size();
  return page.substr(start, page.find("</script>", start) - start);
}

std::vector<std::string> lines(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> result;
  for (std::string line; std::getline(in, line);) result.push_back(line);
  return result;
}

// The line that begins with `start`, its runs of spaces as one.
std::string line_with(const std::string& text, const std::string& start) {
  for (const std::string& line : lines(text)) {
    std::istringstream in(line);
    std::string result;
    for (std::string word; in >> word;) result += (result.empty() ? "" : " ") + word;
    if (result.starts_with(start)) return result;
  }
  return "";
}

}  // namespace

TEST_CASE("the JSON has the members' names and their values, to the last bit") {
  Explanation explanation = sample_explanation(capitals());
  explanation.lens.probability[1][2] = 0.1 + 0.2;
  explanation.patching->recovered[0][3] = 1.0 / 3;
  const json parsed = json::parse(to_json(explanation));
  CHECK(parsed["model"]["n_kv_heads"] == 1);
  CHECK(parsed["model"]["n_parameters"] == 1234567);
  CHECK(parsed["prompt"]["tokens"] == json({"The", " capital", " of", " France", " is"}));
  CHECK(parsed["versus"]["text"] == "The capital of Italy is");
  CHECK(parsed["next_tokens"][0]["token"] == " Paris");
  CHECK(parsed["lens"]["probability"][1][2].get<double>() == 0.1 + 0.2);
  CHECK(parsed["lens"]["rank"][6] == json({1, 1, 1, 1, 0}));
  CHECK(parsed["patching"]["recovered"][0][3].get<double>() == 1.0 / 3);
  CHECK(parsed["patching"]["versus_answer"]["token"] == " Rome");
  CHECK(parsed["attribution"]["components"][2]["name"] == "0.mlp");
  CHECK(parsed["attribution"]["components"][2]["logit"] == -1.25);
  CHECK(parsed["heads"][0]["pattern"][1] == json({0.5, 0.5, 0, 0, 0}));
}

TEST_CASE("the JSON of an explanation without a second prompt says null") {
  const json parsed = json::parse(to_json(sample_explanation()));
  CHECK(parsed["versus"].is_null());
  CHECK(parsed["patching"].is_null());
  CHECK(parsed["versus_next_tokens"] == json::array());
}

TEST_CASE("numbers that JSON lacks become null, and bytes that are no text U+FFFD") {
  Explanation explanation = sample_explanation(hostile());
  explanation.attribution.sum = std::numeric_limits<double>::quiet_NaN();
  explanation.patching->recovered[0][0] = std::numeric_limits<double>::infinity();
  const json parsed = json::parse(to_json(explanation));
  CHECK(parsed["attribution"]["sum"].is_null());
  CHECK(parsed["patching"]["recovered"][0][0].is_null());
  CHECK(parsed["prompt"]["tokens"][8] == "\xEF\xBF\xBD");
  CHECK(parsed["prompt"]["tokens"][9] == "東京");
  CHECK(parsed["prompt"]["tokens"][14] == std::string("nul\0!", 5));
  CHECK(contains(to_json(explanation), "\n   [null,0.0,"));  // A matrix's row is one line.
}

TEST_CASE("the page holds the very JSON, and is a whole page") {
  const Explanation explanation = sample_explanation(capitals());
  const std::string page = render_page(explanation);
  CHECK(json::parse(json_in(page)) == json::parse(to_json(explanation)));
  CHECK(page.starts_with("<!DOCTYPE html>"));
  CHECK(page.ends_with("</html>\n"));
  CHECK(contains(page, "<title>“The capital of France is” – toy-6l – Glassformer</title>"));
  CHECK_FALSE(contains(page, "{{"));
}

TEST_CASE("the page asks the network for nothing") {
  const std::string page = render_page(sample_explanation(capitals()));
  CHECK(contains(page, "default-src 'none'"));
  for (const char* part : {"src=", "<link", "@import", "url(", "fetch(", "XMLHttpRequest", "import(", "innerHTML"}) {
    CAPTURE(part);
    CHECK_FALSE(contains(page, part));
  }
  CHECK(count(page, "http://") == count(page, "http://www.w3.org/2000/svg"));
  CHECK(count(page, "https://") == 0);
}

TEST_CASE("no token gets out of the page's JSON or title") {
  const Explanation explanation = sample_explanation(hostile());
  const std::string page = render_page(explanation);
  CHECK(json::parse(json_in(page)) == json::parse(to_json(explanation)));
  CHECK(count(page, "<script") == 2);
  CHECK(count(page, "</script>") == 2);
  CHECK(count(page, "<!--") == 0);
  CHECK(contains(
      page,
      "<title>“&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;!--&lt;script&gt;{{script}}&quot;&#39;&amp;"));
}

TEST_CASE("visible tokens have a shape and steer no terminal") {
  CHECK(visible(" Paris") == "·Paris");
  CHECK(visible("\n\t\r") == "⏎⇥␍");
  CHECK(visible("\x1b[31m\x7f") == "␛[31m␡");
  CHECK(visible("\xE2\x80\xAE") == "⟨U+202E⟩");
  CHECK(visible("\xC2\x9B") == "⟨U+009B⟩");
  CHECK(visible("\xE4\xBD") == "\xEF\xBF\xBD");
  CHECK(visible("\xE0\xA4\xBF") == "◌\xE0\xA4\xBF");
  CHECK(visible("東京") == "東京");
  CHECK(visible("") == "(empty)");
  CHECK(in_quotes(" Paris\n") == "“ Paris⏎”");
  CHECK(in_quotes(" ") == "“·”");
  CHECK(in_quotes("a  b") == "“a··b”");
  for (const std::string& token : hostile_tokens()) {
    for (const char c : visible(token)) CHECK(static_cast<unsigned char>(c) >= 0x20);
  }
}

TEST_CASE("numbers for people") {
  CHECK(percent(0.8325) == "83 %");
  CHECK(percent(0.0417) == "4.2 %");
  CHECK(percent(0.0031) == "0.31 %");
  CHECK(percent(0.0999) == "10 %");
  CHECK(percent(0.0994) == "9.9 %");
  CHECK(percent(0.00999) == "1.0 %");
  CHECK(percent(0.00994) == "0.99 %");
  CHECK(percent(0.9949) == "99 %");
  CHECK(percent(0.9951) == "99.51 %");
  CHECK(percent(0.00003) == "<0.01 %");
  CHECK(percent(0.9987) == "99.87 %");
  CHECK(percent(0.999999) == ">99.99 %");
  CHECK(percent(0) == "0 %");
  CHECK(percent(1) == "100 %");
  CHECK(percent(std::nan("")) == "n/a");
  CHECK(signed_number(-1.234) == "-1.23");
  CHECK(signed_number(-0.001) == "+0.00");
  CHECK(signed_number(0) == "0");
  CHECK(signed_number(-INFINITY) == "n/a");
  CHECK(grouped(49152) == "49,152");
  CHECK(grouped(-999) == "-999");
  CHECK(grouped(1234567) == "1,234,567");
  CHECK(bar(0.5, 1, 4) == "██");
  CHECK(bar(-0.25, 1, 2) == "▌");
  CHECK(bar(std::nan(""), 1, 4).empty());
  CHECK(shade(-1) == "█");
  CHECK(shade(0.02) == " ");
  CHECK(heat(1, "x", false) == "x");
  CHECK(heat(1, "x", true) == "\x1b[38;5;16;48;5;208mx\x1b[0m");
  CHECK(heat(0.01, "x", true) == "x");
}

TEST_CASE("widths count columns, not bytes") {
  CHECK(display_width("東京") == 4);
  CHECK(display_width("é") == 1);
  CHECK(display_width("e\xCC\x81") == 1);
  CHECK(display_width(heat(1, "ab", true)) == 2);
  CHECK(shortened("capital", 4) == "cap…");
  CHECK(shortened("東京都", 4) == "東…");
  CHECK(wrapped("aa bb cc", 5) == "aa bb\ncc\n");
  Table table({{"token", Align::kLeft, 6}, {"logit", Align::kRight}});
  table.add({"東京", "+1.00"});
  table.add({"a long one", "-12.50"});
  CHECK(table.text(1) == " token    logit\n 東京     +1.00\n a lon…  -12.50\n");
}

TEST_CASE("the terminal's text holds the explanation's tokens and numbers") {
  const std::string text = render_terminal(sample_explanation(capitals()));
  CHECK(lines(text)[0] == "toy-6l answers “ Paris” with 83 %");
  CHECK(contains(text, "3 ·France"));
  CHECK(contains(text, "3 ·Italy"));
  CHECK(contains(text, "not ·Italy"));
  CHECK(line_with(text, "·the 6.2 %").ends_with("+3.56"));
  CHECK(line_with(text, "embed") == "embed ·is 25 % 0 % 40,000 ▌");
  CHECK(line_with(text, "5 ·Paris") == "5 ·Paris 83 % 83 % 0 ████████████████████████");
  CHECK(line_with(text, "0.mlp") == "0.mlp MLP of block 0 -1.250 ████████████████");
  CHECK(contains(text, "all 13 components sum to +6.0625; the model's logit is +6.0625 (difference 0.0e+00)"));
  CHECK(line_with(text, "5.2") == "5.2 +1.750 ████████████████████████");
  CHECK(contains(text, "logit(“ Paris”) - logit(“ Rome”): +4.50 in the first run, -3.25"));
  CHECK(contains(text, "█ +1.06"));
  CHECK(contains(text, "█ +0.94"));
  CHECK_FALSE(contains(text, "\x1b"));
}

TEST_CASE("without a second prompt the terminal shows no patching") {
  const std::string text = render_terminal(sample_explanation());
  CHECK_FALSE(contains(text, "Patching"));
  CHECK(contains(text, "toy-2l answers"));
}

TEST_CASE("an answer that isn't the top token is named as such") {
  Explanation explanation = sample_explanation();
  explanation.attribution.answer = {777, " Lyon", 1.5, 0.02};
  CHECK(contains(render_terminal(explanation), "What is explained here is “ Lyon”, which has 2.0 %."));
}

TEST_CASE("the terminal's text keeps to its width, whatever the tokens") {
  SampleShape shape = hostile();
  for (const int width : {60, 80, 100}) {
    for (const bool colour : {false, true}) {
      const std::string text = render_terminal(sample_explanation(shape), {colour, width});
      for (const std::string& line : lines(text)) {
        CAPTURE(line);
        CHECK(display_width(line) <= width);
        for (const char c : line) CHECK((static_cast<unsigned char>(c) >= 0x20 || (colour && c == '\x1b')));
      }
    }
  }
}

TEST_CASE("an explanation of nothing is still text, JSON and a page") {
  const Explanation empty;
  CHECK(json::parse(to_json(empty))["prompt"]["tokens"] == json::array());
  CHECK(contains(render_page(empty), "</html>"));
  CHECK_FALSE(render_terminal(empty).empty());
}

TEST_CASE("a token that isn't the second prompt's own answer is named as such") {
  Explanation explanation = sample_explanation(capitals());
  CHECK_FALSE(contains(render_terminal(explanation), "the comparison is with"));
  explanation.patching->versus_answer = {555, " Milan", 1.5, 0.02};
  const std::string text = render_terminal(explanation, {.width = 200});
  CHECK(
      contains(text, "The second prompt is answered “ Rome”; the comparison is with “ Milan”, which has 2.0 % there."));
  explanation.versus_next_tokens.front() = explanation.patching->answer;
  CHECK(
      contains(render_terminal(explanation, {.width = 200}), "answered “ Paris” too; the comparison is with “ Milan”"));
}

TEST_CASE("no line ends between a quotation mark and its token") {
  CHECK(wrapped("it is “ Paris” then", 9) == "it is\n“ Paris”\nthen\n");
  CHECK(wrapped("it is “ Paris” then", 14) == "it is “ Paris”\nthen\n");
}

TEST_CASE("what may have been meant, and what says little, is said") {
  Explanation explanation = sample_explanation(capitals());
  const auto text = [&] { return render_terminal(explanation, {.width = 250}); };
  CHECK_FALSE(contains(text(), "say little"));
  explanation.patching->versus_answer = {556, "Rome", -2.5, 0.001};
  CHECK(contains(text(), "“ Rome”, with a space before it, is another token"));
  explanation.patching->clean_difference = 2.48;
  explanation.patching->corrupted_difference = 2.30;
  CHECK(contains(text(), "differ by only 0.2 in this, so shares of it say little; --answer and --versus name"));
  explanation.patching->corrupted_difference = std::nan("");
  CHECK_FALSE(contains(text(), "say little"));
}
