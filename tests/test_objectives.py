"""What an objective may be: other windows, other models to read, other numbers to tell; all added from outside, as a new file would."""

import pickle
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file

from cptlab.errors import ConfigError, StoreError
from cptlab.revisions import folder_revision
from cptlab.runs import objectives as facts
from cptlab.runs.lacking import Lacking
from cptlab.runs.objectives import ObjectiveFacts, Option
from cptlab.runs.request import Prompt, Request
from cptlab.runs.shapes import flops_per_token
from cptlab.runs.spec import DataOrder, Optimiser, Phase, Schedule, Upstream
from cptlab.runs.store import Store

pytestmark = pytest.mark.usefixtures("torch_once")

PATCH = ObjectiveFacts(
    window=lambda context, options: (options["size"] * (context + 1), options["size"] * context),
    options={
        "size": Option(lambda value: isinstance(value, int) and value > 1, "a whole number of at least 2"),
        "loud": Option(lambda value: isinstance(value, bool), "true or false", False),
    },
)
SOFT = ObjectiveFacts(
    upstreams=("teacher",), options={"heat": Option(lambda value: isinstance(value, int | float) and value > 0, "a positive number", 1.0)}
)


def register(patch) -> None:
    """Two objectives, each a row in both registries: patches of tokens read as one, and a teacher's distribution in the labels' place."""
    from cptlab.training import objectives as modules
    from cptlab.training.objectives.objective import Objective, token_losses

    class Patch(Objective):
        def losses(self, batch):
            size = self.options["size"]
            embedded = self.model.get_input_embeddings()(batch["inputs"]).unflatten(1, (-1, size)).mean(2)
            logits = self.model(inputs_embeds=embedded, use_cache=False).logits
            each = [token_losses(logits, labels) for labels in batch["labels"].unflatten(1, (-1, size)).unbind(-1)]
            return sum(each) / size, {"first_nats": each[0], "spread": (each[0] - each[-1]).abs().max()}

    class Soft(Objective):
        def losses(self, batch):
            teacher = self.upstream_models["teacher"](input_ids=batch["inputs"], use_cache=False).logits.float() / self.options["heat"]
            logits = self.model(input_ids=batch["inputs"], use_cache=False).logits
            losses = -(teacher.softmax(-1) * (logits.float() / self.options["heat"]).log_softmax(-1)).sum(-1)
            return losses, {"hard_nats": token_losses(logits, batch["labels"])}

    for name, row, module in (("patch", PATCH, Patch), ("soft", SOFT, Soft)):
        patch.setitem(facts.OBJECTIVES, name, row)
        patch.setitem(modules.OBJECTIVES, name, module)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    register(monkeypatch)


def patch_run(recipe, steps=6, size=2, **changes):
    """Steps of 4 sequences of 2 tokens a position: 256 tokens of text, as the other runs here."""
    return tiny.spec(recipe, steps, objective="patch", objective_options={"size": size}, **changes)


def soft_run(base, steps=6, **changes):
    """A run that starts from ``base`` and learns from it."""
    fields = {"objective": "soft", "upstreams": {"init": Upstream(run=base), "teacher": Upstream(run=base)}, "mixture": {"one": 1}}
    return tiny.target(base, steps, **(fields | changes))


def start(request, store, how=tiny.EXECUTION):
    """The run as it is about to be trained."""
    from cptlab.training.trainer import Training

    return Training(request, store, how, Lacking(store.views(request.id)[0], record=True, train=True))


def windows_of(run, step=0):
    """The windows that a step of ``run`` trains on."""
    from cptlab.corpora import open_corpus
    from cptlab.training.sampler import Sampler

    tokens = {name: open_corpus(run.corpus).tokens(name) for name in run.mixture}
    return Sampler(tokens, run.mixture, run.window, run.batch, run.seed, length=run.window_length).windows_of(step)


# --- facts -------------------------------------------------------------------------------------------------------------------


