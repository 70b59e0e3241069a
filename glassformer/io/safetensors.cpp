#include "glassformer/io/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_set>

#include "glassformer/base/errors.h"
#include "glassformer/io/checks.h"

namespace glassformer {
namespace {

using simdjson::dom::element;

static_assert(std::endian::native == std::endian::little, "the length and the values are read as they lie in the file");

constexpr uint64_t kLongestHeader = 100'000'000;
constexpr const char* kCutOff = " (incomplete download?)";

struct PlainType {
  std::string_view name;
  DType dtype;
};

constexpr PlainType kPlainTypes[] = {
    {"F64", DType::kFloat64}, {"F32", DType::kFloat32}, {"F16", DType::kFloat16}, {"BF16", DType::kBFloat16},
    {"I64", DType::kInt64},   {"I32", DType::kInt32},   {"I16", DType::kInt16},   {"I8", DType::kInt8},
    {"U8", DType::kUInt8},    {"BOOL", DType::kBool},
};

struct Entry {
  StoredTensor tensor;
  uint64_t begin = 0, end = 0;  // From the end of the header.
};

/// Reads what one file says about its tensors; holds what every message needs.
class HeaderReader {
 public:
  explicit HeaderReader(const std::shared_ptr<MappedFile>& file) : file_(file), size_(file->bytes().size()) {}

  std::vector<StoredTensor> read() {
    std::vector<Entry> entries = parse(header());
    validate(entries);
    std::vector<StoredTensor> tensors;
    tensors.reserve(entries.size());
    for (Entry& entry : entries) {
      entry.tensor.data = file_->bytes().data() + data_start_ + entry.begin;
      entry.tensor.bytes = entry.end - entry.begin;
      entry.tensor.file = file_;
      tensors.push_back(std::move(entry.tensor));
    }
    return tensors;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const { throw FileError(file_->path(), problem); }

  std::string_view header() {
    refuse_lfs_pointer(*file_);
    uint64_t length = 0;
    if (size_ < sizeof(length)) fail(str("has ", size_, " bytes; a safetensors file has at least 8", kCutOff));
    std::memcpy(&length, file_->bytes().data(), sizeof(length));
    if (length > kLongestHeader) {
      fail(str("is not a safetensors file: it begins with a header length of ", length, "; the most is ",
               kLongestHeader));
    }
    data_start_ = sizeof(length) + length;
    if (data_start_ > size_) fail(str("the header ends at byte ", data_start_, ", but the file has ", size_, kCutOff));
    const std::string_view text(reinterpret_cast<const char*>(file_->bytes().data()) + sizeof(length), length);
    if (!is_utf8(text)) fail("the header is not UTF-8");
    return text;
  }

  std::vector<Entry> parse(std::string_view header) {
    simdjson::dom::parser parser;
    element root;
    if (const auto error = parser.parse(header.data(), header.size()).get(root)) {
      fail(str("the header is not JSON: ", simdjson::error_message(error)));
    }
    simdjson::dom::object object;
    if (root.get(object) != simdjson::SUCCESS) fail("the header is JSON, but not an object");
    std::vector<Entry> entries;
    std::unordered_set<std::string_view> names;
    for (const auto [name, value] : object) {
      if (!names.insert(name).second) fail("the header has " + quote(name) + " twice");
      if (name == "__metadata__") {
        check_metadata(value);
      } else {
        entries.push_back(parse_entry(name, value));
      }
    }
    return entries;
  }

  void check_metadata(element value) const {
    if (value.is_null()) return;
    simdjson::dom::object object;
    if (value.get(object) != simdjson::SUCCESS) fail("'__metadata__' is not an object");
    for (const auto [key, text] : object) {
      if (!text.is_string()) fail("'__metadata__' has " + quote(key) + ", which is not a string");
    }
  }

  Entry parse_entry(std::string_view name, element value) const {
    const std::string what = "tensor " + quote(name);
    simdjson::dom::object object;
    if (value.get(object) != simdjson::SUCCESS) fail(what + " is not described by an object");
    std::optional<element> dtype, shape, offsets;
    for (const auto [key, field] : object) {
      std::optional<element>* slot = key == "dtype"          ? &dtype
                                     : key == "shape"        ? &shape
                                     : key == "data_offsets" ? &offsets
                                                             : nullptr;
      if (slot == nullptr) continue;
      if (slot->has_value()) fail(str(what, " has ", quote(key), " twice"));
      *slot = field;
    }
    Entry entry;
    entry.tensor.name = name;
    entry.tensor.dtype = parse_dtype(dtype, what);
    for (const uint64_t size : parse_numbers(shape, "shape", what)) {
      if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        fail(str(what, " has an axis of size ", size));
      }
      entry.tensor.shape.push_back(static_cast<int64_t>(size));
    }
    const std::vector<uint64_t> range = parse_numbers(offsets, "data_offsets", what);
    if (range.size() != 2) fail(str(what, " has ", range.size(), " 'data_offsets'; expected 2"));
    entry.begin = range[0];
    entry.end = range[1];
    return entry;
  }

