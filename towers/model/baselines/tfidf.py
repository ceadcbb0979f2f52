"""Tf-idf: jobs that share rare words, concepts, places with those of the history.

Shapes: ``B`` queries, ``I`` items, ``N`` candidates, ``V`` values of all features end to end.

    score = Σ_j decay^age_j  Σ_f w_f ⟨h_jf, c_if⟩,     h = x / |x|^a,  c = x / |x|^b,  x = bag · idf^p
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from towers.features import Batch
from towers.model.baselines.bags import bag, checked, crossed, inverse_document_frequency, weighted
from towers.model.baselines.baseline import Features, HistoryBaseline, Matrix, Progress, State, histories
from towers.model.closed_form.interactions import Interactions


@dataclass(frozen=True)
class Tfidf(HistoryBaseline):
    """Content similarity to the history.

    When to use it: new jobs, or few clicks: it needs no other user. Where titles, places and employers are known it
    is hard to beat for the next view of a session. Plain cosines (all powers 1) are a weak form: tune the powers.

    Source: Salton and Buckley, "Term-weighting approaches in automatic text retrieval" (1988); the powers are those of
    pivoted length normalisation in its simplest form (Singhal, Buckley and Mitra, SIGIR 1996).
    """

    features: Mapping[str, float] | None = None
    """Weights by item feature; ``city*title`` is a product: only what agrees in the city compares its title."""
    idf_power: float = 1.0
    """``p``: the larger, the more rare values count."""
    history_length_power: float = 1.0
    """``a``: the larger, the less the long bags of a history count."""
    item_length_power: float = 1.0
    """``b``: 1 is the cosine; below, candidates that say more are preferred."""

    @property
    def instead(self) -> str:
        """The match of the heaviest feature, in fewer dimensions."""
        return self.short("lsa")

    def short(self, init: str) -> str:
        """Settings of ``train.py`` for a closed form of the heaviest feature."""
        weights = self.features or {"title": 1.0}
        name = max(weights, key=lambda f: weights[f]).split("*")[-1]
        return (
            f"model=hybrid 'model.item.include=[{name}]' model.item.id_dropout=0 init={init} init.item={name} "
            "trainer.max_epochs=0"
        )

    def fit(self, log: Interactions, progress: Progress) -> State:
        """Weighted bags of all items, as parts of histories and as candidates.

        Raises:
            ConfigError: no features, one that is not there or not made of values, or a wrong weight or decay.
        """
        self.check_decay(log)
        history: list[Matrix] = []
        candidates: list[Matrix] = []
        for name, weight in checked(self.features, log.item_features, "item").items():
            progress(name, 0.0)
            encoded = [log.item_features[part] for part in name.split("*")]
            bags = [bag(ids, int(ids.max(initial=0)) + 1) for ids in encoded]
            idf = [inverse_document_frequency(b) ** self.idf_power for b in bags]
            both = (self.history_length_power, self.item_length_power)
            for side, power in zip((history, candidates), both, strict=True):
                part = crossed([weighted(b, w, power) for b, w in zip(bags, idf, strict=True)])
                side.append(part * math.sqrt(weight))
        return {"history": _joined(history), "candidates": _joined(candidates)}

    def queries(self, state: State, batch: Batch, users: Features) -> Matrix:
        """``[B, V]`` pooled histories."""
        bags = state["history"]
        return histories(batch, bags.shape[0], self.decay) @ bags

    def items(self, state: State, rows: NDArray[np.int64]) -> Matrix:
        """``[V, N]``."""
        return sparse.csr_array(state["candidates"][rows].T)


def _joined(parts: list[sparse.csr_array]) -> sparse.csr_array:
    return sparse.csr_array(sparse.hstack(parts, format="csr"), dtype=np.float32)
