#pragma once
// Text for terminals: an explanation as a whole, and the small parts that every command's output is made of.
// All text is UTF-8; widths are in terminal columns, and ANSI colour sequences count as none.

#include <string>
#include <string_view>
#include <vector>

#include "glassformer/analysis/explanation.h"

namespace glassformer {

struct TerminalOptions {
  bool colour = false;
  int width = 100;
};

/// The whole explanation as plain text in titled sections, no line wider than `options.width` (60 at least).
std::string render_terminal(const Explanation& explanation, TerminalOptions options = {});

/// A token as one can see it: `·` for a space, `⏎` for a line break, `⟨U+202E⟩` for what has no shape of its own. The
/// result holds no control character, so no token can steer the terminal.
std::string visible(std::string_view token);

/// The token as in a sentence: “ Paris”, visible but for single spaces beside other characters.
std::string in_quotes(std::string_view token);

/// A share of one in percent, with about two digits: "83 %", "4.2 %", "<0.01 %"; "n/a" where it is no number.
std::string percent(double share);

/// "+1.25", "-0.03"; "0" for exactly zero, "n/a" where it is no number.
std::string signed_number(double value, int decimals = 2);

/// "49,152".
std::string grouped(int64_t count);

/// A bar of `width` columns, of which the share |value| / maximum is filled.
std::string bar(double value, double maximum, int width);

/// `text` on a background for a value from -1 (blue) over 0 (none) to 1 (orange); without colour `text` as it is.
std::string heat(double value, std::string_view text, bool colour);

/// One column, darker the nearer |value| is to 1: " ", "░", "▒", "▓", "█".
std::string shade(double value);

/// The columns that `text` takes on a terminal.
int display_width(std::string_view text);

/// `text` if it has at most `width` columns, else its beginning and "…".
std::string shortened(std::string_view text, int width);

/// Lines of at most `width` columns, broken at spaces.
std::string wrapped(std::string_view text, int width);

enum class Align { kLeft, kRight };

struct Column {
  std::string header;  // May have several lines.
  Align align = Align::kLeft;
  int max_width = 0;  // Longer cells are shortened; 0 is no limit.
};

/// Rows of text under column headers, each column as wide as its widest cell.
class Table {
 public:
  explicit Table(std::vector<Column> columns);

  /// Adds a row; missing cells are empty, further ones dropped.
  void add(std::vector<std::string> row);

  /// The table with two spaces between columns, each line led by `indent` spaces.
  std::string text(int indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace glassformer
