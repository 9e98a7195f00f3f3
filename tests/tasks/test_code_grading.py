"""The grader `python_code`: forms of tests and of answers, arguments changed in place, dispatch, and its codec."""

import json
import math
import shutil

import pytest
from code_samples import ADD, GOOD, grade, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from tasks.curate.config import CurateConfig, SourceConfig, VerifierConfig
from tasks.curate.pool import build_pool
from tasks.grading.config import GraderConfig
from tasks.grading.graders import open_grader
from tasks.grading.sandbox.examination import equal
from tasks.grading.sandbox.inside.codec import UnportableError, decode, encode
from tasks.grading.sandbox.program import code_of, program_parts
from tasks.grading.sandbox.seccomp import seccomp_filter
from tasks.grading.verdict import Failure, Verdict
from tasks.grading.verifiers.registry import resolve_verifier

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed")


@pytest.fixture(scope="module")
def grader():
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap isn't installed")
    opened = open_grader(GraderConfig())
    yield opened
    opened.close()


SORTS = "def sort(items):\n    items.sort()\n"
RIGHT = {
    "statements": (GOOD, {"tests": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]}),
    "statements with helpers": (GOOD, {"tests": ["import math", "assert math.isclose(add(0.1, 0.2), 0.3)"]}),
    "pairs": (GOOD, {"tests": [[[1, 2], 3], [["a", "b"], "ab"]], "entry_point": "add"}),
    "keywords": (GOOD, {"tests": [{"args": [1], "kwargs": {"b": 2}, "expected": 3}], "entry_point": "add"}),
    "a tuple for a list": ("def f(x):\n    return x, (1,)", {"tests": [[[[2]], [[2], [1]]]], "entry_point": "f"}),
    "tolerance": ("def f():\n    return 0.1 + 0.2", {"tests": [[[], 0.3]], "entry_point": "f", "tolerance": 1e-9}),
    "script": ("a, b = map(int, input().split())\nprint(a + b)", {"tests": [{"stdin": "1 2\n", "stdout": "3\n"}] * 2}),
    "changes a list": (SORTS, {"tests": "x = [3, 1]\nsort(x)\nassert x == [1, 3]"}),
    "changes a list of lists": (
        "def f(rows):\n    rows[0].append(9)",
        {"tests": "row = [1]\nrows = [row, [2]]\nf(rows)\nassert row == [1, 9] and rows == [[1, 9], [2]]"},
    ),
    "changes a dict and a set": (
        "def f(a, b):\n    a[2] = 3\n    del a[1]\n    b.add((1, None))",
        {"tests": "a, b = {1: 1}, set()\nf(a, b=b)\nassert a == {2: 3} and b == {(1, None)}"},
    ),
    "raises what the test expects": (
        "def f(x):\n    raise ValueError('no ' + x)",
        {
            "tests": "try:\n    f('way')\n"
            "except ValueError as error:\n    assert str(error) == 'no way'\nelse:\n    1 / 0"
        },
    ),
    "values of every kind": (
        "def f(x):\n    return x",
        {
            "tests": "for x in (None, True, 2**9999, -0.5, float('inf'), 1 + 2j, 'é\\ud800', b'\\0', bytearray(b'a'),"
            " [1, (2,)], {1, 'a'}, frozenset('a'), {1: {(1, 2): None}}, range(1, 9, 2)):\n    y = f(x)\n"
            "    assert y == x and type(y) is type(x)"
        },
    ),
    "a generator": ("def f(n):\n    yield from range(n)", {"tests": "assert list(f(3)) == [0, 1, 2]"}),
    "its own class and module": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x):\n    return P(x).x",
        {"tests": "assert f(3) == 3"},
    ),
    "prints": ("def add(a, b):\n    print('adding')\n    return a + b", ADD),
    "asyncio": (
        "import asyncio\nasync def g():\n    return 3\ndef add(a, b):\n    return asyncio.run(g()) + a + b - 3",
        ADD,
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef add(a, b):\n"
        "    with ThreadPoolExecutor(4) as pool:\n        return sum(pool.map(int, [a, b]))",
        ADD,
    ),
    "writes in its home": (
        "import tempfile\ndef add(a, b):\n"
        "    with tempfile.TemporaryFile() as file:\n        file.write(b'x')\n    return a + b",
        ADD,
    ),
    "the test's own helper from the prefix": (
        "    return double(x)\n",
        {
            "prefix": "def double(x):\n    return 2 * x\n\ndef f(x):\n",
            "entry_point": "f",
            "tests": "assert f(2) == double(2) == 4",
        },
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name, grader):
    text, params = RIGHT[name]
    (answer,) = grade(grader, sample(text, timeout_s=60, **params))
    assert isinstance(answer, Verdict) and answer.passed and answer.score == 1, answer


