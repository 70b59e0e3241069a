#pragma once
// A tokenizer as a pipeline of parts, which is what both tokenizer.json and the metadata of a GGUF are read into.

#include <memory>
#include <mutex>
#include <vector>

#include "glassformer/text/added_tokens.h"
#include "glassformer/text/bpe.h"
#include "glassformer/text/decoder.h"
#include "glassformer/text/normalizer.h"
#include "glassformer/text/post_processor.h"
#include "glassformer/text/pre_tokenizer.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer::text {

/// Everything a tokenizer consists of. Null parts do nothing.
struct PipelineParts {
  Vocabulary vocabulary;   // With the added tokens.
  int64_t model_size = 0;  // Without them.
  AddedTokens added_tokens;
  std::unique_ptr<Normalizer> normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::vector<Merge> merges;
  BpeOptions bpe;
  std::unique_ptr<PostProcessor> post_processor;
  std::unique_ptr<Decoder> decoder;
  bool is_byte_level_decoder = false;  // The decoder is ByteLevel alone; it gets a shorter way.
};

/// Ids of the tokens with a role, and the chat template.
struct Roles {
  std::optional<int64_t> bos, eos, pad, unknown;
  std::string chat_template;
};

class Pipeline : public Tokenizer {
 public:
  Pipeline(PipelineParts parts, Roles roles);

  Encoding encode_with_offsets(std::string_view text, EncodeOptions options) const override;
  std::string decode(std::span<const int64_t> ids, DecodeOptions options) const override;
  int64_t vocabulary_size() const override { return parts_.vocabulary.size(); }
  int64_t id_end() const override { return parts_.vocabulary.end(); }
  int64_t model_size() const override { return parts_.model_size; }
  bool has(int64_t id) const override { return parts_.vocabulary.has(id); }
  const std::string& token(int64_t id) const override;
  std::optional<int64_t> id_of(std::string_view token) const override;
  bool is_special(int64_t id) const override;
  bool is_added(int64_t id) const override { return parts_.added_tokens.is_added(id); }

 protected:
  std::vector<int64_t> encode_ids(std::string_view text, EncodeOptions options) const override;

 private:
  class StateLoan;

  Encoding run(std::string_view text, bool add_special_tokens, bool detailed) const;
  void add_detail(const Pieces& pieces, const Piece& piece, const WordToken& token,
                  const std::vector<std::uint32_t>& characters, Encoding& encoding) const;
  void check_id(int64_t id) const;

  PipelineParts parts_;
  std::unique_ptr<Model> model_;
  std::vector<std::string> token_bytes_;  // Of each id, where the decoder is ByteLevel alone.

  // Each call borrows a state for itself, so that threads share neither caches nor locks while they encode.
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<ModelState>> states_;
};

}  // namespace glassformer::text
