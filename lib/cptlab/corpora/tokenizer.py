"""The tokeniser of a corpus: a byte-level BPE learnt from balanced training text, or one from Hugging Face."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cptlab.corpora.recipe import CorpusRecipe
from cptlab.corpora.texts import PlainTexts, Texts
from cptlab.errors import CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GPT-2's pattern of what a token may not cross, with marks (M) among the letters (L).
WORDS_WITH_MARKS = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def load(path: Path) -> "Tokenizer":
    """A tokeniser that was saved with a corpus. Text that spells a special token is encoded as text: no document can end another."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def make(recipe: CorpusRecipe, texts: Texts) -> "Tokenizer":
    """The tokeniser that ``recipe`` asks for: learnt from its training text alone (``texts``), fetched, or another corpus's.

    Raises:
        CorpusError: no training text, or a fetched tokeniser that contradicts the recipe.
    """
    if recipe.tokenizer.kind == "recipe":
        from cptlab.corpora.build import open_corpus

        return open_corpus(recipe.tokenizer.recipe).tokenizer
    return _fetched(recipe) if recipe.tokenizer.kind == "hub" else _learnt(recipe, texts)


def _fetched(recipe: CorpusRecipe) -> "Tokenizer":
    from tokenizers import Tokenizer

    spec = recipe.tokenizer
    try:
        tokenizer = Tokenizer.from_pretrained(spec.hub, revision=spec.revision)
    except Exception as error:  # errors of several libraries, all of which mean the same to the user
        raise CorpusError(f"tokenizer {spec.hub} at {spec.revision} cannot be fetched ({error}): check name, revision, network") from error
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > spec.vocab:
        raise CorpusError(f"tokenizer {spec.hub} has {size} tokens, the recipe says vocab = {spec.vocab}: set vocab to the model's")
    if tokenizer.token_to_id(spec.eot) is None:
        raise CorpusError(f"tokenizer {spec.hub} has no token {spec.eot!r}: set eot to the one that ends its documents")
    tokenizer.encode_special_tokens = True
    return tokenizer


def _learnt(recipe: CorpusRecipe, texts: Texts) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    spec = recipe.tokenizer
    tokenizer = Tokenizer(models.BPE())
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not spec.keep_marks)
    words = [pre_tokenizers.Split(Regex(WORDS_WITH_MARKS), "isolated")] if spec.keep_marks else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, in_bytes]) if words else in_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab,
        min_frequency=spec.min_frequency,
        special_tokens=[spec.eot],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(balanced_text(recipe, texts), trainer)
    if tokenizer.get_vocab_size() < spec.vocab:
        warnings.warn(
            f"corpus {recipe.name!r}: the text yields {tokenizer.get_vocab_size()} tokens, fewer than the vocab of {spec.vocab}; "
            "the rest stays unused. Give more text or a smaller vocab",
            stacklevel=2,
        )
    tokenizer.encode_special_tokens = True
    return tokenizer


def balanced_text(recipe: CorpusRecipe, texts: Texts | None = None) -> list[str]:
    """The training text a BPE learns from, balanced over the sources as ``TokenizerSpec.balance`` says; never validation text."""
    names, texts = recipe.tokenizer.sources or recipe.names, texts or PlainTexts(recipe)
    if recipe.tokenizer.balance == "bytes":
        return _equal_bytes(recipe, names, texts)
    first: dict[str, dict[str, str]] = {}
    for name in names:
        first[name] = {}
        for split_key, text in texts.training(name):
            first[name].setdefault(split_key, text)
    shared = sorted(set.intersection(*(set(found) for found in first.values())))
    if not shared:
        raise CorpusError(
            f"corpus {recipe.name!r}: sources {', '.join(names)} share no split key for tokenizer.balance = 'content': use 'bytes'"
        )
    return [first[name][split_key] for name in names for split_key in shared]


def _equal_bytes(recipe: CorpusRecipe, names: tuple[str, ...], texts: Texts) -> list[str]:
    taken: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        taken[name], size = [], 0
        for _, text in texts.training(name):
            taken[name].append((size, text))
            size += len(text.encode())
            if size >= recipe.tokenizer.train_bytes:
                break
        if not size:
            raise CorpusError(f"corpus {recipe.name!r}: source {name!r} gives no training text: check its files and the split")
    budget = min(sum(len(text.encode()) for _, text in found) for found in taken.values())
    return [text for found in taken.values() for start, text in found if start < budget]
