"""The models that runs train: frozen parts, starting weights, checkpoints that other tools read."""

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from cptlab.errors import ConfigError, TrainingError
from cptlab.revisions import folder_revision
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import Upstream
from cptlab.runs.store import Store

pytestmark = pytest.mark.usefixtures("torch_once")


def build(run, how=tiny.EXECUTION, weights=None):
    from cptlab.training.models import build_model

    return build_model(run, how, weights)


def weights_of(store, run, step=None):
    return load_file(store.checkpoint(run.id, run.steps if step is None else step).path)


# --- starting weights --------------------------------------------------------------------------------------------------------


def test_weights_come_from_the_seed_alone(recipe, torch_once):
    torch_once.manual_seed(5)
    state = torch_once.random.get_rng_state()
    one, again, other = (dict(build(tiny.spec(recipe, seed=seed)).named_parameters()) for seed in (1, 1, 2))
    assert torch_once.equal(state, torch_once.random.get_rng_state())  # the process's own generator is left alone
    assert all(torch_once.equal(one[name], again[name]) for name in one)
    assert not torch_once.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert {p.dtype for p in one.values()} == {torch_once.float32}


def test_weights_of_an_upstream(recipe, store, torch_once):
    from safetensors.torch import load_file as read_tensors

    base = tiny.spec(recipe, 3, precision="bf16")
    tiny.trained(store, base)
    arm = tiny.target(base, 3, precision="fp32")
    with pytest.raises(TrainingError, match=f"run {base.id} step 3, are not here: train it first"):
        build(arm)
    started = dict(build(arm, weights=store.checkpoint(base.id, 3).path).named_parameters())
    saved = read_tensors(store.checkpoint(base.id, 3).path)
    assert all(torch_once.equal(started[name], saved[name].float()) for name in started)


def test_weights_that_do_not_fit(recipe, tmp_path):
    from cptlab.training.models import load_weights

    model = build(tiny.spec(recipe))
    good = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    short = {name: value for name, value in good.items() if name != "lm_head.weight"}
    save_file(short, tmp_path / "names.safetensors")
    with pytest.raises(TrainingError, match=r"names\.safetensors does not fit.*lm_head\.weight"):
        load_weights(model, tmp_path / "names.safetensors")
    save_file(good | {"lm_head.weight": np.zeros((280, 16), np.float32)}, tmp_path / "shape.safetensors")
    with pytest.raises(TrainingError, match=r"lm_head\.weight has shape \(280, 16\), the model \(280, 32\)"):
        load_weights(model, tmp_path / "shape.safetensors")


def test_an_arm_of_another_shape_is_a_failed_run(recipe, store):
    base = tiny.spec(recipe, 2)
    tiny.trained(store, base)
    record = tiny.trained(store, tiny.target(base, 2, model=tiny.model(ffn_width=80)))
    assert record["status"] == "failed" and record["error"]["type"] == "TrainingError" and "same shape" in record["error"]["message"]


# --- frozen parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("patterns", [("*embed*", "lm_head*"), ("*.layers.1.*",), ("*norm*",)])
def test_only_matching_parameters_learn(recipe, store, patterns, stage):
    import fnmatch

    run = tiny.spec(recipe, 3, trainable=patterns)
    record = tiny.trained(store, run, tiny.execution(zero_stage=stage), keep=(0,))
    assert record["status"] == "done", record["error"]
    before, after = weights_of(store, run, 0), weights_of(store, run)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in after if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert record["summary"]["parameters"]["trainable"] == sum(after[name].size for name in changed)


@pytest.mark.parametrize("patterns", [("*.layers.1.*", "*.layers.9.*"), ()])
def test_a_pattern_without_a_parameter(recipe, patterns):
    with pytest.raises(ConfigError, match=r"match no parameter; the names are like model\.embed_tokens\.weight"):
        build(tiny.spec(recipe, trainable=patterns))


