"""The process that owns a vLLM engine: `python -m tasks._engines.vllm_child FD PARENT_PID`.

It speaks pickled tuples over the socket FD with `vllm_engine.VllmEngine`, its only parent; standard output and error
go to a log file, because vLLM writes there. `child_process.Child` tells the messages' form. Requests: "start" with
options, "load" with folder and adapter, "generate" with a Job, "close". An exception that isn't an answer "error"
ends the process; the parent then quotes the log.
"""

import ctypes
import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

PR_SET_PDEATHSIG = 1


class Job(NamedTuple):
    """One call of generate: everything as plain numbers. `samples[i]` completions of `prompts[i]`."""

    prompts: list[list[int]]
    samples: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop_token_ids: list[int]
    seed: int


class Sampled(NamedTuple):
    """One completion: token ids, natural-log probabilities, finish reason."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


class Server:
    """One in-process vLLM engine and the policy it serves."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        self._on_cpu = current_platform.is_cpu()
        if self._on_cpu:
            skip_token_ranks()
        adapter = options.pop("adapter")
        self._llm = LLM(enforce_eager=self._on_cpu, **options)
        self._engine = self._llm.llm_engine
        self._lora: Any = None
        self._loras = self._jobs = 0
        self._serve_adapter(adapter)

    def describe(self) -> dict[str, Any]:
        """What the parent wants to know once the engine is up."""
        import vllm

        return {"version": vllm.__version__, "device": "cpu" if self._on_cpu else "cuda"}

    def load(self, folder: str | None, adapter: str | None) -> None:
        """Serve other weights of the same architecture, in place, and another adapter or none."""
        if folder is not None:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            self._llm.apply_model(repack_tied_layers)
        self._serve_adapter(adapter)
        self._engine.reset_prefix_cache()

    def _serve_adapter(self, adapter: str | None) -> None:
        from vllm.lora.request import LoRARequest

        if adapter is None:
            self._lora = None
            return
        self._loras += 1
        self._lora = LoRARequest(f"policy-{self._loras}", self._loras, adapter)

    def generate(self, job: Job, on_progress: Callable[[int, int], None]) -> list[list[Sampled]]:
        """Sample a job. The prefix cache starts empty, so that a batch's arithmetic doesn't depend on earlier calls.

        A job that fails leaves nothing queued: every request that it submitted is aborted.
        """
        import torch

        self._engine.reset_prefix_cache()
        torch.manual_seed(job.seed)
        self._jobs += 1
        wanted = [[f"{self._jobs}-{i}-{j}" for j in range(n)] for i, n in enumerate(job.samples)]
        request_ids = [request_id for row in wanted for request_id in row]
        try:
            self._submit(job, wanted)
            found: dict[str, Sampled] = {}
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    if output.finished:
                        found[output.request_id] = _sampled(output)
                on_progress(len(found), len(request_ids))
        except BaseException:
            self._engine.abort_request(request_ids)
            raise
        return [[found[request_id] for request_id in row] for row in wanted]

    def _submit(self, job: Job, request_ids: list[list[str]]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for i, (prompt, row) in enumerate(zip(job.prompts, request_ids, strict=True)):
            for j, request_id in enumerate(row):
                params = SamplingParams(
                    max_tokens=job.max_tokens,
                    temperature=job.temperature,
                    top_p=job.top_p,
                    top_k=job.top_k,
                    stop_token_ids=job.stop_token_ids,
                    logprobs=0,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    # A generator of its own kills vLLM on a CPU; there the process's generator is seeded instead.
                    seed=None if self._on_cpu else _sample_seed(job.seed, i, j),
                )
                self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params, lora_request=self._lora)


def skip_token_ranks() -> None:
    """Don't count, for each sampled token, how many tokens are likelier: a pass over the vocabulary that nobody reads.

    On a CPU it is the one function that vLLM compiles here, for 18 s at the first request; left uncompiled it costs
    a twentieth of the speed.
    """
    import torch
    from vllm.v1.sample import sampler

    def no_ranks(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), dtype=torch.int64, device=values.device)

    sampler.batched_count_greater_than = no_ranks


def repack_tied_layers(model: Any) -> None:
    """Pack again every embedding-like layer's weight after an in-place reload.

    On a CPU vLLM multiplies by a packed copy of each weight. `reload_weights` packs the layers that the checkpoint
    names; an output layer tied to the embeddings isn't named, so it would go on answering with the old policy.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)


def _sample_seed(seed: int, prompt: int, sample: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) & 0x7FFF_FFFF


def _sampled(request: Any) -> Sampled:
    output = request.outputs[0]
    ids = list(output.token_ids)
    logprobs = [at[token].logprob for at, token in zip(output.logprobs, ids, strict=True)]
    return Sampled(ids, logprobs, output.finish_reason if output.finish_reason in ("stop", "length") else "abort")


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, a `kill -9` included (Linux; else the socket tells)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before the line above took hold
        os._exit(1)


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for weights, options and requests that it can't serve."""
    from vllm.exceptions import VLLMClientError

    return (ValueError, NotImplementedError, VLLMClientError)


def serve(connection: Connection) -> None:
    """Answer requests, the first of which is start, until the parent says close or goes away."""
    server: Server | None = None
    while True:
        try:
            number, request, *arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        if request == "close":
            return

        def report(done: int, total: int, number: int = number) -> None:
            connection.send((number, "progress", (done, total)))

        try:
            answer: Any = None
            if server is None:
                server = Server(*arguments)
                answer = server.describe()
            elif request == "load":
                server.load(*arguments)
            else:
                answer = server.generate(arguments[0], report)
        except BrokenPipeError:
            return
        except _refusals() as error:
            traceback.print_exc()
            connection.send((number, "error", str(error)))
        else:
            connection.send((number, "done", answer))


def main(descriptor: int, parent_pid: int) -> None:
    """Serve over an inherited socket until the parent is done, then leave without vLLM's slow teardown."""
    die_with_parent(parent_pid)
    cores = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
    if cores and hasattr(os, "sched_setaffinity"):  # vLLM heeds the variable only in worker processes of its own
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    serve(Connection(descriptor))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    from tasks._engines import vllm_child  # messages are pickled by this name, not as __main__'s

    vllm_child.main(int(sys.argv[1]), int(sys.argv[2]))
