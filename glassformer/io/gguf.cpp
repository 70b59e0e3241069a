#include "glassformer/io/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <set>
#include <unordered_set>

#include "glassformer/base/errors.h"
#include "glassformer/io/checks.h"

namespace glassformer {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF values are read as they lie in the file");

enum class ValueType : uint32_t {
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kUInt32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUInt64,
  kInt64,
  kFloat64,
};

constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMostAxes = 4;
constexpr uint64_t kSmallestEntry = 8 + 4 + 1;       // An empty key, its type, one byte of value.
constexpr uint64_t kSmallestTensor = 8 + 4 + 4 + 8;  // An empty name, no axes, type, offset.
constexpr const char* kCutOff = " (incomplete download?)";

struct FileType {
  uint32_t number;
  std::string_view name;
  int dtype;  // A DType, or -1 where Glassformer lacks the type.
};

constexpr int as_int(DType dtype) { return static_cast<int>(dtype); }

constexpr FileType kFileTypes[] = {
    {0, "F32", as_int(DType::kFloat32)},
    {1, "F16", as_int(DType::kFloat16)},
    {2, "Q4_0", as_int(DType::kQ4_0)},
    {3, "Q4_1", as_int(DType::kQ4_1)},
    {4, "Q4_2", -1},
    {5, "Q4_3", -1},
    {6, "Q5_0", as_int(DType::kQ5_0)},
    {7, "Q5_1", as_int(DType::kQ5_1)},
    {8, "Q8_0", as_int(DType::kQ8_0)},
    {9, "Q8_1", -1},
    {10, "Q2_K", as_int(DType::kQ2_K)},
    {11, "Q3_K", as_int(DType::kQ3_K)},
    {12, "Q4_K", as_int(DType::kQ4_K)},
    {13, "Q5_K", as_int(DType::kQ5_K)},
    {14, "Q6_K", as_int(DType::kQ6_K)},
    {15, "Q8_K", -1},
    {16, "IQ2_XXS", -1},
    {17, "IQ2_XS", -1},
    {18, "IQ3_XXS", -1},
    {19, "IQ1_S", -1},
    {20, "IQ4_NL", as_int(DType::kIQ4_NL)},
    {21, "IQ3_S", -1},
    {22, "IQ2_S", -1},
    {23, "IQ4_XS", as_int(DType::kIQ4_XS)},
    {24, "I8", as_int(DType::kInt8)},
    {25, "I16", as_int(DType::kInt16)},
    {26, "I32", as_int(DType::kInt32)},
    {27, "I64", as_int(DType::kInt64)},
    {28, "F64", as_int(DType::kFloat64)},
    {29, "IQ1_M", -1},
    {30, "BF16", as_int(DType::kBFloat16)},
    {31, "Q4_0_4_4", -1},
    {32, "Q4_0_4_8", -1},
    {33, "Q4_0_8_8", -1},
    {34, "TQ1_0", -1},
    {35, "TQ2_0", -1},
    {36, "IQ4_NL_4_4", -1},
    {37, "IQ4_NL_4_8", -1},
    {38, "IQ4_NL_8_8", -1},
    {39, "MXFP4", -1},
    {40, "NVFP4", -1},
    {41, "Q1_0", -1},
};

std::string supported_types() {
  std::string names;
  for (const FileType& type : kFileTypes) {
    if (type.dtype >= 0) names += (names.empty() ? "" : ", ") + std::string(type.name);
  }
  return names;
}

/// Reads a mapped file from its start, and never past its end.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return file_.bytes().size() - position_; }

  [[noreturn]] void fail(const std::string& problem) const { throw FileError(file_.path(), problem); }

  template <typename T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string text(std::string_view what) {
    const auto length = number<uint64_t>(what);
    return std::string(reinterpret_cast<const char*>(take(length, what)), length);
  }

  /// A number of things of which each takes at least `smallest` bytes, so that nobody makes room for more than there
  /// are.
  uint64_t count(uint64_t smallest, std::string_view what) {
    const auto value = number<uint64_t>(what);
    if (value > remaining() / smallest) {
      fail(str(what, " says ", value, " items, but only ", remaining(), " bytes follow", kCutOff));
    }
    return value;
  }

 private:
  const std::byte* take(uint64_t size, std::string_view what) {
    if (size > remaining()) {
      fail(str(what, " takes ", size, " bytes at byte ", position_, ", but the file has ", file_.bytes().size(),
               kCutOff));
    }
    const std::byte* start = file_.bytes().data() + position_;
    position_ += size;
    return start;
  }

  const MappedFile& file_;
  uint64_t position_ = 0;
};

