"""Devices and precisions that `auto` comes to."""

import pytest
import torch

from storage.errors import InputError
from tasks import _devices
from tasks._devices import choose_device, choose_dtype, dtype_in_use
from tasks.policy_update.config import PolicyUpdateConfig


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(monkeypatch, native, expected) -> None:
    monkeypatch.setattr(_devices, "cpu_multiplies_bfloat16", lambda: native)
    assert choose_dtype("auto", "cpu") == expected
    assert dtype_in_use(PolicyUpdateConfig(device="cpu")) == expected
    assert choose_dtype("auto", "cuda") == "bfloat16"
    assert choose_dtype("float32", "cuda") == "float32" and choose_dtype("bfloat16", "cpu") == "bfloat16"


def test_a_device_that_is_missing_is_refused() -> None:
    assert choose_device("auto").type in ("cpu", "cuda") and choose_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device here"):
            choose_device("cuda:0")
