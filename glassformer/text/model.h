#pragma once
// The step that turns one piece of text into tokens. Byte-pair encoding is the only kind so far; Unigram and WordPiece
// will be further classes here.

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace glassformer::text {

/// A token and the bytes of the piece that it covers.
struct WordToken {
  std::int32_t id = 0;
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
};

/// Buffers and caches of a model that one thread uses at a time.
class ModelState {
 public:
  virtual ~ModelState() = default;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual std::unique_ptr<ModelState> make_state() const = 0;
  /// Appends the tokens of `piece`.
  virtual void encode(std::string_view piece, ModelState& state, std::vector<WordToken>& out) const = 0;
};

}  // namespace glassformer::text
