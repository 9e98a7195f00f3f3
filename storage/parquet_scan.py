"""Lazy frames over Parquet files as they lie in the store: no hash is checked, no file is fetched whole."""

import os

import polars as pl

from storage.store import Store


def scan_stored(store: Store, paths: list[str]) -> pl.LazyFrame:
    """The files at these paths below the root, one after the other. A missing one raises on collecting."""
    uris = [store.uri(path) for path in paths]
    return pl.scan_parquet(uris, storage_options=None if store.is_local else _s3_options())


def _s3_options() -> dict[str, str]:
    """Polars' own S3 reader takes keys from the environment; a plain-http endpoint it must be allowed."""
    options = {"aws_region": os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"aws_endpoint_url": endpoint, "aws_allow_http": "true"}
    return options
