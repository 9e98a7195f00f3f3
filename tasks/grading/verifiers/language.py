"""The language of an answer, told by `tasks._maths.languages`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tasks._maths.languages import known_languages, letters_of, ranked_languages
from tasks.grading.verdict import Verdict, checked_flags, checked_names, checked_param, is_share, is_whole, read_once
from tasks.grading.verdict import with_defaults as over


class _Wanted(NamedTuple):
    languages: tuple[str, ...]
    min_letters: int
    min_share: float
    soft: bool


def language(text: str, answer: str | None, params: Mapping[str, Any]) -> Verdict:  # noqa: ARG001 there is no answer
    """1 when the text's most likely language is one of `languages`, else 0.

    A text of fewer letters than `min_letters` is in no language that can be told: 0, and the detail says so.
    Params: languages (ISO 639-1 codes, one or a list; required), min_share (0: the probability that they have to hold
    together), min_letters (12), soft (false; true: the score is that probability).
    """
    wanted = _wanted(params)
    letters = letters_of(text)
    if letters < wanted.min_letters:
        return Verdict(0.0, passed=False, detail={"letters": letters, "language": None})
    ranked = ranked_languages(text)
    share = min(1.0, sum(probability for name, probability in ranked if name in wanted.languages))
    passed = ranked[0][0] in wanted.languages and share >= wanted.min_share
    return Verdict(
        share if wanted.soft else float(passed), passed, {"language": ranked[0][0], "share": round(share, 4)}
    )


@read_once
def _wanted(params: Mapping[str, Any]) -> _Wanted:
    defaults = {"languages": None, "min_letters": 12, "min_share": 0.0, "soft": False}
    chosen = over("language", params, defaults)
    checked_flags("language", chosen, "soft")
    languages = checked_names("language", "languages", chosen["languages"])
    known = known_languages()
    fits = known.issuperset(languages)
    checked_param("language", "languages", chosen["languages"], fits, f"codes among {', '.join(sorted(known))}")
    share, least = chosen["min_share"], chosen["min_letters"]
    checked_param("language", "min_share", share, is_share(share), "a share in [0, 1]")
    checked_param("language", "min_letters", least, is_whole(least), "a whole number")
    return _Wanted(languages, least, share, chosen["soft"])
