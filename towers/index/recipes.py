"""How to build a FAISS index: nine recipes, always by inner product.

``N`` items, ``D`` dimensions. Cosine towers give normalised vectors, so that the inner product is the
cosine; L2 appears nowhere.

==========  =====================================================================  =================
kind        what it is                                                             bytes for an item
==========  =====================================================================  =================
flat        exact search; right up to about a hundred thousand items               4 D
ivf_flat    k-means cells, the nearest few are scanned                             4 D
ivf_fp16    the same, each entry a half-precision number                           2 D
ivf_sq8     the same, each entry one of 256 steps                                  D
ivf_pq      the same, with product-quantised vectors (Jégou et al., 2011)          m
ivf_pq4     the same, 16 words for each sub-vector, whose tables fit a register    m / 2
            (André et al., "Cache locality is not enough", 2015: "fast scan")
ivf_rabitq  the same, the sign of each entry, with an error that is bounded (Gao   D / 8 + 8
            and Long, "RaBitQ", 2024)
hnsw        a navigable graph (Malkov & Yashunin, 2016); fastest, largest          4 D + 8 m
hnsw_sq8    the same, each entry one of 256 steps                                  D + 8 m
==========  =====================================================================  =================

What a compressed index finds is scored again from the stored embeddings. An item of an IVF index has 8 bytes more, for
its row; each of the cells has 4 D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.index.faiss_setup import faiss
from towers.index.similarity import Similarity
from towers.index.storage import STORAGES

KINDS = ("flat", "ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pq", "ivf_pq4", "ivf_rabitq", "hnsw", "hnsw_sq8")
ON_GPU = ("flat", "ivf_flat", "ivf_fp16", "ivf_sq8", "ivf_pq")  # the kinds that FAISS has for GPUs
FAISS_TYPES = {  # the classes of what is built, as a bundle must hold them
    "flat": ("IndexFlatIP", "IndexFlat"), "ivf_flat": ("IndexIVFFlat",), "ivf_fp16": ("IndexIVFScalarQuantizer",),
    "ivf_sq8": ("IndexIVFScalarQuantizer",), "ivf_pq": ("IndexIVFPQ",), "ivf_pq4": ("IndexIVFPQFastScan",),
    "ivf_rabitq": ("IndexIVFRaBitQ",), "hnsw": ("IndexHNSWFlat",), "hnsw_sq8": ("IndexHNSWSQ",),
}  # fmt: skip
RESCORE = {"ivf_fp16": 1, "ivf_sq8": 2, "ivf_pq": 8, "ivf_pq4": 16, "ivf_rabitq": 16, "hnsw_sq8": 2}
MEASURED_DEPTH = 50.0  # times recall_at: how deep the growth of nprobe is measured
_POINTS_PER_CELL = 39  # fewer than this and k-means cells mean little (and FAISS warns)
_PQ_CENTROIDS = 256  # eight bits for each sub-vector
_TRAINING_POINTS = 256  # for a cell: more change k-means cells by little
_BLOCK = 1 << 18  # vectors added at a time; all at once to a flat index, which would copy itself as it grows


@dataclass(frozen=True)
class IndexRecipe:
    """An index and its search settings. ``0`` means: choose from the catalogue's size and dimension.

    Attributes:
        kind: see above.
        nlist: ivf: cells; 0: 4 √N, but at least 39 items in each.
        nprobe: ivf: cells scanned for a query.
        probe_growth: ivf: the power by which ``nprobe`` grows when more than ``recall_at`` results are wanted, or the
            few best that pass a filter. The export measures it; 1, in proportion, is safe and slow.
        m: ivf_pq, ivf_pq4: sub-vectors, a divisor of D (0: about D / 4, D / 2); hnsw: neighbours of a node (0: 32).
        rescore: of compressed kinds: candidates scored again from the stored embeddings, for each result asked for
            (0: 1 to 16, by how much the kind compresses).
        ef_construction: hnsw: candidates looked at when an item is added.
        ef_search: hnsw: candidates looked at for a query.
        seed: of the clustering. One seed gives one index; an hnsw graph, whose items are added in
            parallel, is repeatable with OMP_NUM_THREADS=1 only.
        device: where to build: ``cpu``, ``cuda``, or ``auto`` (a GPU if FAISS sees one). What is stored
            is the CPU form; kinds that FAISS has not for GPUs are always built on the CPU.
        storage: of the embeddings beside the index: ``float32``, ``float16`` or ``int8``, see ``storage``.
        min_recall: the export stops if recall at ``recall_at`` against exact search is below this.
        recall_at: the k of that recall.

    Raises:
        ConfigError: an unknown kind, device or storage, or a number out of its range.
    """

    kind: str = "flat"
    nlist: int = 0
    nprobe: int = 64
    probe_growth: float = 1.0
    m: int = 0
    rescore: int = 0
    ef_construction: int = 200
    ef_search: int = 256
    seed: int = 1234
    device: str = "auto"
    storage: str = "float32"
    min_recall: float = 0.95
    recall_at: int = 100

    def __post_init__(self) -> None:
        """Check the settings that need no catalogue to be wrong."""
        if self.kind not in KINDS:
            raise ConfigError(f"index.kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"index.device is {self.device!r}; expected auto, cpu or cuda")
        if self.storage not in STORAGES:
            raise ConfigError(f"index.storage is {self.storage!r}; expected one of {', '.join(STORAGES)}")
        for name, least in {"nlist": 0, "nprobe": 1, "m": 0, "rescore": 0, "ef_construction": 1, "ef_search": 1,
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
        if self.is_ivf:
            nlist = self.nlist or max(1, min(round(4 * math.sqrt(n)), n // _POINTS_PER_CELL))
            if nlist > n:
                raise ConfigError(f"index.nlist is {nlist}, more cells than the {n} items; set index.nlist=0 (auto)")
            changed = {"nlist": nlist, "nprobe": min(self.nprobe, nlist)}
        if self.kind in ("ivf_pq", "ivf_pq4"):
            if n < _PQ_CENTROIDS:
                raise ConfigError(
                    f"index {self.kind} learns from at least {_PQ_CENTROIDS} items, not {n}; use index=flat"
                )
            divisors = [d for d in range(1, dim + 1) if dim % d == 0]
            if self.m and self.m not in divisors:
                near = min(divisors, key=lambda d: abs(d - self.m))
                raise ConfigError(f"index.m is {self.m}, not a divisor of the {dim} dimensions; set index.m={near}")
            share = 4 if self.kind == "ivf_pq" else 2
            changed["m"] = self.m or max(d for d in divisors if d <= max(1, dim // share))
        if self.kind.startswith("hnsw"):
            changed["m"] = self.m or 32
            if changed["m"] < 2:
                raise ConfigError("index.m is 1; a graph needs at least 2 neighbours for each node, 32 is usual")
        changed["rescore"] = (self.rescore or RESCORE[self.kind]) if self.lossy else 1
        return IndexRecipe(**{**self.__dict__, **changed})

    @property
    def is_ivf(self) -> bool:
        """Whether the index has cells."""
        return self.kind.startswith("ivf")

    @property
    def lossy(self) -> bool:
        """Whether the index keeps less than the embeddings, so that what it finds is scored again."""
        return self.kind in RESCORE

    def probes(self, depth: float) -> int:
        """Cells to scan for the best ``depth`` items of all; 0 where the index has none. The recipe is resolved."""
        if not self.is_ivf:
            return 0
        deeper = max(1.0, depth / self.recall_at)
        measured = min(deeper, MEASURED_DEPTH)
        probes = self.nprobe * math.pow(measured, self.probe_growth) * deeper / measured  # beyond it, in proportion
        return min(self.nlist, math.ceil(probes))


def build_index(
    vectors: NDArray[np.float32],
    recipe: IndexRecipe,
    similarity: Similarity,
    *,
    cells: NDArray[np.float32] | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> faiss.Index:
    """Build an index over item embeddings; position ``i`` of the index is row ``i``.

    The embeddings may be memory-mapped: beside the index itself, no more than a block of them and what the clustering
    learns from are in memory.

    Args:
        vectors: ``[N, D]`` float32.
        recipe: what to build.
        similarity: of the model; cosine vectors must have norm 1.
        cells: ``[C, D]`` centres that ``train_cells`` found for this recipe, so that they are not looked for again.
        tell: called with the share of the items that are in the index; may raise, to give up.

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
    index: Any = _empty(recipe, dim)
    if cells is not None:
        index.quantizer.add(np.ascontiguousarray(cells))
    gpu = _on_gpu(recipe.device) and recipe.kind in ON_GPU
    if gpu:
        index = faiss.index_cpu_to_all_gpus(index, ngpu=1)
    if recipe.is_ivf or recipe.lossy:
        index.train(_training(vectors, recipe))
    block = {"flat": n, "hnsw": _BLOCK >> 6, "hnsw_sq8": _BLOCK >> 6}.get(recipe.kind, _BLOCK)
    for start in range(0, n, block):
        tell(start / n)
        index.add(np.ascontiguousarray(vectors[start : start + block]))
    out: faiss.Index = faiss.index_gpu_to_cpu(index) if gpu else index
    return with_search_settings(out, recipe)


