"""LibRecommender's TwoTower, fitted as its documentation does, with its softmax over the batch.

Embeddings, a layer of 128 and one of 64 in each tower, as ``hidden_units`` says; its optimiser is Adam of TensorFlow 1,
whose moments of the tables move in each step. Batches come from its own loader, which the clock stands around.
Wants ``TF_USE_LEGACY_KERAS=1``.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
from libreco.algorithms import TwoTower
from libreco.data import DatasetPure
from libreco.training import tf_trainer
from pace import Enough, Pace, job


def main() -> None:
    given = job()
    log = pd.DataFrame({"user": given.user, "item": given.item, "label": 1})
    train, info = DatasetPure.build_trainset(log)
    pace = Pace(given)

    def clocked(batches: Iterable[Any], **_: Any) -> Iterator[Any]:
        for batch in batches:
            yield batch
            pace.step()  # when the next batch is asked for, the step is done

    tf_trainer.tqdm = clocked  # what the trainer iterates over its batches with: the one place to look at the clock
    threads = {"intra_op_parallelism_threads": given.threads, "inter_op_parallelism_threads": given.threads}
    model = TwoTower(
        "ranking", info, loss_type="softmax", embed_size=given.dim, hidden_units=(given.hidden, given.dim),
        batch_size=given.batch, n_epochs=1000, use_bn=False, tf_sess_config=threads,
    )  # fmt: skip
    with contextlib.suppress(Enough):
        model.fit(train, neg_sampling=True, verbose=0, shuffle=True)  # draws none: the softmax is over the batch
    pace.tell(["LibRecommender", "tensorflow-cpu", "tf-keras"], "optimiser: Adam over whole tables; log q corrected")


if __name__ == "__main__":
    main()
