"""Requests and answers as files: for people, and for jobs on a cluster that shares a folder.

`requests/<ticket>.json` is written; whoever grades puts `answers/<ticket>.json` beside it: `{"score": 0.8}`, with
`passed`, `detail`, `uncertainty` and `cost` where known, or `{"error": "..."}`.
"""

import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from storage.errors import InputError
from tasks.grading.deferred import answer_of, request_of
from tasks.grading.keys import row_key
from tasks.grading.sample import Sample
from tasks.grading.verdict import Answer

log = logging.getLogger(__name__)


class FolderGrader:
    """The ticket is a hash of what is graded, so that handing a sample over twice leaves one file."""

    def __init__(self, folder: str | None) -> None:
        if not isinstance(folder, str) or not folder:
            raise InputError(f"grader folder: params.folder is {folder!r}, expected the path of a folder")
        self._requests = Path(folder).expanduser().absolute() / "requests"
        self._answers = self._requests.with_name("answers")

    def submit(self, samples: Sequence[Sample]) -> list[str]:
        """Write a request file per sample; each appears whole. Raises `InputError` for a folder that can't be used."""
        try:
            self._requests.mkdir(parents=True, exist_ok=True)
            self._answers.mkdir(exist_ok=True)
            return [self._request(sample) for sample in samples]
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise InputError(f"grader folder: {self._requests} can't be written ({error})") from error

    def collect(self, tickets: Sequence[str]) -> dict[str, Answer]:
        """The answers whose file is there. One that is no JSON is taken as not finished yet, and named in the log."""
        found = {}
        for ticket in tickets:
            path = self._answers / f"{ticket}.json"
            try:
                found[ticket] = answer_of(json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
            except ValueError as error:
                log.warning("%s is no JSON (%s): it stays open; write it anew", path, error)
        return found

    def _request(self, sample: Sample) -> str:
        ticket = row_key(sample)
        path = self._requests / f"{ticket}.json"
        if not path.exists():
            partial = path.with_name(f".{uuid.uuid4().hex}")
            content = {"ticket": ticket, **request_of(sample)}
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        return ticket
