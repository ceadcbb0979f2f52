"""What is wrong with the rows of a log: within its limit it is set aside, beyond it stops the preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from data.spec import DatasetSpec
from data.tally import Tally
from towers.errors import DataError

_MEANING = {
    "null_key": "the user or the item is null",
    "bad_time": "the time is null, cannot be read, is naive, or lies outside 1900-2100",
    "bad_weight": "the weight is null, negative, NaN or infinite",
    "unknown_action": "an action that the config does not declare",
    "unknown_split": "a split that the config does not declare",
    "unknown_user": "a user that the user table lacks",
    "unknown_item": "an item that the catalogue lacks",
    "after_expiry": "an event after its item had expired",
    "duplicate": "the user, item, time and action of another row",
}
_CURE = {
    "null_key": "remove those rows",
    "bad_time": "write ISO-8601 instants with an offset, or set events.time.timezone or events.time.unit",
    "bad_weight": "write finite weights of at least 0",
    "unknown_action": "declare it under actions (weight 0 for what is no positive)",
    "unknown_split": "name the splits train, valid and those that tasks refer to",
    "unknown_user": "complete the user table",
    "unknown_item": "complete the item table",
    "after_expiry": "correct items.expires or the log's clock",
    "duplicate": "remove them",
}


def check(spec: DatasetSpec, tally: Tally, shown: str, where: Callable[[str], str]) -> None:
    """Stop unless every fault is within its limit.

    Args:
        spec: the data config.
        tally: what was counted in the whole log.
        shown: the files of the log.
        where: writes the rows with a fault to ``rejected/``, and says where the first of them is.

    Raises:
        DataError: a fault that stops, or too many rows set aside.
    """
    if not tally.rows:
        raise DataError("the log has no rows", where=shown, cure="correct events.files")
    for name in _MEANING:
        if n := tally.faults[name]:
            limit = spec.faults[name]
            beyond = limit.policy == "stop" or n > limit.limit * tally.rows
            # repeated rows were written when they were met; where they are is worth a scan only if it is asked for
            place = where(name) if beyond or name != "duplicate" else ""
            if beyond:
                raise DataError(
                    f"{n} of {tally.rows} log rows: {_MEANING[name]}"
                    + (f", more than the limit of {limit.limit:.2%}" if limit.policy == "set_aside" else ""),
                    where=place,
                    cure=f"{_CURE[name]}, or set faults.{name}: {{policy: set_aside, limit: …}} in the data config",
                )


def check_splits(spec: DatasetSpec, positives: Mapping[str, int]) -> None:
    """Stop if a split is empty that is trained on or asked about.

    Args:
        spec: the data config.
        positives: examples with a positive weight, by split.

    Raises:
        DataError: naming the split.
    """
    wanted = {"train"} | {t for _, task in spec.tasks for t in task.targets}
    if spec.refit:
        wanted -= {"valid"}
    if empty := sorted(w for w in wanted if not positives.get(w)):
        raise DataError(
            f"no positive events in split {empty[0]!r}; counts are {dict(positives)}",
            where=f"split.rule={spec.split.rule}",
            cure="correct the split settings, the actions' weights or the files",
        )
