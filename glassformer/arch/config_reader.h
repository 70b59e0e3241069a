#pragma once
// Internal to arch/: reads config.json's values with errors that name the file and the key.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "glassformer/base/errors.h"

namespace glassformer {

class ConfigReader {
 public:
  ConfigReader(const std::string& text, std::string path);
  ConfigReader(nlohmann::json values, std::string path) : values_(std::move(values)), path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  bool has(const char* key) const { return values_.contains(key) && !values_.at(key).is_null(); }
  bool mentions(const char* key) const { return values_.contains(key); }  // If only to say null.

  int64_t integer(const char* key) const;
  double real(const char* key) const;
  bool flag(const char* key) const;
  std::string text(const char* key) const;
  std::vector<double> reals(const char* key) const;
  std::vector<std::string> texts(const char* key) const;
  ConfigReader object(const char* key) const;

  int64_t integer(const char* key, int64_t fallback) const { return has(key) ? integer(key) : fallback; }
  double real(const char* key, double fallback) const { return has(key) ? real(key) : fallback; }
  bool flag(const char* key, bool fallback) const { return has(key) ? flag(key) : fallback; }
  std::string text(const char* key, const char* fallback) const { return has(key) ? text(key) : fallback; }

 private:
  const nlohmann::json& at(const char* key) const;
  [[noreturn]] void wrong(const char* key, const char* expected) const;

  nlohmann::json values_;
  std::string path_;
};

/// The rotary embedding that a config of transformers describes: `rope_parameters`, or `rope_theta` and `rope_scaling`.
struct Rope;
Rope read_rope(const ConfigReader& reader, int64_t d_head, int64_t n_ctx);

}  // namespace glassformer
