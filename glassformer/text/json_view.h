#pragma once
// Reading of untrusted JSON: each value knows its file and its place in it, for messages.

#include <simdjson.h>

#include <optional>
#include <string>
#include <string_view>

#include "glassformer/base/errors.h"
#include "glassformer/text/unicode.h"

namespace glassformer::text {

class JsonView {
 public:
  JsonView(const std::string& path, std::string place, simdjson::dom::element value)
      : path_(&path), place_(std::move(place)), value_(value) {}

  const std::string& path() const { return *path_; }
  bool is_null() const { return value_.is_null(); }
  bool is_object() const { return value_.is_object(); }
  bool is_array() const { return value_.is_array(); }
  bool is_string() const { return value_.is_string(); }
  std::string_view place() const { return place_.empty() ? "the file" : std::string_view(place_); }

  [[noreturn]] void fail(std::string_view problem) const { throw FileError(*path_, str(place(), " ", problem)); }
  [[noreturn]] void unsupported(std::string_view what) const {
    throw UnsupportedError(str(*path_, ": ", place(), ": ", what));
  }

  /// The member `key`, or nothing where it is missing or null.
  std::optional<JsonView> find(std::string_view key) const {
    simdjson::dom::object object;
    if (value_.get(object)) fail("is not an object");
    simdjson::dom::element member;
    if (object.at_key(key).get(member) || member.is_null()) return std::nullopt;
    return JsonView(*path_, join(key), member);
  }
  JsonView at(std::string_view key) const {
    auto member = find(key);
    if (!member) fail(str("has no '", key, "'"));
    return *member;
  }

  std::string_view string() const {
    std::string_view text;
    if (value_.get(text)) fail("is not a string");
    if (!is_valid_utf8(text)) fail("has half of a surrogate pair");
    return text;
  }
  bool boolean() const {
    bool flag = false;
    if (value_.get(flag)) fail("is not true or false");
    return flag;
  }
  std::int64_t integer() const {
    std::int64_t number = 0;
    if (value_.get(number)) fail("is not an integer");
    return number;
  }
  double number() const {
    double number = 0;
    if (value_.get(number)) fail("is not a number");
    return number;
  }
  std::string string_or(std::string_view key, std::string_view fallback) const {
    const auto member = find(key);
    return std::string(member ? member->string() : fallback);
  }
  bool boolean_or(std::string_view key, bool fallback) const {
    const auto member = find(key);
    return member ? member->boolean() : fallback;
  }

  std::size_t size() const {
    simdjson::dom::array array;
    if (!value_.get(array)) return array.size();
    simdjson::dom::object object;
    if (!value_.get(object)) return object.size();
    return 0;
  }

  /// Calls `visit(element)` for each element of an array.
  template <typename Visit>
  void for_each(Visit&& visit) const {
    simdjson::dom::array array;
    if (value_.get(array)) fail("is not a list");
    std::size_t index = 0;
    for (const simdjson::dom::element element : array) visit(JsonView(*path_, str(place_, '[', index++, ']'), element));
  }
  /// The same without a place for each element; for long lists.
  template <typename Visit>
  void for_each_value(Visit&& visit) const {
    simdjson::dom::array array;
    if (value_.get(array)) fail("is not a list");
    for (const simdjson::dom::element element : array) visit(element);
  }
  /// Calls `visit(key, value)` for each member of an object.
  template <typename Visit>
  void for_each_member(Visit&& visit) const {
    simdjson::dom::object object;
    if (value_.get(object)) fail("is not an object");
    for (const simdjson::dom::key_value_pair member : object) visit(member.key, member.value);
  }

  JsonView member_view(std::string_view key, simdjson::dom::element value) const {
    return JsonView(*path_, join(key), value);
  }

 private:
  std::string join(std::string_view key) const { return place_.empty() ? std::string(key) : str(place_, '.', key); }

  const std::string* path_;
  std::string place_;
  simdjson::dom::element value_;
};

}  // namespace glassformer::text
