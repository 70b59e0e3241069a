#pragma once
// Post-processors: what happens to the tokens of a whole text, such as a BOS in front.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "glassformer/text/tokenizer.h"

namespace glassformer::text {

class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  /// `detailed`: whether `encoding` has tokens and offsets besides ids.
  virtual void apply(Encoding& encoding, bool add_special_tokens, bool detailed) const = 0;
};

/// One step of a template: the text itself, or tokens.
struct TemplatePart {
  bool is_text = false;
  std::vector<std::int64_t> ids;
  std::vector<std::string> tokens;
};

std::unique_ptr<PostProcessor> make_byte_level_trimmer(bool add_prefix_space);
std::unique_ptr<PostProcessor> make_template(std::vector<TemplatePart> parts);
std::unique_ptr<PostProcessor> make_post_processor_sequence(std::vector<std::unique_ptr<PostProcessor>> parts);

}  // namespace glassformer::text
