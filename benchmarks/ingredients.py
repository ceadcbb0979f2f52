"""The ingredients of the chosen recipes, each with the overrides that take it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ablation:
    """One row: a label that says what is missing, and the overrides that take it out of the quick variant."""

    label: str
    overrides: tuple[str, ...] = ()


_UNTRAINED = ("title", "city", "state", "company")
_READINGS = ("described", "called", "spelled")
_SEQUENCES = [
    Ablation("start from the sequence-kNN matrix", ("init=none",)),
    Ablation("training", ("trainer.max_epochs=0",)),
    Ablation("learned weights of positions: mean", ("model.history.pooling=mean",)),
    Ablation("that start, and separate tables of input and output", ("init=none", "model.history.table=shared")),
    Ablation("temperature .1: .05", ("model.similarity.temperature=0.05",)),
    Ablation("temperature .1: .2", ("model.similarity.temperature=0.2",)),
    Ablation("1,024 negatives: 128", ("negatives.n=128",)),
    Ablation("uniform negatives: by popularity, corrected", ("negatives=popularity",)),
    Ablation("uniform negatives: by popularity, not corrected", ("negatives=popularity", "correct_negatives=false")),
    Ablation("uniform negatives: in the batch, corrected", ("negatives=in_batch",)),
    Ablation("uniform negatives: all items", ("negatives=full",)),
    Ablation("width 256: 64", ("model.dim=64",)),
]
_FOLD_IN = Ablation(
    "users folded in: their mean",
    ("model.blocks.ials.history.pooling=mean", "model.blocks.ials.history.table=separate"),
)
_BALANCED = Ablation("weights of scores with a spread of 1: as they come", ("model.balanced=false",))
_CLICKS = [
    Ablation("iALS", ("~model.blocks.ials", "~init.ials")),
    Ablation("truncated SVD", ("~model.blocks.svd", "~init.svd", "~model.weights.svd")),
    _FOLD_IN,
    _BALANCED,
    Ablation("widths: 64", ("model.blocks.ials.dim=64", "model.blocks.svd.dim=64")),
]
ABLATIONS: dict[str, list[Ablation]] = {
    "xing16_blocks": [
        Ablation("concepts in iALS", ("init.ials.content=null",)),
        Ablation("concepts beside iALS", ("~model.blocks.content", "~model.weights.content")),
        Ablation(
            "concepts at all", ("init.ials.content=null", "~model.blocks.content", "~model.weights.content")
        ),
        _FOLD_IN,
        _BALANCED,
        Ablation("width 256: 64", ("model.blocks.ials.dim=64",)),
    ],
    "gowalla_blocks": _CLICKS,
    "amazon_cds_blocks": _CLICKS,
    "xing16_coldjob": [
        Ablation("closed form", ("~model.blocks.collective", "~init.collective", "~model.weights.collective",
                                 "model.apart=[]", "model.calibration=null")),
        Ablation("training", ("trainer.max_epochs=0",)),
        Ablation("1,024 negatives: 128", ("negatives.n=128",)),
        Ablation("uniform negatives: by popularity, corrected", ("negatives=popularity", "negatives.n=1024")),
        Ablation("uniform negatives: in the batch, corrected", ("negatives=in_batch", "~negatives.n")),
        Ablation("temperature 1: .3", ("model.similarity.temperature=0.3",)),
    ],
    "jobviews_blocks": [
        Ablation("training", ("trainer.max_epochs=0",)),
        *(
            Ablation(f"untrained {name}", (f"~model.blocks.{name}", f"~model.weights.{name}", *more,
                                           f"model.apart=[{','.join(n for n in _UNTRAINED if n != name)}]"))
            for name in _UNTRAINED
            for more in [("~init.title",) if name == "title" else ()]
        ),
        Ablation("recency: mean", ("model.blocks.hybrid.history.pooling=mean",)),
        Ablation("all jobs as negatives: in the batch", ("negatives=in_batch",)),
        Ablation("all jobs as negatives: 512", ("negatives=uniform", "negatives.n=512")),
        Ablation("temperature .05: .2", ("model.similarity.temperature=0.2",)),
    ],
    "esco_skills_sentences": [
        Ablation("users described alike", ("~model.blocks.hybrid", "~init.hybrid")),
        Ablation("words that match", ("~model.blocks.content", "~init.content", "~model.weights.content")),
        *(
            Ablation(f"users {name}", (
                f"~init.hybrid.features.{name}",
                f"model.blocks.hybrid.user.include=[{','.join(n for n in _READINGS if n != name)}]",
            ))
            for name in _READINGS
        ),
    ],
    "melo_sentences": [
        Ablation("n-grams", ("~model.blocks.words", "model.apart=[]", "trainer.max_epochs=0")),
        Ablation("training", ("trainer.max_epochs=0",)),
        Ablation("sentences", ("~model.blocks.meaning", "~model.weights.meaning", "model.apart=[]")),
        Ablation("sentences as they are: trained on", ("model.apart=[]",)),
        Ablation("in-batch negatives: 1,024 uniform", ("negatives=uniform", "negatives.n=1024")),
        Ablation("temperature .05: .2", ("model.similarity.temperature=0.2",)),
        Ablation("width 256: 64", ("model.blocks.words.dim=64",)),
    ],
    # what these two add to melo_sentences
    "melo_titles_sentences": [
        Ablation(
            "other titles of the query", tuple(f"model.blocks.{n}.history.pooling=none" for n in ("words", "meaning"))
        )
    ],
    "melo_pooled_sentences": [Ablation("mean of a concept's titles", ("group_weight=0",))],
    "amazon_beauty": _SEQUENCES,
    "amazon_sports": _SEQUENCES,
}  # fmt: skip
