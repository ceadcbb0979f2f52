"""rectools' DSSM, fitted through its ``DSSMModel``.

Its one two-tower model: triplet loss with one random negative, Adam over everything. A user is her row of the
interactions and an item a row of features, both dense, as wide as the catalogue; ids of users would make rows as wide
as there are users, so a user has one constant feature instead. A batch of 4,096 such examples would take 10 GB: it
trains with its default, 128.
"""

import contextlib
from typing import Any

import numpy as np
import pandas as pd
import torch
from pace import Enough, Pace, job
from pytorch_lightning import Callback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import DSSMModel

BATCH = 128


class Clock(Callback):
    """Tells the pace of each step."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_batch_end(self, *_: Any) -> None:
        """After a step."""
        self.pace.step()

    def __deepcopy__(self, memo: Any) -> "Clock":
        """Itself: the model trains with a copy of its trainer."""
        return self


def main() -> None:
    given = job()
    given = given._replace(batch=min(given.batch, BATCH))
    torch.set_num_threads(given.threads)
    pace = Pace(given)
    events = pd.DataFrame({
        Columns.User: given.user, Columns.Item: given.item, Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2026-01-01"),
    })  # fmt: skip
    users = pd.DataFrame({"id": np.arange(given.users), "feature": "user", "value": "any"})
    items = pd.DataFrame({"id": np.arange(given.items), "feature": "id", "value": np.arange(given.items)})
    dataset = Dataset.construct(
        events, user_features_df=users, cat_user_features=["user"], item_features_df=items, cat_item_features=["id"]
    )
    model = DSSMModel(
        n_factors=given.dim, max_epochs=1000, batch_size=given.batch, trainer_accelerator="cpu",
        callbacks=[Clock(pace)], loggers=False,
    )  # fmt: skip
    with contextlib.suppress(Enough):
        model.fit(dataset)
    pace.tell(
        ["rectools", "torch", "pytorch-lightning"],
        f"batch {given.batch}; triplet loss, one random negative; optimiser: Adam; users as dense rows of their events",
    )


if __name__ == "__main__":
    main()
