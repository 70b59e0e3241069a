#include "glassformer/view/terminal.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace glassformer {
namespace {

constexpr const char* kEllipsis = "…";

// One character of a UTF-8 text, and the bytes it stands in. Bytes that form no character give U+FFFD.
struct Character {
  UChar32 code = 0;
  std::string_view bytes;
};

std::vector<Character> characters(std::string_view text) {
  std::vector<Character> result;
  const auto length = static_cast<int32_t>(text.size());
  for (int32_t i = 0; i < length;) {
    const int32_t start = i;
    UChar32 code = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"  // Inside ICU's macro.
    U8_NEXT(text.data(), i, length, code);
#pragma GCC diagnostic pop
    const auto size = static_cast<size_t>(i - start);
    if (code < 0) {
      result.push_back({0xFFFD, "\xEF\xBF\xBD"});
    } else {
      result.push_back({code, text.substr(static_cast<size_t>(start), size)});
    }
  }
  return result;
}

std::string formatted(const char* format, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, value);
  return buffer;
}

bool is_mark(UChar32 code) { return (U_GET_GC_MASK(code) & (U_GC_MN_MASK | U_GC_MC_MASK | U_GC_ME_MASK)) != 0; }

// Characters that would be drawn as nothing, as any other space, or that change how their neighbours are drawn.
bool is_shapeless(UChar32 code) {
  constexpr uint32_t kMask = U_GC_C_MASK | U_GC_Z_MASK;
  return (U_GET_GC_MASK(code) & kMask) != 0 || u_hasBinaryProperty(code, UCHAR_DEFAULT_IGNORABLE_CODE_POINT);
}

// They choose between the drawings of the character before them: ❤ or ❤️.
bool is_emoji_selector(UChar32 code) { return code == 0xFE0E || code == 0xFE0F; }

std::string control_picture(UChar32 code) {
  const auto picture = static_cast<char>(code == 0x7F ? 0xA1 : 0x80 + code);  // U+2400 to U+2421
  return std::string("\xE2\x90") + picture;
}

std::string shown(std::string_view token, const char* space) {
  std::string result;
  for (const Character& character : characters(token)) {
    const UChar32 code = character.code;
    if (code == ' ') {
      result += space;
    } else if (code == '\n') {
      result += "⏎";
    } else if (code == '\t') {
      result += "⇥";
    } else if (code < ' ' || code == 0x7F) {
      result += control_picture(code);
    } else if (is_shapeless(code) && (result.empty() || !is_emoji_selector(code))) {
      char name[24];
      std::snprintf(name, sizeof name, "⟨U+%04X⟩", static_cast<unsigned>(code));
      result += name;
    } else {
      if (result.empty() && is_mark(code)) result += "◌";
      result += character.bytes;
    }
  }
  return result;
}

int column_width(UChar32 code) {
  const uint32_t category = U_GET_GC_MASK(code);
  if ((category & (U_GC_MN_MASK | U_GC_ME_MASK | U_GC_CF_MASK)) != 0 && code != 0xAD) return 0;
  if (code >= 0x1160 && code <= 0x11FF) return 0;  // Korean vowels and finals join the letter before them.
  const int32_t east_asian = u_getIntPropertyValue(code, UCHAR_EAST_ASIAN_WIDTH);
  return east_asian == U_EA_WIDE || east_asian == U_EA_FULLWIDTH ? 2 : 1;
}

// The length of the colour sequence that `text` begins with, or 0.
size_t escape_length(std::string_view text) {
  if (!text.starts_with("\x1b[")) return 0;
  const size_t end = text.find('m');
  return end == std::string_view::npos ? 0 : end + 1;
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  size_t end = 0;
  do {
    end = text.find('\n');
    lines.emplace_back(text.substr(0, end));
    if (end != std::string_view::npos) text.remove_prefix(end + 1);
  } while (end != std::string_view::npos);
  return lines;
}

std::string padded(std::string_view text, int width, Align align) {
  const std::string space(static_cast<size_t>(std::max(0, width - display_width(text))), ' ');
  return align == Align::kLeft ? std::string(text) + space : space + std::string(text);
}

}  // namespace

std::string visible(std::string_view token) { return token.empty() ? "(empty)" : shown(token, "·"); }

std::string in_quotes(std::string_view token) {
  const bool spaces_count =
      token.find("  ") != std::string_view::npos || token.find_first_not_of(' ') == std::string_view::npos;
  return "“" + shown(token, spaces_count ? "·" : " ") + "”";
}

std::string percent(double share) {
  if (!std::isfinite(share)) return "n/a";
  const double value = share * 100;
  if (value == 0) return "0 %";
  if (value > 0 && value < 0.01) return "<0.01 %";
  if (value > 99.99 && value < 100) return ">99.99 %";
  // The limits are where rounding gives one digit more.
  if (value < 0.995) return formatted("%.2f %%", value);
  if (value < 9.95) return formatted("%.1f %%", value);
  if (value < 99.5 || value >= 100) return formatted("%.0f %%", value);
  return formatted("%.2f %%", value);
}

