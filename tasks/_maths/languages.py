"""The language of a text, by py3langid: its model of 140 languages lies in the package (4.5 MB), nothing is fetched.

Measured against lingua 2.1 on 21 sentences: the same answers wherever there is a sentence, 0.3 against 1.3 ms for 900
characters, 1.3 s against 20 s to load, and 96 MB of package and 1.2 GiB of memory less.
"""

import functools
from typing import Any


def ranked_languages(text: str) -> list[tuple[str, float]]:
    """Every known language (ISO 639-1) with its probability, the likeliest first."""
    return list(_identifier().rank(text))


def known_languages() -> frozenset[str]:
    """The codes of all languages that can be told."""
    return frozenset(_identifier().labels)


def letters_of(text: str) -> int:
    """Letters of any script: with few of them no language can be told."""
    return sum(map(str.isalpha, text))


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
