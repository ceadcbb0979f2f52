"""Two fits of the same features: where each value of the newer one stood in the older one.

A vocabulary is ordered by count and a number's buckets are quantiles, hence neither ids nor edges survive the next
day's log. What a model has learnt of a value is found by the value itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.features.featurizer import Featurizer
from towers.features.schema import Feature, Kind, Schema
from towers.features.vocabulary import FIRST, OOV

UNKNOWN = -1  # a value that the older fit did not have
# What an encoded value means; the rest (min_count, max_size, max_length, fit) only decides which values there are.
_MEANING = ("kind", "columns", "words", "chars", "repeats", "log", "dim", "encoder", "vocabulary")
_CURE = "declare it as it was, exclude it from the model, or train anew without init_from"


def places(old: Featurizer, new: Featurizer, names: Collection[str]) -> dict[str, NDArray[np.int64]]:
    """Where values stood.

    Args:
        old: the older fit.
        new: the newer one, of the same declarations.
        names: which features.

    Returns:
        By feature, ``[cardinality]`` the old id of each new one, ``UNKNOWN`` for a value that is new; features without
        ids are left out. Special ids keep their place; a bucket of numbers stood where its middle did.

    Raises:
        DataError: values of another type.
    """
    out = {}
    for name in names:
        before, now = old.vocabulary(name), new.vocabulary(name)
        if before is not None and now is not None:
            found = before.encode(now.values, f"feature {name!r}").astype(np.int64)
            out[name] = np.concatenate([np.arange(FIRST), np.where(found == OOV, UNKNOWN, found)])
        elif "edges" in new.numbers(name):
            middles = _buckets(*(np.asarray(f.numbers(name)["edges"], np.float64) for f in (old, new)))
            out[name] = np.concatenate([np.arange(FIRST), FIRST + middles])
    return out


def _buckets(old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.int64]:
    """The old bucket in which the middle of each new one lies; the open ones at both ends stay at the ends.

    >>> _buckets(np.array([10.0, 20.0, 30.0]), np.array([12.0, 22.0, 31.0])).tolist()
    [0, 1, 2, 3]
    """
    if not len(new):
        return np.array([len(old) // 2])
    middles = np.concatenate([[-np.inf], (new[1:] + new[:-1]) / 2, [np.inf]])
    return np.searchsorted(old, middles, side="right")


def check(old: Schema, new: Schema, read: Mapping[str, tuple[Collection[str], Collection[str]]]) -> None:
    """Refuse data in which encoded values mean something else.

    Args:
        old: of the older data.
        new: of the newer data.
        read: by side, the names of the features that the older model read and that the newer one reads.

    Raises:
        ConfigError: with every difference and its cure.
    """
    if found := [
        *_whole(old, new),
        *(p for side in read for p in _side(side, old.side(side), new.side(side), *read[side])),
    ]:
        raise ConfigError("these data do not continue those of the run:\n" + "\n".join(f"  - {p}" for p in found))


def check_fits(side: str, old: Featurizer, new: Featurizer, names: Collection[str]) -> None:
    """Refuse sentences that another encoder reads, whatever its name.

    Args:
        side: ``user``, ``item`` or ``context``, for the error.
        old: the older fit.
        new: the newer one.
        names: the features that a model reads.

    Raises:
        ConfigError: naming the feature.
    """
    for name in names:
        here, there = (f.numbers(name).get("encoder_sha256") for f in (new, old))
        if here != there:
            raise ConfigError(
                f"{side}s.{name} is read by another sentence encoder ({str(here)[:12]}) than in the run "
                f"({str(there)[:12]}); install that one and prepare again, or train anew without init_from"
            )


def _whole(old: Schema, new: Schema) -> Iterator[str]:
    actions = [[a.name for a in s.actions] for s in (old, new)]
    if actions[0] != actions[1]:
        yield f"actions are {actions[1]} and were {actions[0]}; declare the same ones in the same order"
    for name in ("clock", "user_id", "item_id"):
        if (here := getattr(new, name)) != (there := getattr(old, name)):
            yield f"{name} is {here} and was {there}; prepare the newer log as the older one was"


def _side(
    side: str, old: Sequence[Feature], new: Sequence[Feature], was: Collection[str], reads: Collection[str]
) -> Iterator[str]:
    before, now = ({f.name: f for f in features} for features in (old, new))
    for name in sorted({*was, *reads}):
        said = f"{side}s.{name}"
        if name not in reads:
            yield f"{said} was read and is no longer; {_CURE.replace('exclude it from the model', 'read it again')}"
        elif name not in was:
            yield f"{said} is read and was not; {_CURE}"
        else:
            yield from (f"{said}: {d}; {_CURE}" for d in _declared(before[name], now[name]))


def _declared(old: Feature, new: Feature) -> Iterator[str]:
    meaning = _MEANING + (("buckets",) if Kind.TEXT in (old.kind, new.kind) else ())  # of numbers, they are aligned
    for name in meaning:
        if (here := getattr(new, name)) != (there := getattr(old, name)):
            yield f"{name} is {here} and was {there}"
    if bool(old.buckets) != bool(new.buckets):
        yield f"buckets is {new.buckets} and was {old.buckets}"
