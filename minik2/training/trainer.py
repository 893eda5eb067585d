"""The training run: batches in, steps made, everything written down, nothing lost.

Unusual here: there is one way to begin a run and to go on with it, the same call. What a step does
depends on nothing but the checkpoint before it (weights, optimizer, place in the schedule, state of
the sampler), so a run that was killed ends with the bits of one that was not.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minik2 import __version__
from minik2.config import ModelConfig
from minik2.training import conditions, engines, identity, ranks, store
from minik2.training.corpus import VOCABULARY, Corpus, decode, encode
from minik2.training.engines import Engine
from minik2.training.interrupt import stop_when_asked
from minik2.training.metrics import Metrics
from minik2.training.observe import clipped, rms_by_kind, violation
from minik2.training.ranks import Ranks
from minik2.training.schedule import wsd
from minik2.training.settings import Settings
from minik2.training.store import Saved

# Held-out windows of an evaluation: always the same ones, evenly spread over the text.
HELD_OUT = 64
SAMPLE_BYTES, SAMPLE_TEMPERATURE = 160, 0.8

Tell = Callable[[str, dict[str, Any]], None]


class Diverged(ValueError):
    """A loss or gradient that is no number to go on with; the message says where, and what then."""


@dataclass(frozen=True)
class Habits:
    """What changes no weight. threads None: as many as the engine's library would use by itself;
    prompt: what samples begin with; expert_ranks: of several ranks, how many share the experts;
    recompute: make activations again in the backward pass; mixed: compute in bfloat16, for GPUs.
    A save every `save_every` steps and an evaluation every `evaluate_every`, and both at the end.
    """

    device: str = "cpu"
    threads: int | None = None
    evaluate_every: int = 50
    save_every: int = 100
    prompt: str | None = None
    expert_ranks: int = 1
    recompute: bool = False
    mixed: bool = False

    def __post_init__(self) -> None:
        for name in ("threads", "evaluate_every", "save_every", "expert_ranks"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (name == "threads" and value is None):
                raise ValueError(f"{name} must be a whole number, 1 up, not {value!r}.")
        if self.prompt is not None and not encode(self.prompt).size:
            raise ValueError("A sample goes on with a prompt; give it one letter at least.")


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: steps made in all, the last held-out loss (nats a token; None
    before the first), the newest checkpoint, and whether somebody asked it to stop early."""

    step: int
    held_out: float | None
    checkpoint: Path | None
    interrupted: bool


def train(
    cfg: ModelConfig,
    settings: Settings,
    corpus: Corpus,
    out: str | Path,
    habits: Habits | None = None,
    tell: Tell = lambda kind, facts: None,
) -> Outcome:
    """Train a model of `cfg` by `settings` on `corpus`, in the directory `out`.

    A new directory begins a run; the directory of the same run goes on with it; of another run it
    is refused. tell(kind, facts) is called with every line of the metrics, and with "warning",
    "saved" and "begin". The first Ctrl-C ends the run after the step in hand, saved; a second one
    at once. Under torchrun every rank calls it; the first writes and tells. Raises
    ValueError (RunError, RankError, Diverged) and OSError, each with one sentence.
    """
    run, habits = Path(out), habits or Habits()
    conditions.fit(cfg, settings, corpus)
    library = engines.check(
        settings.engine, habits.device, habits.recompute, habits.mixed, habits.threads
    )
    mine = identity.of(cfg, settings, corpus)
    name = identity.digest(mine)
    with (
        stop_when_asked() as asked,  # torchrun asks too, of ranks that have to say why they end
        ranks.joined(habits.device) as group,
        contextlib.ExitStack() as stack,
    ):
        group.same({"config": mine["config"], "settings": mine["settings"],
                    "text": {"checksums": name}})  # fmt: skip
        conditions.ranks(cfg, settings, group.count, habits.expert_ranks, habits.mixed)
        if group.count == 1:
            conditions.room(cfg, settings, habits.device, habits.recompute, habits.mixed)
        group.together(lambda: stack.enter_context(identity.held(run, mine)))
        threads = stack.enter_context(engines.threads(settings.engine, habits.threads))
        made_with = {
            "threads": threads, **library, "numpy": np.__version__, "minik2": __version__,
            "python": platform.python_version(), "machine": platform.machine(),
        }  # fmt: skip
        if group.count > 1:
            made_with["ranks"] = group.count
        tell = tell if group.leads else lambda kind, facts: None
        begun = _Run(cfg, settings, corpus, run, habits, tell, made_with, name, group)
        return begun.go(lambda: group.agree(asked()))


