"""Writes unicode_data.cpp: the category of each code point, as the patterns of `tokenizers` see it. Format it after."""

import pathlib

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

NAMES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co"
CATEGORIES = NAMES.split()
BLOCK = 4096
HEADER = """// Made by make_unicode_data.py. Each entry is (first code point << 8 | Category).

#include "glassformer/text/unicode.h"

namespace glassformer::text {

const std::uint32_t kCategoryRuns[] = {
"""
FOOTER = """};
const std::size_t kCategoryRunCount = sizeof(kCategoryRuns) / sizeof(kCategoryRuns[0]);

}  // namespace glassformer::text
"""


def categories() -> list[int]:
    """The category number of every code point; surrogates count as unassigned."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    found = [0] * 0x110000
    for number, name in enumerate(CATEGORIES):
        splitter = Split(Regex(rf"\p{{{name}}}"), "removed", invert=True)
        for start in range(0, len(points), BLOCK):
            text = "".join(map(chr, points[start : start + BLOCK]))
            for characters, _ in splitter.pre_tokenize_str(text):
                for character in characters:
                    found[ord(character)] = number
    return found


def main() -> None:
    found = categories()
    starts = [point for point in range(0x110000) if point == 0 or found[point] != found[point - 1]]
    entries = [f"0x{point << 8 | found[point]:X}" for point in starts]
    lines, line = [], "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 120:
            lines.append(line)
            line = "   "
        line += f" {entry},"
    lines.append(line)
    text = HEADER + "\n".join(lines) + "\n" + FOOTER
    pathlib.Path(__file__).with_name("unicode_data.cpp").write_text(text)


if __name__ == "__main__":
    main()
