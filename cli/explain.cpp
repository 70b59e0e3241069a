#include "glassformer/analysis/explain.h"

#include "cli/session.h"
#include "glassformer/view/page.h"
#include "glassformer/view/terminal.h"

namespace glassformer::cli {

int run(const ExplainArguments& arguments) {
  if (arguments.html) check_writable(*arguments.html);
  Progress progress;
  progress.show("opening the model");
  const auto model = load(arguments);
  ExplainOptions options;
  options.n_heads = arguments.heads;
  options.n_next_tokens = arguments.top_k;
  options.progress = [&](const std::string& what, int64_t done, int64_t total) { progress.show(what, done, total); };
  if (arguments.answer) options.answer = single_token(*model, *arguments.answer, "--answer");
  if (arguments.versus_answer) options.versus_answer = single_token(*model, *arguments.versus_answer, "--versus");
  const Explanation explanation = explain(model, arguments.prompt, arguments.versus, options);
  if (arguments.html) write_file(*arguments.html, render_page(explanation));
  progress.clear();
  if (arguments.json) {
    print(to_json(explanation));
    return kSuccess;
  }
  print(render_terminal(explanation, {.colour = screen().colour, .width = screen().width}));
  if (arguments.html) print("\nWritten: " + visible(*arguments.html) + "\n");
  return kSuccess;
}

}  // namespace glassformer::cli
