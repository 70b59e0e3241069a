#include <iostream>
#include <iterator>

#include "cli/arguments.h"
#include "cli/files.h"
#include "cli/output.h"
#include "glassformer/base/errors.h"
#include "glassformer/text/tokenizer.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {
namespace {

std::string text_of(const TokensArguments& arguments) {
  if (!arguments.text) throw InputError("no text given; expected TEXT, - for standard input, or --ids");
  if (*arguments.text != "-") return *arguments.text;
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

Json json_of(const Encoding& encoding, const std::vector<std::string>& pieces, const Tokenizer& tokenizer) {
  Json list = Json::array();
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    Json token = {{"index", i},
                  {"id", encoding.ids[i]},
                  {"token", encoding.tokens[i]},
                  {"text", pieces[i]},
                  {"special", tokenizer.is_special(encoding.ids[i])}};
    if (i < encoding.offsets.size()) {
      token["start"] = encoding.offsets[i].first;
      token["end"] = encoding.offsets[i].second;
    }
    list.push_back(std::move(token));
  }
  return list;
}

std::string table_of(const Encoding& encoding, const std::vector<std::string>& pieces) {
  const bool has_offsets = !encoding.offsets.empty();
  std::vector<Column> columns = {
      {"index", Align::kRight}, {"id", Align::kRight}, {"token", Align::kLeft, 40}, {"text", Align::kLeft, 40}};
  if (has_offsets) columns.push_back({"characters"});
  Table table(columns);
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    std::vector<std::string> row = {std::to_string(i), std::to_string(encoding.ids[i]), visible(encoding.tokens[i]),
                                    visible(pieces[i])};
    if (has_offsets) row.push_back(str(encoding.offsets[i].first, "-", encoding.offsets[i].second));
    table.add(std::move(row));
  }
  return table.text();
}

// Ids that the user gave, spelled out.
Encoding looked_up(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  Encoding encoding{ids, {}, {}};
  for (const int64_t id : ids) encoding.tokens.push_back(tokenizer.token(id));
  return encoding;
}

}  // namespace

int run(const TokensArguments& arguments) {
  const auto tokenizer = open_tokenizer(arguments.model);
  const bool decoding = !arguments.ids.empty();
  std::string text =
      decoding ? tokenizer->decode(arguments.ids, {.skip_special_tokens = arguments.no_special}) : text_of(arguments);
  const Encoding encoding = decoding
                                ? looked_up(*tokenizer, arguments.ids)
                                : tokenizer->encode_with_offsets(text, {.add_special_tokens = !arguments.no_special});
  const std::vector<std::string> pieces = tokenizer->decode_each(encoding.ids);
  if (arguments.json) {
    print_json({{"text", text}, {"ids", encoding.ids}, {"tokens", json_of(encoding, pieces, *tokenizer)}});
    return kSuccess;
  }
  if (decoding) print(text + (text.ends_with('\n') ? "\n" : "\n\n"));
  print(table_of(encoding, pieces));
  return kSuccess;
}

}  // namespace glassformer::cli
