"""Whether a text is arithmetic and nothing else: what runs a text as code may be given it then."""

import ast
from collections.abc import Set as AbstractSet

LONGEST = 500
LARGEST_BITS = 10_000
LARGEST_EXPONENT = 100


def is_arithmetic(text: str, names: AbstractSet[str] = frozenset()) -> bool:
    """Whether it is numbers, + - * / ** and brackets, with `names` as variables and functions; and small enough.

    Names are any single letter too, where `names` holds something. Numbers stay below 10,000 bits in every step.
    """
    if len(text) > LONGEST:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _bits(tree.body, names) <= LARGEST_BITS
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False


def is_literal(text: str) -> bool:
    """Whether it is a literal of Python: lists, texts and numbers, without a name, a call or an operation."""
    try:
        ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _bits(node: ast.AST, names: AbstractSet[str]) -> int:
    """An upper bound of a number's bits; a name counts one. Raises `ValueError` for what is no arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return int(value).bit_length() + 1
        case ast.Name(id=name) if names and (name in names or (len(name) == 1 and name.isalpha())):
            return 1
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _bits(operand, names)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bits(left, names) * _exponent(right, names)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            return _bits(left, names) + _bits(right, names)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in names:
            return _bits(argument, names)
    raise ValueError(f"{type(node).__name__} is no arithmetic")


def _exponent(node: ast.AST, names: AbstractSet[str]) -> int:
    """The largest that an exponent can be, in magnitude: numbers without powers among them."""
    if any(isinstance(each, ast.BinOp) and isinstance(each.op, ast.Pow) for each in ast.walk(node)):
        raise ValueError("a tower of powers")
    _bits(node, names)
    largest = 1
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, int | float):
            largest *= max(1, int(each.value))
    if largest > LARGEST_EXPONENT:
        raise ValueError("a large exponent")
    return largest
