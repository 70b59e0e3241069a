#include "cli/files.h"

#include "glassformer/arch/architecture.h"
#include "glassformer/base/errors.h"
#include "glassformer/io/model_files.h"
#include "glassformer/text/tokenizer.h"

namespace glassformer::cli {

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name_or_path) {
  const ModelFiles files = open_model(name_or_path, false);
  auto tokenizer = find_tokenizer(files);
  if (!tokenizer) throw InputError(files.path + ": the model came without a tokenizer");
  return tokenizer;
}

}  // namespace glassformer::cli
