"""What the import contract doesn't see: an `__init__.py` holds a docstring and nothing else."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = sorted(path for room in ("flows", "tasks", "storage") for path in (REPOSITORY / room).rglob("__init__.py"))


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_package_re_exports_nothing(path):
    body = ast.parse(path.read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.parse(path.read_text()))
