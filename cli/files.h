#pragma once

#include <memory>
#include <string>

namespace glassformer {
class Tokenizer;
}  // namespace glassformer

namespace glassformer::cli {

/// The tokenizer alone; the weights are not looked at. Raises `InputError` where there is none.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name_or_path);

}  // namespace glassformer::cli
