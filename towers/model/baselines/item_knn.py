"""Item-kNN: members who clicked this also clicked that.

Shapes: ``U`` users, ``I`` items. ``X [U, I]``: clicks; ``n_u``, ``n_i``: clicks of a user, of an item.

    S_ji = n_j^{-b} (Σ_u n_u^{-a} x_uj x_ui) n_i^{-c},   S_ii = 0
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy import sparse

from towers.errors import ConfigError
from towers.model.baselines.baseline import SVD, Neighbourhood, Progress, State, scaled, strongest
from towers.model.closed_form.interactions import Interactions
from towers.model.closed_form.svd import degrees


@dataclass(frozen=True)
class ItemKNN(Neighbourhood):
    """Items that were clicked together.

    When to use it: clicks and no content, as the first real baseline; fitted in seconds, and hard to beat where items
    have few clicks. It cannot recommend an item that nobody has clicked.

    Source: Sarwar, Karypis, Konstan and Riedl, "Item-based Collaborative Filtering Recommendation Algorithms" (WWW
    2001); Deshpande and Karypis, "Item-based Top-N Recommendation Algorithms" (TOIS 2004) for the powers of degrees:
    ``b = c = 0.5`` is the cosine.
    """

    user_power: float = 0.5
    """``a``: the larger, the less the clicks of busy users count."""
    history_power: float = 0.5
    """``b``: the larger, the less popular items of a history count."""
    item_power: float = 0.5
    """``c``: the larger, the less popular items are recommended. Best below ``b`` on all logs we have tried."""
    neighbours: int | None = None
    """Keep each item's so many greatest similarities; None: all. Saves memory, and costs recall in depth."""

    @property
    def instead(self) -> str:
        """The same clicks, factorised."""
        return SVD

    def fit(self, log: Interactions, progress: Progress) -> State:
        """The matrix ``S``.

        Raises:
            ConfigError: a decay outside 0 to 1 or on a log without order, or fewer than 1 neighbours.
        """
        self.check_decay(log)
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError(f"model.neighbours is {self.neighbours}; set at least 1, or null for all")
        progress("counting pairs", 0.0)
        clicks = log.matrix()
        users, items = degrees(clicks, 1), degrees(clicks, 0)
        together = sparse.csr_array(clicks.T @ sparse.diags_array(users**-self.user_power) @ clicks)
        progress("normalising", 0.7)
        together.setdiag(0)
        similarity = scaled(together, items**-self.history_power, items**-self.item_power)
        similarity.eliminate_zeros()
        return self.learnt(similarity if self.neighbours is None else strongest(similarity, self.neighbours), log)
