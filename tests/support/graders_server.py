"""Servers that grade, as the pages show them."""

import time

import httpx


def answers(address: str) -> None:
    """Waits until the server answers."""
    for _ in range(100):
        try:
            httpx.post(address, json={"samples": []})
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{address} doesn't answer")
