#include "glassformer/text/tokenizer.h"

namespace glassformer {

std::vector<int64_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  return encode_ids(text, options);
}

std::vector<int64_t> Tokenizer::encode_ids(std::string_view text, EncodeOptions options) const {
  return encode_with_offsets(text, options).ids;
}

std::vector<std::string> Tokenizer::decode_each(std::span<const int64_t> ids) const {
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const int64_t& id : ids) texts.push_back(decode({&id, 1}));
  return texts;
}

}  // namespace glassformer