  DType parse_dtype(const std::optional<element>& field, const std::string& what) const {
    std::string_view name;
    if (!field) fail(what + " has no 'dtype'");
    if (field->get(name) != simdjson::SUCCESS) fail(what + " has a 'dtype' that is not a string");
    std::string supported;
    for (const PlainType& type : kPlainTypes) {
      if (type.name == name) return type.dtype;
      supported += (supported.empty() ? "" : ", ") + std::string(type.name);
    }
    throw UnsupportedError(str(file_->path(), ": ", what, " has the dtype ", quote(name), "; supported: ", supported));
  }

  std::vector<uint64_t> parse_numbers(const std::optional<element>& field, const char* key,
                                      const std::string& what) const {
    simdjson::dom::array array;
    if (!field) fail(str(what, " has no '", key, "'"));
    if (field->get(array) != simdjson::SUCCESS) fail(str(what, " has a '", key, "' that is not a list"));
    std::vector<uint64_t> numbers;
    for (const element item : array) {
      uint64_t number = 0;
      if (item.get(number) != simdjson::SUCCESS) {
        fail(str(what, " has a '", key, "' with something else than whole numbers from 0"));
      }
      numbers.push_back(number);
    }
    return numbers;
  }

  /// As the format's own reader does: in the order of the data every tensor begins where the one before it ends, has
  /// the bytes that its shape and dtype need, and the last one ends with the file.
  void validate(const std::vector<Entry>& entries) const {
    std::vector<const Entry*> order;
    for (const Entry& entry : entries) order.push_back(&entry);
    std::stable_sort(order.begin(), order.end(), [](const Entry* left, const Entry* right) {
      return std::pair(left->begin, left->end) < std::pair(right->begin, right->end);
    });
    uint64_t begin = 0;
    for (const Entry* entry : order) {
      const std::string what = "tensor " + quote(entry->tensor.name);
      if (entry->end < entry->begin)
        fail(str(what, " ends at offset ", entry->end, ", before it begins at ", entry->begin));
      if (entry->begin != begin) {
        fail(str(what, " begins at offset ", entry->begin, ", but the one before it ends at ", begin));
      }
      begin = entry->end;
      check_size(*entry, what);
    }
    check_end(order, begin);
  }

  void check_size(const Entry& entry, const std::string& what) const {
    const StoredTensor& tensor = entry.tensor;
    const auto count = element_count(tensor.shape);
    int64_t bytes = 0;
    if (!count || __builtin_mul_overflow(*count, layout(tensor.dtype).block_bytes, &bytes)) {
      fail(str(what, " has the shape ", shape_text(tensor.shape), ", too large for any file"));
    }
    if (entry.end - entry.begin != static_cast<uint64_t>(bytes)) {
      fail(str(what, " has ", entry.end - entry.begin, " bytes; ", layout(tensor.dtype).name, " of shape ",
               shape_text(tensor.shape), " needs ", bytes));
    }
  }

  /// The ends are sums of sizes that fit an int64 each; the first one past the file is where reading would go wrong.
  void check_end(const std::vector<const Entry*>& order, uint64_t end) const {
    const uint64_t available = size_ - data_start_;
    if (end == available) return;
    for (const Entry* entry : order) {
      if (entry->end <= available) continue;
      fail(str("tensor ", quote(entry->tensor.name), " ends at byte ", byte_in_file(entry->end), ", but the file has ",
               size_, kCutOff));
    }
    fail(str("the last tensor ends at byte ", data_start_ + end, ", but the file has ", size_));
  }

  std::string byte_in_file(uint64_t offset) const {
    uint64_t position = 0;
    if (__builtin_add_overflow(data_start_, offset, &position)) return "2^64 or more";
    return std::to_string(position);
  }

  std::shared_ptr<MappedFile> file_;
  uint64_t size_;
  uint64_t data_start_ = 0;
};

}  // namespace

std::vector<StoredTensor> read_safetensors(const std::shared_ptr<MappedFile>& file) {
  return HeaderReader(file).read();
}

}  // namespace glassformer
