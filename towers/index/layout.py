"""Where things lie in a bundle, and how its arrays and JSON files are read and written. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.errors import BundleError

SCHEMA, GOLDEN, README, VOCAB = "schema.json", "golden.json", "README.md", "vocab"
ITEM_IDS, ATTRIBUTES, EMBEDDINGS = "items/ids.parquet", "items/attributes.parquet", "items/embeddings.npy"
INDEX, HISTORY_INPUTS = "items/index.faiss", "items/history_inputs.npy"
USER_TOWER, ITEM_TOWER = "user_tower/1/model.onnx", "item_tower/1/model.onnx"
USER_IDS, USER_ATTRIBUTES, USER_EMBEDDINGS = "users/ids.parquet", "users/attributes.parquet", "users/embeddings.npy"
USER_LISTS = "users/history_offsets.npy", "users/history_items.npy"
USER_ACTIONS, USER_TIMES = "users/history_actions.npy", "users/history_times.npy"
USER_EXCLUSIONS = "users/exclusion_offsets.npy", "users/exclusion_items.npy"


MOMENT = pa.timestamp("us", tz="UTC")  # type of the attributes `posted` and `expires`


def user_feature(name: str) -> str:
    """The file of an encoded user feature."""
    return f"users/feature.{name}.npy"


def save_array(root: Path, name: str, values: NDArray[Any], dtype: type) -> None:
    """Write an array in numpy's own format."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(values, dtype), allow_pickle=False)


def load_array(root: Path, name: str, dtype: type, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Open an array memory-mapped; None in ``shape`` stands for any length.

    Raises:
        BundleError: the file holds something else.
    """
    with reading(name):
        found: NDArray[Any] = np.load(root / name, mmap_mode="r", allow_pickle=False)
        fits = found.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise ValueError(f"{found.dtype}{list(found.shape)}; expected {np.dtype(dtype)}{list(shape)}")
        return found


def save_json(root: Path, name: str, value: object) -> None:
    """Write strict JSON."""
    (root / name).write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a parser raises into a BundleError that names the file."""
    try:
        yield
    except BundleError:
        raise
    except Exception as e:  # parsers of five libraries, each with classes of its own
        raise BundleError(f"{name}: cannot be read: {e}") from e
