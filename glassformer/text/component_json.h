#pragma once
// Builds the parts of a tokenizer from their descriptions in tokenizer.json, by `type`. A type that we lack raises
// `UnsupportedError` with its name.

#include <memory>

#include "glassformer/text/json_view.h"
#include "glassformer/text/pipeline.h"

namespace glassformer::text {

std::unique_ptr<Normalizer> read_normalizer(const JsonView& json);
std::unique_ptr<PreTokenizer> read_pre_tokenizer(const JsonView& json);
std::unique_ptr<PostProcessor> read_post_processor(const JsonView& json);
std::unique_ptr<Decoder> read_decoder(const JsonView& json);

}  // namespace glassformer::text
