# Which headers belong to whom. Public ones are installed; they include only each other, the standard library, and of
# torch only ATen/core/Tensor.h. python/tests/test_layout.py checks that, and that each header of the library is either
# in one of these lists or says "Internal to <folder>/" in its first comment.
set(public_headers
    base/errors.h
    base/version.h
    io/dtype.h
    io/gguf.h
    io/mapped_file.h
    io/model_files.h
    io/safetensors.h
    io/stored_tensor.h
    text/tokenizer.h
    arch/architecture.h
    arch/config.h
    arch/weight_map.h
    graph/activations.h
    graph/extension.h
    graph/graph.h
    graph/model.h
    graph/node.h
    graph/rows.h
    graph/weights.h
    trace/batch.h
    trace/generate.h
    trace/hook.h
    trace/region.h
    trace/sampler.h
    trace/trace.h
    analysis/attribution.h
    analysis/circuits.h
    analysis/decomposition.h
    analysis/explain.h
    analysis/explanation.h
    analysis/factored_matrix.h
    analysis/head_detection.h
    analysis/lens.h
    analysis/losses.h
    analysis/patching.h
    analysis/ranking.h
    analysis/residual_parts.h
    analysis/weight_processing.h
    view/page.h
    view/terminal.h)

# Internal without saying so; all of text/ but the tokenizer is.
set(internal_headers
    arch/models/models.h
    graph/linear.h
    graph/mask.h
    graph/steps.h
    io/checks.h
    io/quantised.h
    text/*
    trace/cell.h
    trace/lineage.h
    view/page_assets.h)