def train_cells(vectors: NDArray[np.float32], recipe: IndexRecipe) -> NDArray[np.float32]:
    """``[C, D]`` the centres of an IVF recipe's cells, which all IVF kinds with this ``nlist`` and ``seed`` share."""
    recipe = replace(recipe, kind="ivf_flat").resolve(*vectors.shape)
    index: Any = _empty(recipe, vectors.shape[1])
    if _on_gpu(recipe.device):
        index = faiss.index_cpu_to_all_gpus(index, ngpu=1)
    index.train(_training(vectors, recipe))
    index = faiss.index_gpu_to_cpu(index) if _on_gpu(recipe.device) else index
    centres: NDArray[np.float32] = index.quantizer.reconstruct_n(0, recipe.nlist)
    return centres


def with_search_settings(index: Any, recipe: IndexRecipe) -> faiss.Index:
    """The same index, asked as a resolved recipe says."""
    if recipe.is_ivf:
        faiss.extract_index_ivf(index).nprobe = recipe.nprobe
    elif recipe.kind.startswith("hnsw"):
        index.hnsw.efSearch = recipe.ef_search
    out: faiss.Index = index
    return out


def _training(vectors: NDArray[np.float32], recipe: IndexRecipe) -> NDArray[np.float32]:
    """What cells and codes are learned from: as many vectors as FAISS would take, drawn in order."""
    most = _TRAINING_POINTS * max(recipe.nlist, _PQ_CENTROIDS if recipe.lossy else 1)
    if len(vectors) <= most:
        return np.ascontiguousarray(vectors[:])
    rows = np.random.default_rng(recipe.seed).choice(len(vectors), most, replace=False)
    return vectors[np.sort(rows)]


