"""From a model's text to the parts of a program, pure."""

import re

FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)


def code_of(text: str) -> str:
    """The last block fenced as Python (one that the length limit cut too), else the whole text."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def program_parts(text: str, prefix: str, entry_point: str | None) -> list[str]:
    """The sources to run one after the other in one module.

    Where the text goes on from `prefix` (HumanEval's prompt, that ends within a function), they are one source; where
    it defines `entry_point` itself, the prefix gives imports and helpers and is completed to stand alone.
    """
    code = code_of(text)
    if not prefix:
        return [code]
    whole = entry_point and re.search(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(entry_point)}\b", code, re.MULTILINE)
    return [standing(prefix), code] if whole else [prefix + code]


def standing(prefix: str) -> str:
    """The prefix as a source that compiles, with an empty body where it ends at a function's head.

    What can't be completed is empty.
    """
    for tail in ("", "\n    pass\n"):
        try:
            compile(prefix + tail, "<prefix>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        return prefix + tail
    return ""
