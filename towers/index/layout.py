"""Where things lie in a bundle, and how its arrays and JSON files are read and written. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.errors import BundleError

SCHEMA, GOLDEN, README, VOCAB = "schema.json", "golden.json", "README.md", "vocab"
ITEM_IDS, ATTRIBUTES, EMBEDDINGS = "items/ids.parquet", "items/attributes.parquet", "items/embeddings.npy"
SCALES, TUNING, CURVE = "items/embedding_scales.npy", "index_tuning.json", "index_tuning.svg"
INDEX, HISTORY_INPUTS = "items/index.faiss", "items/history_inputs.npy"
USER_TOWER, ITEM_TOWER = "user_tower/1/model.onnx", "item_tower/1/model.onnx"
USER_IDS, USER_ATTRIBUTES, USER_EMBEDDINGS = "users/ids.parquet", "users/attributes.parquet", "users/embeddings.npy"
USER_LISTS = "users/history_offsets.npy", "users/history_items.npy"
USER_ACTIONS, USER_TIMES = "users/history_actions.npy", "users/history_times.npy"
USER_EXCLUSIONS = "users/exclusion_offsets.npy", "users/exclusion_items.npy"


MOMENT = pa.timestamp("us", tz="UTC")  # type of the attributes `posted` and `expires`
_SWELLS = 10_000  # times: more than zeros, zipped


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
        # not np.load, which opens archives and pickles by what a file begins with
        found: Any = np.lib.format.open_memmap(root / name, mode="r")
        fits = found.ndim == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise ValueError(f"{found.dtype}{list(found.shape)}; expected {np.dtype(dtype)}{list(shape)}")
        if not found.flags.c_contiguous or found.offset + found.nbytes != (root / name).stat().st_size:
            raise ValueError("its rows do not lie one after the other up to the end of the file")
        out: NDArray[Any] = found
        return out


def check_range(values: NDArray[Any], name: str, least: int | None = None, most: int | None = None) -> None:
    """Refuse numbers outside ``least`` … ``most``; without bounds, those that are not finite.

    Args:
        values: what was read.
        name: of the file.
        least: for whole numbers.
        most: likewise.

    Raises:
        BundleError: names the file.
    """
    with reading(name):
        if not values.size:
            return
        low, high = values.min(), values.max()  # NaN if there is one
        if least is not None and most is not None:
            if low < least or high > most:
                raise ValueError(f"numbers from {low} to {high}; expected {least} … {most}")
        elif not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("numbers that are not finite")


def load_table(root: Path, name: str, rows: int | None = None) -> pa.Table:
    """Read a Parquet file of at most so many bytes as its own size can mean.

    Args:
        root: the bundle.
        name: of the file.
        rows: what it must have; None: any number.

    Raises:
        BundleError: the file holds something else.
    """
    with reading(name), pq.ParquetFile(root / name) as file:
        told = file.metadata
        if rows is not None and told.num_rows != rows:
            raise ValueError(f"{told.num_rows} rows; expected {rows}")
        size = sum(told.row_group(i).total_byte_size for i in range(told.num_row_groups))
        if not 0 <= size <= _SWELLS * (root / name).stat().st_size:
            raise ValueError(f"it says that it is {size} bytes unpacked, which no compression explains")
        table: pa.Table = file.read()
        table.validate(full=True)
        if table.num_rows != told.num_rows:
            raise ValueError(f"{table.num_rows} rows; its own footer says {told.num_rows}")
        return table


def save_json(root: Path, name: str, value: object) -> None:
    """Write strict JSON."""
    (root / name).write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a parser raises into a BundleError that names the file.

    Raises:
        BundleError: anything else was raised.
    """
    try:
        yield
    except BundleError:
        raise
    except Exception as e:  # parsers of five libraries, each with classes of its own
        raise BundleError(f"{name}: cannot be read: {str(e) or type(e).__name__}") from e
