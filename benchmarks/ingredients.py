"""The ingredients of the chosen recipes, each with the overrides that take it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ablation:
    """One row: a label that says what is missing, and the overrides that take it out of the quick variant."""

    label: str
    overrides: tuple[str, ...] = ()


_SEQUENCES = [
    Ablation("start from the sequence-kNN matrix", ("init=none",)),
    Ablation("training", ("trainer.max_epochs=0",)),
    Ablation("learned weights of positions: mean", ("model.history.pooling=mean",)),
    Ablation("separate tables of input and output", ("model.history.table=shared",)),
    Ablation("temperature .1: .05", ("model.similarity.temperature=0.05",)),
    Ablation("temperature .1: .2", ("model.similarity.temperature=0.2",)),
    Ablation("1,024 negatives: 128", ("negatives.n=128",)),
    Ablation("uniform negatives: by popularity, corrected", ("negatives=popularity",)),
    Ablation("uniform negatives: by popularity, not corrected", ("negatives=popularity", "correct_negatives=false")),
    Ablation("uniform negatives: in the batch, corrected", ("negatives=in_batch",)),
    Ablation("uniform negatives: all items", ("negatives=full",)),
    Ablation("width 512: 128", ("model.dim=128",)),
]
ABLATIONS: dict[str, list[Ablation]] = {
    "amazon_beauty": _SEQUENCES,
    "amazon_sports": _SEQUENCES,
}
