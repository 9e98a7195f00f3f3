"""The engines of this process: started at most once, kept between stages, handed the policy that is asked for."""

import atexit
import functools
import importlib.util
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from storage.errors import TransientError
from storage.plugins import import_named
from tasks._devices import Dtype, choose_dtype, has_gpu
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Engine, ServedModel

LOG = logging.getLogger(__name__)
WAIT_S = 0.5

# name -> where the class is; called as Class(config, served, slot, slots). Imported when it is needed.
ENGINES = {
    "vllm": "tasks._engines.vllm_engine:VllmEngine",
    "transformers": "tasks._engines.transformers_engine:TransformersEngine",
}


@dataclass(eq=False)
class _Seat:
    """One engine's place in the pool; `engine` is None while it starts."""

    key: str
    slot: int
    engine: Engine | None = None
    served: ServedModel | None = None
    busy: bool = True


_SEATS: list[_Seat] = []
_CHANGED = threading.Condition()


def choose(config: EngineConfig) -> str:
    """The engine that serves this configuration here: `auto` is vLLM where it is installed, else transformers."""
    if config.name != "auto":
        return config.name
    if importlib.util.find_spec("vllm") is not None:
        return "vllm"
    _announce_fallback()
    return "transformers"


@functools.cache
def _announce_fallback() -> None:
    LOG.warning(
        "vLLM isn't installed, so the transformers engine serves, several times slower; "
        "install posttrain[cpu] or posttrain[gpu] for vLLM"
    )


def adapter_mode(config: EngineConfig) -> Literal["merged", "lora"]:
    """Whether to hand the engine merged weights or base and adapter, for `ServedModel.model` and `.adapter`."""
    if config.adapter != "auto":
        return config.adapter
    return "lora" if choose(config) == "vllm" and has_gpu() else "merged"


def served_dtype(config: EngineConfig) -> Dtype:
    """The precision that the engine serves in on this machine."""
    return choose_dtype(config.dtype, "cuda" if has_gpu() else "cpu")


@contextmanager
def acquire(config: EngineConfig, served: ServedModel) -> Iterator[Engine]:
    """An engine that serves this policy, nobody else's until the block ends. Waits when all are busy.

    A live engine of the same configuration is reused, its policy swapped where it differs. Idle engines of another
    configuration are closed first: two rarely fit one device. Raises InputError for a policy or an engine that can't
    be loaded, TransientError when the engine fails.
    """
    seat = _take_seat(config, served)
    try:
        engine = _ready(seat, config, served)
        yield engine
    finally:
        _leave(seat, keep=config.keep_alive)


def close_all() -> None:
    """End every engine of this process, a busy one too."""
    with _CHANGED:
        seats = list(_SEATS)
        _SEATS.clear()
        _CHANGED.notify_all()
    for seat in seats:
        if seat.engine is not None:
            seat.engine.close()


def free_accelerator() -> None:
    """End the engines if they hold a GPU that scoring or training needs next; on a CPU they stay warm."""
    if has_gpu():
        close_all()


atexit.register(close_all)


def _take_seat(config: EngineConfig, served: ServedModel) -> _Seat:
    key = choose(config) + config.model_dump_json(exclude={"name", "data_parallel", "keep_alive", "start_timeout_s"})
    with _CHANGED:
        for other in [seat for seat in _SEATS if seat.key != key and not seat.busy]:
            _SEATS.remove(other)
            if other.engine is not None:
                other.engine.close()
        while True:
            ours = [seat for seat in _SEATS if seat.key == key]
            idle = [seat for seat in ours if not seat.busy]
            if idle:
                seat = max(idle, key=lambda one: one.served == served)
                seat.busy = True
                return seat
            if len(ours) < config.data_parallel:
                free = set(range(config.data_parallel)) - {seat.slot for seat in ours}
                seat = _Seat(key, min(free))
                _SEATS.append(seat)
                return seat
            _CHANGED.wait(WAIT_S)  # in slices, so that an exception thrown into this thread lands


def _ready(seat: _Seat, config: EngineConfig, served: ServedModel) -> Engine:
    if seat.engine is None:
        seat.engine = _engine_class(choose(config))(config, served, seat.slot, config.data_parallel)
    else:
        seat.engine.load(served)
    seat.served = served
    if seat not in _SEATS:
        raise TransientError("the engines of this process were closed while this one was loading")
    return seat.engine


def _leave(seat: _Seat, keep: bool) -> None:
    usable = keep and seat in _SEATS and seat.engine is not None and seat.engine.alive
    try:
        if not usable and seat.engine is not None:
            seat.engine.close()  # before its seat is free: a successor finds no room beside it
    finally:
        with _CHANGED:
            seat.busy = False
            if not usable and seat in _SEATS:
                _SEATS.remove(seat)
            _CHANGED.notify_all()


def _engine_class(name: str) -> type:
    return import_named("engine", ENGINES.get(name, name))
