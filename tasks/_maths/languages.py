"""Which language a text is in, by py3langid: its model of 140 languages lies in the package, nothing is fetched.

Measured against lingua 2.1 on 21 sentences: the same answers wherever there is a sentence, 0.3 against 1.3 ms for 900
characters, 1.3 s against 20 s to load, and 96 MB of package and 1.2 GiB of memory less.
"""

import functools
from typing import Any


def language_probabilities(text: str) -> list[tuple[str, float]]:
    """Languages (ISO 639-1) and their probabilities, the likeliest first."""
    return list(language_identifier().rank(text))


@functools.lru_cache(maxsize=1)
def language_identifier() -> Any:
    """The model, loaded once; `labels` are the languages that it knows."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
