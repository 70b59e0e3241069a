#pragma once
// Decoders: from the spellings of tokens back to text. Each takes a list of strings and leaves another; the text is
// what remains, joined.

#include <memory>
#include <string>
#include <vector>

#include "glassformer/text/pattern.h"

namespace glassformer::text {

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual void apply(std::vector<std::string>& tokens) const = 0;
};

std::unique_ptr<Decoder> make_byte_level_decoder();
std::unique_ptr<Decoder> make_byte_fallback_decoder();
std::unique_ptr<Decoder> make_fuse_decoder();
std::unique_ptr<Decoder> make_replace_decoder(std::unique_ptr<Pattern> pattern, std::string content);
std::unique_ptr<Decoder> make_strip_decoder(std::string content, std::size_t start, std::size_t stop);
std::unique_ptr<Decoder> make_decoder_sequence(std::vector<std::unique_ptr<Decoder>> parts);

/// The bytes of a byte-level token; its own UTF-8 where a character of it is not in that alphabet.
void append_token_bytes(const std::string& token, std::string& out);

}  // namespace glassformer::text
