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

METHODS = {name: [Method(name, chosen=True, quick=("trainer.max_epochs=1",))] for name in PROTOCOLS}
