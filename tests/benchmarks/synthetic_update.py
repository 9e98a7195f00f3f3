"""The update benchmark without a campaign: a model of a given size with random weights, and rollouts made up for it.

`python tests/benchmarks/synthetic_update.py [SIZE]` writes both and measures what `update_speed.py` measures; it's the
way to compare on a GPU, where rollouts are long and the speed doesn't hang on what the tokens say.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from update_speed import PROMPTS, measure, show

SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32},
}
KEY_HEADS = {"tiny": 2, "135M": 3, "1.7B": 32}
VOCABULARY = 49_152
SAMPLES, ROWS_AT_ONCE = 16, 16
PROMPT_TOKENS, RESPONSE_TOKENS = (64, 256), (32, 512)


def write_model(size: str, folder: Path) -> None:
    """A Llama of that size as safetensors, in bfloat16, with a tokenizer that knows numbers alone."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = SIZES[size] | {"num_key_value_heads": KEY_HEADS[size]}
    config = LlamaConfig(
        **shape, vocab_size=VOCABULARY, tie_word_embeddings=True, max_position_embeddings=8192, dtype=torch.bfloat16
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {str(token): token for token in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "0")), eos_token="1", pad_token="2")
    tokenizer.save_pretrained(folder)


def trajectories(folder: Path, prompts: int, device: torch.device) -> pl.DataFrame:
    """Random tokens, log-normal lengths within the bounds, the model's own log-probabilities, normal advantages."""
    draw = np.random.default_rng(0)
    rows = []
    for prompt in range(prompts):
        start = draw.integers(3, VOCABULARY, draw.integers(*PROMPT_TOKENS)).tolist()
        for sample in range(SAMPLES):
            length = int(np.clip(draw.lognormal(np.log(180), 0.6), *RESPONSE_TOKENS))
            rows.append(
                {
                    "rollout_id": f"{prompt}-{sample}",
                    "group_id": str(prompt),
                    "prompt_id": str(prompt),
                    "policy_id": "random",
                    "prompt_token_ids": start,
                    "token_ids": draw.integers(3, VOCABULARY, length).tolist(),
                    "temperature": 1.0,
                    "reward": 0.0,
                    "advantage": float(draw.normal()),
                    "weight": 1.0,
                    "age": 0,
                    "passed": None,
                }
            )
    frame = pl.DataFrame(rows)
    return frame.with_columns(
        pl.Series("logprobs", own_logprobs(folder, rows, device), dtype=pl.List(pl.Float32)),
        pl.col("prompt_token_ids", "token_ids").cast(pl.List(pl.Int32)),
        pl.col("age").cast(pl.Int32),
        pl.col("passed").cast(pl.Boolean),
    )


@torch.inference_mode()
def own_logprobs(folder: Path, rows: list[dict], device: torch.device) -> list[list[float]]:
    """What the model gives each response token, in nats, by plain padded forward passes."""
    from transformers import AutoModelForCausalLM

    from tasks._devices import choose_dtype

    dtype = getattr(torch, choose_dtype("auto", device.type))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    found: list[list[float]] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        lines = [torch.tensor(row["prompt_token_ids"] + row["token_ids"]) for row in part]
        tokens = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True).to(device)
        logits = model(tokens).logits[:, :-1].float()
        picked = torch.log_softmax(logits, -1).gather(2, tokens[:, 1:, None]).squeeze(2).cpu()
        for line, row in zip(picked, part, strict=True):
            first = len(row["prompt_token_ids"]) - 1
            found.append(line[first : first + len(row["token_ids"])].tolist())
    return found


def main(size: str) -> int:
    """Measure and print a line each; 1 when a limit is missed."""
    from tasks._devices import choose_device

    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "model"
        write_model(size, folder)
        rows = trajectories(folder, PROMPTS[device.type], device)
        torch.cuda.empty_cache()  # what is measured has processes of its own
        lengths = rows.select(pl.col("prompt_token_ids", "token_ids").list.len().mean())
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(
            f"{size} on {name}: {len(rows)} rollouts, mean tokens of prompt and response {lengths.row(0)}", flush=True
        )
        lines = measure(rows, folder, Path(home) / "update")
    return 0 if all([show(line) for line in lines]) else 1


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["1.7B"])))
