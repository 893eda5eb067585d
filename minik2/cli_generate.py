"""The command `minik2 generate`: a model goes on with a text, shown as it comes.

Unusual here: only the text goes to standard output; which tokenizer it is, and how fast it was, to
standard error. Ctrl-C ends a text, it loses none: what there is is printed, and counted.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minik2.terminal import INTERRUPTED, plain

PATIENCE = 2.0  # seconds without a token, after which it is said why

if TYPE_CHECKING:
    from minik2.config import ModelConfig
    from minik2.tokenizer import Stream


def generate(
    model: Annotated[Path, typer.Option(
        help="A checkpoint in the Hugging Face layout, or a run of `minik2 train`.")],
    prompt: Annotated[str, typer.Option(help="The text to go on with.")],
    engine: Annotated[str | None, typer.Option(
        help="What computes: reference (NumPy, by hand) or pytorch (on a GPU in bfloat16, "
             "where it finds one). If not given, pytorch, or the reference if the weights do not "
             "fit in memory.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add, at most.")] = 256,
    temperature: Annotated[float, typer.Option(
        help="0 takes the likeliest token; above it, a draw, the bolder the higher.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(
        help="Draw from this many of the likeliest; from all if not given.")] = None,
    top_p: Annotated[float, typer.Option(
        help="Draw from the fewest of the likeliest that have this share together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="What the draws are made from.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(
        help="End before this text; may be given several times.", show_default=False)] = None,
    max_context: Annotated[int | None, typer.Option(
        help="Tokens of prompt and continuation together, at most, for which the cache has room; "
             "the model's positions if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Go on with a text, greedily or by drawing, and show it as it comes.

    The tokenizer is the checkpoint's tokenizer.json or tiktoken.model; without one, a token is a
    byte, as in our own runs. Weights that do not fit in memory stay in their files, and the
    reference reads at each step what it needs of them. The text ends with the model's end token
    (eos_token_id), before a --stop, or when all tokens are made. Exit status 130 after Ctrl-C.
    """
    from minik2 import sampling, tokenizer
    from minik2.config import ModelConfig

    settings = sampling.Settings(temperature, seed, top_k, top_p)
    if any(not text for text in stop or []):
        raise ValueError("--stop needs a text of at least one letter.")
    directory = _checkpoint(model)
    cfg = ModelConfig.from_json(directory)
    reader = tokenizer.load(directory, cfg.vocab_size)
    print(f"The tokenizer is {reader.name}.", file=sys.stderr)
    ids = reader.encode(prompt)
    room = _room(len(ids), max_new_tokens, max_context, cfg.max_position_embeddings)
    end = cfg.eos_token_id
    ends = end if isinstance(end, tuple) else () if end is None else (end,)
    asked = sampling.request([ids], cfg, room, settings, ends, None)
    built = _load(engine, directory, cfg)

    said = Said(reader.stream(ids), ends, list(stop or []), live=not as_json)
    patience = threading.Timer(PATIENCE, said.explain)
    patience.daemon = True
    patience.start()
    try:
        built.generate(asked.prompt, room, temperature, seed, top_k, top_p, ends,
                       on_token=said.take)  # fmt: skip
    except _Ended:
        pass
    except KeyboardInterrupt:
        said.ended = "interrupted"
    finally:
        patience.cancel()
    said.close()
    if as_json:
        print(json.dumps({"prompt": prompt, **said.to_dict(len(ids))}, indent=2))
    else:
        print()
    print(said.summary(len(ids)), file=sys.stderr)
    if said.ended == "interrupted":
        raise typer.Exit(INTERRUPTED)


class _Ended(Exception):
    """A stop text came: there is nothing more to make."""