WRONG = {
    "one of the pairs": ("def add(a, b):\n    return 3", {"tests": [[[1, 2], 3], [[5, 6], 11]], "entry_point": "add"}),
    "a bool for a word": ("def f():\n    return True", {"tests": [[[], "True"]], "entry_point": "f"}),
    "script prints less": ("print(1)", {"tests": [{"stdin": "", "stdout": "1\n2\n"}]}),
    "script exits with an error": ("print(1)\nraise SystemExit(1)", {"tests": [{"stdin": "", "stdout": "1\n"}]}),
    "leaves a list as it is": (
        "def sort(items):\n    sorted(items)",
        {"tests": "x = [3, 1]\nsort(x)\nassert x == [1, 3]"},
    ),
    "raises another error": (
        "def f():\n    raise KeyError(1)",
        {"tests": "try:\n    f()\nexcept ValueError:\n    pass"},
    ),
    "another name": ("def plus(a, b):\n    return a + b", ADD),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_fail(name, grader):
    text, params = WRONG[name]
    (answer,) = grade(grader, sample(text, timeout_s=60, **params))
    assert isinstance(answer, Verdict) and answer.passed is False and answer.score == 0 and answer.detail["error"]


def test_partial_gives_the_share_of_passed_tests_even_of_an_answer_that_dies(grader):
    dies = "import os\ndef add(a, b):\n    if a > 4:\n        os._exit(0)\n    return a + b"
    pairs = [[[1, 2], 3], [[2, 2], 4], [[5, 6], 11], [[1, 1], 2]]
    statements = [f"assert add(*{args}) == {value}" for args, value in pairs]
    answers = grade(
        grader,
        sample(dies, tests=pairs, entry_point="add", partial=True),
        sample(dies, tests=statements, partial=True),
        sample("def add(a, b):\n    return 3", tests=pairs, entry_point="add", partial=True),
        sample(GOOD, tests=statements, partial=True),
    )
    assert [answer.score for answer in answers] == [0.5, 0.5, 0.25, 1]
    assert [answer.passed for answer in answers] == [False, False, False, True]


UNFIT = {
    "no syntax": "def check(candidate:",
    "an unknown module": "import no_such_module\nassert add(1, 2) == 3",
    "a function as an argument": "assert add(lambda: 1, 2)",
    "never calls the answer": "assert True",
    "fails by itself": "assert 1 == 2\nassert add(1, 2) == 3",
}


@pytest.mark.parametrize("name", UNFIT)
def test_tests_that_cannot_be_run_are_a_failure_of_theirs(name, grader):
    unfit, good = grade(grader, sample(GOOD, tests=UNFIT[name], entry_point="add"), sample(GOOD, **ADD))
    assert isinstance(unfit, Failure)
    assert good.passed


BAD_PARAMS = [
    ({}, "params.tests"),
    ({"tests": []}, "params.tests"),
    ({"tests": [[1, 2]], "entry_point": "add"}, r"list of \[args, expected\]"),
    ({"tests": [[[1], 2]]}, "need params.entry_point"),
    ({"tests": "assert f()", "timeout_s": 1e9}, "params.timeout_s from 0.1 to 600"),
    ({"tests": "assert f()", "memory_mib": True}, "params.memory_mib"),
    ({"tests": "assert f()", "time_s": 1}, r"unknown params \['time_s'\]"),
]


@pytest.mark.parametrize(("params", "message"), BAD_PARAMS)
def test_params_that_cannot_be_are_refused(params, message, grader):
    with pytest.raises(InputError, match=message):
        grade(grader, sample(GOOD, **params))


def test_a_batch_of_several_verifiers_keeps_its_order(grader):
    exact = sample("12", "number", tolerance=0)._replace(answer="12")
    wrong = sample("def add(a, b):\n    return 0", **ADD)
    answers = grade(grader, exact, sample(GOOD, **ADD), exact._replace(text="13"), wrong)
    assert [answer.score for answer in answers] == [1, 1, 0, 0]
    assert [grader.version_of(each) for each in (exact, wrong)] == ["number/1", "python_code/1"]


@needs_bubblewrap
def test_rows_with_tests_of_their_own_are_graded_by_them(tmp_path):
    """From a file like HumanEval's to grades: curate carries each row's params, unchanged, to the grader."""
    path = tmp_path / "rows.jsonl"
    bodies = {"double": "    return 2 * x\n", "third": "    return x / 3\n"}
    rows = [
        {"prompt": f'def {name}(x):\n    """{name}."""\n', "test": f"assert {name}(6) == {value}", "entry_point": name}
        for name, value in (("double", 12), ("third", 2))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prefix": "prompt", "tests": "test", "entry_point": "entry_point"}
    source = SourceConfig(
        path=str(path), prompt_field="prompt", verifier=VerifierConfig(name="python_code", param_fields=columns)
    )
    prompts, _ = build_pool(CurateConfig(sources=[source], eval_prompts=0), seed=0)
    samples = [
        sample(bodies[name], **json.loads(prompt["verifier"]["params"]))
        for prompt in prompts.iter_rows(named=True)
        for name in bodies
    ]
    opened = open_grader(GraderConfig())
    try:
        scores = [answer.score for answer in grade(opened, *samples)]
    finally:
        opened.close()
    assert sorted(scores[:2]) == sorted(scores[2:]) == [0, 1]


@needs_bubblewrap
def test_as_a_function_it_gives_the_same():
    function = resolve_verifier("python_code").function
    assert function(GOOD, None, ADD) == Verdict(1.0, True, {"tests": 1, "right": 1})
    with pytest.raises(ValueError, match="without calling the answer"):
        function(GOOD, None, {"tests": "assert True"})


BLOCKS = [
    ("x = 1", "x = 1"),
    ("Text\n```python\nx = 1\n```\nmore", "x = 1\n"),
    ("```python\nx = 1\n```\nBetter:\n```Python3\nx = 2\n```", "x = 2\n"),
    ("```python\nx = 1", "x = 1"),
    ("```json\n{}\n```", "```json\n{}\n```"),
    ("```py\r\nx = 1\r\n```", "x = 1\r\n"),
]


@pytest.mark.parametrize(("text", "code"), BLOCKS)
def test_the_last_python_block_is_the_answer(text, code):
    assert code_of(text) == code


def test_a_completion_goes_on_from_the_prefix_and_a_whole_function_stands_beside_it():
    prefix = "import math\n\ndef f(x):\n"
    assert program_parts("    return x\n", prefix, "f") == [prefix + "    return x\n"]
    whole = "def f(x):\n    return x\n"
    assert program_parts(whole, prefix, "f") == [prefix + "\n    pass\n", whole]
    assert program_parts(whole, "", "f") == [whole]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
@settings(deadline=None)
def test_values_come_back_as_they_were(value):
    data = encode(value, 10**7)
    assert repr(decode(data)) == repr(value)
    with pytest.raises(UnportableError, match="larger than"):
        encode(value, len(data) - 1)


@given(st.binary(max_size=60) | VALUES.map(lambda value: encode(value, 10**7)[:-1]))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_value_are_refused_or_read_as_plain_values(data):
    try:
        value = decode(data)
    except ValueError:
        return
    assert type(value).__module__ == "builtins"


def test_nan_subclasses_and_shared_lists_travel_as_plain_values():
    class Liar(list):
        def __eq__(self, other):
            return True

    assert math.isnan(decode(encode(math.nan, 100)))
    assert type(decode(encode(Liar([1]), 100))) is list
    nested: list = []
    nested.append(nested)
    with pytest.raises(UnportableError, match="nested deeper"):
        encode(nested, 10**6)
    assert not equal([math.nan], [1.0], 0.1) and not equal(10**400, 1.5, 0.1)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filters_have_whole_instructions_and_jump_within(machine):
    for may_fork in (False, True):
        program = seccomp_filter(may_fork, machine)
        assert len(program) % 8 == 0 and len(program) < 4096 * 8
        for place in range(0, len(program), 8):
            code, yes, no = program[place] | program[place + 1] << 8, program[place + 2], program[place + 3]
            assert code & 7 != 5 or place + 8 * (1 + max(yes, no)) < len(program)
    with pytest.raises(InputError, match="this machine is riscv64"):
        seccomp_filter(False, "riscv64")
