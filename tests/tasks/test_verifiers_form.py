"""JSON, tags, repetition and language, each by a table of hand-checked cases."""

import pytest
from verifying import verify

from storage.errors import InputError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "params", "passed"),
    [
        ('{"a": [1, 2.5e3, null, true]}', {}, True),
        ("  42\n", {}, True),
        ('"text"', {}, True),
        ("", {}, False),
        ("{'a': 1}", {}, False),
        ('{"a": 1,}', {}, False),
        ('{"a": NaN}', {}, False),
        ("-Infinity", {}, False),
        ('{"a": 1} and more', {}, False),
        ("[" * 100_000, {}, False),
        ('```json\n{"a": 1}\n```', {}, False),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', {"fenced": True}, True),
        ('```\n{"a": 1}\n```\n```json\n{"a": }\n```', {"fenced": True}, False),
        ('{"a": 1}', {"fenced": True}, True),
        ('{"name": "Ada", "age": 36}', {"schema": PERSON}, True),
        ('{"name": "Ada", "age": -1}', {"schema": PERSON}, False),
        ('{"name": "Ada", "age": "36"}', {"schema": PERSON}, False),
        ('{"name": "Ada"}', {"schema": PERSON}, False),
        ('{"name": "Ada", "age": 36, "id": 1}', {"schema": PERSON}, False),
        ("[]", {"schema": PERSON}, False),
        ("[]", {"schema": True}, True),
        ("[]", {"schema": False}, False),
        ("5", {"schema": {"$defs": {"n": {"type": "number"}}, "$ref": "#/$defs/n"}}, True),
    ],
)
def test_json(text, params, passed):
    verdict = verify("json", text, **params)
    assert verdict.passed is passed
    assert verdict.score == float(passed)
    assert bool(verdict.detail) is not passed


def test_json_says_where_a_value_breaks_the_schema():
    verdict = verify("json", '{"name": "Ada", "age": -1}', schema=PERSON)
    assert verdict.detail == {"invalid": "$.age: -1 is less than the minimum of 0"}


THOUGHT = "<think>2 + 2</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("text", "params", "passed"),
    [
        (THOUGHT, {}, True),
        (f"\n {THOUGHT} \n", {}, True),
        ("<think>2</think><answer>4</answer>", {}, True),
        (f"Well. {THOUGHT}", {}, False),
        (f"Well. {THOUGHT}", {"strict": False}, True),
        (f"{THOUGHT} Yes.", {}, False),
        ("<think>2</think> so <answer>4</answer>", {}, False),
        ("<think>2</think> so <answer>4</answer>", {"strict": False}, True),
        ("<answer>4</answer><think>2</think>", {"strict": False}, False),
        ("<think>2<answer>4</answer></think>", {"strict": False}, False),
        (f"{THOUGHT}<answer>5</answer>", {"strict": False}, False),
        ("<think>2</think><answer>4", {"strict": False}, False),
        ("<think> </think><answer>4</answer>", {}, False),
        ("<think> </think><answer>4</answer>", {"allow_empty": True}, True),
        ("<Think>2</Think><answer>4</answer>", {}, False),
        ("", {}, False),
        ("<plan>a</plan><code>b</code><check>c</check>", {"tags": ["plan", "code", "check"]}, True),
        ("<plan>a</plan><check>c</check><code>b</code>", {"tags": ["plan", "code", "check"]}, False),
        ("<out>a</out>", {"tags": "out"}, True),
    ],
)
def test_format(text, params, passed):
    verdict = verify("format", text, **params)
    assert verdict.passed is passed
    assert verdict.score == float(passed)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (THOUGHT, 1),
        (f"Well. {THOUGHT}", 6 / 7),  # all but "nothing outside"
        (f"{THOUGHT}<answer>5</answer>", 3 / 7),  # <think>, </think> and the order; what is where can't be said
        ("<think>2</think>", 2 / 7),
        ("4", 0),
    ],
)
def test_format_with_partial_credit(text, score):
    assert verify("format", text, partial=True).score == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "params", "score"),
    [
        ("a b c d e f", {}, 1),
        ("", {}, 1),
        ("a b", {}, 1),
        ("a a a a", {"n": 1, "limit": 0}, 0.25),
        ("a a a a", {"n": 1, "limit": 0.5}, 0.5),
        ("a b a b a b", {"n": 2, "limit": 0}, 0.4),
        ("A b a B", {"n": 2, "limit": 0}, 2 / 3),
        ("a b c a b c", {}, 15 / 16),  # 1 of 4 repeats, 0.05 above 0.2
        ("a b c a b d", {}, 1),
        ("aaaa", {"n": 2, "unit": "characters", "limit": 0}, 1 / 3),
        ("aaaa", {"n": 2}, 1),
        ("no " * 10_000, {"limit": 0}, 1 / 9_998),
    ],
)
def test_repetition(text, params, score):
    verdict = verify("repetition", text, **params)
    assert verdict.score == pytest.approx(score)
    assert verdict.passed is (score == 1)


