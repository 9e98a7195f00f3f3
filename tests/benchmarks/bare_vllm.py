"""Bare vLLM as the peer of the rollouts stage: `python bare_vllm.py JOB.json` prints tokens per second per seed.

The job holds the model's folder, the prompts as token ids, samples per prompt, sampling and seeds: those of the
stage. One process, `LLM.generate`, the options that the stage's engine runs with.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(path: str) -> None:
    """Load once, then time each seed."""
    job = json.loads(Path(path).read_text())
    os.environ.update(job["environment"])
    import torch
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **job["engine"])
    params = SamplingParams(n=job["samples"], detokenize=True, logprobs=0, **job["sampling"])
    prompts = [{"prompt_token_ids": tokens} for tokens in job["prompts"]]
    rates = []
    for seed in job["seeds"]:
        torch.manual_seed(seed)
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
        rates.append({"tokens": tokens, "seconds": seconds})
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1])
