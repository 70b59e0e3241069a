"""Folders with a tiny model and a byte-level tokenizer that fits it, as models are published."""

import functools
import tempfile

import tokenizers
import torch
from tiny_models import make_model
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The capital of France is Paris. The capital of England is London, and the capital of Spain is Madrid.",
    "The cat sat on the mat. The dog ran to the road, and hello, hello said the king of the country.",
    "The quick brown fox jumps over the lazy dog; the Eiffel Tower is in the city of Paris. 1135 1135",
]
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@functools.cache
def byte_tokenizer(add_prefix_space=False):
    """A tokenizer of bytes and a hundred merges, trained on `TEXTS`: it takes any text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=len(special) + len(alphabet) + 100,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


def published(kind, dtype=torch.float64, add_prefix_space=False, **changes):
    """(model of `transformers`, the folder that has it and its tokenizer)."""
    return _published(kind, dtype, add_prefix_space, tuple(changes.items()))


@functools.cache
def _published(kind, dtype, add_prefix_space, changes):
    tokenizer = byte_tokenizer(add_prefix_space)
    model = make_model(kind, dtype, vocab_size=len(tokenizer), **dict(changes))
    folder = tempfile.TemporaryDirectory(prefix="published")
    model.save_pretrained(folder.name)
    tokenizer.save_pretrained(folder.name)
    model.folder = folder  # Stays as long as the model does.
    return model, folder.name
