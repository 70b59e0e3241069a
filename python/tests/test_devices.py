"""Models on a GPU, where there is one, against `transformers` and the oracle; what is given to them is on the CPU."""

import pytest
import torch
from helpers import assert_close, constant, run_reference, subject
from test_nnsight_language_model import IDS, OTHER, blocks, copy_and, outputs_of, path_of
from tiny_models import make_model, random_tokens

import glassformer
from glassformer.nnsight import LanguageModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
TOLERANCE = {"gpt2": 1e-10, "llama_grouped": 2e-5}  # Norms of transformers' Llama are float32.

pytestmark = [pytest.mark.parametrize("kind", TOLERANCE), pytest.mark.parametrize("device", DEVICES)]


def same(found, expected, kind):
    assert_close(found.detach().as_subclass(torch.Tensor).cpu(), expected.detach(), TOLERANCE[kind])


def language_model(kind, device):
    reference = make_model(kind, torch.float64)
    return reference, LanguageModel(reference, device_map=device)


def test_engine(kind, device):
    tiny = subject(kind)
    model, tokens = tiny.model.to(device), random_tokens(2, 7)
    trace = model.trace(tokens)
    assert model.device.type == trace.logits.device.type == trace.tokens.device.type == device
    plain = run_reference(tiny.reference, tokens)
    same(trace.logits, plain.logits, kind)
    same(trace["pattern1"], plain.attentions[1], kind)
    value = torch.randn(2, 7, model.config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    trace["resid_pre1"][:] = value
    trace["resid_post2"][:, torch.tensor([0, 3])] = 0.5
    edits = constant(value)
    expected = tiny.oracle.run(tokens, {"blocks.1.hook_resid_pre": edits})["blocks.2.hook_resid_post"]
    expected[:, [0, 3]] = 0.5
    assert_close(trace["resid_post2"].detach().cpu(), expected, 1e-10)


def test_a_batch_and_its_mask(kind, device):
    tiny = subject(kind)
    batch = tiny.model.to(device).trace([IDS, OTHER])
    assert batch.mask.device.type == batch.tokens.device.type == device
    batch.hook("resid_pre1", lambda value, call: value * batch.mask[:, -value.shape[1] :, None] * 2)
    doubled = {"blocks.1.hook_resid_pre": [lambda value, number: value * 2]}
    for row, ids in zip(batch.logits, (IDS, OTHER), strict=True):
        expected = tiny.oracle.run(torch.tensor([ids]), doubled)["logits"][0]
        assert_close(row[-len(ids) :].detach().cpu(), expected, 1e-10)
    assert batch.mask.sum(1).tolist() == [5, 3]


def test_reads_and_edits_of_modules(kind, device):
    reference, model = language_model(kind, device)
    numbers = torch.randn(reference.config.hidden_size, dtype=torch.float64)
    plain = outputs_of(reference, IDS)
    with torch.no_grad(), model.trace(IDS):
        for layer in range(3):
            same(blocks(model)[layer].output[0], plain[path_of(model, layer)], kind)
            same(blocks(model)[layer].mlp.output, plain[path_of(model, layer, ".mlp")], kind)
        blocks(model)[0].output[0][:, 1] = numbers
        blocks(model)[1].output[0][:, -1] *= 1.5
        logits = model.output.logits
    changes = [
        (path_of(model, 0), "output", copy_and(lambda value: value[:, 1].copy_(numbers))),
        (path_of(model, 1), "output", copy_and(lambda value: value[:, -1].mul_(1.5))),
    ]
    assert logits.device.type == device
    same(logits, outputs_of(reference, IDS, changes)[""], kind)


def test_invokes_and_edited_models(kind, device):
    reference, model = language_model(kind, device)
    with model.edit() as edited:
        blocks(edited)[1].mlp.output[:] = 0
    with torch.no_grad(), edited.trace() as tracer:
        with tracer.invoke(IDS):
            clean = blocks(edited)[1].output[0][:, -1]
        with tracer.invoke([OTHER]):
            blocks(edited)[2].output[0][:, -1] = clean
            logits = edited.output.logits
    off = (path_of(model, 1, ".mlp"), "output", torch.zeros_like)
    source = outputs_of(reference, IDS, [off])[path_of(model, 1)][:, -1].detach()
    put = (path_of(model, 2), "output", copy_and(lambda value: value[:, -1].copy_(source)))
    same(clean, source, kind)
    same(logits, outputs_of(reference, OTHER, [off, put])[""], kind)


def test_generation(kind, device):
    """An edit at one step, against runs of the whole text so far: keys and values of the steps behind it are edited."""
    reference, model = language_model(kind, device)
    with torch.no_grad(), model.generate(IDS, max_new_tokens=4, eos_token_id=None) as tracer:
        found = []
        for step in tracer.iter[:]:
            if step == 2:
                blocks(model)[1].output[0][:, -1] *= 0.5
            found.append(model.lm_head.output[:, -1])
        ids = tracer.result[0].tolist()
    halved = (path_of(model, 1), "output", copy_and(lambda value: value[:, len(IDS) + 1].mul_(0.5)))
    for step, logits in enumerate(found):
        text = ids[: len(IDS) + step]
        same(logits, outputs_of(reference, text, [halved] if step >= 2 else [])[""][:, -1], kind)
        assert logits.argmax() == ids[len(text)]


def test_gradients(kind, device):
    reference, model = language_model(kind, device)
    kept = {}

    def keep(module, args, output):
        kept["value"] = output[0] if isinstance(output, tuple) else output

    handle = blocks(reference)[1].register_forward_hook(keep)
    loss = reference(torch.tensor([IDS]), use_cache=False).logits[0, -1].logsumexp(0)
    handle.remove()
    (expected,) = torch.autograd.grad(loss, kept["value"])
    with model.trace(IDS):
        value = blocks(model)[1].output[0]
        with model.output.logits[0, -1].logsumexp(0).backward():
            gradient = value.grad
    assert gradient.device.type == device
    same(gradient, expected, kind)


def test_what_lies_elsewhere(kind, device):
    """Tokens may lie anywhere; a device that is not there has an error of its own."""
    reference, model = language_model(kind, device)
    with torch.no_grad(), model.trace(torch.tensor([IDS], device=device)):
        same(model.output.logits, outputs_of(reference, IDS)[""], kind)
    with pytest.raises(glassformer.InputError, match="is no device"):
        model.engine.to("nowhere")
