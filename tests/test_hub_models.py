"""What comes from the Hugging Face Hub: models by commit or by content, their sizes, their dropout; data sets by the commit that was read.
And GPT-NeoX, the family of Pythia, compiled and with other rotary positions."""

import json
import math
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from cptlab import revisions
from cptlab.errors import ConfigError, CorpusError
from cptlab.revisions import folder_revision, hub_commit
from cptlab.runs.request import Request
from cptlab.runs.shapes import ModelSpec, flops_per_token, parameter_counts
from cptlab.runs.spec import Upstream
from cptlab.runs.store import Store

pytestmark = pytest.mark.usefixtures("torch_once")

HUB = ModelSpec(0, 0, 0, 0, vocab=0, context=tiny.CONTEXT, family="hub")
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def gpt2(torch, folder, dropout=0.1, **changes):
    """A small GPT-2 saved as Hugging Face's own are; its upstream."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    shape = {"vocab_size": tiny.VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2} | changes
    GPT2LMHeadModel(GPT2Config(**shape, **drops)).save_pretrained(folder)
    return Upstream(hub=str(folder), revision=folder_revision(folder))


def hub_run(recipe, steps, upstream, **changes):
    return tiny.spec(recipe, steps, model=HUB, upstreams={"init": upstream}, **changes)


# --- commits -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub with its cache in a folder of the test; ``hub.answer`` is a commit or an error, ``hub.asked`` what it was asked."""
    from huggingface_hub import HfApi, constants

    server = SimpleNamespace(answer=COMMIT, asked=[], cache=tmp_path / "cache")

    def repo_info(self, repo_id, *, repo_type=None, revision=None, **settings):
        server.asked.append((repo_type, repo_id, revision))
        if isinstance(server.answer, Exception):
            raise server.answer
        return SimpleNamespace(sha=server.answer)

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(server.cache))
    return server


def test_a_branch_is_resolved_to_its_commit(hub):
    from huggingface_hub.errors import OfflineModeIsEnabled

    assert hub_commit("a/b") == COMMIT and hub_commit("a/b", "step7", "dataset") == COMMIT
    assert hub.asked == [("model", "a/b", "main"), ("dataset", "a/b", "step7")]
    assert hub_commit("a/b", OTHER) == OTHER and len(hub.asked) == 2
    # Without network, the commit it had when it was last asked for.
    hub.answer = OfflineModeIsEnabled("offline")
    assert hub_commit("a/b") == COMMIT
    ref = hub.cache / "models--a--c" / "refs" / "v1"
    ref.parent.mkdir(parents=True)
    ref.write_text(OTHER)
    assert hub_commit("a/c", "v1") == OTHER
    with pytest.raises(ConfigError, match="commit of model 'a/c' at revision 'v2' cannot be found.*offline.*check name, revision, access"):
        hub_commit("a/c", "v2")


def test_a_name_that_the_hub_refuses(hub, tmp_path):
    hub.answer = ValueError("there is no a/b\nand much more")
    with pytest.raises(ConfigError, match=r"'a/b' .* cannot be found \(ValueError: there is no a/b\): check"):
        hub_commit("a/b")
    with pytest.raises(ConfigError, match="is a folder and has no commits: .* folder_revision"):
        hub_commit(str(tmp_path))


