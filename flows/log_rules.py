"""What Prefect logs about a failure that we explain ourselves: the line stays, the traceback goes."""

import logging

from storage.errors import PosttrainError

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")


class OneClearLine(logging.Filter):
    """Drops the traceback of our own errors, whose message says it all.

    Drops too Prefect's warning, once a shard, that a time limit in a thread acts between two bytecodes: it suffices.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PosttrainError):
            record.exc_info = None
            record.exc_text = None
        return "Timeouts in worker threads" not in record.getMessage()


def keep_to_one_line() -> None:
    """Install the rule, once a process."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(rule, OneClearLine) for rule in logger.filters):
            logger.addFilter(OneClearLine())