def test_an_objective_is_checked(recipe):
    base = tiny.spec(recipe, 3)
    for message, changes in {
        r"objective 'nothing' is unknown: use one of token, patch, soft": {"objective": "nothing"},
        r"\['size'\], which objective 'token' lacks: its options are none": {"objective_options": {"size": 2}},
        r"\['width'\], which objective 'patch' lacks: its options are size, loud": {
            "objective": "patch", "objective_options": {"size": 2, "width": 1},
        },
        r"objective 'patch' needs objective_options\.size: give a whole number of at least 2": {"objective": "patch"},
        r"objective_options\.size is 1: give a whole number of at least 2": {"objective": "patch", "objective_options": {"size": 1}},
        r"objective 'soft' needs an upstream named 'teacher'": {"objective": "soft", "upstreams": {"init": Upstream(run=base)}},
        r"batch_tokens = 256 is not a multiple of the 96 tokens that a window of 'patch' moves on": {
            "objective": "patch", "objective_options": {"size": 3},
        },
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            tiny.spec(recipe, 3, **changes)


def test_identity_of_options(recipe):
    plain, run = tiny.spec(recipe), patch_run(recipe, 10)
    assert len({plain.id, run.id, patch_run(recipe, 10, 4).id}) == 3
    assert run.canonical()["objective_options"] == {"size": 2} and plain.canonical()["objective_options"] is None
    same = replace(run, objective_options={"loud": False, "size": 2})  # said or not, a default is the same run
    assert same.id == run.id and same.options == {"size": 2, "loud": False}
    assert replace(run, objective_options={"loud": True, "size": 2}).id != run.id
    assert tiny.spec(recipe, objective_options={}).id == plain.id
    with pytest.raises(TypeError):
        run.objective_options["size"] = 3
    for one in (run, plain):
        assert pickle.loads(pickle.dumps(one)).canonical() == one.canonical() and replace(one) == one


def test_windows_batches_and_costs(recipe):
    plain, run = tiny.spec(recipe, 6), patch_run(recipe, 6)
    assert (plain.window_length, plain.window, plain.batch) == (tiny.CONTEXT + 1, tiny.CONTEXT, 8)
    assert (run.window_length, run.window, run.batch) == (2 * (tiny.CONTEXT + 1), 2 * tiny.CONTEXT, 4)
    assert run.tokens_trained == plain.tokens_trained and run.flops == plain.flops / 2 == plain.flops_with({"init": 7}) / 2
    teacher = tiny.spec(recipe, 3, model=tiny.model(width=64))
    soft = tiny.spec(recipe, 6, objective="soft", upstreams={"teacher": Upstream(run=teacher)})
    assert soft.flops == pytest.approx((flops_per_token(plain.model) + flops_per_token(teacher.model) / 3) * plain.tokens_trained)
    hub = replace(soft, upstreams={"teacher": Upstream(hub="a/b", revision="c" * 40)})
    assert hub.flops == 0  # its size is not known yet
    assert hub.flops_with({"teacher": 6000.0}) == pytest.approx(plain.flops + 6000 / 3 * plain.tokens_trained)


# --- other windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_another_window_trains(recipe, store, torch_once, stage):
    from cptlab.training.models import build_model

    run = patch_run(recipe, 12, schedule=Schedule("constant", max_lr=1e-2))
    how = tiny.execution(zero_stage=stage, micro_batch=2)
    record = tiny.trained(store, run, how, sets=("one:4",), prompts=(Prompt("abc", 4),))
    assert record["status"] == "done", record["error"]
    windows = torch_once.from_numpy(windows_of(run))
    assert windows.shape == (4, 66)
    model = build_model(run, tiny.EXECUTION)
    with torch_once.no_grad():
        patches = model.model.embed_tokens(windows[:, :64]).view(4, 32, 2, -1).mean(2)
        scores = model(inputs_embeds=patches).logits.log_softmax(-1)
        each = -scores.gather(-1, windows[:, 2:].view(4, 32, 2)).mean((0, 1))
    curve = store.curve(run.id)
    assert curve["loss_nats"][0] == pytest.approx(float(each.mean()), abs=1e-5)
    assert curve["first_nats"][0] == pytest.approx(float(each[0]), abs=1e-5)
    assert curve["loss_nats"].iloc[-1] < curve["loss_nats"][0] - 0.2
    assert record["summary"]["flops"] == run.flops
    # It is measured on the next token, as every run is.
    row = store.measurements(run.id).iloc[-1]
    assert row["predicted_tokens"] == 4 * tiny.CONTEXT and 0 < row["loss_nats"] < 7


def test_the_sampler_moves_by_the_stride(recipe):
    from cptlab.corpora import open_corpus

    run = patch_run(recipe)
    tokens = np.asarray(open_corpus(recipe).tokens("one"))
    places = []
    for window in windows_of(run):
        place = next(p for p in range(0, len(tokens) - 65, 64) if np.array_equal(tokens[p : p + 66], window))
        places.append(place)
    assert len(set(places)) == 4


def test_text_that_is_too_short():
    from cptlab.training.sampler import Sampler

    with pytest.raises(ValueError, match=r"\['a'\] have fewer than 65 training tokens"):
        Sampler({"a": np.arange(64)}, {"a": 1.0}, 64, 2, 0, length=66)
    # One token is lacking for the last label: the text begins anew, for longer windows must not change the number of blocks.
    [window] = Sampler({"a": np.arange(65)}, {"a": 1.0}, 64, 1, 0, length=66).windows_of(0)
    assert window.tolist() == [*range(65), 0]


def test_windows_of_any_length_read_the_blocks_in_one_order():
    from cptlab.training.sampler import Sampler

    for tokens in range(64 * 5 + 1, 64 * 6 + 1):
        texts = {"a": np.arange(tokens)}
        short = Sampler(texts, {"a": 1.0}, 32, 10, 0, block=64).windows_of(0)
        long = Sampler(texts, {"a": 1.0}, 64, 5, 0, length=66).windows_of(0)
        assert np.array_equal(short[::2, 0], long[:, 0])


# --- phases ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_phase_may_have_an_objective_of_its_own(recipe, store, base, stage):
    """A run of two phases, the next token's loss and then a teacher's labels, is the chain of two runs, to the bit."""
    step, how = tiny.BATCH * tiny.CONTEXT, tiny.execution(zero_stage=stage)
    whole = tiny.spec(
        recipe, mixture=None, tokens=None, upstreams={"teacher": Upstream(run=base)},
        phases=(Phase(5 * step, {"one": 1}), Phase(4 * step, {"one": 1}, "soft", {"heat": 2.0})),
    )  # fmt: skip
    assert whole.objectives == (("token", {}), ("soft", {"heat": 2.0}))
    placed = replace(whole.schedule, elapsed_tokens=0, horizon_tokens=9 * step)
    first = tiny.spec(recipe, 5, schedule=placed)
    then = tiny.spec(
        recipe, 4, schedule=replace(placed, elapsed_tokens=5 * step), objective="soft", objective_options={"heat": 2.0},
        upstreams={"init": Upstream(run=first), "teacher": Upstream(run=base)}, optimiser=Optimiser(state="continue"),
        data_order=DataOrder(read_on=True),
    )  # fmt: skip
    for run in (whole, first, then):
        record = tiny.trained(store, run, how, keep_state=(run.steps,))
        assert record["status"] == "done", record["error"]
    assert tiny.losses(store, whole) == tiny.losses(store, first) + tiny.losses(store, then)
    one, other = (load_file(store.optimiser_state(run.id, run.steps).path) for run in (whole, then))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # trained again for a checkpoint, it is the same run, empty columns and all
        tiny.trained(store, whole, how, keep=(7,))
    told = store.curve(whole.id)["hard_nats"]
    assert told[:5].isna().all() and told[5:].tolist() == store.curve(then.id)["hard_nats"].tolist()
    assert whole.flops == pytest.approx(first.flops + then.flops)
    assert pickle.loads(pickle.dumps(whole)).id == whole.id != replace(whole, phases=whole.phases[:1] + (Phase(4 * step, {"one": 1}),)).id


def test_an_objective_said_once_more_for_a_phase_is_the_same_run(recipe):
    step = tiny.BATCH * tiny.CONTEXT
    runs = [
        tiny.spec(recipe, mixture=None, tokens=None, phases=(Phase(step, {"one": 1}), Phase(step, {"two": 1}, *second)))
        for second in ((), ("token",), ("token", {}), (None, {}))
    ]
    assert len({run.id for run in runs}) == 1


def test_phases_of_one_run_share_their_windows(recipe):
    step = tiny.BATCH * tiny.CONTEXT
    for second, message in (
        (("patch", {"size": 2}), "reads other windows than the run's 'token': make each phase a run"),
        (("soft", {}), "needs an upstream named 'teacher'"),
        (("nothing", {}), "objective 'nothing' is unknown"),
        ((None, {"size": 2}), "has no phase.objective"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny.spec(recipe, mixture=None, tokens=None, phases=(Phase(step, {"one": 1}), Phase(step, {"one": 1}, *second)))


# --- further columns ---------------------------------------------------------------------------------------------------------


def test_what_an_objective_tells_is_in_the_curve(recipe, store):
    runs = [patch_run(recipe, 6), tiny.spec(recipe, 6)]
    for run in runs:
        tiny.trained(store, run, tiny.execution(state_every=2))
    curve = store.curve(runs[0].id)
    assert list(curve.columns) == ["step", "tokens", "lr", "loss_nats", "grad_norm", "first_nats", "spread"]
    assert len(curve) == 6 and curve[["first_nats", "spread"]].notna().all().all() and (curve["spread"] > 0).all()
    assert list(store.curve(runs[1].id).columns) == ["step", "tokens", "lr", "loss_nats", "grad_norm"]
    from cptlab.sweep.grid import Grid

    grid = Grid(store, tiny.EXECUTION)
    for run in runs:
        grid.add(run, steps=(6,))
    curves = grid.results().curves.set_index("id")
    assert curves.loc[runs[0].id, "spread"].notna().all() and curves.loc[runs[1].id, "spread"].isna().all()


def test_further_columns_are_logged_as_means(recipe, tmp_path, interrupted):
    """Over the micro-batches of a step and over the steps of a row, and the same after a resume."""
    run, stores = patch_run(recipe, 6), {name: Store(tmp_path / name) for name in ("whole", "parts", "broken")}
    interrupted(4, tiny.trained, stores["broken"], run, tiny.execution(state_every=3))
    for name, micro in (("whole", 4), ("parts", 1), ("broken", 4)):
        tiny.trained(stores[name], run, tiny.execution(micro_batch=micro))
    one, other, broken = (stores[name].curve(run.id) for name in stores)
    assert np.allclose(one["first_nats"], other["first_nats"], atol=1e-5) and broken.equals(one)
    long = patch_run(recipe, 202, schedule=Schedule("constant", max_lr=1e-9))  # a row every second step, and nothing learnt
    tiny.trained(stores["whole"], long)
    rows, first = stores["whole"].curve(long.id), one.iloc[0]
    assert rows["step"].tolist() == list(range(2, 203, 2))
    assert abs(rows["first_nats"] - first["first_nats"]).max() < 0.05 and abs(rows["loss_nats"] - first["loss_nats"]).max() < 0.05


def test_further_columns_of_a_damaged_table(store):
    row = {"step": 1, "tokens": 256, "lr": 1e-3, "loss_nats": 5.0, "grad_norm": 1.0}
    store.write_curve("ab" * 8, [row | {"hard_nats": 4.5}, row | {"step": 2, "hard_nats": np.nan}])
    path = store.path("ab" * 8) / "curve.csv"
    assert path.read_text().splitlines()[2] == "2,256,0.001,5,1,"
    assert store.curve("ab" * 8).dtypes.astype(str).tolist() == ["int64", "int64", *["float64"] * 4]
    path.write_text(path.read_text().replace("4.5", "x"))
    with pytest.raises(StoreError, match=r"curve\.csv:2"):
        store.curve("ab" * 8)
    store.write_curve("ab" * 8, [row, row | {"step": 2, "hard_nats": 4.5}])  # told in a part of the run alone
    assert store.curve("ab" * 8)["hard_nats"].tolist()[1] == 4.5 and store.curve("ab" * 8)["hard_nats"].isna()[0]
    with pytest.raises(StoreError, match="lr"):
        store.write_curve("ab" * 8, [row, {"step": 2, "hard_nats": 4.5}])
    with pytest.raises(StoreError, match="hard_nats"):  # measurements have none
        store.add_measurements(
            "ab" * 8, [{"step": 1, "tokens": 1, "set": "a", "loss_nats": 1.0, "accuracy": 0.5, "predicted_tokens": 1, "hard_nats": 1}]
        )


def test_a_name_that_is_taken(recipe, store, monkeypatch):
    from cptlab.training import objectives as modules

    plain = modules.OBJECTIVES["patch"].losses
    monkeypatch.setattr(modules.OBJECTIVES["patch"], "losses", lambda self, batch: (plain(self, batch)[0], {"lr": batch["inputs"]}))
    error = tiny.trained(store, patch_run(recipe))["error"]
    assert error["type"] == "TrainingError" and "tells ['lr'], which are columns already" in error["message"]


# --- a teacher ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(recipe, store):
    run = tiny.spec(recipe, 8, schedule=Schedule("constant", max_lr=1e-2))
    tiny.trained(store, run)
    return run


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_teacher_that_is_the_student(store, torch_once, base, stage):
    from transformers import AutoModelForCausalLM

    run = soft_run(base)
    how = tiny.execution(zero_stage=stage, micro_batch=4)
    record = tiny.trained(store, run, how, sets=("one:3",), steps=(0, 6), keep=(0,), keep_state=(6,))
    assert record["status"] == "done", record["error"]
    model = AutoModelForCausalLM.from_pretrained(store.checkpoint(base.id, 8).path.parent, attn_implementation="eager")
    windows = torch_once.from_numpy(windows_of(run))
    with torch_once.no_grad():
        scores = model(windows[:, :-1]).logits.log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1).mean()
    hard = -scores.gather(-1, windows[:, 1:, None]).mean()
    first = store.curve(run.id).iloc[0]
    assert first["loss_nats"] == pytest.approx(float(entropy), abs=1e-5)
    assert first["hard_nats"] == pytest.approx(float(hard), abs=1e-5)
    assert first["grad_norm"] < 1e-4  # nothing to learn
    # The teacher is neither saved nor counted, and what is measured is the student's loss on the text.
    names = set(load_file(store.checkpoint(base.id, 8).path))
    assert set(load_file(store.checkpoint(run.id, 6).path)) == names
    assert set(load_file(store.optimiser_state(run.id, 6).path)) == {
        f"{kind}/{n}" for kind in ("master", "exp_avg", "exp_avg_sq") for n in names
    }
    assert record["summary"]["parameters"] == store.record(base.id)["summary"]["parameters"]
    assert record["summary"]["flops"] == run.flops == pytest.approx(base.flops / 8 * 6 * 4 / 3)
    assert record["provenance"]["upstream_weights"]["teacher"]["run"] == base.id
    tiny.trained(store, base, sets=("one:3",))
    assert store.measurements(run.id)["loss_nats"][0] == pytest.approx(store.measurements(base.id)["loss_nats"].iloc[-1], abs=1e-6)


@pytest.mark.parametrize(("stage", "compute"), [(0, "bf16"), (1, "bf16"), (3, "bf16"), (1, "fp32")])
def test_a_teacher_is_not_trained(recipe, store, torch_once, stage, compute):
    teacher = tiny.spec(recipe, 4, precision="bf16", model=tiny.model(layers=1), schedule=Schedule("constant", max_lr=1e-2))
    tiny.trained(store, teacher, keep=(2,))
    run = tiny.spec(recipe, 5, precision="bf16", objective="soft", upstreams={"teacher": Upstream(run=teacher, step=2)})
    how = tiny.execution(zero_stage=stage, activation_checkpointing=True, compute=compute)
    training = start(Request(run, steps=(5,)), store, how)
    module, model = training.engine.module, training.engine.module.upstream_models["teacher"]
    dtype = torch_once.bfloat16 if compute == "bf16" else torch_once.float32
    before = {name: p.clone() for name, p in model.named_parameters()}
    saved = load_file(store.checkpoint(teacher.id, 2).path)
    assert all(torch_once.equal(before[name].float(), saved[name].float()) for name in saved)
    training.train()
    own = {id(p) for p in module.parameters()}
    assert not any(id(p) in own for p in model.parameters())
    assert not any("teacher" in name for name, _ in module.named_modules())
    assert not model.training and module.training and not model.is_gradient_checkpointing
    for name, p in model.named_parameters():
        assert torch_once.equal(p, before[name]) and not p.requires_grad and p.grad is None and not hasattr(p, "ds_id")
        assert (p.dtype, p.device) == (dtype, training.engine.device)
    assert training.curve[-1]["loss_nats"] < training.curve[0]["loss_nats"]
    training.engine.close()


def test_options_reach_the_objective(store, base):
    runs = [soft_run(base, 2, objective_options=options) for options in (None, {"heat": 1.0}, {"heat": 3.0})]
    assert runs[0].id == runs[1].id != runs[2].id
    losses = [tiny.trained(store, run) and tiny.losses(store, run)[0] for run in (runs[0], runs[2])]
    assert losses[1] > losses[0] + 0.3  # a hotter distribution is flatter


def test_a_teacher_that_is_not_here(store, recipe):
    base = tiny.spec(recipe, 3)
    error = tiny.trained(store, tiny.spec(recipe, 2, objective="soft", upstreams={"teacher": Upstream(run=base)}))["error"]
    assert error["type"] == "TrainingError" and f"the weights of the upstream, run {base.id} step 3, are not here" in error["message"]


def test_a_teacher_of_the_hub(recipe, store, torch_once, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from cptlab.training.models import flops_per_token_of

    def saved(vocab):
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        model.save_pretrained(tmp_path / str(vocab))
        return Upstream(hub=str(tmp_path / str(vocab)), revision=folder_revision(tmp_path / str(vocab))), model

    teacher, model = saved(tiny.VOCAB)
    run = tiny.spec(recipe, 4, objective="soft", upstreams={"teacher": teacher})
    record = tiny.trained(store, run)
    assert record["status"] == "done", record["error"]
    assert run.flops == 0
    assert record["summary"]["flops"] == run.flops_with({"teacher": flops_per_token_of(model, tiny.CONTEXT)}) > 0
    small, _ = saved(100)
    error = tiny.trained(store, tiny.spec(recipe, 4, objective="soft", upstreams={"teacher": small}))["error"]
    assert error["type"] == "ConfigError" and "knows 100 tokens and corpus 'tiny' has 280" in error["message"]


@pytest.mark.parametrize("stage", [1, 3])
def test_a_kept_checkpoint_is_measured_without_the_teacher(store, base, stage):
    run = soft_run(base)
    tiny.trained(store, run, tiny.execution(zero_stage=stage), sets=("one:3",), steps=(6,))
    shutil.rmtree(store.path(base.id) / "checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny.trained(store, run, tiny.execution(zero_stage=stage), sets=("one:3", "two:3"), steps=(6,))
    assert store.measurements(run.id)["set"].tolist() == ["one:3", "two:3"]


# --- compiled ----------------------------------------------------------------------------------------------------------------


def compiled(root, base, others, cache, graphs) -> None:
    """Train runs compiled, one after another in this process; writes how many graphs there are after each."""
    import os

    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    import torch
    from torch._dynamo.utils import counters

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        store, counts = Store(root), []
        tiny.trained(store, base, keep=(2,))
        for run in (made(base) for made in others):
            record = tiny.trained(store, run, tiny.execution(compile=True, micro_batch=4), sets=("one:5",), steps=(0, run.steps))
            assert record["status"] == "done", record["error"]
            assert record["provenance"]["execution"]["compile"]
            counts.append(counters["stats"]["unique_graphs"])
        graphs.write_text(" ".join(map(str, counts)))


def soft(base):
    return soft_run(base, 4)


def other_soft(base):
    """Another student, and another teacher of the same shape."""
    return soft_run(base, 4, seed=5, upstreams={"teacher": Upstream(run=base, step=2)})


def patched(base):
    return patch_run(base.corpus, 4)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_each_objective_compiles_once(recipe, tmp_path, in_process):
    shape = tiny.model(layers=1, width=16, ffn_width=32)
    base = tiny.spec(recipe, 3, model=shape, precision="bf16")
    after, alone = Store(tmp_path / "after"), Store(tmp_path / "alone")
    counts, cache = tmp_path / "counts", tmp_path / "inductor"
    # A graph to train and one to evaluate; another student and another teacher of the same shapes need none.
    assert in_process(compiled, after.root, base, [soft, other_soft], cache, counts) == 0
    assert counts.read_text() == "2 2"
    assert in_process(compiled, alone.root, base, [other_soft, patched], cache, counts) == 0
    assert counts.read_text() == "2 4"
    run = other_soft(base)
    assert tiny.results(alone, run) == tiny.results(after, run)
