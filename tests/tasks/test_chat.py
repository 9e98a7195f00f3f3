"""Chats as tokens: what a process meets that begins with several shards at once."""

import os
import subprocess
import sys

from pipeline import REPOSITORY

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tasks._engines.chat import load_tokenizer
with ThreadPoolExecutor(4) as pool:
    tokenizers = list(pool.map(load_tokenizer, [Path(sys.argv[1])] * 4))
print([type(each).__name__ for each in tokenizers])
"""


def test_threads_that_are_the_first_to_want_a_tokenizer_all_get_one(tiny_model):
    """transformers replaces its own module while it's imported: without a lock two threads of four failed."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", THREADS, str(tiny_model)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Tokenizer") == 4
