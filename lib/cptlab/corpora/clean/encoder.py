"""Sentence encoders: from texts to unit vectors whose scalar product says how alike two texts are.

``all-minilm-l6-v2`` (Reimers and Gurevych, arXiv 1908.10084; MiniLM, arXiv 2002.10957) reads English alone: texts in other scripts
become strings of unknown tokens that look alike whatever they say. ``hashed`` compares spelling, in any language, and needs no model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from cptlab.errors import CorpusError
from cptlab.machine import bf16_is_faster

MINILM, HASHED = "all-minilm-l6-v2", "hashed"
LANGUAGES = {MINILM: ("en",)}  # what an encoder reads, where it is known and not all
BATCH = 64
MAX_TOKENS = 256  # what the model was made for; the rest of a longer text is not read


class Encoder(Protocol):
    """What :func:`encoder` gives."""

    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (len(texts), dimension), float32, of length 1; zeros for a text in which the encoder finds nothing."""
        ...


def languages_of(name: str) -> tuple[str, ...] | None:
    """Languages that the encoder ``name`` is known to read; None: any, or not known."""
    return LANGUAGES.get(name)


def encoder(name: str = MINILM) -> Encoder:
    """The encoder ``name``: ``all-minilm-l6-v2`` (downloaded once, 83 MB), ``hashed``, or any other that the package
    sentence-transformers opens (a name on the Hugging Face Hub, with ``@`` and a revision after it, or a folder).

    Raises:
        CorpusError: the model cannot be fetched or opened.
    """
    if name == HASHED:
        return Hashed()
    return MiniLM() if name == MINILM else SentenceTransformer(name)


def pair_similarities(texts_a: Sequence[str], texts_b: Sequence[str], by: str | Encoder = MINILM) -> np.ndarray:
    """Cosine similarity of each text of ``texts_a`` with the one at the same place of ``texts_b`` (float32), by an encoder or its name."""
    opened = encoder(by) if isinstance(by, str) else by
    return np.einsum("nd,nd->n", opened.encode(texts_a), opened.encode(texts_b))


class MiniLM:
    """The model as its published configuration says: the mean of the last layer over the word pieces (256 at most), made unit.

    Runs on the GPU where there is one; in bfloat16 where that is faster (on a processor with bf16 instructions 2.4 times, and
    cosines change by 1e-4 at most). A vector depends on the texts it is encoded with by rounding alone.
    """

    def __init__(self, folder: Path | None = None):
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        from cptlab.corpora.sources import model_folder

        folder = folder or model_folder(MINILM)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()  # each batch is padded to its own longest text
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model = BertModel(BertConfig.from_json_file(folder / "config.json"))
        weights = load_file(folder / "model.safetensors")
        weights.pop("embeddings.position_ids", None)  # a table of 0, 1, 2, ... that later versions make themselves
        model.load_state_dict(weights)
        self._model = model.eval().to(self._device, torch.bfloat16 if bf16_is_faster(self._device) else torch.float32)
        self.dimension = model.config.hidden_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        vectors = np.empty((len(ids), self.dimension), dtype=np.float32)
        batch = BATCH if self._device == "cpu" else 8 * BATCH
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                numbers = order[start : start + batch]
                rows = [torch.tensor(ids[number]) for number in numbers]
                tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._device)
                lengths = torch.tensor([len(row) for row in rows], device=self._device)[:, None]
                mask = torch.arange(tokens.shape[1], device=self._device) < lengths
                hidden = self._model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
                mean = (hidden * mask[..., None]).sum(1) / lengths
                vectors[numbers] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors


class Hashed:
    """Runs of two to four characters, counted in 1,024 signed hash buckets (Weinberger et al., arXiv 0902.2206): texts are alike that are
    spelt alike. No two cosines differ between machines by more than rounding; those of unlike texts are off by about 0.03."""

    dimension = 1024

    def __init__(self):
        from sklearn.feature_extraction.text import HashingVectorizer

        self._count = HashingVectorizer(analyzer="char", ngram_range=(2, 4), n_features=self.dimension, dtype=np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if not len(texts):
            return np.empty((0, self.dimension), dtype=np.float32)
        return self._count.transform(texts).toarray()


class SentenceTransformer:
    """Any model that the package sentence-transformers opens."""

    def __init__(self, name: str):
        try:
            from sentence_transformers import SentenceTransformer as Model
        except ImportError as error:
            raise CorpusError(
                f"encoder {name!r} needs a package: pip install sentence-transformers, or use {MINILM!r} or {HASHED!r}"
            ) from error
        path, _, revision = name.partition("@")
        try:
            self._model = Model(path, revision=revision or None)
        except Exception as error:  # errors of several libraries, which all mean the same to the user
            brief = " ".join(str(error).split())[:300]
            raise CorpusError(
                f"encoder {name!r} cannot be opened ({type(error).__name__}: {brief}): check the name and the network"
            ) from error
        self.dimension = int(self._model.get_sentence_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        found = self._model.encode(list(texts), batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32).reshape(len(texts), self.dimension)
