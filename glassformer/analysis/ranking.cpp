#include "glassformer/analysis/ranking.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>

#include <string>

#include "glassformer/base/errors.h"

namespace glassformer {

TokenRanking rank_tokens(const at::Tensor& logits) {
  const at::NoGradGuard without_graph;
  if (logits.dim() == 0) throw ShapeError("logits to rank have an axis of tokens; found a single number");
  if (!logits.is_floating_point()) {
    throw InputError(std::string("logits to rank are floating point; found ") + c10::toString(logits.scalar_type()));
  }
  TokenRanking ranking;
  ranking.probabilities = at::softmax(logits.to(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat), -1);
  ranking.order = std::get<1>(at::sort(ranking.probabilities, /*stable=*/true, /*dim=*/-1, /*descending=*/true));
  ranking.ranks = ranking.order.argsort();
  return ranking;
}

}  // namespace glassformer
