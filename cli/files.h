#pragma once

#include <memory>
#include <string>

namespace glassformer {
class Tokenizer;
struct ModelFiles;
}  // namespace glassformer

namespace glassformer::cli {

/// The tokenizer of a model that was opened, or null where it came without one.
std::shared_ptr<const Tokenizer> tokenizer_of(const ModelFiles& files);
/// The tokenizer alone; the weights are not looked at. Raises `InputError` where there is none.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name_or_path);

}  // namespace glassformer::cli