ENGLISH = "The children played in the garden until it was too dark to see the ball."
GERMAN = "Die Kinder spielten im Garten, bis es zu dunkel war, um den Ball zu sehen."
FRENCH = "Les enfants ont joué dans le jardin jusqu'à ce qu'il fasse trop sombre pour voir le ballon."


@pytest.mark.parametrize(
    ("text", "languages", "passed"),
    [
        (ENGLISH, "en", True),
        (GERMAN, "de", True),
        (FRENCH, "fr", True),
        ("Los niños jugaron en el jardín hasta que estuvo demasiado oscuro.", "es", True),
        ("Дети играли в саду, пока не стало слишком темно.", "ru", True),
        ("子供たちは暗くなるまで庭で遊んでいました。", "ja", True),
        ("孩子们在花园里玩到天黑得看不见球为止。", "zh", True),
        (GERMAN, "en", False),
        (ENGLISH, "de", False),
        (FRENCH, ["en", "de"], False),
        (GERMAN, ["en", "de"], True),
        ("", "en", False),
        ("12 + 30 = 42", "en", False),
        (f"{GERMAN} {GERMAN} {GERMAN} OK, done.", "en", False),
    ],
)
def test_language(text, languages, passed):
    verdict = verify("language", text, languages=languages)
    assert verdict.passed is passed
    assert verdict.score == float(passed)


def test_a_soft_language_score_is_the_probability():
    verdict = verify("language", ENGLISH, languages="en", soft=True)
    assert 0.9 < verdict.score <= 1
    assert verify("language", ENGLISH, languages=["de", "fr"], soft=True).score < 0.05
    unsure = "Дети играли в саду, пока не стало слишком темно."
    assert verify("language", unsure, languages="ru").passed
    assert not verify("language", unsure, languages="ru", min_share=0.9).passed


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("json", {"schema": {"type": "whole"}}, "params.schema is no JSON schema"),
        ("json", {"schema": [1]}, "params.schema is no JSON schema"),
        ("json", {"schema": {"$ref": "https://example.com/person.json"}}, "refers to what isn't in it"),
        ("json", {"fenced": 1}, "params.fenced is 1; expected true or false"),
        ("json", {"scheme": {}}, "unknown params"),
        ("format", {"tags": []}, "params.tags"),
        ("format", {"tags": ["a", "a"]}, "different names"),
        ("format", {"tags": ["<a>"]}, "different names"),
        ("format", {"strict": "yes"}, "params.strict"),
        ("repetition", {"n": 0}, "params.n is 0"),
        ("repetition", {"limit": 1}, "params.limit"),
        ("repetition", {"unit": "tokens"}, "words or characters"),
        ("language", {}, "params.languages is None"),
        ("language", {"languages": "english"}, "expected codes among"),
        ("language", {"languages": "en", "min_share": 2}, "params.min_share"),
    ],
)
def test_wrong_params_are_refused(name, params, message):
    with pytest.raises(InputError, match=message):
        verify(name, "5", **params)
