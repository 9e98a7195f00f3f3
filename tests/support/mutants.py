"""Programs with one fault each, made from a right one by its syntax tree."""

import ast
import copy
from collections.abc import Iterator

SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutants(source: str, function: str, count: int) -> Iterator[tuple[str, str]]:
    """At most `count` of (kind of fault, program), each fault within the function, in turns over the kinds."""
    tree = ast.parse(source)
    within = {
        inner
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == function
        for statement in node.body
        for inner in ast.walk(statement)
    }
    sites: dict[str, list[int]] = {}
    for place, node in enumerate(ast.walk(tree)):
        kind = _kind(node)
        if kind and node in within:
            sites.setdefault(kind, []).append(place)
    turns = {kind: enumerate(reversed(places)) for kind, places in sites.items()}
    chosen = sorted((turn, kind, place) for kind, places in turns.items() for turn, place in places)
    for _, kind, place in chosen[:count]:
        changed = copy.deepcopy(tree)
        _change(list(ast.walk(changed))[place])
        yield kind, ast.unparse(ast.fix_missing_locations(changed))


def _kind(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return "constant"
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return "negated condition"
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED:
        return "operator"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        return "comparison"
    if isinstance(node, ast.Return) and node.value is not None:
        return "dropped return"
    return None


def _change(node: ast.AST) -> None:
    match node:
        case ast.Constant():
            node.value += 1
        case ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.BinOp() | ast.BoolOp():
            node.op = SWAPPED[type(node.op)]()
        case ast.Compare():
            node.ops[0] = SWAPPED[type(node.ops[0])]()
        case ast.Return():
            node.value = None
