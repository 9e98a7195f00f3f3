"""What Prefect and MLflow log about a failure that we explain ourselves: the line stays, the traceback goes."""

import logging

from storage.disk import is_full
from storage.errors import PosttrainError
from storage.home import home

LOGGERS = ("prefect.task_runs", "prefect.flow_runs", "mlflow.store.db.utils")


class OneClearLine(logging.Filter):
    """Drops the traceback of our own errors, whose message says it all, and that of a full disk.

    Drops too Prefect's warning, once a shard, that a time limit in a thread acts between two bytecodes: it suffices.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (isinstance(error, PosttrainError) or is_full(error, home())):
            record.exc_info = None
            record.exc_text = None
        return "Timeouts in worker threads" not in record.getMessage()


def keep_to_one_line() -> None:
    """Install the rule, once a process."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(rule, OneClearLine) for rule in logger.filters):
            logger.addFilter(OneClearLine())
