"""Text to token ids and back: bytes for our own runs, `tokenizer.json`, Kimi's `tiktoken.model`.

Unusual here: what a model says is never decoded token by token, because a letter may lie in two of
them. A stream takes tokens and gives out text as soon as its letters are whole.
"""

from __future__ import annotations

import base64
import codecs
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

UNKNOWN = "\ufffd"  # what stands for bytes that are no text
# Ids that Kimi keeps for special tokens after the ranks of its file.
RESERVED = 256
# How Kimi cuts text before tokens are sought: Chinese characters apart from other scripts, words by
# their capitals, at most three digits together. It stands in tokenization_kimi.py, beside the
# weights, not in tiktoken.model; written here as several public copies of that file agree on it,
# without the released one at hand to compare with.
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI = "|".join([
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENGLISH}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENGLISH}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])  # fmt: skip


class Stream(Protocol):
    """Text as it comes: `add` a token and get what is whole, `end` and get what is left."""

    def add(self, token: int) -> str: ...
    def end(self) -> str: ...


class Tokenizer(Protocol):
    """name: what it is, in words; `stream` is for what follows the tokens given."""

    name: str

    def encode(self, text: str) -> list[int]: ...
    def stream(self, prompt: Sequence[int]) -> Stream: ...


def load(directory: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint: tokenizer.json, else tiktoken.model, else bytes.

    Raises ValueError, one sentence, for a damaged file, a library that is missing, and where there
    is no file and the vocabulary has no room for the 256 bytes.
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        return Library(directory / "tokenizer.json")
    if (directory / "tiktoken.model").is_file():
        return Kimi(directory / "tiktoken.model")
    if vocab_size < 256:
        raise ValueError(
            f"{directory} has neither tokenizer.json nor tiktoken.model, and the model's "
            f"vocabulary of {vocab_size} is too small for bytes; add the file that belongs to it."
        )
    return Bytes()


class Bytes:
    """A token is a byte of UTF-8, as in runs of `minik2 train`; ids from 256 on mean nothing."""

    name = "bytes"

    def encode(self, text: str) -> list[int]:
        """Ids from 0 to 255; what a command line could not read as text goes in as it came."""
        return list(text.encode("utf-8", "surrogateescape"))

    def stream(self, prompt: Sequence[int]) -> Stream:
        return _ByteStream(lambda token: bytes([token]) if token < 256 else UNKNOWN.encode())


class Library:
    """A tokenizer.json of the library `tokenizers`; encode adds what the file says is added."""

    def __init__(self, path: Path) -> None:
        self.name, library = path.name, _needed("tokenizers", path)
        try:
            self.held = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is no tokenizer ({error}); fetch the file again.") from None

    def encode(self, text: str) -> list[int]:
        return self.held.encode(text).ids

    def stream(self, prompt: Sequence[int]) -> Stream:
        return _TextStream(lambda ids: self.held.decode(ids, skip_special_tokens=False), prompt)


class Kimi:
    """A tiktoken.model: ranks of byte strings, after which come 256 special tokens.

    Their names are in tokenizer_config.json (added_tokens_decoder) beside it. In a text that is
    encoded, such a name means the token.
    """

    def __init__(self, path: Path) -> None:
        self.name, library = path.name, _needed("tiktoken", path)
        ranks = _ranks(path)
        names = _added(path.with_name("tokenizer_config.json"))
        ids = range(len(ranks), len(ranks) + RESERVED)
        special = {names.get(i, f"<|reserved_token_{i}|>"): i for i in ids}
        self.held = library.Encoding(
            path.name, pat_str=KIMI, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> list[int]:
        return self.held.encode(text, allowed_special="all")

    def stream(self, prompt: Sequence[int]) -> Stream:
        return _ByteStream(self._bytes)

    def _bytes(self, token: int) -> bytes:
        if token < self.held.n_vocab:
            return self.held.decode_single_token_bytes(token)
        return UNKNOWN.encode()


class _ByteStream:
    """Tokens that are bytes: letters are whole when their last byte is there."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self.bytes_of = bytes_of
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.bytes_of(token))

    def end(self) -> str:
        return self.decoder.decode(b"", True)


class _TextStream:
    """Tokens that only a decoder knows: what they say depends on those before (a leading space)."""

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int]) -> None:
        self.decode, self.ids = decode, list(before)
        self.told = len(self.ids)

    def add(self, token: int) -> str:
        self.ids.append(token)
        text = self.end()
        if text.endswith(UNKNOWN) or not text:
            return ""  # a letter of which more is to come, or which will never be whole
        self.ids, self.told = self.ids[self.told :], len(self.ids) - self.told
        return text

    def end(self) -> str:
        return self.decode(self.ids)[len(self.decode(self.ids[: self.told])) :]


def _needed(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f"{path} is read by the library {module}, which is not installed: it is in the extra "
            '`text`, python -m pip install -e ".[text]".'
        ) from None


def _ranks(path: Path) -> dict[bytes, int]:
    """Lines of a byte string in base64 and its rank, from 0 up without a gap."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(
                f"Line {number} of {path} is not a token in base64 and its rank; fetch the file "
                "again."
            ) from None
    single = all(bytes([b]) in ranks for b in range(256))
    if not single or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{path} lacks a byte or a rank ({len(ranks)} tokens are there); fetch the file again."
        )
    return ranks


def _added(path: Path) -> dict[int, str]:
    """The names of special tokens, by id; none where the file is not there."""
    if not path.is_file():
        return {}
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
        return {int(token): entry["content"] for token, entry in added.items()}
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{path} is not JSON with added_tokens_decoder as {{id: {{content: name}}}}; fetch the "
            "file again."
        ) from None
