#include "glassformer/text/pipeline.h"

#include <algorithm>
#include <limits>

#include "glassformer/base/errors.h"
#include "glassformer/text/unicode.h"

namespace glassformer::text {

/// A model state for one call; goes back to the tokenizer for the next.
class Pipeline::StateLoan {
 public:
  explicit StateLoan(const Pipeline& owner) : owner_(owner) {
    const std::lock_guard lock(owner_.mutex_);
    if (owner_.states_.empty()) return;
    state_ = std::move(owner_.states_.back());
    owner_.states_.pop_back();
  }
  ~StateLoan() {
    if (!state_) return;
    const std::lock_guard lock(owner_.mutex_);
    owner_.states_.push_back(std::move(state_));
  }
  StateLoan(const StateLoan&) = delete;
  StateLoan& operator=(const StateLoan&) = delete;

  ModelState& get() {
    if (!state_) state_ = owner_.model_->make_state();
    return *state_;
  }

 private:
  const Pipeline& owner_;
  std::unique_ptr<ModelState> state_;
};

Pipeline::Pipeline(PipelineParts parts, Roles roles) : parts_(std::move(parts)) {
  const bool byte_mode =
      parts_.pre_tokenizer && parts_.pre_tokenizer->ends_in_byte_level() && Bpe::allows_byte_mode(parts_.bpe);
  if (parts_.pre_tokenizer && !byte_mode) parts_.pre_tokenizer->spell_out();
  model_ = std::make_unique<Bpe>(parts_.vocabulary, parts_.merges, parts_.bpe, byte_mode);
  parts_.merges = {};
  if (parts_.is_byte_level_decoder) {
    token_bytes_.resize(static_cast<std::size_t>(parts_.vocabulary.end()));
    for (int64_t id = 0; id < parts_.vocabulary.end(); ++id) {
      append_token_bytes(parts_.vocabulary.token(id), token_bytes_[static_cast<std::size_t>(id)]);
    }
  }
  bos_id_ = roles.bos;
  eos_id_ = roles.eos;
  pad_id_ = roles.pad;
  unknown_id_ = roles.unknown;
  chat_template_ = std::move(roles.chat_template);
}

std::vector<int64_t> Pipeline::encode_ids(std::string_view text, EncodeOptions options) const {
  return run(text, options.add_special_tokens, false).ids;
}

Encoding Pipeline::encode_with_offsets(std::string_view text, EncodeOptions options) const {
  return run(text, options.add_special_tokens, true);
}

Encoding Pipeline::run(std::string_view text, bool add_special_tokens, bool detailed) const {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  if (text.size() >= std::numeric_limits<std::int32_t>::max()) {
    throw InputError(str("a text of ", text.size(), " bytes; the tokenizer takes less than 2 GB at a time"));
  }
  Pieces pieces(text);
  parts_.added_tokens.extract(pieces, parts_.normalizer.get());
  if (parts_.pre_tokenizer) parts_.pre_tokenizer->apply(pieces);

  std::vector<std::uint32_t> characters;  // The number of characters that begin before each byte, and at it.
  if (detailed) {
    characters.resize(text.size());
    std::uint32_t count = 0;
    for (std::size_t i = 0; i < text.size(); ++i) characters[i] = count += !is_continuation(text[i]);
  }
  Encoding encoding;
  encoding.ids.reserve(pieces.list.size() + pieces.list.size() / 4);
  StateLoan state(*this);
  std::vector<WordToken> tokens;
  for (const Piece& piece : pieces.list) {
    tokens.clear();
    if (piece.token >= 0) {
      tokens.push_back({piece.token, 0, static_cast<std::uint32_t>(piece.end - piece.begin)});
    } else {
      model_->encode(pieces.text(piece), state.get(), tokens);
    }
    for (const WordToken& token : tokens) {
      encoding.ids.push_back(token.id);
      if (detailed) add_detail(pieces, piece, token, characters, encoding);
    }
  }
  if (parts_.post_processor) parts_.post_processor->apply(encoding, add_special_tokens, detailed);
  return encoding;
}

void Pipeline::add_detail(const Pieces& pieces, const Piece& piece, const WordToken& token,
                          const std::vector<std::uint32_t>& characters, Encoding& encoding) const {
  // An added token is spelled as the text has it, with the white space that it took.
  encoding.tokens.emplace_back(piece.token >= 0 ? pieces.text(piece)
                                                : std::string_view(parts_.vocabulary.token(token.id)));
  const Origin origin = pieces.origin(piece.begin + token.begin, piece.begin + token.end);
  const auto first = origin.begin < characters.size() ? characters[origin.begin] - 1 : characters.back();
  const auto last = origin.end == 0                  ? 0
                    : origin.end < characters.size() ? characters[origin.end] - 1
                                                     : characters.back();
  encoding.offsets.emplace_back(first, last);
}

void Pipeline::check_id(int64_t id) const {
  if (parts_.vocabulary.has(id)) return;
  throw InputError(str("token ", id, " is not in the vocabulary, which has ", vocabulary_size(), " tokens below ",
                       parts_.vocabulary.end()));
}

std::string Pipeline::decode(std::span<const int64_t> ids, DecodeOptions options) const {
  std::string bytes;
  std::vector<std::string> tokens;
  for (const int64_t id : ids) {
    check_id(id);
    if (options.skip_special_tokens && is_special(id)) continue;
    if (parts_.is_byte_level_decoder) {
      bytes += token_bytes_[static_cast<std::size_t>(id)];
    } else {
      tokens.push_back(parts_.vocabulary.token(id));
    }
  }
  if (parts_.is_byte_level_decoder) return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
  if (parts_.decoder) parts_.decoder->apply(tokens);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && !parts_.decoder) bytes += ' ';
    bytes += tokens[i];
  }
  return bytes;
}

const std::string& Pipeline::token(int64_t id) const {
  check_id(id);
  return parts_.vocabulary.token(id);
}

std::optional<int64_t> Pipeline::id_of(std::string_view token) const { return parts_.vocabulary.find(token); }

bool Pipeline::is_special(int64_t id) const {
  check_id(id);
  return parts_.added_tokens.is_added(id) && parts_.added_tokens.is_special(parts_.vocabulary.token(id));
}

}  // namespace glassformer::text
