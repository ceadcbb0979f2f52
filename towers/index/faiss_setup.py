"""The one place that imports FAISS, so that its process-wide settings hold wherever it is used."""

from __future__ import annotations

try:
    import faiss
except ImportError as e:  # the base install leaves the choice between CPU and GPU builds to the user
    raise ImportError("FAISS is not installed: pip install 'towers[cpu]', or 'towers[gpu]' on a GPU machine") from e

# FAISS cuts the catalogue into blocks of 1,024 vectors and hands each to BLAS as a matrix product. So
# small a product spends its time in bookkeeping: flat search of a batch is up to ten times slower
# than with blocks that fill the cache. Below 20 queries the direct loop is faster than BLAS.
faiss.cvar.distance_compute_blas_threshold = 20
faiss.cvar.distance_compute_blas_database_bs = 65536

__all__ = ["faiss"]
