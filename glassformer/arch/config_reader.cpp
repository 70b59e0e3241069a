#include "glassformer/arch/config_reader.h"

#include <cmath>

#include "glassformer/arch/config.h"

namespace glassformer {
namespace {

double yarn_scale(double factor, double weight) { return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0; }

double yarn_attention_factor(const ConfigReader& values, double factor) {
  if (values.has("attention_factor")) return values.real("attention_factor");
  const double part = values.real("mscale", 0), all = values.real("mscale_all_dim", 0);
  if (part != 0 && all != 0) return yarn_scale(factor, part) / yarn_scale(factor, all);
  return yarn_scale(factor, 1.0);
}

double longrope_attention_factor(const ConfigReader& values, const Rope& rope) {
  if (values.has("attention_factor")) return values.real("attention_factor");
  if (rope.factor <= 1) return 1.0;
  return std::sqrt(1 + std::log(rope.factor) / std::log(static_cast<double>(rope.original_n_ctx)));
}

void read_longrope(const ConfigReader& values, Rope& rope) {
  rope.short_factor = values.reals("short_factor");
  rope.long_factor = values.reals("long_factor");
  for (const auto* factors : {&rope.short_factor, &rope.long_factor})
    if (factors->size() != static_cast<size_t>(rope.dims / 2))
      throw FileError(values.path(), str("longrope has ", factors->size(), " factors; expected ", rope.dims / 2));
  rope.attention_factor = longrope_attention_factor(values, rope);
}

void read_scaling(const ConfigReader& values, const std::string& type, Rope& rope) {
  rope.original_n_ctx = values.integer("original_max_position_embeddings", rope.n_ctx);
  if (rope.original_n_ctx <= 0)
    throw FileError(values.path(),
                    str("original_max_position_embeddings is ", rope.original_n_ctx, "; expected a positive number"));
  const double stretch = static_cast<double>(rope.n_ctx) / static_cast<double>(rope.original_n_ctx);
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = values.real("factor");
  } else if (type == "dynamic") {
    rope.scaling = RopeScaling::kDynamic;
    rope.factor = values.real("factor");
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    rope.factor = values.real("factor");
    rope.low_freq_factor = values.real("low_freq_factor");
    rope.high_freq_factor = values.real("high_freq_factor");
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
    rope.factor = values.real("factor", stretch);
    rope.beta_fast = values.real("beta_fast", 32.0);
    rope.beta_slow = values.real("beta_slow", 1.0);
    rope.truncate = values.flag("truncate", true);
    rope.attention_factor = yarn_attention_factor(values, rope.factor);
  } else if (type == "longrope") {
    rope.scaling = RopeScaling::kLongRope;
    rope.factor = values.real("factor", stretch);
    read_longrope(values, rope);
  } else if (type != "default" && type != "none") {
    throw UnsupportedError(str(values.path(), ": rope_type '", type,
                               "' is not supported; supported: default, linear, dynamic, yarn, longrope, llama3"));
  }
  if (!(rope.factor > 0))
    throw FileError(values.path(), str("rope factor is ", rope.factor, "; expected a positive number"));
}

}  // namespace

ConfigReader::ConfigReader(const std::string& text, std::string path) : path_(std::move(path)) {
  values_ = nlohmann::json::parse(text, nullptr, false);
  if (!values_.is_object()) throw FileError(path_, "is not a JSON object");
}

void ConfigReader::wrong(const char* key, const char* expected) const {
  const nlohmann::json& value = at(key);
  throw FileError(
      path_, str("'", key, "' is ", value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 60),
                 "; expected ", expected));
}

const nlohmann::json& ConfigReader::at(const char* key) const {
  if (!has(key)) throw FileError(path_, str("has no '", key, "'"));
  return values_.at(key);
}

int64_t ConfigReader::integer(const char* key) const {
  const nlohmann::json& value = at(key);
  if (value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}))
    return value.get<int64_t>();
  if (value.is_number_float() && std::abs(value.get<double>()) < 1e15 &&
      value.get<double>() == std::floor(value.get<double>()))
    return static_cast<int64_t>(value.get<double>());
  wrong(key, "a whole number");
}

double ConfigReader::real(const char* key) const {
  const nlohmann::json& value = at(key);
  if (!value.is_number()) wrong(key, "a number");
  return value.get<double>();
}

bool ConfigReader::flag(const char* key) const {
  const nlohmann::json& value = at(key);
  if (!value.is_boolean()) wrong(key, "true or false");
  return value.get<bool>();
}

std::string ConfigReader::text(const char* key) const {
  const nlohmann::json& value = at(key);
  if (!value.is_string()) wrong(key, "a string");
  return value.get<std::string>();
}

std::vector<double> ConfigReader::reals(const char* key) const {
  const nlohmann::json& value = at(key);
  std::vector<double> numbers;
  if (!value.is_array()) wrong(key, "a list of numbers");
  for (const nlohmann::json& number : value) {
    if (!number.is_number()) wrong(key, "a list of numbers");
    numbers.push_back(number.get<double>());
  }
  return numbers;
}

std::vector<std::string> ConfigReader::texts(const char* key) const {
  const nlohmann::json& value = at(key);
  std::vector<std::string> texts;
  if (!value.is_array()) wrong(key, "a list of texts");
  for (const nlohmann::json& text : value) {
    if (!text.is_string()) wrong(key, "a list of texts");
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

ConfigReader ConfigReader::object(const char* key) const {
  if (!at(key).is_object()) wrong(key, "an object");
  return {at(key), path_};
}

Rope read_rope(const ConfigReader& reader, int64_t d_head, int64_t n_ctx) {
  Rope rope;
  rope.n_ctx = n_ctx;
  const bool current = reader.has("rope_parameters");
  const char* key = current ? "rope_parameters" : "rope_scaling";
  if (!reader.has(key)) {
    rope.base = reader.real("rope_theta", 10000.0);
    rope.original_n_ctx = n_ctx;
    rope.dims = static_cast<int64_t>(static_cast<double>(d_head) * reader.real("partial_rotary_factor", 1.0));
    return rope;
  }
  const ConfigReader values = reader.object(key);
  rope.base = values.real("rope_theta", reader.real("rope_theta", 10000.0));
  const double share = values.real("partial_rotary_factor", reader.real("partial_rotary_factor", 1.0));
  rope.dims = static_cast<int64_t>(static_cast<double>(d_head) * share);
  read_scaling(values, values.has("rope_type") ? values.text("rope_type") : values.text("type", "default"), rope);
  return rope;
}

}  // namespace glassformer
