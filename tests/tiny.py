"""A corpus, models and runs small enough to train in a test."""

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

from cptlab.corpora.recipe import CorpusRecipe, local_recipe
from cptlab.runs.execution import Execution
from cptlab.runs.request import Request
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import Optimiser, RunSpec, Schedule, Upstream
from cptlab.runs.store import Store

VOCAB, CONTEXT, BATCH = 280, 32, 8
EXECUTION = Execution(compile=False, state_every=5)


def write_text(path: Path, seed: int, documents: int = 150, words: int = 60) -> Path:
    """Documents of pseudo-words: some words are frequent, and each follows some others more often, so that there is something to learn."""
    generator = random.Random(seed)
    lexicon = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 6))) for _ in range(40)]
    texts = []
    for _ in range(documents):
        place, text = generator.randrange(40), []
        for _ in range(words):
            place = (place * 3 + generator.choice((1, 1, 1, 5, 11))) % 40
            text.append(lexicon[place])
        texts.append(" ".join(text))
    path.write_text("\n\n".join(texts) + "\n")
    return path


def make_recipe(folder: Path) -> CorpusRecipe:
    """Two sources, ``one`` and ``two``, of about 30,000 tokens each."""
    paths = {name: write_text(folder / f"{name}.txt", seed) for seed, name in enumerate(("one", "two"))}
    return local_recipe(paths, vocab=VOCAB, name="tiny", validation={"fraction": 0.1})


def model(**changes) -> ModelSpec:
    """A shape of about 20,000 parameters."""
    return ModelSpec(**({"layers": 2, "width": 32, "heads": 2, "ffn_width": 64, "vocab": VOCAB, "context": CONTEXT} | changes))


def spec(recipe: CorpusRecipe, steps: int = 10, **changes) -> RunSpec:
    """A run of ``steps`` steps of 8 sequences."""
    fields = {
        "model": model(), "corpus": recipe, "mixture": {"one": 1}, "tokens": steps * BATCH * CONTEXT, "batch_tokens": BATCH * CONTEXT,
        "schedule": Schedule(max_lr=3e-3), "precision": "fp32",
    }  # fmt: skip
    return RunSpec(**(fields | changes))


def target(base: RunSpec, steps: int = 10, carry: bool = False, **changes) -> RunSpec:
    """A run on the other source that starts from the end of ``base``."""
    fields = {"mixture": {"two": 1}, "upstreams": {"init": Upstream(run=base)}, "optimiser": Optimiser(state="carry" if carry else "reset")}
    return spec(base.corpus, steps, **({"precision": base.precision, "model": base.model} | fields | changes))


def execution(**changes) -> Execution:
    """Uncompiled, in one thread."""
    return replace(EXECUTION, **changes)


def trained(store: Store, run: RunSpec, how: Execution = EXECUTION, **wanted) -> dict:
    """Train ``run`` in this process; its record."""
    from cptlab.sweep.worker import work

    request = Request(run, **({"steps": (run.steps,)} | wanted))
    work(request, store, how)
    return store.record(run.id)


def losses(store: Store, run: RunSpec) -> list[float]:
    """The training losses of a finished run, a step each in runs of less than 200 steps."""
    record = store.record(run.id)
    assert record["status"] == "done", record["error"]
    return store.curve(run.id)["loss_nats"].tolist()


def results(store: Store, run: RunSpec) -> tuple:
    """All that two trainings of a run must share, to the bit."""
    record, folder = store.record(run.id), store.path(run.id)
    assert record["status"] == "done", record["error"]
    samples = folder / "samples.json"
    return (
        {step: entry["sha256"] for step, entry in record["checkpoints"].items()},
        (folder / "curve.csv").read_text(),
        (folder / "measurements.csv").read_text(),
        samples.read_text() if samples.exists() else None,
    )


# --- in another process ------------------------------------------------------------------------------------------------------


def work_until(request: Request, root: Path, how: Execution, die_at: int | None = None, in_save: bool = False) -> None:
    """Train in this process; ``die_at`` kills it, with the signal that nothing can catch, when that step is about to be made, or, with
    ``in_save``, in the middle of the first save of the state from that step on."""
    import torch

    torch.set_num_threads(1)
    from cptlab.sweep.worker import work
    from cptlab.training import engine

    if die_at is not None and in_save:
        save = engine.save_file

        def torn(tensors, path, **options):
            save(tensors, path, **options)
            if "state-" in str(path) and int(Path(path).name.split("-")[1].split(".")[0]) >= die_at:
                with open(path, "r+b") as stream:
                    stream.truncate(os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        engine.save_file = torn
    elif die_at is not None:
        from cptlab.training import trainer

        rate = trainer.learning_rate

        def deadly(run, step):
            if step >= die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return rate(run, step)

        trainer.learning_rate = deadly
    work(request, Store(root), how)
