"""A tokenizer that answers like a fast one of Hugging Face, on Glassformer's runtime; needs no `transformers`."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import os
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from glassformer import _core

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
NO_LIMIT = int(1e30)
END_MARK = "GLASSFORMER_END_OF_FINAL_MESSAGE "


class BatchEncoding(UserDict):
    """What a tokenizer returns: a dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(f"this encoding has no '{name}', only {', '.join(self.data)}") from None

    def to(self, device: Any) -> BatchEncoding:
        """The same encoding with its tensors on `device`."""
        return BatchEncoding({key: value.to(device) if hasattr(value, "to") else value for key, value in self.items()})


class Tokenizer:
    """Text to token ids and back; see `from_pretrained`."""

    is_fast = True
    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        core: _core.Tokenizer,
        *,
        config: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        name_or_path: str = "",
    ):
        config = config or {}
        self.core = core
        self.name_or_path = name_or_path
        self.chat_template = chat_template or core.chat_template or None
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces", False))
        self.model_max_length = int(config.get("model_max_length") or NO_LIMIT)
        self.truncation_side = config.get("truncation_side", "right")
        self.padding_side = config.get("padding_side", "right")
        self._roles: dict[str, str | None] = dict.fromkeys(ROLES)
        found = {"bos": core.bos_id, "eos": core.eos_id, "pad": core.pad_id, "unk": core.unknown_id}
        self._roles.update({role: core.token(number) for role, number in found.items() if number is not None})
        for role in ("sep", "cls", "mask"):
            spelling = _spelling(config.get(f"{role}_token"))
            if spelling is not None and core.id_of(spelling) is not None:
                self._roles[role] = spelling
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        extra = extra.values() if isinstance(extra, Mapping) else extra
        self.extra_special_tokens = [token for token in map(_spelling, extra) if core.id_of(token) is not None]
        self._special_places: tuple[list[int], int] | None = None

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a folder with tokenizer.json, that file itself, or a GGUF file."""
        path = os.fspath(path)
        if path.endswith(".gguf"):
            return cls(_core.Tokenizer.from_gguf(path), name_or_path=path)
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        config_text = _read(os.path.join(folder, "tokenizer_config.json"))
        return cls.from_texts(
            _read(file, needed=True),
            config_text,
            path=file,
            chat_template=_read(os.path.join(folder, "chat_template.jinja")).decode() or None,
            name_or_path=path,
        )

    @classmethod
    def from_texts(
        cls,
        tokenizer_json: str | bytes,
        config_json: str | bytes = b"",
        *,
        path: str = "tokenizer.json",
        chat_template: str | None = None,
        name_or_path: str = "",
    ) -> Tokenizer:
        """From the contents of tokenizer.json and tokenizer_config.json."""
        tokenizer_json = tokenizer_json.encode() if isinstance(tokenizer_json, str) else tokenizer_json
        config_json = config_json.encode() if isinstance(config_json, str) else config_json
        core = _core.Tokenizer.from_json(tokenizer_json, path, config_json)
        config = json.loads(config_json) if config_json else {}
        return cls(core, config=config, chat_template=chat_template, name_or_path=name_or_path)

    # The vocabulary.

    @property
    def vocab_size(self) -> int:
        """The number of tokens without the added ones."""
        return self.core.model_size

    def __len__(self) -> int:
        return self.core.vocabulary_size

    def get_vocab(self) -> dict[str, int]:
        return self.core.vocabulary()

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        return {self.core.token(number): number for number in self.core.added_ids()}

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        ids = _plain(ids)
        if isinstance(ids, int):
            return self.core.token(ids)
        special = set(self.all_special_ids) if skip_special_tokens else ()
        return [self.core.token(number) for number in ids if number not in special]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int] | None:
        if isinstance(tokens, str):
            number = self.core.id_of(tokens)
            return self.unk_token_id if number is None else number
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        return self.core.decode([self._known_id(token) for token in tokens])

    def _known_id(self, token: str) -> int:
        number = self.core.id_of(token)
        if number is None:
            raise ValueError(f"'{token}' is not in the vocabulary")
        return number

    # Special tokens.

    def _set_role(self, role: str, token: str | int | None) -> None:
        if isinstance(token, int):
            token = self.core.token(token)
        if token is not None:
            self._known_id(str(token))
        self._roles[role] = None if token is None else str(token)

    def _role_id(self, role: str) -> int | None:
        token = self._roles[role]
        return None if token is None else self._known_id(token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {f"{role}_token": token for role, token in self._roles.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self._known_id(token) for token in self.all_special_tokens]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return len(self._special_around()[0])

    def _special_around(self) -> tuple[list[int], int]:
        """The ids that the template puts around a text, and how many of them come before it."""
        if self._special_places is None:
            special, plain = self.core.encode(""), self.core.encode("a", False)
            whole = self.core.encode("a")
            for count in range(len(special) + 1):
                if whole == special[:count] + plain + special[count:]:
                    self._special_places = special, count
        if self._special_places is None:
            raise ValueError("this tokenizer's template can't be cut: it repeats the text")
        return self._special_places

    # Text to ids.

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """The ids and attention mask of a text (flat lists) or of several (lists of lists), or tensors of them."""
        if text_pair is not None:
            raise ValueError("pairs of texts are not supported")
        single = isinstance(text, str)
        if not isinstance(text, str | list | tuple):
            raise ValueError(f"a text must be a str, or a list of them, not {type(text).__name__}")
        texts = [text] if single else text
        for one in texts:
            if not isinstance(one, str):
                raise TypeError(f"a text must be a str, not {type(one).__name__}")
        limit = self._limit(truncation, max_length)
        rows = [self._row(one, add_special_tokens, limit, return_offsets_mapping) for one in texts]
        encoding: dict[str, list[Any]] = {"input_ids": [ids for ids, _ in rows]}
        if return_attention_mask:
            encoding["attention_mask"] = [[1] * len(ids) for ids, _ in rows]
        if return_special_tokens_mask:
            special, before = self._special_around() if add_special_tokens else ([], 0)
            behind = len(special) - before
            encoding["special_tokens_mask"] = [
                [1] * before + [0] * (len(ids) - len(special)) + [1] * behind for ids, _ in rows
            ]
        if return_offsets_mapping:
            encoding["offset_mapping"] = [offsets for _, offsets in rows]
        if return_length:
            encoding["length"] = [len(ids) for ids, _ in rows]
        if padding not in (False, "do_not_pad"):
            self._pad_lists(encoding, padding, max_length, pad_to_multiple_of, padding_side)
        if return_tensors is not None:
            return _as_tensors(encoding, return_tensors)
        return BatchEncoding({key: rows[0] for key, rows in encoding.items()} if single else encoding)

    def encode(self, text: str, text_pair: None = None, *, return_tensors: str | None = None, **options: Any) -> Any:
        """The ids of one text: a list, or a tensor `batch pos`."""
        return self(text, text_pair, return_tensors=return_tensors, **options)["input_ids"]

    def encode_plus(self, text: str, **options: Any) -> BatchEncoding:
        return self(text, **options)

    def batch_encode_plus(self, texts: Sequence[str], **options: Any) -> BatchEncoding:
        return self(list(texts), **options)

    def tokenize(self, text: str, pair: None = None, add_special_tokens: bool = False) -> list[str]:
        """The spellings of the tokens ("ĠParis")."""
        if pair is not None:
            raise ValueError("pairs of texts are not supported")
        return self.core.encode_with_offsets(text, add_special_tokens)[1]

    def _limit(self, truncation: bool | str | None, max_length: int | None) -> int | None:
        if truncation in (None, False, "do_not_truncate"):
            return None
        if truncation not in (True, "longest_first", "only_first"):
            raise ValueError(f"truncation={truncation!r} is not supported")
        limit = self.model_max_length if max_length is None else max_length
        return None if limit >= 1_000_000_000_000 else limit

    def _row(
        self, text: str, add_special_tokens: bool, limit: int | None, with_offsets: bool
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        if with_offsets:
            ids, _, offsets = self.core.encode_with_offsets(text, add_special_tokens)
        else:
            ids, offsets = self.core.encode(text, add_special_tokens), None
        if limit is None or len(ids) <= limit:
            return ids, offsets
        special, before = self._special_around() if add_special_tokens else ([], 0)
        if limit < len(special):
            raise ValueError(f"max_length={limit} leaves no room for the {len(special)} special tokens")
        behind = len(special) - before
        surplus = len(ids) - limit
        # The surplus goes from the text, never from the template around it.
        first = before if self.truncation_side == "left" else len(ids) - behind - surplus
        del ids[first : first + surplus]
        if offsets is not None:
            del offsets[first : first + surplus]
        return ids, offsets

    # Padding.

    def pad(
        self,
        encoded: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pads encodings of several texts (a dictionary of lists, or a list of dictionaries) to one length."""
        if not isinstance(encoded, Mapping | UserDict):
            encoded = {key: [one[key] for one in encoded] for key in encoded[0]}
        rows = {key: [list(_plain(row)) for row in value] for key, value in encoded.items()}
        rows.setdefault("attention_mask", [[1] * len(ids) for ids in rows["input_ids"]])
        self._pad_lists(rows, padding, max_length, pad_to_multiple_of, padding_side)
        return BatchEncoding(rows) if return_tensors is None else _as_tensors(rows, return_tensors)

    def _pad_lists(
        self,
        encoding: dict[str, list[Any]],
        padding: bool | str,
        max_length: int | None,
        multiple: int | None,
        side: str | None,
    ) -> None:
        side = side or self.padding_side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {side!r}, but should be 'left' or 'right'")
        if self.pad_token_id is None:
            raise ValueError("no padding token; set one first: tokenizer.pad_token = tokenizer.eos_token")
        longest = max((len(ids) for ids in encoding["input_ids"]), default=0)
        if padding == "max_length":
            length = self.model_max_length if max_length is None else max_length
            if length >= 1_000_000_000_000:
                raise ValueError("padding='max_length' needs max_length, as this tokenizer has no limit of its own")
        elif padding in (True, "longest"):
            length = longest
        else:
            raise ValueError(f"padding={padding!r} is not supported")
        if multiple:
            length = -(-length // multiple) * multiple
        fill = {
            "input_ids": self.pad_token_id,
            "attention_mask": 0,
            "offset_mapping": (0, 0),
            "special_tokens_mask": 1,
        }
        for key, rows in encoding.items():
            if key not in fill:
                continue
            for row in rows:
                padded = [fill[key]] * (length - len(row))
                if side == "left":
                    row[:0] = padded
                else:
                    row.extend(padded)

    # Ids to text.

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> str | list[str]:
        """The text of one id or of a sequence of them (a list, an array, a tensor); of a batch, a list of texts."""
        ids = _plain(token_ids)
        if isinstance(ids, int):
            ids = [ids]
        if ids and isinstance(ids[0], list | tuple):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        text = self.core.decode(ids, skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        return [self.decode(row, skip_special_tokens, **options) for row in _plain(sequences)]

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Takes the spaces out that English tokenisation of the past put in front of marks and contractions."""
        for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(spaced, spaced.strip())
        return text

    # Conversations.

    def get_chat_template(self, chat_template: str | None = None) -> str:
        chat_template = chat_template or self.chat_template
        if not chat_template:
            raise ValueError("this tokenizer has no chat template; set tokenizer.chat_template, or give one here")
        return chat_template

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """A conversation, or several, as the model wants to read it: an encoding, its ids (`return_dict=False`), or the
        text itself (`tokenize=False`)."""
        if not conversation:
            raise ValueError("an empty conversation; give at least one message")
        batched = isinstance(conversation[0], list | tuple)
        texts = [
            _render(
                self.get_chat_template(chat_template),
                chat,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                documents=documents,
                **{**self.special_tokens_map, **variables},
            )
            for chat in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return texts if batched else texts[0]
        encoding = self(
            texts if batched else texts[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return encoding if return_dict else encoding["input_ids"]

    def __repr__(self) -> str:
        return f"Tokenizer(name_or_path={self.name_or_path!r}, tokens={len(self)}, {self.special_tokens_map})"


def _add_role(role: str) -> None:
    """Gives `Tokenizer` the properties `bos_token` and `bos_token_id`, and so on."""
    setattr(
        Tokenizer,
        f"{role}_token",
        property(lambda self: self._roles[role], lambda self, token: self._set_role(role, token)),
    )
    setattr(
        Tokenizer,
        f"{role}_token_id",
        property(lambda self: self._role_id(role), lambda self, number: self._set_role(role, number)),
    )


for _role in ROLES:
    _add_role(_role)


def _spelling(token: Any) -> str | None:
    """Of a token in tokenizer_config.json: a string, or a dictionary that has it as `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read(path: str, needed: bool = False) -> bytes:
    if not os.path.exists(path) and not needed:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _core.FileError(f"{path}: {error.strerror}") from None


def _plain(ids: Any) -> Any:
    """Tensors and arrays, also inside lists, as integers and lists."""
    if hasattr(ids, "tolist"):
        return ids.tolist()
    if isinstance(ids, list | tuple):
        return [_plain(one) for one in ids] if ids and not isinstance(ids[0], int) else list(ids)
    return ids


def _as_tensors(encoding: dict[str, list[Any]], kind: str) -> BatchEncoding:
    lengths = {len(row) for row in encoding["input_ids"]}
    if len(lengths) > 1:
        raise ValueError(f"texts of {min(lengths)} to {max(lengths)} tokens make no tensor; pass padding=True")
    if kind == "pt":
        import torch

        return BatchEncoding({key: torch.tensor(rows, dtype=torch.long) for key, rows in encoding.items()})
    if kind == "np":
        import numpy

        return BatchEncoding({key: numpy.array(rows, dtype=numpy.int64) for key, rows in encoding.items()})
    raise ValueError(f"return_tensors={kind!r}, but should be 'pt', 'np' or None")


# Chat templates: Jinja from a model's files, run in a sandbox, with the names that Hugging Face's templates rely on.


@functools.cache
def _compile_template(source: str) -> Any:
    try:
        import jinja2
        import jinja2.exceptions
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise ImportError("chat templates need jinja2: pip install jinja2") from None

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the model wrote, for training; here it is plain text."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _render(source: str, messages: Any, continue_final_message: bool = False, **variables: Any) -> str:
    """The text of a conversation. With `continue_final_message` it ends where the last message's content does."""
    template = _compile_template(source)
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if not continue_final_message:
        return template.render(messages=messages, **variables)
    if variables.get("add_generation_prompt"):
        raise ValueError("continue_final_message and add_generation_prompt exclude each other")
    messages = copy.deepcopy(messages)
    content = messages[-1].get("content")
    if isinstance(content, str):
        messages[-1]["content"] = content + END_MARK
    else:
        texts = [part for part in content or () if "text" in part]
        if not texts:
            raise ValueError("continue_final_message, but the last message has no text to continue")
        content = texts[-1]["text"]
        texts[-1]["text"] = content + END_MARK
    text = template.render(messages=messages, **variables)
    at = text.rfind(END_MARK.strip())
    if at < 0:
        raise ValueError("continue_final_message, but the chat template leaves the last message out")
    # The mark ends in a space: where that is gone, the template trims what it is given.
    return text[:at] if text.startswith(END_MARK, at) else text[:at].rstrip()