std::string signed_number(double value, int decimals) {
  if (!std::isfinite(value)) return "n/a";
  if (value == 0) return "0";
  char buffer[400];
  std::snprintf(buffer, sizeof buffer, "%+.*f", decimals, value);
  std::string text = buffer;
  if (text.find_first_of("123456789") == std::string::npos) text[0] = '+';  // "-0.00" says more than is known.
  return text;
}

std::string grouped(int64_t count) {
  std::string text = std::to_string(count);
  const size_t first = text[0] == '-' ? 1 : 0;
  for (size_t i = text.size(); i > first + 3; i -= 3) text.insert(i - 3, ",");
  return text;
}

std::string bar(double value, double maximum, int width) {
  const char* const parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  double share = maximum > 0 ? std::abs(value) / maximum : 0;
  if (!std::isfinite(share)) share = 0;
  const int eighths = static_cast<int>(std::lround(std::min(share, 1.0) * 8 * width));
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  return text + parts[eighths % 8];
}

std::string heat(double value, std::string_view text, bool colour) {
  // Backgrounds of the 256-colour palette, all light enough for black text.
  constexpr int kPositive[] = {230, 223, 215, 208}, kNegative[] = {195, 153, 111, 39};
  constexpr double kVisible = 0.05;
  const double size = std::min(std::abs(value), 1.0);
  if (!colour || !(size >= kVisible)) return std::string(text);
  const auto step = std::min<size_t>(3, static_cast<size_t>(size * 4));
  const int background = value > 0 ? kPositive[step] : kNegative[step];
  return "\x1b[38;5;16;48;5;" + std::to_string(background) + "m" + std::string(text) + "\x1b[0m";
}

std::string shade(double value) {
  const char* const steps[] = {" ", "░", "▒", "▓", "█"};
  const double size = std::isfinite(value) ? std::min(std::abs(value), 1.0) : 0;
  return steps[std::lround(size * 4)];
}

int display_width(std::string_view text) {
  int width = 0;
  for (size_t i = 0; i < text.size();) {
    if (const size_t escape = escape_length(text.substr(i)); escape > 0) {
      i += escape;
      continue;
    }
    const size_t end = std::min(text.find("\x1b[", i + 1), text.size());
    for (const Character& character : characters(text.substr(i, end - i))) width += column_width(character.code);
    i = end;
  }
  return width;
}

std::string shortened(std::string_view text, int width) {
  if (display_width(text) <= width) return std::string(text);
  std::string result;
  int used = 1;  // The ellipsis.
  for (const Character& character : characters(text)) {
    used += column_width(character.code);
    if (used > width) break;
    result += character.bytes;
  }
  return result + kEllipsis;
}

std::string wrapped(std::string_view text, int width) {
  std::string result, line;
  for (size_t start = 0; start < text.size();) {
    size_t end = std::min(text.find(' ', start), text.size());
    if (text.substr(start, end - start).ends_with("“")) end = std::min(text.find(' ', end + 1), text.size());
    const std::string_view word = text.substr(start, end - start);
    if (!line.empty() && display_width(line) + 1 + display_width(word) > width) {
      result += line + '\n';
      line.clear();
    }
    if (!line.empty()) line += ' ';
    line += shortened(word, width);
    start = end + 1;
  }
  return result + line + '\n';
}

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add(std::vector<std::string> row) {
  row.resize(columns_.size());
  for (size_t i = 0; i < row.size(); ++i) {
    if (columns_[i].max_width > 0) row[i] = shortened(row[i], columns_[i].max_width);
  }
  rows_.push_back(std::move(row));
}

std::string Table::text(int indent) const {
  std::vector<std::vector<std::string>> lines;
  for (size_t column = 0; column < columns_.size(); ++column) {
    const std::vector<std::string> header = lines_of(columns_[column].header);
    for (size_t i = 0; i < header.size(); ++i) {
      if (lines.size() <= i) lines.emplace_back(columns_.size());
      const int limit = columns_[column].max_width;
      lines[i][column] = limit > 0 ? shortened(header[i], limit) : header[i];
    }
  }
  if (std::all_of(columns_.begin(), columns_.end(), [](const Column& column) { return column.header.empty(); })) {
    lines.clear();
  }
  lines.insert(lines.end(), rows_.begin(), rows_.end());
  std::vector<int> widths(columns_.size(), 0);
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], display_width(line[i]));
  }
  std::string result;
  for (const auto& line : lines) {
    std::string out(static_cast<size_t>(indent), ' ');
    for (size_t i = 0; i < line.size(); ++i) {
      if (i > 0) out += "  ";
      out += padded(line[i], widths[i], columns_[i].align);
    }
    result += out.substr(0, out.find_last_not_of(' ') + 1) + '\n';
  }
  return result;
}

}  // namespace glassformer
