#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace glassformer {

struct GgufFile;

/// A text as tokens. `offsets[i]` is the half-open range of characters (code points) of the text that token i came
/// from.
struct Encoding {
  std::vector<int64_t> ids;
  std::vector<std::string> tokens;  // As the vocabulary spells them ("ĠParis").
  std::vector<std::pair<int64_t, int64_t>> offsets;
};

struct EncodeOptions {
  bool add_special_tokens = true;  // What the model's own template adds (a BOS, usually).
};

struct DecodeOptions {
  bool skip_special_tokens = false;
};

/// Turns text into token ids and back, as the model's own tokenizer.json (or the metadata of its GGUF file) says;
/// equal, token for token, to the Python package `tokenizers`. Immutable; any number of threads may use one.
class Tokenizer {
 public:
  /// From the text of tokenizer.json; `path` is for messages. `config_json` is the text of tokenizer_config.json,
  /// `chat_template` that of chat_template.jinja, which goes before the config's; both may be empty.
  static std::shared_ptr<const Tokenizer> from_json(std::string_view json, const std::string& path,
                                                    std::string_view config_json = {},
                                                    std::string_view chat_template = {});
  /// From the metadata of a GGUF file.
  static std::shared_ptr<const Tokenizer> from_gguf(const GgufFile& file);

  virtual ~Tokenizer() = default;

  /// Token ids of a UTF-8 text (bytes that are no UTF-8 count as U+FFFD).
  std::vector<int64_t> encode(std::string_view text, EncodeOptions options = {}) const;
  /// The same with the tokens' spellings and offsets.
  virtual Encoding encode_with_offsets(std::string_view text, EncodeOptions options = {}) const = 0;
  /// The text of `ids`; bytes that form no character come out as U+FFFD. An id out of range raises `InputError`.
  virtual std::string decode(std::span<const int64_t> ids, DecodeOptions options = {}) const = 0;

  virtual int64_t vocabulary_size() const = 0;  // With the added tokens.
  /// One more than the largest id; above the size where a vocabulary has gaps.
  virtual int64_t id_end() const { return vocabulary_size(); }
  virtual int64_t model_size() const { return vocabulary_size(); }  // Without them.
  virtual bool has(int64_t id) const { return id >= 0 && id < id_end(); }
  /// The spelling of one token in the vocabulary; `InputError` out of range.
  virtual const std::string& token(int64_t id) const = 0;
  virtual std::optional<int64_t> id_of(std::string_view token) const = 0;
  virtual bool is_special(int64_t id) const = 0;
  /// Whether the token is cut out of a text before anything else, special or not.
  virtual bool is_added(int64_t id) const { return is_special(id); }

  std::optional<int64_t> bos_id() const { return bos_id_; }
  std::optional<int64_t> eos_id() const { return eos_id_; }
  std::optional<int64_t> pad_id() const { return pad_id_; }
  std::optional<int64_t> unknown_id() const { return unknown_id_; }
  const std::string& chat_template() const { return chat_template_; }  // Jinja source, or empty.

  /// Each token of `ids` decoded alone: what a person sees of it (" Paris").
  std::vector<std::string> decode_each(std::span<const int64_t> ids) const;

 protected:
  /// Does the work of `encode`; overridden where ids alone are quicker to get.
  virtual std::vector<int64_t> encode_ids(std::string_view text, EncodeOptions options) const;

  std::optional<int64_t> bos_id_, eos_id_, pad_id_, unknown_id_;
  std::string chat_template_;
};

}  // namespace glassformer
