"""One command of the command line, in this process."""

from collections.abc import Callable

import typer
from typer.testing import CliRunner


def invoke(register: Callable[[typer.Typer], None], *arguments: str) -> str:
    """Standard output of a registered command; what it raised is raised."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("other")(lambda: None)
    register(app)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout
