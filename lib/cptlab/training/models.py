"""Stock ``transformers`` models from a shape, from another run's checkpoint, or from a Hugging Face name."""

import fnmatch
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cptlab.errors import ConfigError, TrainingError
from cptlab.runs.execution import Execution
from cptlab.runs.shapes import ModelSpec
from cptlab.runs.spec import RunSpec


def config_of(model: ModelSpec, attention: str = "eager"):
    """``transformers`` configuration of a shape (``llama`` or ``gpt-neox``, which rotates a quarter of each head, as Pythia does)."""
    rope = {"rope_type": "default", "rope_theta": float(model.rope_theta)}
    common = dict(
        vocab_size=model.vocab,
        hidden_size=model.width,
        intermediate_size=model.ffn,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.context,
        tie_word_embeddings=model.tied,
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


def build_model(spec: RunSpec, execution: Execution, weights: Path | None = None) -> PreTrainedModel:
    """The model a run starts from, in fp32 on the CPU.

    Args:
        spec: the run. Without an ``init`` upstream its weights are drawn from ``spec.seed``.
        execution: for the attention implementation and activation checkpointing.
        weights: safetensors file of the ``init`` upstream when that is a run of ours.

    Raises:
        TrainingError: the weights do not fit the shape (the message names the tensor), or nothing is left to train.
    """
    init = spec.upstreams.get("init")
    hub = init
    while hub is not None and hub.run is not None and spec.model.family == "hub":
        hub = hub.run.upstreams.get("init")  # a run that continues one that began at a Hugging Face name has that model's shape
    if hub is not None and hub.hub is not None:
        model = AutoModelForCausalLM.from_pretrained(
            hub.hub, revision=hub.revision, dtype=torch.float32, attn_implementation=execution.attention
        )
        if model.config.vocab_size < spec.corpus.vocab:
            raise ConfigError(
                f"{hub.hub} knows {model.config.vocab_size} tokens and corpus {spec.corpus.name!r} has {spec.corpus.vocab}: "
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
