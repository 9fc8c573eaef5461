"""Shapes of models, their parameter counts and their floating-point operations, without torch.

Counts of "size" differ between papers, so both are kept everywhere: ``non_embedding`` leaves out the input and output embeddings,
``total`` has all.
"""

import csv
from dataclasses import dataclass
from importlib import resources

from cptlab.errors import ConfigError, require
from cptlab.identity import PlainSpec

MODEL_FAMILIES = ("llama", "gpt-neox", "hub")


@dataclass(frozen=True)
class ModelSpec(PlainSpec):
    """Shape of a decoder-only transformer.

    ``family`` is ``llama`` (RMSNorm, rotary positions, SwiGLU, ``kv_heads`` key-value heads: 1 is multi-query attention), ``gpt-neox``
    (Pythia) or ``hub`` (the shape comes with the upstream's weights; the other fields are then unused but ``vocab``
    and ``context``). Embeddings of input and output are separate weights unless ``tied_embeddings``.
    """

    layers: int
    width: int
    heads: int
    ffn_width: int
    vocab: int
    context: int
    kv_heads: int = 1
    family: str = "llama"
    tied_embeddings: bool = False
    rope_theta: float = 10000.0
    init_std: float = 0.02

    def __post_init__(self):
        require(self.family in MODEL_FAMILIES, f"model family {self.family!r} is unknown: use one of {', '.join(MODEL_FAMILIES)}")
        if self.family == "hub":
            return
        for name in ("layers", "width", "heads", "ffn_width", "vocab", "context", "kv_heads"):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, f"model.{name} is {value!r}: give a positive whole number")
        require(
            self.width % self.heads == 0,
            f"model.heads = {self.heads} does not divide model.width = {self.width}: choose heads among the divisors of the width",
        )
        require(
            (self.width // self.heads) % 2 == 0,
            f"model.width / model.heads = {self.width // self.heads} is odd: rotary positions need an even head size",
        )
        require(
            self.family == "gpt-neox" or self.heads % self.kv_heads == 0,
            f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}",
        )


# The laboratory's small ladder: the shape of arXiv 2407.02118 scaled down. Names are millions of non-embedding parameters.
LADDER = {
    "0.03M": dict(layers=2, width=32, heads=2, ffn_width=128),
    "0.09M": dict(layers=3, width=48, heads=2, ffn_width=160),
    "0.17M": dict(layers=4, width=64, heads=2, ffn_width=160),
    "0.35M": dict(layers=4, width=96, heads=3, ffn_width=224),
    "0.71M": dict(layers=4, width=128, heads=2, ffn_width=336),
    "1.4M": dict(layers=6, width=160, heads=5, ffn_width=352),
}

# Pythia (arXiv 2304.01373, table 1): width, layers, heads; the feed-forward width is 4 x width.
PYTHIA = {
    "pythia-14m": (128, 6, 4),
    "pythia-70m": (512, 6, 8),
    "pythia-160m": (768, 12, 12),
    "pythia-410m": (1024, 24, 16),
    "pythia-1b": (2048, 16, 8),
    "pythia-1.4b": (2048, 24, 16),
    "pythia-2.8b": (2560, 32, 32),
    "pythia-6.9b": (4096, 32, 32),
    "pythia-12b": (5120, 36, 40),
}


def published_sizes() -> dict[str, dict]:
    """The 42 shapes of arXiv 2407.02118 (table of model structures): published label in millions, such as ``49M``, to its shape."""
    with resources.files("cptlab.published").joinpath("cpt_model_sizes.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {
        f"{row['params_M']}M": dict(
            layers=int(row["layers"]), width=int(row["hidden"]), heads=int(row["heads"]), ffn_width=int(row["intermediate"])
        )
        for row in rows
    }


def shape_named(name: str, vocab: int, context: int, **changes) -> ModelSpec:
    """Shape by name: a rung of the small ladder (``0.17M``), a published size of arXiv 2407.02118 (``49M``) or a Pythia model.

    Raises:
        ConfigError: for an unknown name, or for a published shape that cannot be built (the 4016M row's 22 heads do
            not divide its width of 2688); the message names the size.
    """
    if name in PYTHIA:
        width, layers, heads = PYTHIA[name]
        shape = dict(family="gpt-neox", layers=layers, width=width, heads=heads, kv_heads=heads, ffn_width=4 * width)
    elif name in LADDER:
        shape = LADDER[name]
    else:
        published = published_sizes()
        if name not in published:
            raise ConfigError(f"model size {name!r} is unknown: use one of {', '.join([*LADDER, *published, *PYTHIA])}")
        shape = published[name]
    try:
        return ModelSpec(vocab=vocab, context=context, **(shape | changes))
    except ConfigError as error:
        remedy = f"skip this size or override the field, for example shape_named({name!r}, ..., heads=...)"
        raise ConfigError(f"model size {name}: {error}; {remedy}") from None


def parameter_counts(model: ModelSpec) -> dict[str, int]:
    """Number of parameters: ``{"non_embedding", "total"}``. Equal to the built model's (tested)."""
    if model.family == "hub":
        raise ConfigError("the parameters of a hub model are known only once it is loaded")
    h, f = model.width, model.ffn_width
    if model.family == "llama":
        kv = model.kv_heads * (h // model.heads)
        layer = 2 * h * h + 2 * h * kv + 3 * h * f + 2 * h
        body = model.layers * layer + h
    else:
        layer = 4 * h * h + 4 * h + 2 * h * f + f + h + 4 * h
        body = model.layers * layer + 2 * h
    return {"non_embedding": body, "total": body + (1 if model.tied_embeddings else 2) * model.vocab * h}


def flops_per_token(model: ModelSpec) -> float:
    """Training floating-point operations a token (forward and backward).

    6 x non-embedding parameters + 6 x output layer + 12 x layers x context x width for attention (Kaplan et al.,
    arXiv 2001.08361, appendix; PaLM, arXiv 2204.02311, appendix B).
    """
    return 6.0 * (parameter_counts(model)["non_embedding"] + model.vocab * model.width) + 12.0 * model.layers * model.context * model.width
