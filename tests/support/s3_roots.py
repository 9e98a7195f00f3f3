"""Fresh roots in the bucket of the tests' own SeaweedFS."""

import itertools
import os

import pytest
from servers import Seaweed

_numbers = itertools.count()


def s3_root(store: Seaweed, patch: pytest.MonkeyPatch) -> str:
    """A prefix that nobody used, its credentials in the environment."""
    patch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
    patch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
    patch.setenv("AWS_ENDPOINT_URL", store.endpoint_url)
    return f"s3://{store.bucket}/test-{os.getpid()}-{next(_numbers)}"