class _Run:
    """One call of `train`, from the newest checkpoint to the last step."""

    def __init__(
        self,
        cfg: ModelConfig,
        settings: Settings,
        corpus: Corpus,
        run: Path,
        habits: Habits,
        tell: Tell,
        made_with: dict[str, Any],
        name: str,
        group: Ranks,
    ) -> None:
        self.cfg, self.settings, self.corpus = cfg, settings, corpus
        self.run, self.habits, self.tell = run, habits, tell
        self.made_with, self.name, self.group = made_with, name, group
        group.together(lambda: store.tidy(run))
        found = list[tuple[Saved | None, list[str]]]()
        # The first rank sets damaged ones aside before the others look.
        group.together(lambda: found.append(store.newest(run)))
        saved, self.warnings = found[0] if found else store.newest(run, check=False)
        if saved and saved.state.get("run") != name:
            raise store.RunError(
                f"{saved.path} is a checkpoint of another run; move it out of this one's directory."
            )
        self.rng = np.random.default_rng(settings.seed)
        self.step, self.trained, self.held_out = 0, 0.0, None
        self.checkpoint = saved.path if saved else None
        if saved:
            self.step, self.trained = saved.step, saved.state["trained"]
            self.held_out = saved.state["held_out"]
            self.rng.bit_generator.state = saved.state["sampler"]
        self.finished = self.step == settings.steps
        if self.finished:
            return
        if saved:
            self.warnings += self._compare(saved.state["made_with"])
        held = (str(saved.model), saved.optimizer) if saved else None
        ways = habits.expert_ranks, habits.recompute, habits.mixed
        self.engine: Engine = engines.make(cfg, settings, habits.device, held, group, *ways)
        self.metrics = Metrics(run, self.step) if group.leads else None
        self.warnings += self.metrics.warnings if self.metrics else []

    def _compare(self, before: dict[str, Any]) -> list[str]:
        changed = [
            f"{key} {before.get(key)} until now, {value} from here"
            for key, value in self.made_with.items() if before.get(key) != value
        ]  # fmt: skip
        if not changed:
            return []
        return [
            f"The run goes on in other circumstances ({'; '.join(changed)}), so its last bits may "
            "differ from those of a run that was not interrupted."
        ]

    def go(self, asked: Callable[[], bool]) -> Outcome:
        for warning in self.warnings:
            self.tell("warning", {"step": self.step, "text": warning})
        self.tell("begin", {"step": self.step, "steps": self.settings.steps, **self.made_with})
        if not self.finished:
            try:
                self._steps(asked)
            finally:
                if self.metrics:
                    self.metrics.close()
        return Outcome(self.step, self.held_out, self.checkpoint, self.step < self.settings.steps)

    def _steps(self, asked: Callable[[], bool]) -> None:
        settings, habits = self.settings, self.habits
        if self.step:
            self._note("resumed", **self.made_with)
        elif not asked():
            self._evaluate(None)
        last = stop = asked()
        while not (last or stop):
            self.step += 1
            last = self.step == settings.steps
            evaluate = last or self.step % habits.evaluate_every == 0
            before = self._copy() if evaluate else None
            self._train_step()
            if evaluate:
                self._evaluate(before)
            stop = asked()  # once: a request between two looks would end the run unsaved
            if last or stop or self.step % habits.save_every == 0:
                self._save()

    def _train_step(self) -> None:
        settings, engine, step = self.settings, self.engine, self.step
        start = time.perf_counter()
        batches = [
            self.corpus.sample("train", settings.batch, settings.window, self.rng)
            for _ in range(settings.accumulate)
        ]
        loss = engine.gradients(batches)
        norm = engine.norm()
        if not np.isfinite(loss) or not engines.usable(norm):
            self._diverged(f"loss {loss}, length of the gradient {norm}", engine.not_finite())
        if settings.clip_norm is not None and norm > settings.clip_norm:
            engine.shorten(settings.clip_norm / norm)
        max_logits, loads, maxima_seconds = engine.seen()
        if not np.isfinite(max_logits).all():
            layer, head = np.argwhere(~np.isfinite(max_logits))[0].tolist()
            where = f"attention logits of layer {layer}, head {head}"
            self._diverged(f"largest logit {max_logits[layer, head]}", where)
        share = wsd(step, settings.steps, settings.warmup, settings.decay, settings.final)
        gammas = engine.update(share)
        if settings.bias_speed and step <= settings.bias_until * settings.steps:
            engine.balance()
        seconds = time.perf_counter() - start
        self.trained += seconds
        self._note(
            "step",
            loss=loss,
            rate=share * settings.rate,
            norm=norm,
            max_logit=max_logits.max(axis=1).tolist(),
            head_logits=max_logits.tolist(),
            clipped=[] if gammas is None else clipped(gammas),
            loads=[layer.tolist() if layer.any() else [] for layer in loads],
            violation=[violation(layer) for layer in loads if layer.any()],
            seconds=seconds,
            maxima_seconds=maxima_seconds,
            trained=self.trained,
            tokens=step * settings.tokens_a_step,
            tokens_per_second=settings.tokens_a_step / seconds,
            memory=engine.memory(),
        )

    def _evaluate(self, before: dict[str, np.ndarray[Any, Any]] | None) -> None:
        """Held-out loss, and what the step's update did; before: the weights before it."""
        settings = self.settings
        tokens, targets = self.corpus.spread("validation", HELD_OUT, settings.window)
        pieces = [slice(a, a + settings.batch) for a in range(0, HELD_OUT, settings.batch)]
        losses = [self.engine.loss(tokens[own], targets[own]) for own in pieces]
        sizes = [len(tokens[own]) for own in pieces]
        self.held_out = float(np.average(losses, weights=sizes))
        if not np.isfinite(self.held_out):
            self._diverged(f"held-out loss {self.held_out}", self.engine.not_finite())
        weights = self.engine.weights()
        facts: dict[str, Any] = {"held_out": self.held_out}
        facts["weight_rms"] = rms_by_kind(weights, self.group)
        if before is not None:
            moved = ((name, weights[name] - old) for name, old in before.items())
            facts["update_rms"] = rms_by_kind(dict(moved), self.group)
        if self.habits.prompt is not None:
            facts["sample"] = self._sample(self.habits.prompt)
        self._note("evaluation", **facts)

    def _copy(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: array.copy() for name, array in self.engine.weights().items()}

    def _sample(self, prompt: str) -> str:
        room = self.cfg.max_position_embeddings - 1
        tokens = encode(prompt)[-room:]
        count = min(SAMPLE_BYTES, self.cfg.max_position_embeddings - len(tokens))
        made = self.engine.continued(tokens, count, SAMPLE_TEMPERATURE, self.settings.seed)
        return decode(np.minimum(made, VOCABULARY - 1))

    def _save(self) -> None:
        bad = self.engine.not_finite()
        if bad:
            self._diverged("the weights after it", bad)
        state = {"run": self.name, "trained": self.trained, "held_out": self.held_out,
                 "sampler": self.rng.bit_generator.state, "made_with": self.made_with}  # fmt: skip
        self.group.together(self.metrics.flush if self.metrics else str)
        self.checkpoint = store.save(self.run, self.step, self.engine.write, state, self.group)
        self.tell("saved", {"step": self.step, "path": str(self.checkpoint)})

    def _note(self, kind: str, **facts: Any) -> None:
        if self.metrics:
            self.metrics.add(kind, self.step, **facts)
        self.tell(kind, {"step": self.step, **facts})

    def _diverged(self, what: str, where: str | None) -> None:
        good = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else (
            "no checkpoint was saved before it")  # fmt: skip
        raise Diverged(
            f"Step {self.step} cannot be used: {what}. The first numbers that are not finite, or "
            f"too large, are in the {where or 'activations'}; {good}. The same settings would come "
            "here again: begin a run with milder ones, a lower --rate first, in another --out."
        )
