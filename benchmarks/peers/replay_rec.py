"""replay-rec's TwoTower with towers of ids, trained through its LightningModule.

Its query tower is made for sequences; here the sequence is the user's id alone, and the encoder of both towers a layer
of 128 and one of 64. ``CESampled`` with the batch's items as negatives is the softmax over the batch; it embeds them
twice, as positives and as negatives. Adam over everything. Batches are sliced from tensors in memory.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from lightning import Callback, Trainer
from pace import Enough, Job, Pace, job
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.agg import SumAggregator
from replay.nn.embedding import SequenceEmbedding
from replay.nn.lightning import LightningModule
from replay.nn.loss import CESampled
from replay.nn.sequential.twotower import TwoTower, TwoTowerBody


class Encoder(torch.nn.Module):
    """Linear, ReLU, linear, as the encoder of either tower."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(dim, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, dim))

    def reset_parameters(self) -> None:
        """The layers draw their own weights."""

    def forward(self, feature_tensors: Any, input_embeddings: torch.Tensor, **_: Any) -> torch.Tensor:
        """``[…, D]`` → ``[…, D]``."""
        out: torch.Tensor = self.layers(input_embeddings)
        return out


class Batches(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Whole batches in the form that the model takes."""

    def __init__(self, given: Job) -> None:
        self.user, self.item, self.size = torch.from_numpy(given.user), torch.from_numpy(given.item), given.batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Slices of the log."""
        known = torch.ones(self.size, 1, dtype=torch.bool)
        for start in range(0, len(self.user) - self.size + 1, self.size):
            user, item = self.user[start : start + self.size, None], self.item[start : start + self.size]
            yield {
                "feature_tensors": {"user": user},
                "padding_mask": known,
                "positive_labels": item[:, None, None],
                "negative_labels": item,
                "target_padding_mask": known[:, :, None],
            }


class Clock(Callback):
    """Tells the pace of each step."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_batch_end(self, *_: Any) -> None:
        """After a step."""
        self.pace.step()


def feature(name: str, rows: int, dim: int, source: FeatureSource, hint: FeatureHint) -> TensorFeatureInfo:
    """An id; the row after the last is for padding."""
    return TensorFeatureInfo(
        name, is_seq=True, feature_type=FeatureType.CATEGORICAL, embedding_dim=dim, padding_value=rows,
        cardinality=rows, feature_hint=hint, feature_sources=[TensorFeatureSource(source, name)],
    )  # fmt: skip


class Items(dict[str, torch.Tensor]):
    """What the item tower keeps of all items: their ids."""

    @property
    def feature_names(self) -> list[str]:
        """Names of the features."""
        return list(self)


def model(given: Job) -> TwoTower:
    """The two towers."""
    schema = TensorSchema([
        feature("user", given.users, given.dim, FeatureSource.INTERACTIONS, FeatureHint.QUERY_ID),
        feature("item", given.items, given.dim, FeatureSource.ITEM_FEATURES, FeatureHint.ITEM_ID),
    ])  # fmt: skip
    body = TwoTowerBody(
        schema=schema,
        embedder=SequenceEmbedding(schema),
        attn_mask_builder=lambda features, padding: None,
        query_tower_feature_names=["user"],
        query_embedding_aggregator=SumAggregator(given.dim),
        item_embedding_aggregator=SumAggregator(given.dim),
        query_encoder=Encoder(given.dim, given.hidden),
        query_tower_output_normalization=torch.nn.LayerNorm(given.dim),
        item_encoder=Encoder(given.dim, given.hidden),
        item_features_reader=Items(item=torch.arange(given.items)),
    )
    return TwoTower(body, CESampled())


def main() -> None:
    given = job()
    torch.set_num_threads(given.threads)
    pace = Pace(given)
    module = LightningModule(model(given))
    trainer = Trainer(
        accelerator="cpu", max_epochs=1000, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Clock(pace)],
    )  # fmt: skip
    with contextlib.suppress(Enough):
        trainer.fit(module, torch.utils.data.DataLoader(Batches(given), batch_size=None))
    pace.tell(["replay-rec", "torch", "lightning"], "optimiser: Adam over whole tables; no correction by log q")


if __name__ == "__main__":
    main()