# --- families ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"family": "gpt-neox", "kv_heads": 2}, {"tied_embeddings": True}, {"kv_heads": 2}], ids=str)
def test_every_family_trains_and_is_read_back(recipe, store, torch_once, changes):
    from transformers import AutoModelForCausalLM

    from cptlab.corpora import open_corpus
    from cptlab.runs.shapes import parameter_counts
    from cptlab.training.evaluation import evaluation_windows

    run = tiny.spec(recipe, 6, model=tiny.model(**changes), precision="bf16")
    record = tiny.trained(store, run, sets=("one:8",))
    assert record["status"] == "done", record["error"]
    assert {k: record["summary"]["parameters"][k] for k in ("total", "non_embedding")} == parameter_counts(run.model)
    assert tiny.losses(store, run)[-1] < tiny.losses(store, run)[0]

    folder = store.checkpoint(run.id, 6).path.parent
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert model.dtype == torch_once.bfloat16 and model.config.model_type == ("gpt_neox" if "family" in changes else "llama")
    windows = torch_once.from_numpy(evaluation_windows(open_corpus(recipe), "one:8", tiny.CONTEXT))
    with torch_once.no_grad():
        logits = model(windows[:, :-1]).logits.float()
    loss = torch_once.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert store.measurements(run.id)["loss_nats"].iloc[-1] == pytest.approx(float(loss), abs=1e-4)


def hub_model(torch, folder, vocab=tiny.VOCAB):
    """A small model saved as Hugging Face's own are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def saved(folder):
    return Upstream(hub=str(folder), revision=folder_revision(folder))


HUB = ModelSpec(0, 0, 0, 0, vocab=0, context=tiny.CONTEXT, family="hub")


def test_a_hub_model_trains(recipe, store, torch_once, tmp_path):
    start = hub_model(torch_once, tmp_path / "someone" / "model")
    run = tiny.spec(recipe, 6, model=HUB, upstreams={"init": saved(tmp_path / "someone" / "model")})
    record = tiny.trained(store, run, keep=(0,), sets=("one:8",))
    assert record["status"] == "done", record["error"]
    begun = weights_of(store, run, 0)
    assert all(np.array_equal(begun[name], parameter.detach().numpy()) for name, parameter in start.named_parameters())
    assert tiny.losses(store, run)[-1] < tiny.losses(store, run)[0]
    assert record["summary"]["parameters"]["total"] == sum(p.numel() for p in start.parameters())
    assert record["summary"]["flops"] > 0
    # A run may start from it as from any other.
    arm = tiny.spec(recipe, 2, model=HUB, mixture={"two": 1}, upstreams={"init": Upstream(run=run)})
    record = tiny.trained(store, arm)
    assert record["status"] == "done", record["error"]
    assert tiny.losses(store, arm)[0] == pytest.approx(5.6, abs=0.3)


def test_a_hub_model_with_too_few_tokens(recipe, store, torch_once, tmp_path):
    hub_model(torch_once, tmp_path / "model", vocab=100)
    run = tiny.spec(recipe, 6, model=HUB, upstreams={"init": saved(tmp_path / "model")})
    record = tiny.trained(store, run)
    assert record["status"] == "failed" and record["error"]["type"] == "ConfigError"
    assert "knows 100 tokens and corpus 'tiny' has 280" in record["error"]["message"]


# --- memory ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [{}, {"family": "gpt-neox", "kv_heads": 2}], ids=["llama", "gpt-neox"])
@pytest.mark.parametrize("stage", [1, 3])
def test_activation_checkpointing_changes_nothing(recipe, tmp_path, family, stage):
    run = tiny.spec(recipe, 4, model=tiny.model(**family))
    plain, saving = Store(tmp_path / "plain"), Store(tmp_path / "saving")
    tiny.trained(plain, run, tiny.execution(zero_stage=stage))
    tiny.trained(saving, run, tiny.execution(zero_stage=stage, activation_checkpointing=True))
    assert tiny.losses(plain, run) == pytest.approx(tiny.losses(saving, run), abs=1e-6)


def test_activation_checkpointing_is_used(recipe):
    assert build(tiny.spec(recipe), tiny.execution(activation_checkpointing=True)).is_gradient_checkpointing
    assert not build(tiny.spec(recipe)).is_gradient_checkpointing
