"""BM25 over the titles of a catalogue: what a job says, word for word, beside what a tower makes of it.

``N`` documents, ``T`` terms, ``P`` postings (distinct terms of each document, end to end), ``Q`` queries.

    score(q, d) = Σ over terms t of q of  idf_t · tf_td (k₁ + 1) / (tf_td + k₁ (1 - b + b |d| / mean |d|))
    idf_t = log(1 + (N - n_t + ½) / (n_t + ½))

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with the idf of Lucene,
which is never negative. Everything but the query is known beforehand, hence a posting holds its finished term
of the sum, and a query adds up a few lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.features.text import ngrams

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Terms:
    """What counts as a term, and how much repetition and length do.

    Attributes:
        words: sizes of word n-grams.
        chars: sizes of character n-grams inside words, which match "nurses" with "nurse".
        k1: how slowly repetition saturates.
        b: how much long documents are held back: 0 not at all, 1 in proportion.

    The defaults are those of titles, which are short and inflected, and in which each further word narrows the meaning
    (docs/search.md has the comparison). Longer texts want ``words=(1,), chars=(), b=0.75``.
    """

    words: tuple[int, ...] = ()
    chars: tuple[int, ...] = (3, 4)
    k1: float = 1.2
    b: float = 1.0

    def of(self, text: str) -> Counter[str]:
        """The terms of a text, counted."""
        return Counter(ngrams(text, self.words, self.chars))


class Bm25:
    """An inverted index of finished scores. It never changes: safe to ask from many threads.

    Use it where the words themselves matter (rare skills, product names, acronyms that training has not shown), fused
    with a tower (``fusion``); alone it is the baseline that every search tower has to beat.

    Args:
        texts: ``[N]`` documents; None counts as empty.
        terms: what is matched.
        like: a larger collection whose word frequencies and mean length hold here too, so that the scores of both can
            be compared; None: those of the texts.
    """

    def __init__(self, texts: Iterable[str | None], terms: Terms | None = None, *, like: Bm25 | None = None) -> None:
        self.terms: Terms = terms or (Terms() if like is None else like.terms)
        self._like = like
        number: dict[str, int] = {}
        document: list[int] = []
        term: list[int] = []
        count: list[int] = []
        lengths: list[int] = []
        for row, text in enumerate(texts):
            counts = self.terms.of(text or "")
            lengths.append(counts.total())
            document += [row] * len(counts)
            term += [number.setdefault(t, len(number)) for t in counts]
            count += counts.values()
        self._number, n = number, len(lengths)
        length = np.asarray(lengths, np.float64)
        self._mean = float(length.mean()) if n and length.any() else 1.0
        self._mean = self._mean if like is None else like._mean
        column, tf = np.asarray(term, np.int64), np.asarray(count, np.float64)
        rows = np.asarray(document, np.int32)
        documents = np.bincount(column, minlength=len(number))
        self._idf = np.log1p((n - documents + 0.5) / (documents + 0.5))
        self._unseen = float(np.log1p((n + 0.5) / 0.5))
        if like is not None:
            self._idf = np.asarray([like._idf_of(t) for t in number], np.float64)
        weight = self._idf[column] * self._saturated(tf, length[rows])
        order = np.argsort(column, kind="stable")
        self._rows, self._weights = rows[order], weight[order].astype(np.float32)
        self._offsets = np.concatenate([[0], np.cumsum(documents)])
        self._n = n

    def __len__(self) -> int:
        """``N``."""
        return self._n

    def _idf_of(self, term: str) -> float:
        if self._like is not None:
            return self._like._idf_of(term)
        t = self._number.get(term)
        return self._unseen if t is None else float(self._idf[t])

    def _saturated(self, tf: Any, length: Any) -> Any:
        """What ``tf`` occurrences in ``length`` terms count, elementwise."""
        t = self.terms
        return tf * (t.k1 + 1) / (tf + t.k1 * (1 - t.b + t.b * length / self._mean))

    def scores(self, queries: Sequence[str | None], *, relative: bool = False) -> Floats:
        """Scores of all documents for each query.

        Args:
            queries: ``[Q]`` texts; None counts as empty.
            relative: divided by the score that a document of exactly the query's words would have, so that 1 means
                "the same" for short and long queries alike, as in a cosine: what ``fusion`` adds to one. Words that no
                document has keep it below 1.

        Returns:
            ``[Q, N]`` float32, 0 where no term is shared.
        """
        out = np.zeros((len(queries), self._n), np.float32)
        for row, text in zip(out, queries, strict=True):
            counts = self.terms.of(text or "")
            whole = 0.0
            for term, times in counts.items():
                t = self._number.get(term)
                idf = self._idf_of(term)
                whole += float(times * idf * self._saturated(times, counts.total()))
                if t is not None:
                    part = slice(self._offsets[t], self._offsets[t + 1])
                    row[self._rows[part]] += times * self._weights[part]  # a document occurs once in a list
            if relative and whole:
                row /= whole
        return out


class Bm25Parts:
    """BM25 over documents that lie in several indexes, of which all but the first were made ``like`` the first.

    Args:
        parts: ``N`` documents together.
    """

    def __init__(self, parts: Sequence[Bm25]) -> None:
        self._parts = parts

    def scores(self, queries: Sequence[str | None], *, relative: bool = False) -> Floats:
        """``[Q, N]``, as ``Bm25.scores``."""
        return np.hstack([p.scores(queries, relative=relative) for p in self._parts])
