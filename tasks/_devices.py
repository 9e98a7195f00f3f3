"""What this machine computes on, and in which precision."""

import functools
from typing import Literal, Protocol

import torch

from storage.errors import InputError

Dtype = Literal["bfloat16", "float16", "float32"]


class Placed(Protocol):
    """A configuration that names a device and a precision."""

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...


@functools.cache
def has_gpu() -> bool:
    """Whether CUDA finds a GPU."""
    return torch.cuda.is_available()


def choose_device(name: str) -> torch.device:
    """The device that `auto` means here, or the one that is named. Raises `InputError` when it isn't there."""
    if name == "auto":
        return torch.device("cuda" if has_gpu() else "cpu")
    if name.startswith("cuda") and not has_gpu():
        raise InputError(f"device {name!r}: no CUDA device here; expected auto or cpu")
    return torch.device(name)


def choose_dtype(name: str, device_type: str) -> Dtype:
    """The precision that `auto` means on this kind of device, or the one that is named.

    bfloat16 where the device multiplies in it, else float32: a processor without such instructions emulates them,
    on AVX2 at a four-hundredth of its float32 rate.
    """
    if name != "auto":
        return name  # type: ignore[return-value]
    return "bfloat16" if device_type != "cpu" or cpu_multiplies_bfloat16() else "float32"


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16."""
    able = torch.cpu.get_capabilities()
    return any(able.get(instructions, False) for instructions in ("avx512_bf16", "bf16"))


def dtype_in_use(config: Placed) -> Dtype:
    """What a stage's `dtype: auto` comes to on this machine: it decides the result, so the fingerprint covers it."""
    return choose_dtype(config.dtype, choose_device(config.device).type)
