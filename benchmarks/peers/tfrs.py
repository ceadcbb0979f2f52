"""tensorflow-recommenders' Retrieval task, compiled and fitted as its tutorials do.

Towers of ``Embedding``, ``Dense(128, relu)``, ``Dense(64)``; Adagrad, whose updates of the tables are sparse (its
tutorials' choice, and the fastest); whole batches sliced from arrays by ``tf.data``, faster than batching single
examples. Wants ``TF_USE_LEGACY_KERAS=1``.
"""

import contextlib

import tensorflow as tf
import tensorflow_recommenders as tfrs
from pace import Enough, Job, Pace, job


def tower(rows: int, given: Job) -> tf.keras.Sequential:
    """Ids → vectors."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [layers.Embedding(rows, given.dim), layers.Dense(given.hidden, activation="relu"), layers.Dense(given.dim)]
    )


class TwoTower(tfrs.Model):
    """Two towers and the task."""

    def __init__(self, given: Job) -> None:
        super().__init__()
        self.users, self.items = tower(given.users, given), tower(given.items, given)
        self.task = tfrs.tasks.Retrieval()  # the softmax over the batch

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Of a batch."""
        return self.task(self.users(features["user"]), self.items(features["item"]), compute_metrics=False)


class Clock(tf.keras.callbacks.Callback):
    """Tells the pace of each step."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """After a step, whose loss is there."""
        self.pace.step()


def main() -> None:
    given = job()
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    columns = {"user": tf.constant(given.user), "item": tf.constant(given.item)}
    starts = tf.data.Dataset.range(0, len(given.user) - given.batch + 1, given.batch)
    batches = starts.map(lambda i: {name: ids[i : i + given.batch] for name, ids in columns.items()})
    model, pace = TwoTower(given), Pace(given)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    with contextlib.suppress(Enough):
        model.fit(batches.prefetch(tf.data.AUTOTUNE), epochs=1000, verbose=0, callbacks=[Clock(pace)])
    pace.tell(["tensorflow-cpu", "tf-keras", "tensorflow-recommenders"], "optimiser: Adagrad; no correction by log q")


if __name__ == "__main__":
    main()
