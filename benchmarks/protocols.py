"""What quality is measured on: protocols, the methods that are run on each, and what is asked of them.

A method is a committed experiment. A row more in ``docs/results.md`` is a line more in ``METHODS``.
"""

from __future__ import annotations

from dataclasses import dataclass

Values = tuple[tuple[str, float], ...]
"""Metrics (``TASK/METRIC``, or ``TASK:PART/METRIC`` for the targets of one part) with a value each."""


@dataclass(frozen=True)
class Protocol:
    """How results are made and read.

    Attributes:
        folder: of the protocol, below ``protocols/``; None: the split is made by the data config.
        tasks: evaluated on test.
        refit: whether rows are trained once more on train + validation, as the protocol's reference rows are.
        goals: what the chosen method should reach.
        stretch: what it would be proud of.
        shown: metrics of the table.
        known: the strongest row of others, in words; its metrics in the order of ``goals``.
    """

    folder: str | None
    tasks: tuple[str, ...] = ("test",)
    refit: bool = True
    goals: Values = ()
    stretch: Values = ()
    shown: tuple[str, ...] = ("recall@10", "recall@20", "recall@100", "ndcg@10", "ndcg@20")
    known: str = ""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        experiment: the committed config.
        kind: ``baseline``, ``closed form`` or ``trained``.
        chosen: the one by which the protocol's goals are judged.
        quick: overrides of the variant that takes less than five minutes.
        needs: an optional package, without which the row is left out.
        reference: the protocol's own row of this method, made by other code: a check of evaluator and baseline at once.
    """

    experiment: str
    kind: str = "trained"
    chosen: bool = False
    quick: tuple[str, ...] = ()
    needs: str = ""
    reference: Values = ()

    @property
    def name(self) -> str:
        """The run's name: the experiment's own, without its folder."""
        return self.experiment.rpartition("/")[2]


def _test(**values: float) -> Values:
    """Values of the task ``test``: ``r20`` is recall@20, ``n20`` ndcg@20."""
    names = {"r": "recall", "n": "ndcg"}
    return tuple((f"test/{names[key[0]]}@{key[1:]}", value) for key, value in values.items())


def _melo(mrr: float, average_precision: float) -> Values:
    return ("published/mrr@1000", mrr), ("published/map@1000", average_precision)


# Published rows of the sequences are not refitted, classical ones are both: hence each of the two sets twice.
PROTOCOLS = {
    "xing16": Protocol(
        "xing16-warm",
        known="factorisation with content: .1564, .3056, .0885; rank fusion of three: .1416, .2740, .0792",
        goals=_test(r20=0.158, r100=0.312, n20=0.089),
        stretch=_test(r20=0.170, r100=0.330, n20=0.095),
    ),
    "xing16_coldjob": Protocol(
        "xing16-coldjob",
        ("cold", "all"),
        known="prototype: .2369, .4488, .1269, another, all jobs: .0763, .0086; content with co-clicks: .2164, .4136, "
        ".1163; rank fusion, all jobs: .0520, .0134",
        goals=(
            ("cold/recall@20", 0.240),
            ("cold/recall@100", 0.450),
            ("cold/ndcg@20", 0.128),
            ("all/recall@20", 0.074),
            ("all:cold/recall@20", 0.020),
        ),
        stretch=(
            ("cold/recall@20", 0.270),
            ("cold/recall@100", 0.490),
            ("cold/ndcg@20", 0.145),
            ("all/recall@20", 0.080),
            ("all:cold/recall@20", 0.025),
            ("all:warm/recall@20", 0.18),
        ),
    ),
    "jobviews": Protocol(
        "jobviews-next",
        known="content and item-kNN: .4340, .2431",
        goals=_test(r20=0.455, n20=0.258),
        stretch=_test(r20=0.470, n20=0.270),
    ),
    "esco_skills": Protocol(
        "esco-skills-isco",
        known="kernel ridge and text match: .2644, .5257",
        goals=_test(r20=0.280, n20=0.545),
        stretch=_test(r20=0.290, n20=0.570),
    ),
    "gowalla": Protocol(
        "gowalla",
        known="SVD, d = 1024: .1881, .1576; published NESCL: .1917, .1617",
        goals=_test(r20=0.189, n20=0.160),
        stretch=_test(r20=0.1925, n20=0.162),
    ),
    "amazon_cds": Protocol(
        "amazon-cds",
        known="published UltraGCN: .1622, .1043",
        goals=_test(r20=0.163, n20=0.105),
        stretch=_test(r20=0.175, n20=0.112),
    ),
    "amazon_beauty": Protocol(
        "s3rec-beauty",
        refit=False,
        known="published SASRec, eSASRec: .0928, .0531",
        goals=_test(r10=0.0935, n10=0.0555),
        stretch=_test(r10=0.100, n10=0.062),
    ),
    "amazon_beauty_refitted": Protocol(
        "s3rec-beauty",
        known="prototype: .1029, .0628; sequence-kNN: .0993, .0632",
        goals=_test(r10=0.106, n10=0.066),
        stretch=_test(r10=0.112, n10=0.070),
    ),
    "amazon_sports": Protocol(
        "s3rec-sports",
        refit=False,
        known="published SASRec, eSASRec: .0569, .0323",
        goals=_test(r10=0.058, n10=0.035),
        stretch=_test(r10=0.064, n10=0.037),
    ),
    "amazon_sports_refitted": Protocol(
        "s3rec-sports",
        known="sequence-kNN: .0645, .0376",
        goals=_test(r10=0.067, n10=0.040),
        stretch=_test(r10=0.072, n10=0.043),
    ),
    "melo": Protocol(
        None,
        ("published",),
        refit=False,
        known="published e5, not fine-tuned: .6735, .4735",
        goals=_melo(0.66, 0.39),
        stretch=_melo(0.6735, 0.4735),
        shown=("mrr@1000", "map@1000", "recall@10", "recall@100"),
    ),
    "melo_titles": Protocol(
        None,
        ("published",),
        refit=False,
        goals=_melo(0.69, 0.42),
        shown=("mrr@1000", "map@1000", "recall@10", "recall@100"),
    ),
    "melo_pooled": Protocol(
        None,
        ("published",),
        refit=False,
        goals=_melo(0.72, 0.60),
        shown=("mrr@1000", "map@1000", "recall@10", "recall@100"),
    ),
    "ml_100k": Protocol(None),
}


def _baseline(experiment: str, reference: Values = ()) -> Method:
    return Method(f"baselines/{experiment}", "baseline", reference=reference)


_EPOCH = ("trainer.max_epochs=1",)
_NARROW = ("model.dim=256",)
_WORDS = (  # which leaves esco_skills: no title has to be read by the encoder
    "data=esco_skills",
    "~model.blocks.meaning",
    "~model.weights.meaning",
    "~init.hybrid.features.meaning",
    "model.blocks.hybrid.user.include=[described,called,spelled]",
    "model.weights.content=0.8",
)
_SENTENCES = "sentence_transformers"
METHODS = {
    "xing16": [
        _baseline("xing16_popularity", _test(r20=0.0217, r100=0.0480, n20=0.0113)),
        _baseline("xing16_item_knn", _test(r20=0.1222, r100=0.2324, n20=0.0701)),
        _baseline("xing16_tfidf", _test(r20=0.0461, r100=0.1187, n20=0.0240)),
        Method("xing16_ials", "closed form", quick=("model.dim=256",), reference=_test(r20=0.1341, n20=0.0751)),
        Method("xing16_collective", "closed form", quick=("model.dim=256",)),
        Method("xing16_blocks", "closed form", True, ("model.blocks.ials.dim=256", "model.blocks.content.dim=256")),
        Method("xing16_trained", "closed form", quick=("model.blocks.ials.dim=256", "model.blocks.content.dim=256")),
        Method("xing16", quick=_EPOCH),
    ],
    "xing16_coldjob": [
        _baseline("xing16_coldjob_popularity"),
        _baseline("xing16_coldjob_item_knn", (("all/recall@20", 0.0494), ("all/ndcg@20", 0.0261))),
        _baseline("xing16_coldjob_tfidf", (("cold/recall@20", 0.2121), ("cold/ndcg@20", 0.1156))),
        _baseline("xing16_coldjob_coclick", (("cold/recall@20", 0.2164), ("cold/ndcg@20", 0.1163))),
        Method("xing16_coldjob_coclick", "closed form", quick=("model.dim=256",)),
        Method("xing16_coldjob_collective", "closed form", quick=("model.dim=256",)),
        Method(
            "xing16_coldjob",
            chosen=True,
            quick=("trainer.max_epochs=2", "model.blocks.collective.dim=256", "data.history_length=50"),
        ),
    ],
    "jobviews": [
        _baseline("jobviews_popularity", _test(r20=0.0320, n20=0.0131)),
        _baseline("jobviews_item_knn", _test(r20=0.0604, n20=0.0321)),
        _baseline("jobviews_tfidf", _test(r20=0.4306, n20=0.2399)),
        Method("jobviews", quick=_EPOCH),
        Method("jobviews_blocks", chosen=True, quick=("trainer.max_epochs=3",)),
    ],
    "esco_skills": [
        _baseline("esco_skills_popularity", _test(r20=0.0560, n20=0.0975)),
        _baseline("esco_skills_kernel_ridge", _test(r20=0.2563, n20=0.5162)),
        Method("esco_skills_ridge", "closed form", quick=("model.dim=256",)),
        Method("esco_skills", "closed form"),
        Method("esco_skills_sentences", "closed form", chosen=True, quick=_WORDS, needs=_SENTENCES),
    ],
    "gowalla": [
        _baseline("gowalla_popularity", _test(r20=0.0416, n20=0.0317)),
        _baseline("gowalla_item_knn", _test(r20=0.1799, n20=0.1468)),
        Method("gowalla_ials", "closed form", quick=("model.dim=256",), reference=_test(r20=0.1794, n20=0.1475)),
        Method("gowalla_svd", "closed form", quick=("model.dim=512",), reference=_test(r20=0.1881, n20=0.1576)),
        Method("gowalla_blocks", "closed form", True, ("model.blocks.ials.dim=256", "model.blocks.svd.dim=256")),
        Method("gowalla_light_gcn", quick=_EPOCH),
        Method("gowalla", quick=_EPOCH),
    ],
    "amazon_cds": [
        _baseline("amazon_cds_popularity"),
        _baseline("amazon_cds_item_knn"),
        Method("amazon_cds_svd", "closed form", quick=("model.dim=512",)),
        Method("amazon_cds_blocks", "closed form", True, ("model.blocks.svd.dim=128",)),
        Method("amazon_cds", quick=_EPOCH),
    ],
    "amazon_beauty": [
        _baseline("amazon_beauty_popularity"),
        _baseline("amazon_beauty_item_knn", _test(r10=0.0724, n10=0.0411)),
        _baseline("amazon_beauty_sequence_knn", _test(r10=0.0871, n10=0.0549)),
        _baseline("amazon_beauty_ease", _test(r10=0.0766, n10=0.0441)),
        Method("amazon_beauty", chosen=True, quick=_NARROW),
    ],
    "amazon_beauty_refitted": [
        _baseline("amazon_beauty_popularity", _test(r10=0.0135, n10=0.0061)),
        _baseline("amazon_beauty_sequence_knn", _test(r10=0.0993, n10=0.0632)),
        Method("amazon_beauty", chosen=True, quick=_NARROW),
    ],
    "amazon_sports": [
        _baseline("amazon_sports_popularity"),
        _baseline("amazon_sports_item_knn", _test(r10=0.0517, n10=0.0290)),
        _baseline("amazon_sports_sequence_knn", _test(r10=0.0567, n10=0.0327)),
        _baseline("amazon_sports_ease", _test(r10=0.0511, n10=0.0282)),
        Method("amazon_sports", chosen=True, quick=_NARROW),
    ],
    "amazon_sports_refitted": [
        _baseline("amazon_sports_popularity", _test(r10=0.0091, n10=0.0052)),
        _baseline("amazon_sports_sequence_knn", _test(r10=0.0645, n10=0.0376)),
        Method("amazon_sports", chosen=True, quick=_NARROW),
    ],
    "melo": [Method("melo", quick=_EPOCH), Method("melo_sentences", chosen=True, quick=_EPOCH, needs=_SENTENCES)],
    "melo_titles": [
        Method("melo_titles", quick=_EPOCH),
        Method("melo_titles_sentences", chosen=True, needs=_SENTENCES),
    ],
    "melo_pooled": [
        Method("melo_pooled", quick=_EPOCH),
        Method("melo_pooled_sentences", chosen=True, needs=_SENTENCES),
    ],
    "ml_100k": [
        _baseline("ml_100k_popularity"),
        _baseline("ml_100k_recent"),
        Method("ml_100k", chosen=True, quick=_EPOCH),
    ],
}