def _empty(recipe: IndexRecipe, dim: int) -> Any:  # the type stubs of FAISS know few attributes
    index: Any
    sq: Any = faiss.ScalarQuantizer
    metric, kind = faiss.METRIC_INNER_PRODUCT, recipe.kind
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind.startswith("hnsw"):
        index = (
            faiss.IndexHNSWFlat(dim, recipe.m, metric)
            if kind == "hnsw"
            else faiss.IndexHNSWSQ(dim, sq.QT_8bit, recipe.m, metric)
        )
        index.hnsw.efConstruction = recipe.ef_construction
        return index
    cells = faiss.IndexFlatIP(dim)
    if kind == "ivf_flat":
        index = faiss.IndexIVFFlat(cells, dim, recipe.nlist, metric)
    elif kind in ("ivf_fp16", "ivf_sq8"):
        steps = sq.QT_fp16 if kind == "ivf_fp16" else sq.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(cells, dim, recipe.nlist, steps, metric)
    elif kind == "ivf_rabitq":
        index = faiss.IndexIVFRaBitQ(cells, dim, recipe.nlist, metric)
    else:
        index = (
            faiss.IndexIVFPQ(cells, dim, recipe.nlist, recipe.m, 8, metric)
            if kind == "ivf_pq"
            else faiss.IndexIVFPQFastScan(cells, dim, recipe.nlist, recipe.m, 4, metric)
        )
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