template <typename T>
GgufValue read_integer(Cursor& cursor, const std::string& what) {
  const T value = cursor.number<T>(what);
  if constexpr (std::is_same_v<T, uint64_t>) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      cursor.fail(str(what, " is ", value, ", more than a signed 64-bit integer holds"));
    }
  }
  return static_cast<int64_t>(value);
}

bool read_bool(Cursor& cursor, const std::string& what) {
  const auto value = cursor.number<uint8_t>(what);
  if (value > 1) cursor.fail(str(what, " is the boolean ", int{value}, "; expected 0 or 1"));
  return value == 1;
}

GgufValue read_scalar(Cursor& cursor, ValueType type, const std::string& what) {
  switch (type) {
    case ValueType::kUInt8:
      return read_integer<uint8_t>(cursor, what);
    case ValueType::kInt8:
      return read_integer<int8_t>(cursor, what);
    case ValueType::kUInt16:
      return read_integer<uint16_t>(cursor, what);
    case ValueType::kInt16:
      return read_integer<int16_t>(cursor, what);
    case ValueType::kUInt32:
      return read_integer<uint32_t>(cursor, what);
    case ValueType::kInt32:
      return read_integer<int32_t>(cursor, what);
    case ValueType::kUInt64:
      return read_integer<uint64_t>(cursor, what);
    case ValueType::kInt64:
      return read_integer<int64_t>(cursor, what);
    case ValueType::kFloat32:
      return double{cursor.number<float>(what)};
    case ValueType::kFloat64:
      return cursor.number<double>(what);
    case ValueType::kBool:
      return read_bool(cursor, what);
    case ValueType::kString:
      return cursor.text(what);
    case ValueType::kArray:
      break;
  }
  cursor.fail(str(what, " has the unknown type ", static_cast<uint32_t>(type)));
}

uint64_t smallest_size(ValueType type) {
  switch (type) {
    case ValueType::kUInt8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUInt16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUInt32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

template <typename T>
GgufValue read_items(Cursor& cursor, ValueType type, uint64_t count, const std::string& what) {
  std::vector<T> items;
  items.reserve(count);
  for (uint64_t i = 0; i < count; ++i) items.push_back(std::get<T>(read_scalar(cursor, type, what)));
  return items;
}

GgufValue read_array(Cursor& cursor, const MappedFile& file, const std::string& what) {
  const auto type = static_cast<ValueType>(cursor.number<uint32_t>(what));
  if (type == ValueType::kArray) {
    throw UnsupportedError(
        str(file.path(), ": ", what, " is an array of arrays; only arrays of plain values are supported"));
  }
  if (type > ValueType::kFloat64)
    cursor.fail(str(what, " is an array of the unknown type ", static_cast<uint32_t>(type)));
  const uint64_t count = cursor.count(smallest_size(type), what);
  switch (type) {
    case ValueType::kString:
      return read_items<std::string>(cursor, type, count, what);
    case ValueType::kBool:
      return read_items<bool>(cursor, type, count, what);
    case ValueType::kFloat32:
    case ValueType::kFloat64:
      return read_items<double>(cursor, type, count, what);
    default:
      return read_items<int64_t>(cursor, type, count, what);
  }
}

void read_metadata(Cursor& cursor, GgufFile& gguf, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = cursor.text(str("the name of metadata entry ", i));
    if (!is_utf8(key)) cursor.fail(str("the name of metadata entry ", i, " is not UTF-8: ", quote(key)));
    const std::string what = "metadata " + quote(key);
    const auto type = static_cast<ValueType>(cursor.number<uint32_t>(what));
    GgufValue value =
        type == ValueType::kArray ? read_array(cursor, *gguf.file, what) : read_scalar(cursor, type, what);
    if (!gguf.metadata.emplace(std::move(key), std::move(value)).second) cursor.fail(what + " is there twice");
  }
}

DType read_dtype(Cursor& cursor, const GgufFile& gguf, const std::string& what) {
  const auto number = cursor.number<uint32_t>(what);
  std::string name = str("type ", number);
  for (const FileType& type : kFileTypes) {
    if (type.number != number) continue;
    if (type.dtype >= 0) return static_cast<DType>(type.dtype);
    name = type.name;
  }
  throw UnsupportedError(str(gguf.path(), ": ", what, " is stored as ", name, "; supported: ", supported_types()));
}

/// The sizes, which the file has innermost first.
std::vector<int64_t> read_shape(Cursor& cursor, const std::string& what) {
  const auto axes = cursor.number<uint32_t>(what);
  if (axes > kMostAxes) cursor.fail(str(what, " has ", axes, " axes; GGUF has at most ", kMostAxes));
  std::vector<int64_t> shape(axes);
  for (uint32_t i = 0; i < axes; ++i) {
    const auto size = cursor.number<uint64_t>(what);
    if (size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      cursor.fail(str(what, " has an axis of size ", size));
    }
    shape[axes - 1 - i] = static_cast<int64_t>(size);
  }
  return shape;
}

size_t stored_size(const Cursor& cursor, const StoredTensor& tensor, const std::string& what) {
  const DTypeLayout& type = layout(tensor.dtype);
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (row % type.block_size != 0) {
    cursor.fail(str(what, " has rows of ", row, " values; ", type.name, " needs a multiple of ", type.block_size));
  }
  const auto count = element_count(tensor.shape);
  int64_t bytes = 0;
  if (!count || __builtin_mul_overflow(*count / type.block_size, type.block_bytes, &bytes)) {
    cursor.fail(str(what, " has the shape ", shape_text(tensor.shape), ", too large for any file"));
  }
  return static_cast<size_t>(bytes);
}

struct TableEntry {
  StoredTensor tensor;
  uint64_t offset = 0;  // From the start of the data.
};

std::vector<TableEntry> read_table(Cursor& cursor, const GgufFile& gguf, uint64_t count) {
  std::vector<TableEntry> table;
  table.reserve(count);
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < count; ++i) {
    TableEntry& entry = table.emplace_back();
    StoredTensor& tensor = entry.tensor;
    tensor.name = cursor.text(str("the name of tensor ", i));
    if (!is_utf8(tensor.name)) cursor.fail(str("the name of tensor ", i, " is not UTF-8: ", quote(tensor.name)));
    const std::string what = "tensor " + quote(tensor.name);
    if (!names.insert(tensor.name).second) cursor.fail(what + " is there twice");
    tensor.shape = read_shape(cursor, what);
    tensor.dtype = read_dtype(cursor, gguf, what);
    tensor.bytes = stored_size(cursor, tensor, what);
    tensor.file = gguf.file;
    entry.offset = cursor.number<uint64_t>(what);
  }
  return table;
}

