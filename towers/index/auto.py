"""What is asked of an index that is to be found by measuring (``tuning``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from towers.errors import ConfigError
from towers.index.recipes import KINDS, IndexRecipe


@dataclass(frozen=True)
class AutoIndex:
    """What is asked of the index; ``tuning.tune`` finds it.

    Attributes:
        kind: ``auto``.
        kinds: those that are measured.
        min_recall: recall at ``recall_at`` against exact search that must be kept.
        recall_at: the k of that recall.
        max_bytes_per_item: of the index alone; the embeddings lie beside it, memory-mapped. None: no limit.
        optimise: ``single`` queries or ``batch`` (of 256): whose time is to be short.
        seconds: after which no further kind is begun, and one that is being filled is given up.
        sample: items on which the kinds are compared; of a larger catalogue, the three that promise most are then
            built over the whole of it.
        m: neighbours of a graph's node; 0: 32.
        ef_construction: candidates that a graph looks at when an item is added.
        seed: of clustering and sampling.
        device: where to build, see ``IndexRecipe``.
        storage: of the embeddings, see ``IndexRecipe``.

    Raises:
        ConfigError: a kind is unknown, or a number out of its range.
    """

    kind: str = "auto"
    kinds: Sequence[str] = KINDS
    min_recall: float = 0.95
    recall_at: int = 100
    max_bytes_per_item: float | None = None
    optimise: str = "single"
    seconds: float = 900.0
    sample: int = 500_000
    m: int = 0
    ef_construction: int = 200
    seed: int = 1234
    device: str = "auto"
    storage: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        unknown = [k for k in self.kinds if k not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(f"index.kinds names {unknown or 'none'}; expected some of {', '.join(KINDS)}")
        if self.kind != "auto" or self.optimise not in ("single", "batch"):
            raise ConfigError(
                f"index.kind is {self.kind!r}, index.optimise {self.optimise!r}; expected auto and single or batch"
            )
        if self.max_bytes_per_item is not None and not self.max_bytes_per_item > 0:
            raise ConfigError(f"index.max_bytes_per_item is {self.max_bytes_per_item}; expected a positive number")
        if self.seconds < 0 or self.sample < 1:
            raise ConfigError(f"index.seconds={self.seconds}, index.sample={self.sample}: at least 0 and at least 1")
        self.recipe("flat")  # which checks the rest

    def recipe(self, kind: str) -> IndexRecipe:
        """A kind, with what is common to all."""
        return IndexRecipe(
            kind, m=self.m if kind.startswith("hnsw") else 0, ef_construction=self.ef_construction, seed=self.seed,
            device=self.device, storage=self.storage, min_recall=self.min_recall, recall_at=self.recall_at,
        )  # fmt: skip
