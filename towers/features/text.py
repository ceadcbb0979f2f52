"""Text → hashed word and character n-grams.

Words carry meaning, character n-grams inside word boundaries carry what words share ("nurse",
"nursing") and survive misspellings (Bojanowski et al., 2017). Hashing needs no dictionary and is the
same on every machine (CRC-32 of the UTF-8 bytes).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

_WORD = re.compile(r"\w[\w+#]*")  # keeps "c++" and "c#" apart from "c"


def words(text: str) -> list[str]:
    """Case-folded words of a text.

    >>> words("Senior C++ Engineer (m/f)")
    ['senior', 'c++', 'engineer', 'm', 'f']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1 << 18)
def _chars(word: str, sizes: tuple[int, ...]) -> tuple[str, ...]:
    marked = f"<{word}>"
    return tuple(marked[i : i + n] for n in sizes for i in range(len(marked) - n + 1) if n < len(marked))


def ngrams(text: str, word_sizes: tuple[int, ...], char_sizes: tuple[int, ...]) -> Iterable[str]:
    """Word n-grams (joined by a space), then character n-grams, with repetitions.

    >>> list(ngrams("data nurse", (1, 2), (5,)))
    ['data', 'nurse', 'data nurse', '<data', 'data>', '<nurs', 'nurse', 'urse>']
    """
    ws = words(text)
    for n in word_sizes:
        yield from (" ".join(ws[i : i + n]) for i in range(len(ws) - n + 1))
    for w in ws:
        yield from _chars(w, char_sizes)


@lru_cache(maxsize=1 << 20)
def bucket(gram: str, buckets: int) -> int:
    """The bucket of an n-gram, in ``[0, buckets)``."""
    return crc32(gram.encode()) % buckets


def hashed(
    text: str,
    buckets: int,
    word_sizes: tuple[int, ...],
    char_sizes: tuple[int, ...],
    limit: int,
    repeats: bool = False,
) -> list[int]:
    """At most ``limit`` buckets of a text, words first; each once, or with ``repeats`` ``1 + ⌊log₂ n⌋`` times.

    Args:
        text: any text.
        buckets: how many there are.
        word_sizes: of word n-grams.
        char_sizes: of character n-grams.
        limit: entries at most.
        repeats: see above.

    >>> len(hashed("data, data and more data", 1 << 20, (1,), (), 9))
    3
    >>> len(hashed("data, data and more data", 1 << 20, (1,), (), 9, repeats=True))
    4
    """
    seen: dict[int, int] = {}
    for gram in ngrams(text, word_sizes, char_sizes):
        place = bucket(gram, buckets)
        seen[place] = seen.get(place, 0) + 1
        if not repeats and len(seen) >= limit:
            break
    if not repeats:
        return list(seen)
    return [place for place, n in seen.items() for _ in range(n.bit_length())][:limit]