uint64_t read_alignment(const Cursor& cursor, const GgufFile& gguf) {
  const auto entry = gguf.metadata.find("general.alignment");
  if (entry == gguf.metadata.end()) return kDefaultAlignment;
  const int64_t* value = std::get_if<int64_t>(&entry->second);
  if (value == nullptr || *value <= 0 || *value > std::numeric_limits<uint32_t>::max() ||
      !std::has_single_bit(static_cast<uint64_t>(*value))) {
    cursor.fail(str("metadata 'general.alignment' is ", value == nullptr ? "no integer" : std::to_string(*value),
                    "; expected a power of two"));
  }
  return static_cast<uint64_t>(*value);
}

/// Finds each tensor's bytes. The alignment has 32 bits and the position is inside the file, so the start can't
/// overflow.
void place_tensors(const Cursor& cursor, std::vector<TableEntry>& table, uint64_t alignment) {
  const uint64_t start = (cursor.position() + alignment - 1) / alignment * alignment;
  for (TableEntry& entry : table) {
    StoredTensor& tensor = entry.tensor;
    const uint64_t size = tensor.file->bytes().size();
    const std::string what = "tensor " + quote(tensor.name);
    if (entry.offset % alignment != 0) {
      cursor.fail(str(what, " is at offset ", entry.offset, ", not a multiple of the alignment ", alignment));
    }
    uint64_t end = 0;
    if (__builtin_add_overflow(start, entry.offset, &end) ||
        __builtin_add_overflow(end, uint64_t{tensor.bytes}, &end)) {
      cursor.fail(str(what, " is at offset ", entry.offset, ", which no file has"));
    }
    if (end > size) cursor.fail(str(what, " ends at byte ", end, ", but the file has ", size, kCutOff));
    tensor.data = tensor.file->bytes().data() + start + entry.offset;
  }
}

void refuse_overlaps(const Cursor& cursor, const std::vector<TableEntry>& table) {
  std::vector<const TableEntry*> order;
  for (const TableEntry& entry : table) {
    if (entry.tensor.bytes > 0) order.push_back(&entry);
  }
  std::sort(order.begin(), order.end(), [](auto* left, auto* right) { return left->offset < right->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->tensor.bytes > order[i]->offset) {
      cursor.fail(str("tensors ", quote(order[i - 1]->tensor.name), " and ", quote(order[i]->tensor.name), " overlap"));
    }
  }
}

int64_t read_version(Cursor& cursor, const MappedFile& file) {
  constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
  if (cursor.remaining() < 4 || cursor.number<uint32_t>("the mark 'GGUF'") != kMagic) {
    refuse_lfs_pointer(file);
    cursor.fail("is not a GGUF file: it doesn't begin with 'GGUF'");
  }
  const auto version = cursor.number<uint32_t>("the version");
  if ((version & 0xFFFF) == 0 && version != 0) {
    throw UnsupportedError(file.path() + ": is a big-endian GGUF file; only little-endian ones are supported");
  }
  if (version != 2 && version != 3) {
    throw UnsupportedError(str(file.path(), ": is GGUF version ", version, "; supported are versions 2 and 3"));
  }
  return version;
}

