"""An opened corpus: header-less token shards read by memory map, their manifest and the tokeniser."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cptlab.corpora.recipe import CorpusRecipe
from cptlab.errors import CorpusError
from cptlab.files import hash_once

if TYPE_CHECKING:
    import pandas
    from tokenizers import Tokenizer

FORMAT = 1
SPLITS = ("train", "validation")
REBUILD = "delete the folder and build the corpus again"


def token_dtype(vocab: int) -> np.dtype:
    """Little-endian uint16 when every token id below ``vocab`` fits, else uint32."""
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


class Corpus:
    """Token shards of one recipe under ``path``.

    Raises:
        CorpusError: the folder is another corpus's, or a shard has not the size that the manifest gives.
    """

    def __init__(self, recipe: CorpusRecipe, path: Path):
        self.recipe = recipe
        self.path = Path(path)
        manifest = self.path / "manifest.json"
        try:
            self.manifest: dict = json.loads(manifest.read_text(encoding="utf-8"))
            if self.manifest["format"] != FORMAT:
                raise CorpusError(f"{manifest} has format {self.manifest['format']}, this version reads {FORMAT}: {REBUILD}")
            if self.manifest["fingerprint"] != recipe.fingerprint:
                raise CorpusError(f"{manifest} is of corpus {self.manifest['fingerprint'][:16]}, not {recipe.fingerprint[:16]}: {REBUILD}")
            self._sizes_hold()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{manifest} cannot be read ({type(error).__name__}: {error}): {REBUILD}") from error

    def _sizes_hold(self) -> None:
        for name, shard in self.manifest["shards"].items():
            path = self.path / name
            size, expected = path.stat().st_size, shard["tokens"] * self.dtype.itemsize
            if size != expected:
                raise CorpusError(f"{path} has {size} bytes, not {expected}: {REBUILD}")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest["dtype"])

    @property
    def shard_hashes(self) -> dict[str, str]:
        """Shard (``train/en.bin``) -> hex sha256, as built; provenance of the runs that read it."""
        return {name: shard["sha256"] for name, shard in self.manifest["shards"].items()}

    @property
    def eot(self) -> int:
        """Id of the token that ends each document."""
        return self.manifest["eot"]

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        from cptlab.corpora.tokenizer import load

        return load(self.path / "tokenizer.json")

    def tokens(self, name: str, split: str = "train") -> np.memmap:
        """All tokens of one source and split: one-dimensional, read-only, documents ended by :attr:`eot`."""
        if name not in self.recipe.names:
            raise CorpusError(f"corpus {self.recipe.name!r} has no source {name!r}: use one of {', '.join(self.recipe.names)}")
        if split not in SPLITS:
            raise CorpusError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}")
        return np.memmap(self.path / split / f"{name}.bin", dtype=self.dtype, mode="r")

    def verify(self, sources: Iterable[str] | None = None) -> None:
        """Compare the shards of ``sources`` (default: all) and the tokeniser with the sha256 in the manifest.

        Raises:
            CorpusError: names the first that differs.
        """
        wanted = set(self.recipe.names if sources is None else sources)
        shards = {name: shard["sha256"] for name, shard in self.manifest["shards"].items() if shard["source"] in wanted}
        for name, expected in (shards | {"tokenizer.json": self.manifest["tokenizer_sha256"]}).items():
            if hash_once(self.path / name) != expected:
                raise CorpusError(f"{self.path / name} is not the file that was built (sha256 differs): {REBUILD}")

    def report(self) -> "pandas.DataFrame":
        """One row a source and split: source, split, documents, bytes (UTF-8 text), tokens, bytes_per_token."""
        import pandas

        return pandas.DataFrame(self.report_rows())

    def report_rows(self) -> list[dict]:
        """The rows of :meth:`report` as plain data."""
        columns = ("source", "split", "documents", "bytes", "tokens")
        rows = [{column: shard[column] for column in columns} for shard in self.manifest["shards"].values()]
        return [row | {"bytes_per_token": row["bytes"] / row["tokens"]} for row in rows]
