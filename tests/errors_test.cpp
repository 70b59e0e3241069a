#include "glassformer/base/errors.h"

#include <doctest/doctest.h>

using namespace glassformer;

TEST_CASE("the nearest names come first, and far ones not at all") {
  const std::vector<std::string> names = {"hook_resid_pre", "hook_resid_post", "hook_z", "attention_mask"};
  CHECK(nearest_names("hook_resid_pra", names) == std::vector<std::string>{"hook_resid_pre", "hook_resid_post"});
  CHECK(nearest_names("qqqqqqqq", names).empty());
  CHECK(did_you_mean("hook_zz", names).find("hook_z") != std::string::npos);
}
