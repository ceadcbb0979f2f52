"""How to build a FAISS index: four recipes, always by inner product.

``N`` items, ``D`` dimensions. Cosine towers give normalised vectors, so that the inner product is the
cosine; L2 appears nowhere.

==========  =====================================================================  =================
kind        what it is                                                             bytes for an item
==========  =====================================================================  =================
flat        exact search; right up to about a hundred thousand items               4 D
ivf_flat    k-means cells, the nearest few are scanned                             4 D
ivf_pq      the same with product-quantised vectors (Jégou et al., 2011); what it  m
            finds is scored again from the stored embeddings
hnsw        a navigable graph (Malkov & Yashunin, 2016); fastest, largest          4 D + 8 m
==========  =====================================================================  =================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.index.faiss_setup import faiss
from towers.index.similarity import Similarity

KINDS = ("flat", "ivf_flat", "ivf_pq", "hnsw")
MEASURED_DEPTH = 50.0  # times recall_at: how deep the growth of nprobe is measured
_POINTS_PER_CELL = 39  # fewer than this and k-means cells mean little (and FAISS warns)
_PQ_CENTROIDS = 256  # eight bits for each sub-vector


@dataclass(frozen=True)
class IndexRecipe:
    """An index and its search settings. ``0`` means: choose from the catalogue's size and dimension.

    Attributes:
        kind: see above.
        nlist: ivf: cells; 0: 4 √N, but at least 39 items in each.
        nprobe: ivf: cells scanned for a query.
        probe_growth: ivf: the power by which ``nprobe`` grows when more than ``recall_at`` results are wanted, or the
            few best that pass a filter. The export measures it; 1, in proportion, is safe and slow.
        m: ivf_pq: sub-vectors, a divisor of D (0: about D / 4); hnsw: neighbours of a node (0: 32).
        rescore: ivf_pq: candidates scored again from the stored embeddings, for each result asked for.
        ef_construction: hnsw: candidates looked at when an item is added.
        ef_search: hnsw: candidates looked at for a query.
        seed: of the clustering. One seed gives one index; an hnsw graph, whose items are added in
            parallel, is repeatable with OMP_NUM_THREADS=1 only.
        device: where to build: ``cpu``, ``cuda``, or ``auto`` (a GPU if FAISS sees one). What is stored
            is the CPU form; hnsw is always built on the CPU.
        min_recall: the export stops if recall at ``recall_at`` against exact search is below this.
        recall_at: the k of that recall.
    """

    kind: str = "flat"
    nlist: int = 0
    nprobe: int = 64
    probe_growth: float = 1.0
    m: int = 0
    rescore: int = 8
    ef_construction: int = 200
    ef_search: int = 256
    seed: int = 1234
    device: str = "auto"
    min_recall: float = 0.95
    recall_at: int = 100

    def __post_init__(self) -> None:
        """Check the settings that need no catalogue to be wrong."""
        if self.kind not in KINDS:
            raise ConfigError(f"index.kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"index.device is {self.device!r}; expected auto, cpu or cuda")
        for name, least in {"nlist": 0, "nprobe": 1, "m": 0, "rescore": 1, "ef_construction": 1, "ef_search": 1,
                            "recall_at": 1, "seed": 0}.items():  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"index.{name} is {value!r}; expected a whole number, at least {least}")
        if isinstance(self.probe_growth, bool) or not 0 <= self.probe_growth < math.inf:
            raise ConfigError(f"index.probe_growth is {self.probe_growth!r}; expected a number, at least 0")
        if not 0 <= self.min_recall <= 1:
            raise ConfigError(f"index.min_recall is {self.min_recall}; expected a share between 0 and 1")

    def resolve(self, n: int, dim: int) -> IndexRecipe:
        """The same recipe with every 0 replaced, checked against a catalogue ``[n, dim]``.

        Raises:
            ConfigError: a setting that this catalogue does not allow, with the one that it does.
        """
        if n < 1:
            raise ConfigError("the catalogue is empty; there is nothing to index")
        changed: dict[str, Any] = {}
        if self.kind in ("ivf_flat", "ivf_pq"):
            nlist = self.nlist or max(1, min(round(4 * math.sqrt(n)), n // _POINTS_PER_CELL))
            if nlist > n:
                raise ConfigError(f"index.nlist is {nlist}, more cells than the {n} items; set index.nlist=0 (auto)")
            changed = {"nlist": nlist, "nprobe": min(self.nprobe, nlist)}
        if self.kind == "ivf_pq":
            if n < _PQ_CENTROIDS:
                raise ConfigError(f"index ivf_pq learns from at least {_PQ_CENTROIDS} items, not {n}; use index=flat")
            divisors = [d for d in range(1, dim + 1) if dim % d == 0]
            if self.m and self.m not in divisors:
                near = min(divisors, key=lambda d: abs(d - self.m))
                raise ConfigError(f"index.m is {self.m}, not a divisor of the {dim} dimensions; set index.m={near}")
            changed["m"] = self.m or max(d for d in divisors if d <= max(1, dim // 4))
        if self.kind == "hnsw":
            changed["m"] = self.m or 32
            if changed["m"] < 2:
                raise ConfigError("index.m is 1; a graph needs at least 2 neighbours for each node, 32 is usual")
        return IndexRecipe(**{**self.__dict__, **changed})

    def probes(self, depth: float) -> int:
        """Cells to scan for the best ``depth`` items of all; 0 where the index has none. The recipe is resolved."""
        if not self.kind.startswith("ivf"):
            return 0
        deeper = max(1.0, depth / self.recall_at)
        measured = min(deeper, MEASURED_DEPTH)
        probes = self.nprobe * math.pow(measured, self.probe_growth) * deeper / measured  # beyond it, in proportion
        return min(self.nlist, math.ceil(probes))


def build_index(vectors: NDArray[np.float32], recipe: IndexRecipe, similarity: Similarity) -> faiss.Index:
    """Build an index over item embeddings; position ``i`` of the index is row ``i``.

    Args:
        vectors: ``[N, D]`` float32.
        recipe: what to build.
        similarity: of the model; cosine vectors must have norm 1.

    Returns:
        A trained and filled CPU index with its search settings in it.

    Raises:
        ConfigError: vectors or settings that cannot work.
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ConfigError(f"item embeddings are {vectors.dtype}{list(vectors.shape)}; expected float32 [N, D]")
    similarity.check(vectors, "item embeddings")
    n, dim = vectors.shape
    recipe = recipe.resolve(n, dim)
    vectors = np.ascontiguousarray(vectors)
    index: Any = _empty(recipe, dim)
    if recipe.kind != "hnsw" and _on_gpu(recipe.device):
        index = faiss.index_cpu_to_all_gpus(index, ngpu=1)
        index.train(vectors)
        index.add(vectors)
        index = faiss.index_gpu_to_cpu(index)
    else:
        index.train(vectors)
        index.add(vectors)
    if recipe.kind.startswith("ivf"):
        faiss.extract_index_ivf(index).nprobe = recipe.nprobe
    out: faiss.Index = index
    return out


def _empty(recipe: IndexRecipe, dim: int) -> Any:  # the type stubs of FAISS know few attributes
    index: Any
    metric = faiss.METRIC_INNER_PRODUCT
    if recipe.kind == "flat":
        return faiss.IndexFlatIP(dim)
    if recipe.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, recipe.m, metric)
        index.hnsw.efConstruction = recipe.ef_construction
        index.hnsw.efSearch = recipe.ef_search
        return index
    cells = faiss.IndexFlatIP(dim)
    if recipe.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(cells, dim, recipe.nlist, metric)
    else:
        index = faiss.IndexIVFPQ(cells, dim, recipe.nlist, recipe.m, 8, metric)
        index.pq.cp.seed = recipe.seed
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = recipe.seed
    index.cp.spherical = True  # cells are chosen by inner product, where a long centroid would win everything
    index.cp.min_points_per_centroid = 1  # `resolve` has looked after that; FAISS would print warnings
    return index


def _on_gpu(device: str) -> bool:
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if device == "cuda" and not gpus:
        raise ConfigError("index.device is cuda, but FAISS sees no GPU; install towers[gpu], or set index.device=cpu")
    return bool(device != "cpu" and gpus)
