"""Experiments in seconds: a model of 50 thousand parameters, a few steps, a little text."""

from minik2.config import ModelConfig
from minik2.experiments.scales import Scale
from minik2.training import Habits, Settings, metrics, train

STEPS = 6


def scale(folder, **changes):
    """A scale whose runs and text lie in `folder`."""
    text = folder / "text"
    if not text.exists():
        text.mkdir(parents=True)
        for n in range(4):
            (text / f"{n}.py").write_text("".join(f"x{n}{k} = {k * 7}\n" for k in range(200)))
    held = {"at_once": 2, "evaluate_every": 2, "save_every": 2, "timed_steps": 5} | changes
    settings = Settings(steps=STEPS, batch=2, window=16, warmup=2, clip_norm=1.0)
    return Scale("tiny", ModelConfig.preset("tiny"), settings, runs=folder / "runs", data=text,
                 **held)


def in_this_process(made):
    """A `finish` without processes of its own; what it trains is noted in `made`, once a run."""
    from minik2.experiments.runs import corpus, place

    def finish(scale, runs, what, tell):
        habits = Habits(threads=1, evaluate_every=scale.evaluate_every, save_every=1000)
        for run in runs:
            if run not in made:
                made.append(run)
                train(run.cfg, run.settings, corpus(scale.data), place(scale, run), habits)
        tell(1, 1, what)
        return [metrics.read(place(scale, run)) for run in runs]

    return finish