constexpr std::string_view kKindNames[] = {
    "an integer",
    "a float",
    "a boolean",
    "a string",
    "an array of integers",
    "an array of floats",
    "an array of booleans",
    "an array of strings",
};

template <typename To, typename From>
std::optional<To> convert_number(From value) {
  if constexpr (std::is_same_v<To, int64_t>) {
    // 2^63 itself is a double, but no int64.
    if (!(value >= -0x1p63 && value < 0x1p63) || std::trunc(value) != value) return std::nullopt;
  }
  return static_cast<To>(value);
}

/// Keeps converted values for good, so that `at` can hand out references to them; there are as many as files hold.
template <typename T>
const T& interned(T value) {
  static std::mutex mutex;
  static std::set<T> values;
  const std::lock_guard lock(mutex);
  return *values.insert(std::move(value)).first;
}

template <typename To, typename From>
const To* converted(const GgufValue& value) {
  if (const From* number = std::get_if<From>(&value)) {
    const auto result = convert_number<To>(*number);
    return result ? &interned(*result) : nullptr;
  }
  return nullptr;
}

template <typename To, typename From>
const std::vector<To>* converted_items(const GgufValue& value) {
  const auto* numbers = std::get_if<std::vector<From>>(&value);
  if (numbers == nullptr) return nullptr;
  std::vector<To> results;
  results.reserve(numbers->size());
  for (const From number : *numbers) {
    const auto result = convert_number<To>(number);
    if (!result) return nullptr;
    results.push_back(*result);
  }
  return &interned(std::move(results));
}

/// `value` as T, or null.
template <typename T>
const T* value_as(const GgufValue& value) {
  if (const T* exact = std::get_if<T>(&value)) return exact;
  if constexpr (std::is_same_v<T, int64_t>) return converted<int64_t, double>(value);
  if constexpr (std::is_same_v<T, double>) return converted<double, int64_t>(value);
  if constexpr (std::is_same_v<T, std::vector<int64_t>>) return converted_items<int64_t, double>(value);
  if constexpr (std::is_same_v<T, std::vector<double>>) return converted_items<double, int64_t>(value);
  return nullptr;
}

}  // namespace

template <typename T>
const T& GgufFile::at(std::string_view key) const {
  const std::string_view expected = kKindNames[GgufValue(T{}).index()];
  const auto entry = metadata.find(key);
  if (entry == metadata.end()) {
    throw FileError(file ? path() : "GGUF", str("metadata ", quote(key), " is missing; expected ", expected));
  }
  if (const T* value = value_as<T>(entry->second)) return *value;
  throw FileError(file ? path() : "GGUF",
                  str("metadata ", quote(key), " is ", kKindNames[entry->second.index()], "; expected ", expected));
}

template <typename T>
T GgufFile::get(std::string_view key, T fallback) const {
  return metadata.contains(key) ? at<T>(key) : std::move(fallback);
}

#define GLASSFORMER_GGUF_KIND(...)                                               \
  template const __VA_ARGS__& GgufFile::at<__VA_ARGS__>(std::string_view) const; \
  template __VA_ARGS__ GgufFile::get<__VA_ARGS__>(std::string_view, __VA_ARGS__) const;
GLASSFORMER_GGUF_KIND(int64_t)
GLASSFORMER_GGUF_KIND(double)
GLASSFORMER_GGUF_KIND(bool)
GLASSFORMER_GGUF_KIND(std::string)
GLASSFORMER_GGUF_KIND(std::vector<int64_t>)
GLASSFORMER_GGUF_KIND(std::vector<double>)
GLASSFORMER_GGUF_KIND(std::vector<bool>)
GLASSFORMER_GGUF_KIND(std::vector<std::string>)
#undef GLASSFORMER_GGUF_KIND

GgufFile read_gguf(const std::shared_ptr<MappedFile>& file) {
  Cursor cursor(*file);
  GgufFile gguf;
  gguf.file = file;
  gguf.version = read_version(cursor, *file);
  const uint64_t tensors = cursor.count(kSmallestTensor, "the number of tensors");
  const uint64_t entries = cursor.count(kSmallestEntry, "the number of metadata entries");
  read_metadata(cursor, gguf, entries);
  const uint64_t alignment = read_alignment(cursor, gguf);
  std::vector<TableEntry> table = read_table(cursor, gguf, tensors);
  place_tensors(cursor, table, alignment);
  refuse_overlaps(cursor, table);
  gguf.tensors.reserve(table.size());
  for (TableEntry& entry : table) gguf.tensors.push_back(std::move(entry.tensor));
  return gguf;
}

}  // namespace glassformer
