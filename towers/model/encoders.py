"""One encoder for each kind of feature: encoded arrays in, vectors out.

Shapes: ``n`` rows, ``W`` list length, ``V`` vocabulary size, ``d`` embedding width (an encoder's ``dim``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.features import FIRST, PAD, FeatureInfo, Kind
from towers.model.hashed_tables import HashedTable, QuotientRemainderTable
from towers.model.small_tables import SmallTable


@dataclass(frozen=True)
class EncoderSettings:
    """How features become vectors.

    Attributes:
        dim: embedding width ``d``; None: the width of the tower's output.
        sparse_above: tables with more rows than this get sparse gradients and their own optimiser; None: none do.
        table: ``full``: a row for each value; ``hashed`` or ``quotient_remainder``: fewer (see ``hashed_tables``).
        table_rows: of such a table; features with no more values than this have a full one.
        numeric: ``linear``, or ``periodic`` for a number whose effect is not monotone.
        frequencies: sines and cosines of a periodic number.
        vector: ``linear`` projects a pretrained vector to ``d``, ``identity`` takes it as it is.
        share: user and context features that have one vocabulary with an item feature (``vocabulary`` in the data
            config) take its encoder too: what is learnt of a word in a query holds for the same word in a title.
            A Siamese text tower where nothing else is read; of the user tower.
    """

    dim: int | None = None
    sparse_above: int | None = None
    table: Literal["full", "hashed", "quotient_remainder"] = "full"
    table_rows: int = 1_000_000
    numeric: Literal["linear", "periodic"] = "linear"
    frequencies: int = 8
    vector: Literal["linear", "identity"] = "linear"
    share: bool = True


def encoder(info: FeatureInfo, dim: int, settings: EncoderSettings) -> Encoder:
    """The encoder of a feature.

    Args:
        info: the feature, as fitted.
        dim: embedding width ``d``.
        settings: what is the same for all features of a tower.
    """
    sparse = settings.sparse_above is not None and info.cardinality > settings.sparse_above
    full = settings.table == "full" or info.cardinality <= settings.table_rows
    if info.kind in (Kind.CATEGORICAL_LIST, Kind.TEXT):
        return Bag(info, dim, sparse) if full else HashedBag(info, dim, settings)
    if info.cardinality:
        return Lookup(info, dim, sparse) if full else HashedLookup(info, dim, settings)
    if info.kind in (Kind.VECTOR, Kind.SENTENCE):
        return Projection(info, dim) if settings.vector == "linear" else Identity(info)
    return Number(dim, settings.frequencies if settings.numeric == "periodic" else 0)


class Encoder(nn.Module):
    """Encoded arrays of one feature → ``[n, dim]`` vectors.

    Attributes:
        dim: width of the vectors.
        by_value: names of the parameters that have a row for each value of the vocabulary.
    """

    dim: int
    by_value: tuple[str, ...] = ()


def embedding(rows: int, dim: int, sparse: bool, padding_idx: int | None = None) -> nn.Embedding:
    """A table whose rows start with an expected length of 1, the special ones at zero.

    A value that training never showed (and ``OOV`` itself, unless id-dropout or rare values train it)
    thus contributes nothing, instead of noise.
    """
    table = nn.Embedding(rows, dim, padding_idx=padding_idx, sparse=sparse)
    with torch.no_grad():
        table.weight.normal_(std=dim**-0.5)
        table.weight[:FIRST] = 0.0
    return table


def hashed(
    info: FeatureInfo, dim: int, settings: EncoderSettings, padding_idx: int | None = None
) -> HashedTable | QuotientRemainderTable:
    """A table of ``settings.table_rows`` rows for more values.

    Args:
        info: the feature, of ``V`` values.
        dim: ``d``.
        settings: which table, of how many rows, and from where on with sparse gradients.
        padding_idx: an id whose row stays at zero.
    """
    rows = settings.table_rows
    sparse = settings.sparse_above is not None and rows > settings.sparse_above
    if settings.table == "hashed":
        keys = None if info.keys is None else torch.from_numpy(info.keys())
        return HashedTable(rows, dim, sparse, padding_idx, keys)
    return QuotientRemainderTable(info.cardinality, rows, dim, sparse, padding_idx)


class Lookup(Encoder):
    """One embedding for each value: ids, categories, buckets of a number."""

    by_value = ("table.weight",)

    def __init__(self, info: FeatureInfo, dim: int, sparse: bool) -> None:
        super().__init__()
        self.dim = dim
        self.table = embedding(info.cardinality, dim, sparse)

    def forward(self, ids: Tensor) -> Tensor:
        """``[n]`` ids → ``[n, d]``."""
        out: Tensor = self.table(ids)
        return out


class HashedLookup(Encoder):
    """``Lookup`` with a table of fewer rows than values: see ``hashed_tables``."""

    def __init__(self, info: FeatureInfo, dim: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.dim = dim
        self.table = hashed(info, dim, settings)

    def forward(self, ids: Tensor) -> Tensor:
        """``[n]`` ids → ``[n, d]``."""
        out: Tensor = self.table(ids)
        return out


class Weighted(Encoder):
    """The weights of a bag, apart from its table: see ``Bag``."""

    by_value: tuple[str, ...] = ("log_weight.weight",)
    log_weight: nn.Embedding
    length_power: nn.Parameter

    def weigh(self, info: FeatureInfo, sparse: bool) -> None:
        """Start the weights at the inverse document frequencies, and γ at 1."""
        self.log_weight = SmallTable(info.cardinality, 1, padding_idx=PAD, sparse=sparse)
        with torch.no_grad():
            self.log_weight.weight.copy_(log_idf(info).unsqueeze(1))
        self.length_power = nn.Parameter(torch.ones(()))  # γ

    def weights(self, ids: Tensor) -> Tensor:
        """``[n, W]`` ids → ``[n, W]`` what each embedding is multiplied by."""
        weight = self.log_weight(ids).squeeze(-1).exp().masked_fill(ids == PAD, 0.0)
        total = weight.sum(-1, keepdim=True)
        out: Tensor = weight / torch.where(total > 0, total, 1.0) ** self.length_power  # an empty list stays at zero
        return out


class Bag(Weighted):
    """Lists of categories and hashed texts: the weighted mean of the embeddings, or what lies between it and their sum.

        Σ w_i e_i / (Σ w_i)^γ

    Every value has a learned weight w, which starts at its inverse document frequency: before training, this is
    the tf-idf average of random vectors, in which a rare skill says more than a frequent one. How far length
    counts is learned too: γ = 1, where it starts, is the mean, 0 the sum, in which a job that shares two skills with
    a user beats one that shares the first of them and has no other (pivoted normalisation: Singhal, Buckley and
    Mitra, 1996). ``PAD`` has weight 0, hence adding padding changes nothing and trains nothing.
    """

    by_value = ("table.weight", "log_weight.weight")

    def __init__(self, info: FeatureInfo, dim: int, sparse: bool) -> None:
        super().__init__()
        self.dim = dim
        self.table = embedding(info.cardinality, dim, sparse, padding_idx=PAD)
        self.weigh(info, sparse)

    def forward(self, ids: Tensor) -> Tensor:
        """``[n, W]`` ids, filled up with ``PAD`` → ``[n, d]``."""
        weight = self.weights(ids)
        if torch.onnx.is_in_onnx_export():  # ONNX Runtime gathers and multiplies several times faster than it bags
            out: Tensor = (weight.unsqueeze(-2) @ self.table(ids)).squeeze(-2)
            return out
        return F.embedding_bag(
            ids, self.table.weight, mode="sum", per_sample_weights=weight, sparse=self.table.sparse, padding_idx=PAD
        )


class HashedBag(Weighted):
    """``Bag`` with a table of fewer rows than values; each value has a weight of its own."""

    def __init__(self, info: FeatureInfo, dim: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.dim = dim
        self.table = hashed(info, dim, settings, padding_idx=PAD)
        self.weigh(info, settings.sparse_above is not None and info.cardinality > settings.sparse_above)

    def forward(self, ids: Tensor) -> Tensor:
        """``[n, W]`` ids, filled up with ``PAD`` → ``[n, d]``."""
        out: Tensor = (self.weights(ids).unsqueeze(-2) @ self.table(ids)).squeeze(-2)
        return out


def log_idf(info: FeatureInfo) -> Tensor:
    """``[V]`` logarithms of smoothed inverse document frequencies, ``1 + log((1 + max count) / (1 + count))``.

    The most frequent value stands for "every row has it", since a vocabulary does not know how many rows
    there were. The special ids weigh as little as the most frequent value.
    """
    known = info.training_counts()
    counts = np.zeros(info.cardinality) if known is None else known.astype(np.float64)
    idf = 1.0 + np.log((1.0 + counts.max(initial=0)) / (1.0 + counts))
    idf[:FIRST] = 1.0
    return torch.from_numpy(np.log(idf)).float()


class Number(Encoder):
    """A normalised number and its missing flag, linearly, with sines and cosines of learned frequencies if wanted.

    The periodic features follow Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in
    Tabular Deep Learning", 2022.
    """

    def __init__(self, dim: int, frequencies: int) -> None:
        super().__init__()
        self.dim = dim
        self.frequencies = nn.Parameter(torch.randn(frequencies)) if frequencies else None
        self.linear = nn.Linear(2 + 2 * frequencies, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 2]`` (value, missing) → ``[n, d]``."""
        if self.frequencies is not None:
            angle = x[:, :1] * self.frequencies
            x = torch.cat([x, angle.sin(), angle.cos()], dim=1)
        out: Tensor = self.linear(x)
        return out


class Projection(Encoder):
    """A pretrained vector and its missing flag, projected.

    It starts as a rotation (with fewer dimensions: as a random projection), so that vectors that are compared through
    the same projection start as similar as they are; a missing one starts at zero.
    """

    def __init__(self, info: FeatureInfo, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(info.width, dim)
        width = info.width - 1
        with torch.no_grad():
            self.linear.weight.zero_()
            rotation = nn.init.orthogonal_(torch.empty(dim, width))
            self.linear.weight[:, :width] = rotation * max(1.0, width / dim) ** 0.5  # expected lengths are kept
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``[n, width]`` → ``[n, d]``."""
        return F.linear(x, self.linear.weight, self.linear.bias)


class Identity(Encoder):
    """A pretrained vector as it is; zero where it is missing."""

    def __init__(self, info: FeatureInfo) -> None:
        super().__init__()
        self.dim = info.width - 1

    def forward(self, x: Tensor) -> Tensor:
        """``[n, dim + 1]`` → ``[n, dim]``."""
        return x[:, : self.dim]