def test_a_folder_is_named_by_its_content(tmp_path):
    folder = tmp_path / "one"
    with pytest.raises(ConfigError, match="one is no folder"):
        folder_revision(folder)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="lacks config.json or weights"):
        folder_revision(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    name = folder_revision(folder)
    assert Upstream(hub="x", revision=name).is_folder
    (folder / "README.md").write_text("not read by from_pretrained")
    shutil.copytree(folder, tmp_path / "two")
    assert folder_revision(tmp_path / "two") == folder_revision(str(folder)) == name
    seen = {name}
    for file, content in (("config.json", b"{ }"), ("model.safetensors", b"Weights"), ("model.safetensors.index.json", b"{}")):
        (folder / file).write_bytes(content)
        seen.add(folder_revision(folder))
    assert len(seen) == 4


def test_a_folder_that_has_changed_is_not_trained(recipe, store, torch_once, tmp_path):
    upstream = gpt2(torch_once, tmp_path / "model")
    run = hub_run(recipe, 2, upstream)
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    moved = hub_run(recipe, 2, Upstream(hub=str(tmp_path / "moved"), revision=upstream.revision))
    assert moved.id == run.id
    assert gpt2(torch_once, tmp_path / "model", n_embd=32).revision != upstream.revision
    error = tiny.trained(store, run)["error"]
    assert error["type"] == "ConfigError" and "has changed: the run starts from sha256:" in error["message"]
    assert tiny.trained(Store(tmp_path / "other"), moved)["status"] == "done"


def test_a_folder_does_not_pass_for_a_commit(recipe, store, torch_once, tmp_path):
    gpt2(torch_once, tmp_path / "model")
    run = hub_run(recipe, 2, Upstream(hub=str(tmp_path / "model"), revision=COMMIT))
    error = tiny.trained(store, run)["error"]
    assert error["type"] == "ConfigError" and f"in the place of commit {COMMIT}" in error["message"]


def test_a_commit_is_what_is_loaded(recipe, torch_once, monkeypatch):
    from cptlab.training import models

    asked = []

    def from_pretrained(**settings):
        asked.append(settings)
        raise OSError("no network")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    run = hub_run(recipe, 2, Upstream(hub="a/b", revision=COMMIT))
    for spec in (run, hub_run(recipe, 2, Upstream(run=run), mixture={"two": 1})):
        assert models.hub_start(spec) == run.upstreams["init"]
        with pytest.raises(OSError, match="no network"):
            models.build_model(spec, tiny.EXECUTION)
    assert [(a["pretrained_model_name_or_path"], a["revision"]) for a in asked] == [("a/b", COMMIT)] * 2
    assert models.hub_start(tiny.spec(recipe)) is None


# --- sizes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}, {"tied_embeddings": True}, {"family": "gpt-neox", "kv_heads": 2}], ids=str)
def test_sizes_from_the_configuration_alone(tmp_path, changes):
    from cptlab.training import models

    shape = tiny.model(**changes)
    models.config_of(shape).save_pretrained(tmp_path)  # and no weights
    upstream = Upstream(hub=str(tmp_path), revision=f"sha256:{'1' * 64}")
    for asked in (upstream, str(tmp_path)):
        assert models.hub_parameters(asked) == parameter_counts(shape)
        for context in (32, 48):
            expected = flops_per_token(tiny.model(**changes, context=context))
            assert models.hub_flops_per_token(asked, context) == expected


def test_sizes_of_another_family(torch_once, tmp_path):
    from cptlab.training import models

    upstream = gpt2(torch_once, tmp_path)
    width, vocab = 16, tiny.VOCAB
    body = 12 * width * width + 13 * width + 2 * width + 64 * width  # a layer, the last norm, learnt positions
    assert models.hub_parameters(upstream) == {"non_embedding": body, "total": body + vocab * width}
    assert models.hub_flops_per_token(upstream, 32) == 6 * (body + vocab * width) + 12 * 32 * width


def test_sizes_that_cannot_be_had_have_a_reason(monkeypatch):
    from cptlab.training import models

    calls = []

    def offline(name, **settings):
        calls.append(settings)
        raise OSError("no network\nand much more")

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", offline)
    upstream = Upstream(hub="nobody/nothing", revision=COMMIT)
    for _ in range(2):
        found = models.hub_parameters(upstream)
        assert found["total"] is None and found["non_embedding"] is None
        assert "nobody/nothing cannot be had (OSError: no network): check name, revision and network" in found["reason"]
        assert math.isnan(models.hub_flops_per_token(upstream, 32))
    assert calls == [{"revision": COMMIT}]  # the network is tried once
    models._outline.cache_clear()


# --- dropout -----------------------------------------------------------------------------------------------------------------


def test_dropout_is_a_function_of_the_seed(recipe, tmp_path, torch_once):
    upstream, stores = gpt2(torch_once, tmp_path / "model"), {name: Store(tmp_path / name) for name in ("one", "again", "other")}
    run, other = hub_run(recipe, 6, upstream), hub_run(recipe, 6, upstream, seed=1)
    tiny.trained(stores["one"], run, sets=("one:4",))
    torch_once.rand(17)  # the process has drawn something else in between
    tiny.trained(stores["again"], run, sets=("one:4",), keep=(0, 3))
    tiny.trained(stores["other"], other)
    assert tiny.losses(stores["one"], run) == tiny.losses(stores["again"], run)
    sha = [stores[name].record(run.id)["checkpoints"]["6"]["sha256"] for name in ("one", "again")]
    assert sha[0] == sha[1]
    assert tiny.losses(stores["one"], run) != tiny.losses(stores["other"], other)


def first_losses(recipe, upstream, seed, steps=(0, 0, 1), dropout=True):
    """Losses of an engine that is asked for ``steps`` on the same windows, with a rate of zero."""
    from cptlab.training.engine import Engine
    from cptlab.training.models import build_model
    from cptlab.training.objectives.token import TokenObjective

    run = hub_run(recipe, 6, upstream, seed=seed)
    engine = Engine(run, tiny.execution(micro_batch=4), TokenObjective(build_model(run, tiny.EXECUTION)), run.precision)
    windows = np.random.default_rng(0).integers(0, tiny.VOCAB, (tiny.BATCH, tiny.CONTEXT + 1))
    means = [engine.train_step(lambda first, count: windows[first : first + count], 0.0, step=step)[0] for step in steps]
    found = [float(mean["loss_nats"]) for mean in means]
    engine.close()
    return found


def test_what_dropout_draws_depends_on_seed_and_step(recipe, torch_once, tmp_path):
    upstream = gpt2(torch_once, tmp_path / "model")
    one, other = first_losses(recipe, upstream, 0), first_losses(recipe, upstream, 1)
    assert one[0] == one[1] and len({*one, *other}) == 4
    plain = gpt2(torch_once, tmp_path / "plain", dropout=0.0)
    assert len({*first_losses(recipe, plain, 0), *first_losses(recipe, plain, 1)}) == 1


def test_each_micro_batch_draws_anew():
    from cptlab.training.engine import draw_seed

    places = [(seed, step, first) for seed in (0, 1, -1) for step in (0, 1, 11) for first in (0, 1, 4)]
    seeds = {draw_seed(*place) for place in places}
    assert len(seeds) == len(places) and all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_killed_run_with_dropout_ends_in_the_same_bits(recipe, tmp_path, torch_once, in_process, stage):
    upstream, how = gpt2(torch_once, tmp_path / "model"), tiny.execution(state_every=4, zero_stage=stage, micro_batch=4)
    run = hub_run(recipe, 14, upstream, precision="bf16")
    request, whole, killed = Request(run, {}, ("one:8",), (0, 6, 14)), Store(tmp_path / "whole"), Store(tmp_path / "killed")
    assert in_process(tiny.work_until, request, whole.root, how) == 0
    for step in (7, 10):
        assert in_process(tiny.work_until, request, killed.root, how, step) == -signal.SIGKILL
    assert json.loads((killed.state_dir(run.id) / "resume.json").read_text())["step"] >= 8
    assert in_process(tiny.work_until, request, killed.root, how) == 0
    assert tiny.results(whole, run) == tiny.results(killed, run)


# --- GPT-NeoX ----------------------------------------------------------------------------------------------------------------


def neox(**changes):
    return tiny.model(**({"family": "gpt-neox", "kv_heads": 2, "layers": 1} | changes))


def compiled(request, root, how, cache) -> None:
    import os

    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    tiny.work_until(request, root, how)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_gpt_neox_compiles_in_bf16(recipe, tmp_path, in_process):
    """The gradients of its two biases are one sum, which inductor's C++ must not declare twice."""
    run = tiny.spec(recipe, 2, model=neox(), precision="bf16")
    request, stores = Request(run), {c: Store(tmp_path / str(c)) for c in (False, True)}
    for compile_it, store in stores.items():
        assert in_process(compiled, request, store.root, tiny.execution(compile=compile_it), tmp_path / "inductor") == 0
        record = store.record(run.id)
        assert record["status"] == "done", record["error"]
        assert record["provenance"]["execution"]["compile"] is compile_it
    # One rounding to bf16 is 2 ** -9 of a value; compiled code keeps intermediate values that eager code rounds.
    eager, fast = (stores[c].curve(run.id) for c in (False, True))
    assert np.allclose(eager["loss_nats"], fast["loss_nats"], atol=2e-3)
    assert np.allclose(eager["grad_norm"], fast["grad_norm"], rtol=1e-2)


def test_llama_shapes_compile_as_they_always_did(monkeypatch, recipe):
    """Other options would be other code, and other bits of every recorded run."""
    from cptlab.training import engine
    from cptlab.training.models import build_model
    from cptlab.training.objectives.token import TokenObjective

    asked, how = [], tiny.execution(compile=True)
    monkeypatch.setattr(engine, "_can_compile", lambda: True)
    monkeypatch.setattr(engine.deepspeed.DeepSpeedEngine, "compile", lambda self, **settings: asked.append(settings))
    for model in (tiny.model(), neox()):
        run = tiny.spec(recipe, 2, model=model)
        engine.Engine(run, how, TokenObjective(build_model(run, how)), run.precision).close()
    assert asked[0] == {"backend": "inductor", "compile_kwargs": {"dynamic": False}}
    assert asked[1]["compile_kwargs"] == {"dynamic": False, "options": {"cpp.max_horizontal_fusion_size": 1}}


def test_gpt_neox_takes_its_rotary_base(torch_once, recipe):
    from transformers import GPTNeoXConfig

    from cptlab.training.models import build_model, config_of

    tokens = torch_once.arange(tiny.CONTEXT).unsqueeze(0)

    def logits(**changes):
        with torch_once.no_grad():
            return build_model(tiny.spec(recipe, model=neox(width=64, **changes)), tiny.EXECUTION).eval()(tokens).logits

    usual = logits()
    assert torch_once.equal(usual, logits(rope_theta=10000.0))
    assert not torch_once.equal(usual, logits(rope_theta=500.0))
    # As it was when the base was left to transformers.
    assert config_of(neox()).rope_parameters == GPTNeoXConfig().rope_parameters
    assert config_of(neox(rope_theta=500.0)).rope_parameters["partial_rotary_factor"] == 0.25


# --- data sets ---------------------------------------------------------------------------------------------------------------


def test_a_build_reads_one_commit_and_says_which(monkeypatch, tmp_path, recwarn):
    from cptlab import corpora

    asked = []
    monkeypatch.setattr(corpora.hub, "hub_commit", lambda *place: asked.append(place) or (COMMIT if place[1] != OTHER else OTHER))
    (tmp_path / "a.txt").write_text("some text\n")
    sources = {
        "moving": {"hub": "org/set", "config": "de", "revision": "main", "max_documents": 5},
        "fixed": {"hub": "org/set", "revision": OTHER},
        "folder": {"hub": str(tmp_path), "revision": "main"},
        "file": {"files": [str(tmp_path / "a.txt")]},
    }
    recipe = corpora.recipe_from("web", {"sources": sources, "tokenizer": {"vocab": 280}})
    pinned, commits = corpora.hub.pinned(recipe)
    assert commits == {"moving": COMMIT, "fixed": OTHER}
    assert asked == [("org/set", OTHER, "dataset"), ("org/set", "main", "dataset")]
    assert {name: ref.revision for name, ref in pinned.sources.items()} == {**commits, "folder": "main", "file": None}
    assert pinned.sources["moving"].max_documents == 5 and pinned.tokenizer == recipe.tokenizer
    [warning] = [str(w.message) for w in recwarn if "revision" in str(w.message)]
    assert "source 'moving' names revision 'main' of org/set, which may move" in warning and f"`revision: {COMMIT}`" in warning
    assert pinned.sources["fixed"] == recipe.sources["fixed"] and pinned.fingerprint != recipe.fingerprint
    local = corpora.recipe_from("local", {"sources": {"file": sources["file"]}})
    assert corpora.hub.pinned(local) == (local, {})


def test_a_revision_that_cannot_be_resolved(monkeypatch):
    from cptlab import corpora

    def refuse(*place):
        raise ConfigError("cannot be found")

    monkeypatch.setattr(corpora.hub, "hub_commit", refuse)
    recipe = corpora.recipe_from("web", {"sources": {"fr": {"hub": "org/set", "revision": "main"}}})
    with pytest.raises(CorpusError, match="corpus 'web': source 'fr': cannot be found"):
        corpora.hub.pinned(recipe)


def test_revisions_needs_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, cptlab.revisions; print(sorted({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert revisions.COMMIT.fullmatch(COMMIT)


def test_plan_and_tables_know_the_size_of_a_hub_model(recipe, store, torch_once, tmp_path):
    from cptlab.sweep.grid import Grid
    from cptlab.training import models

    upstream = gpt2(torch_once, tmp_path / "model")
    grid = Grid(store, tiny.EXECUTION, sets=("one:4",))
    run = grid.add(hub_run(recipe, 3, upstream))
    arm = grid.add(hub_run(recipe, 2, Upstream(run=run), mixture={"two": 1}))
    per_token, size = models.hub_flops_per_token(upstream, tiny.CONTEXT), models.hub_parameters(upstream)
    assert grid.plan()["flops"].tolist() == [per_token * spec.tokens_trained for spec in (run, arm)]
    for spec in (run, arm):
        record = tiny.trained(store, spec, sets=("one:4",))
        assert record["summary"]["flops"] == per_token * spec.tokens_trained
        assert {name: record["summary"]["parameters"][name] for name in size} == size
    assert store.record(run.id)["provenance"]["upstream_weights"] == {"init": {"hub": upstream.hub, "revision": upstream.revision}}
    found = grid.results()
    assert found.runs["flops"].tolist() == [per_token * spec.tokens_trained for spec in (run, arm)]
    assert set(found.runs["total"]) == set(found.curves["total"]) == {size["total"]}
    elsewhere = Grid(store, tiny.EXECUTION)
    elsewhere.add(hub_run(recipe, 3, Upstream(hub=str(tmp_path / "nowhere"), revision=upstream.revision), seed=5))
    with pytest.warns(UserWarning, match="FLOPs of run .* are not known: the configuration of .*nowhere cannot be had"):
        assert math.isnan(elsewhere.plan()["flops"][0])


@pytest.mark.parametrize("clean", [False, True])
def test_a_corpus_notes_the_commit_it_read(monkeypatch, tmp_path, clean):
    import datasets

    from cptlab import corpora

    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    read = []

    def load_dataset(name, config=None, *, revision, **settings):
        read.append(revision)
        text = tiny.write_text(tmp_path / "text.txt", 0).read_text()
        return [{"text": f"The {number}th document says: {part}."} for number, part in enumerate(text.split("\n\n"))]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpora.hub, "hub_commit", lambda name, revision, kind: COMMIT)
    content = {"sources": {"web": {"hub": "org/set", "revision": "main"}}, "tokenizer": {"vocab": 280}, "validation": {"fraction": 0.2}}
    recipe = corpora.recipe_from("web", content | ({"clean": {"steps": {"exact": {}}}} if clean else {}))
    with pytest.warns(UserWarning, match="names revision 'main' of org/set, which may move"):
        corpus = corpora.open_corpus(recipe)
    assert corpus.manifest["commits"] == {"web": COMMIT} and set(read) == {COMMIT}
    assert corpus.manifest["fingerprint"] == recipe.fingerprint
