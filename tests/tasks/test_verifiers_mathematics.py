"""Mathematical equality, by hand-checked cases and on every reference answer of GSM8K."""

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from verifying import verify

from storage.errors import InputError

SHARED = Path(os.environ.get("POSTTRAIN_SHARED", Path(__file__).parents[3] / "shared"))
GSM8K = SHARED / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.parametrize(
    ("text", "answer", "passed"),
    [
        (r"\boxed{72}", "72", True),
        (r"\boxed{73}", "72", False),
        (r"\boxed{-72}", "72", False),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{\frac12}", r"\frac{2}{4}", True),
        (r"\boxed{\frac{1}{3}}", "0.333333", True),
        (r"\boxed{\frac{1}{3}}", "0.3333", False),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+2", False),
        (r"\boxed{x=3}", "3", True),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", True),
        (r"\boxed{(1,2)}", "(2,1)", False),
        (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", True),
        (r"\boxed{\text{B}}", "B", True),
        (r"\boxed{50\%}", "0.5", True),
        (r"\boxed{1,234}", "1234", True),
        (r"\boxed{\$72}", "72", True),
        (r"\boxed{72 dollars}", "#### 72", True),
        (r"\boxed{1.5e3}", "1500", True),
        (r"\boxed{3} or \boxed{4", "3", True),
        (r"\boxed{}", "3", False),
        ("48 + 24 = 72\n#### 72\nThat is all.", "72", True),
        ("#### 71\n#### 72", "72", True),
        ("72 is wrong\n#### 71", "72", False),
        ("The total is $1,234.50.", "1234.5", True),
        ("So the answer is 1/2", "0.5", True),
        ("The answer is **42**!", "42", True),
        ("That makes 2023!", "2023", True),
        (r"hence $x^2 = 25$", "25", True),
        ("no idea", "3", False),
        ("", "3", False),
        ("9" * 40, "9" * 39 + "8", False),
        (r"\boxed{1e400}", "3", False),
    ],
)
def test_math(text, answer, passed):
    verdict = verify("math", text, answer)
    assert verdict.passed is passed
    assert verdict.score == float(passed)


def test_decimals_in_which_numbers_agree():
    assert verify("math", r"\boxed{3.14}", r"\pi", decimals=2).passed
    assert not verify("math", r"\boxed{3.14}", r"\pi").passed
    assert verify("math", r"\boxed{3.14}", "3.1416", decimals=2).passed


@pytest.mark.parametrize(
    "bomb",
    [
        r"9^{9^{9^9}}",
        "9^9^9^9",
        "9**9**9**9",
        r"(9^{999})^{999}",
        r"2^{99999999}",
        r"((9!)!)!",
        "99999!",
        r"9^{\frac{9^{99}}{1}}",
        "(" * 2000,
    ],
)
def test_what_would_compute_for_hours_fails_its_row_at_once(bomb):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"power|factorial|exponents|characters"):
        verify("math", rf"\boxed{{{bomb}}}", "3")
    assert time.monotonic() - started < 10  # not a speed: these never end


def test_an_answer_that_cannot_be_graded_fails_its_row():
    with pytest.raises(ValueError, match="the prompt has none"):
        verify("math", "3", None)
    with pytest.raises(ValueError, match="holds no expression"):
        verify("math", "3", "")


def test_it_grades_outside_the_main_thread_as_inside():
    cases = [(rf"so \boxed{{\frac{{{n}}}{{{2 * n}}}}}", "0.5" if n % 3 else "0.4") for n in range(1, 40)]
    inside = [verify("math", *case).passed for case in cases]
    with ThreadPoolExecutor(4) as pool:
        outside = list(pool.map(lambda case: verify("math", *case).passed, cases))
    assert outside == inside == [n % 3 != 0 for n in range(1, 40)]


def test_wrong_params_are_refused():
    for params in ({"decimals": -1}, {"decimals": 99}, {"strict": 1}, {"digits": 3}):
        with pytest.raises(InputError):
            verify("math", "3", "3", **params)


def perturbed(number: str, draw: random.Random) -> list[str]:
    """Other numbers than this one: another, off by one both ways, its sign changed, two digits transposed."""
    value = int(number.replace(",", ""))
    wrong = {value + 1, value - 1, value + draw.randint(2, 999), 10 * value + 1}
    wrong.add(-value)
    digits = list(str(abs(value)))
    for place in range(len(digits) - 1):
        swapped = [*digits[:place], digits[place + 1], digits[place], *digits[place + 2 :]]
        wrong.add(int("".join(swapped)) * (1 if value >= 0 else -1))
    return [str(each) for each in sorted(wrong - {value})]


@pytest.fixture(scope="module")
def references() -> list[tuple[str, str]]:
    """(the reference answer whole, the number after its ####) of every question."""
    if not GSM8K.is_file():
        pytest.skip(f"GSM8K is not at {GSM8K}; set POSTTRAIN_SHARED to the folder that holds data/gsm8k")
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()]
    return [(answer, answer.rpartition("####")[2].strip()) for answer in answers]


@pytest.mark.parametrize("name", ["number", "math"])
def test_gsm8k_every_reference_is_right_and_every_perturbed_one_wrong(name, references):
    draw = random.Random(0)
    assert len(references) > 7000
    for answer, number in references:
        assert verify(name, answer, answer).passed, answer
        assert verify(name, f"The answer is \\boxed{{{number}}}.", answer).passed, answer
        for wrong in perturbed(number, draw):
            text = answer.replace(f"#### {number}", f"#### {wrong}")
            assert not verify(name, text, answer).passed, (wrong, answer)
            assert not verify(name, f"The answer is \\boxed{{{wrong}}}.", answer).passed, (wrong, answer)


def test_gsm8k_through_the_algebra_system(references):
    """As fractions, which aren't compared as plain numbers: a sample of the questions."""
    draw = random.Random(1)
    for answer, number in draw.sample(references, 150):
        value = int(number.replace(",", ""))
        assert verify("math", rf"\boxed{{\frac{{{3 * value}}}{{3}}}}", answer).passed, answer
        wrong = int(draw.choice(perturbed(number, draw)))
        assert not verify("math", rf"\boxed{{\frac{{{3 * wrong}}}{{3}}}}", answer).passed, (wrong, answer)