@dataclass
class Said:
    """What a model has said so far: text shown, tokens, and when they came.

    stream: whole letters from tokens; ends: tokens that end it; stops: texts that do, so what might
    be the beginning of one waits until it is known; live: show the text as it comes.
    """

    stream: Stream
    ends: tuple[int, ...]
    stops: list[str]
    live: bool
    text: str = ""
    waiting: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: str = "length"
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float = 0.0

    def take(self, tokens: Any) -> None:
        """The next token, as `generate` hands it over; raises _Ended after a stop text."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        token = int(tokens[0])
        self.tokens.append(token)
        if token in self.ends:
            self.ended = "end token"
            return
        self._hear(self.stream.add(token))

    def explain(self) -> None:
        """Why nothing has come yet, should that be so."""
        if self.first is None:
            print("Reading the prompt; an engine's first pass takes some 15 s more where its loops "
                  "are still to be compiled.", file=sys.stderr)

    def close(self) -> None:
        """Show what was held back."""
        if self.ended == "stop":
            return
        try:
            self._hear(self.stream.end())
        except _Ended:
            return
        self._show(self.waiting)
        self.waiting = ""

    def _hear(self, piece: str) -> None:
        self.waiting += piece
        found = [at for text in self.stops if (at := self.waiting.find(text)) >= 0]
        if found:
            self._show(self.waiting[: min(found)])
            self.waiting, self.ended = "", "stop"
            raise _Ended
        keep = max((_overlap(self.waiting, text) for text in self.stops), default=0)
        end = len(self.waiting) - keep
        # Forgotten before it is shown: a Ctrl-C in between must not have it shown twice.
        piece, self.waiting = self.waiting[:end], self.waiting[end:]
        self._show(piece)

    def _show(self, piece: str) -> None:
        self.text += piece
        if self.live and piece:
            if sys.stdout.isatty():  # text does not steer the terminal
                piece = plain(piece)
            print(piece, end="", flush=True)

    def to_dict(self, prompt: int) -> dict[str, Any]:
        """What there is to know, for programs; prompt: its tokens. Rates are null before a time."""
        read, made = self._seconds()
        return {
            "text": self.text, "tokens": self.tokens, "ended": self.ended, "prompt_tokens": prompt,
            "new_tokens": len(self.tokens), "prefill_seconds": read, "decode_seconds": made,
            "prefill_tokens_per_second": _rate(prompt, read),
            "decode_tokens_per_second": _rate(len(self.tokens) - 1, made),
        }  # fmt: skip

    def summary(self, prompt: int) -> str:
        """One line: how much was read and made, how fast, and what ended it."""
        read, made = self._seconds()
        parts = [f"prompt {prompt} tokens" + _pace(prompt, read),
                 f"{len(self.tokens)} new" + _pace(len(self.tokens) - 1, made)]  # fmt: skip
        why = {"length": "all tokens made", "stop": "a stop text came",
               "end token": "the model ended it", "interrupted": "interrupted"}  # fmt: skip
        return f"{', '.join(parts)}; {why[self.ended]}."

    def _seconds(self) -> tuple[float | None, float | None]:
        """For the prompt and its first token; for the tokens after it."""
        if self.first is None:
            return None, None
        return self.first - self.started, self.last - self.first


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


def _rate(tokens: int, seconds: float | None) -> float | None:
    return tokens / seconds if seconds and tokens > 0 else None


def _pace(tokens: int, seconds: float | None) -> str:
    rate = _rate(tokens, seconds)
    return f" at {rate:,.1f} tokens/s" if rate else ""


def _checkpoint(path: Path) -> Path:
    """The directory to load: of a run, its newest whole checkpoint."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no directory {path}; give a checkpoint's or a run's.")
    if not (path / "checkpoints").is_dir():
        return path
    from minik2.training import store

    saved, warnings = store.newest(path)
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if saved is None:
        raise ValueError(f"The run {path} has no checkpoint yet; wait for its first.")
    return saved.model


def _room(prompt: int, wanted: int, context: int | None, positions: int) -> int:
    """How many tokens may be made after `prompt`, or one sentence."""
    if prompt == 0:
        raise ValueError("The prompt is empty; give at least one letter with --prompt.")
    if wanted < 1:
        raise ValueError(f"--max-new-tokens is 1 or more, not {wanted}.")
    if context is not None and not 1 <= context <= positions:
        raise ValueError(f"--max-context is from 1 to the model's {positions} positions, "
                         f"not {context}.")  # fmt: skip
    limit = context or positions
    if prompt >= limit:
        raise ValueError(f"The prompt takes {prompt} tokens, and {limit} is the limit for it and "
                         "what follows; shorten it, or raise --max-context as far as the model "
                         f"goes ({positions}).")  # fmt: skip
    return min(wanted, limit - prompt)


def _load(engine: str | None, directory: Path, cfg: ModelConfig) -> Any:
    if engine not in (None, "reference", "pytorch"):
        raise ValueError(f"--engine is reference or pytorch, not {engine!r}.")
    if engine == "reference" or (engine is None and not _fits(cfg)):
        from minik2 import reference

        if _fits(cfg):
            return reference.Model.from_pretrained(directory)
        print(f"The weights take {_gigabytes(cfg)} in float32, more than the memory that is free: "
              "they stay in their files, and each token waits for the disk.", file=sys.stderr)
        return reference.MappedModel.from_pretrained(directory)
    try:
        import torch
    except ImportError:
        raise ValueError("The engine pytorch needs PyTorch, which is not installed: it is in the "
                         "extra `course`, python -m pip install -e \".[course]\"; or use "
                         "--engine reference.") from None  # fmt: skip
    from minik2 import pytorch

    if torch.cuda.is_available():
        return pytorch.Model.from_pretrained(directory, "cuda", torch.bfloat16)
    return pytorch.Model.from_pretrained(directory)


def _fits(cfg: ModelConfig) -> bool:
    """Whether float32 weights fit in the memory that is free."""
    from minik2 import host, sizing

    return 4 * sizing.parameters(cfg).total < host.memory()[1]


def _gigabytes(cfg: ModelConfig) -> str:
    from minik2 import sizing

    return sizing.units.amount(4 * sizing.parameters(cfg).total, "B")
