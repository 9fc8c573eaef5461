"""Stock ``transformers`` models from a shape, from another run's checkpoint, or from a Hugging Face name."""

import fnmatch
import math
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cptlab.errors import ConfigError, TrainingError
from cptlab.revisions import brief, folder_revision
from cptlab.runs.execution import Execution
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import RunSpec, Upstream


def config_of(model: ModelSpec, attention: str = "eager"):
    """``transformers`` configuration of a shape (``llama`` or ``gpt-neox``, which rotates a quarter of each head, as Pythia does)."""
    rope = {"rope_type": "default", "rope_theta": float(model.rope_theta)}
    common = dict(
        vocab_size=model.vocab,
        hidden_size=model.width,
        intermediate_size=model.ffn_width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.context,
        tie_word_embeddings=model.tied_embeddings,
        initializer_range=model.init_std,
        attn_implementation=attention,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    if model.family == "llama":
        return LlamaConfig(num_key_value_heads=model.kv_heads, rope_parameters=rope, **common)
    rope["partial_rotary_factor"] = 0.25
    return GPTNeoXConfig(hidden_dropout=0.0, attention_dropout=0.0, rope_parameters=rope, **common)


def hub_start(spec: RunSpec) -> Upstream | None:
    """The Hugging Face model that a run of family ``hub`` begins with, however many runs lie between; None: the shape is our own."""
    if spec.model.family != "hub":
        return None
    start = spec.upstreams["init"]
    while start.run is not None:
        start = start.run.upstreams["init"]
    return start


def _place(start: Upstream) -> dict:
    """Where ``from_pretrained`` finds a model: a commit of the Hub, or a folder whose content is still the one that the run names.

    Raises:
        ConfigError: the folder's content has changed, or a folder would be read in the place of a commit.
    """
    if not start.is_folder:
        if Path(start.hub).is_dir():
            raise ConfigError(
                f"{start.hub} is a folder here and would be read in the place of commit {start.revision}: name it as an upstream with "
                f"revision=folder_revision({start.hub!r}), or rename it"
            )
        return {"pretrained_model_name_or_path": start.hub, "revision": start.revision}
    found = folder_revision(start.hub)
    if found != start.revision:
        raise ConfigError(
            f"folder {start.hub} has changed: the run starts from {start.revision}, and it is {found} now: put the model back, or "
            "describe another run with this revision"
        )
    return {"pretrained_model_name_or_path": start.hub}


def build_model(spec: RunSpec, execution: Execution, weights: Path | None = None) -> PreTrainedModel:
    """The model a run starts from, in fp32 on the CPU.

    Args:
        spec: the run. Without an ``init`` upstream its weights are drawn from ``spec.seed``.
        execution: for the attention implementation and activation checkpointing.
        weights: safetensors file of the ``init`` upstream when that is a run of ours.

    Raises:
        TrainingError: the weights do not fit the shape (the message names the tensor), or nothing is left to train.
        ConfigError: the Hugging Face model has too few tokens, or its folder is not the one that the run names.
    """
    init, start = spec.upstreams.get("init"), hub_start(spec)
    if start is not None:
        model = AutoModelForCausalLM.from_pretrained(**_place(start), dtype=torch.float32, attn_implementation=execution.attention)
        if model.config.vocab_size < spec.corpus.vocab:
            raise ConfigError(
                f"{start.hub} knows {model.config.vocab_size} tokens and corpus {spec.corpus.name!r} has {spec.corpus.vocab}: "
                "build the corpus with the model's own tokenizer"
            )
    else:
        config = config_of(spec.model, execution.attention)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            model = (LlamaForCausalLM if spec.model.family == "llama" else GPTNeoXForCausalLM)(config)
        model.to(torch.float32)
    if init is not None and init.run is not None:
        if weights is None:
            raise TrainingError(f"the weights of the init upstream, run {init.run.id} step {init.step}, are not here: train it first")
        load_weights(model, weights)
    freeze(model, spec.trainable)
    if execution.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Copy the tensors of a safetensors file into ``model``; every name and shape has to match."""
    tensors = load_file(path)
    own = dict(model.named_parameters())
    if set(own) != set(tensors):
        differing = sorted(set(own) ^ set(tensors))[:4]
        raise TrainingError(f"{path} does not fit the model: names that differ are {differing}; is it of the same shape?")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise TrainingError(
                    f"{path}: {name} has shape {tuple(tensors[name].shape)}, the model {tuple(parameter.shape)}; "
                    "start from a run of the same shape"
                )
            parameter.copy_(tensors[name])


def freeze(model: PreTrainedModel, trainable: tuple[str, ...]) -> None:
    """Let only the parameters whose name matches one of the shell patterns learn."""
    names = [name for name, _ in model.named_parameters()]
    unmatched = [pattern for pattern in trainable if not fnmatch.filter(names, pattern)]
    if unmatched or not trainable:
        known = f"{', '.join(names[:3])} ... {names[-1]}"
        raise ConfigError(f"trainable patterns {unmatched or '()'} match no parameter; the names are like {known}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in trainable))


# --- sizes of built models ---------------------------------------------------------------------------------------------------


def parameters_of(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameters of a built model, ``{"non_embedding", "total"}``; what input and output embeddings share counts once."""
    total = sum(p.numel() for p in model.parameters())
    embeddings = {id(p): p.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    return {"non_embedding": total - sum(embeddings.values()), "total": total}


def flops_per_token_of(model: PreTrainedModel, context: int) -> float:
    """Training floating-point operations a token of a built model, counted as :func:`cptlab.runs.shapes.flops_per_token` does.

    All experts of a mixture of experts count, as if each token went through them.
    """
    config, output = model.config.get_text_config(), model.get_output_embeddings().weight
    layers = 12.0 * config.num_hidden_layers * context * config.hidden_size
    return 6.0 * (parameters_of(model)["non_embedding"] + output.numel()) + layers


@cache  # failures too: without network each would take half a minute of retries
def _outline(name: str, revision: str | None) -> PreTrainedModel | str:
    """A Hugging Face model without its weights, from its configuration alone; or why it cannot be had."""
    at = {} if revision is None or revision.startswith("sha256:") else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(name, **at)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # errors of several libraries: of the network, the name, the kind of model
        return f"the configuration of {name} cannot be had ({type(error).__name__}: {brief(error)}): check name, revision and network"


def hub_parameters(model: Upstream | str, revision: str | None = None) -> dict:
    """Number of parameters of a Hugging Face model, from its configuration alone: ``{"non_embedding", "total"}``.

    Args:
        model: an upstream with ``hub``, or a name with its ``revision``.

    Where the configuration cannot be had (until the process ends: it is asked for once), both are None and ``reason`` says why.
    """
    found = _outline(model.hub, model.revision) if isinstance(model, Upstream) else _outline(model, revision)
    return {"non_embedding": None, "total": None, "reason": found} if isinstance(found, str) else parameters_of(found)


def hub_flops_per_token(model: Upstream | str, context: int, revision: str | None = None) -> float:
    """Training floating-point operations a token of a Hugging Face model; NaN where :func:`hub_parameters` gives a reason."""
    found = _outline(model.hub, model.revision) if isinstance(model, Upstream) else _outline(model, revision)
    return math.nan if isinstance(found, str) else flops_per_token_of(found, context)
