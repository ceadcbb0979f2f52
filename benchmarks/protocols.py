"""What quality is measured on: protocols, the methods that are run on each, and what is asked of the chosen one.

A method is a committed experiment. A row more in ``docs/results.md`` is a line more in ``METHODS``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How results are made and read.

    Attributes:
        folder: of the protocol, below ``protocols/``; None: the split is made by the data config.
        tasks: evaluated on test.
        refit: whether rows are trained once more on train + validation, as the protocol's reference rows are.
        goals: metrics of the chosen method (``TASK/METRIC``) with the values that they should reach.
    """

    folder: str | None
    tasks: tuple[str, ...] = ("test",)
    refit: bool = True
    goals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        experiment: the committed config.
        kind: ``baseline``, ``closed form`` or ``trained``.
        chosen: the one by which the protocol's goals are judged.
        quick: overrides of the variant that takes less than five minutes.
    """

    experiment: str
    kind: str = "trained"
    chosen: bool = False
    quick: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name: the experiment's own, without its folder."""
        return self.experiment.rpartition("/")[2]


# Goals: an untuned item-kNN, a tuned tf-idf. Published rows of the sequences are not refitted, hence ours neither.
PROTOCOLS = {
    "xing16": Protocol("xing16-warm", goals=(("test/recall@100", 0.2181), ("test/ndcg@20", 0.0623))),
    "xing16_coldjob": Protocol(
        "xing16-coldjob", ("cold", "all"), goals=(("cold/recall@20", 0.2121), ("cold/ndcg@20", 0.1156))
    ),
    "jobviews": Protocol("jobviews-next"),
    "esco_skills": Protocol("esco-skills-isco"),
    "gowalla": Protocol("gowalla"),
    "amazon_cds": Protocol("amazon-cds"),
    "amazon_beauty": Protocol("s3rec-beauty", refit=False),
    "amazon_sports": Protocol("s3rec-sports", refit=False),
    "ml_100k": Protocol(None),
}


def _baselines(protocol: str, *methods: str) -> list[Method]:
    return [Method(f"baselines/{protocol}_{m}", "baseline") for m in methods]


_EPOCH = ("trainer.max_epochs=1",)
METHODS = {
    "xing16": [
        *_baselines("xing16", "popularity", "item_knn", "tfidf"),
        Method("xing16_ials", "closed form", quick=("model.dim=256",)),
        Method("xing16_collective", "closed form", quick=("model.dim=256",)),
        Method("xing16_blocks", "closed form", True, ("model.blocks.hybrid.dim=256", "model.blocks.content.dim=256")),
        Method("xing16", quick=_EPOCH),
    ],
    "xing16_coldjob": [
        *_baselines("xing16_coldjob", "popularity", "item_knn", "tfidf"),
        Method("xing16_coldjob_collective", "closed form", quick=("model.dim=256",)),
        Method("xing16_coldjob", chosen=True, quick=_EPOCH),
    ],
    "jobviews": [*_baselines("jobviews", "popularity", "item_knn"), Method("jobviews", chosen=True, quick=_EPOCH)],
    "esco_skills": [*_baselines("esco_skills", "popularity"), Method("esco_skills", "closed form", chosen=True)],
    "gowalla": [
        *_baselines("gowalla", "popularity", "item_knn"),
        Method("gowalla_ials", "closed form", quick=("model.dim=256",)),
        Method("gowalla_svd", "closed form", True, ("model.dim=512",)),
        Method("gowalla", quick=_EPOCH),
    ],
    "amazon_cds": [
        *_baselines("amazon_cds", "popularity", "item_knn"),
        Method("amazon_cds_svd", "closed form", quick=("model.dim=512",)),
        Method("amazon_cds", chosen=True, quick=_EPOCH),
    ],
    "amazon_beauty": [
        *_baselines("amazon_beauty", "popularity", "item_knn", "sequence_knn", "ease"),
        Method("amazon_beauty", chosen=True, quick=_EPOCH),
    ],
    "amazon_sports": [
        *_baselines("amazon_sports", "popularity", "item_knn", "sequence_knn", "ease"),
        Method("amazon_sports", chosen=True, quick=_EPOCH),
    ],
    "ml_100k": [*_baselines("ml_100k", "popularity", "recent"), Method("ml_100k", chosen=True, quick=_EPOCH)],
}
