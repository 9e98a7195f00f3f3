"""A scalar head on a language model's last hidden state: reward models, trained and served."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storage.errors import InputError
from tasks._devices import choose_device
from tasks._training.batching import TokenIds, group_rows, microbatch_tokens, plan_microbatches
from tasks._training.logprobs import hidden_states
from tasks._training.lora import (
    LoraSpec,
    attach_lora,
    load_headless_model,
    load_lora,
    save_lora,
)
from tasks._training.packing import PackedBatch, pack

HEAD_WEIGHTS = "head.safetensors"
DESCRIPTION = "reward_model.json"


@dataclass(frozen=True)
class HeadDescription:
    """What scoring must know besides the weights: how answers end, and the scores' mean and deviation in training."""

    end_token_id: int
    dtype: str
    layers: int | None
    score_mean: float = 0.0
    score_std: float = 1.0


@dataclass(frozen=True)
class Scores:
    """Raw scores of rows, and the mean and deviation of the raw scores of training answers."""

    raw: Float[np.ndarray, " rows"]
    mean: float
    std: float

    @property
    def standardised(self) -> Float[np.ndarray, " rows"]:
        """Deviations from the mean of the training answers."""
        return (self.raw - self.mean) / self.std


class ScoringModel(nn.Module):
    """A transformer with a LoRA adapter and a linear head on the hidden state of an answer's last token."""

    def __init__(self, backbone: PeftModel, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, 1, bias=False, dtype=torch.float32)

    def forward(self, batch: PackedBatch) -> Float[Tensor, " rows"]:
        """One raw score per response of the packed batch, in its order."""
        hidden = hidden_states(self.backbone.get_base_model(), batch)
        return self.head(hidden[batch.last].float()).squeeze(-1)


def fresh_scoring_model(
    base: Path, spec: LoraSpec, description: HeadDescription, *, seed: int, device: torch.device
) -> ScoringModel:
    """A base model with a fresh adapter and head; the head is drawn with deviation 1 / sqrt(hidden + 1).

    Stiennon et al. (arXiv 2009.01325), appendix C, for the head's initialisation.
    """
    backbone = load_headless_model(base, description.dtype, device, layers=description.layers)
    model = ScoringModel(attach_lora(backbone, spec, seed=seed), backbone.config.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(model.head.weight.shape, generator=generator) / (backbone.config.hidden_size + 1) ** 0.5
    model.head.weight.data.copy_(weight)
    return model.to(device).eval()


def save_scoring_model(model: ScoringModel, description: HeadDescription, folder: Path) -> list[Path]:
    """Writes adapter, head and description; returns the files."""
    files = save_lora(model.backbone, folder)
    save_file({"weight": model.head.weight.detach().cpu().contiguous()}, folder / HEAD_WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1, sort_keys=True) + "\n")
    return [*files, folder / HEAD_WEIGHTS, folder / DESCRIPTION]


def load_scoring_model(base: Path, folder: Path, *, device: torch.device) -> tuple[ScoringModel, HeadDescription]:
    """What `save_scoring_model` wrote, on its base. Raises `InputError` when a file is missing or the base differs."""
    for name in (HEAD_WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; expected a reward model's folder")
    description = HeadDescription(**json.loads((folder / DESCRIPTION).read_text()))
    backbone = load_headless_model(base, description.dtype, device, layers=description.layers)
    weight = load_file(folder / HEAD_WEIGHTS)["weight"]
    if weight.shape[1] != backbone.config.hidden_size:
        raise InputError(
            f"{folder}: the head is {weight.shape[1]} wide, the base {base} has {backbone.config.hidden_size}; "
            "score with the base that the reward model was trained on"
        )
    model = ScoringModel(load_lora(backbone, folder, trainable=False), backbone.config.hidden_size)
    model.head.weight.data.copy_(weight)
    return model.to(device).eval(), description


def ended(response: TokenIds, end_token_id: int) -> TokenIds:
    """The response with its end of turn: scores are read there, also where sampling was cut off."""
    if len(response) and response[-1] == end_token_id:
        return response
    return np.append(response, end_token_id).astype(np.int32)


def score_rows(
    model: ScoringModel, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], *, tokens_per_microbatch: int
) -> Float[np.ndarray, " rows"]:
    """Raw scores in the order of the rows; responses end in the end token. Equal prompts are computed once."""
    device = model.head.weight.device
    groups = group_rows(prompts, responses, max_tokens=tokens_per_microbatch)
    scores = np.zeros(len(prompts))
    with torch.inference_mode():
        for microbatch in plan_microbatches(groups, tokens_per_microbatch):
            batch = pack(microbatch, pad_token_id=0, device=device)
            scores[batch.rows] = model(batch).cpu().numpy()
    return scores


def score(
    base: Path,
    folder: Path,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Sequence[Sequence[int]],
    *,
    device: str = "auto",
    tokens_per_microbatch: int | None = None,
) -> Scores:
    """Scores of a saved reward model, in the order of the rows."""
    model, description = load_scoring_model(base, folder, device=choose_device(device))
    prompts = [np.asarray(prompt, dtype=np.int32) for prompt in prompt_token_ids]
    responses = [ended(np.asarray(ids, dtype=np.int32), description.end_token_id) for ids in response_token_ids]
    budget = microbatch_tokens(tokens_per_microbatch, model.head.weight.device.type)
    raw = score_rows(model, prompts, responses, tokens_per_microbatch=budget)
    return Scores(raw, description.score_mean, description.score_std)
