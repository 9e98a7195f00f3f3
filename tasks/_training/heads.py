"""Scalar heads on a language model's last hidden state: reward models, trained and served."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from storage.errors import InputError
from tasks._devices import choose_device
from tasks._training.batching import TokenIds, group_rows, microbatch_tokens, plan_microbatches
from tasks._training.judge_question import Question, load_judge
from tasks._training.logprobs import hidden_states
from tasks._training.lora import (
    ADAPTER_WEIGHTS,
    LoraSpec,
    attach_lora,
    load_headless_model,
    load_lora,
    save_lora,
)
from tasks._training.member_scores import MemberScores
from tasks._training.memory import freed_memory_kept
from tasks._training.merging import POLICY_PREFIX, copy_policy, merge_adapter
from tasks._training.packing import PackedBatch, pack
from tasks._training.scalar_heads import Heads, HeadSpec, fresh_heads, hidden_size_of, load_heads, save_heads

HEAD_WEIGHTS = "head.safetensors"
DESCRIPTION = "reward_model.json"
LISTS = ("score_mean", "score_std", "suffix_token_ids", "human_scale", "human_shift")


@dataclass(frozen=True)
class HeadDescription:
    """What scoring must know besides the weights: how answers end, and each member's mean and deviation in training.

    A generative judge's `suffix_token_ids` ask about the answer before it is scored. Where absolute scores were
    learned beside the pairs, `human_scale` times a raw score plus `human_shift` is a member's estimate of them.
    """

    end_token_id: int
    dtype: str
    layers: int | None
    score_mean: tuple[float, ...] = (0.0,)
    score_std: tuple[float, ...] = (1.0,)
    kind: str = "lora"
    members: int = 1
    suffix_token_ids: tuple[int, ...] = ()
    human_scale: tuple[float, ...] | None = None
    human_shift: tuple[float, ...] | None = None


class ScoringModel(nn.Module):
    """A transformer with a LoRA adapter, and heads on the hidden state of an answer's last token."""

    def __init__(self, backbone: PeftModel, heads: Heads) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = heads

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.head.weight.device

    def forward(self, batch: PackedBatch) -> Float[Tensor, "members rows"]:
        """Raw scores of the responses of the packed batch, in its order."""
        return self.head(self.states(batch))

    def both(self, batch: PackedBatch) -> tuple[Float[Tensor, "members rows"], Float[Tensor, "members rows"] | None]:
        """The same and, where there is a length head, what that says."""
        return self.head.both(self.states(batch))

    def states(self, batch: PackedBatch) -> Float[Tensor, "rows hidden"]:
        """The last hidden states of the responses' last tokens."""
        return hidden_states(self.backbone.get_base_model(), batch)[batch.last]


def fresh_scoring_model(
    base: Path,
    spec: LoraSpec,
    description: HeadDescription,
    *,
    seed: int,
    device: torch.device,
    heads: HeadSpec | None = None,
    policy: Path | None = None,
) -> ScoringModel:
    """A base with a fresh adapter and heads (by default one, linear); `policy` is an adapter that goes in between."""
    backbone = load_headless_model(base, description.dtype, device, layers=description.layers)
    drawn = fresh_heads(backbone.config.hidden_size, heads or HeadSpec(), seed=seed)
    return _assembled(backbone, spec, drawn, seed, policy)


def fresh_judge(
    base: Path,
    spec: LoraSpec,
    description: HeadDescription,
    question: Question,
    *,
    seed: int,
    device: torch.device,
    policy: Path | None = None,
) -> ScoringModel:
    """A base that is asked `question` about an answer, with a fresh adapter: logit(yes) - logit(no) is the score.

    Its head is part of the base's output projection and doesn't train.
    """
    backbone, direction = load_judge(base, description.dtype, device, question)
    heads = Heads(direction.shape[1], HeadSpec())
    heads.weight.data.copy_(direction)
    heads.requires_grad_(False)
    return _assembled(backbone, spec, heads, seed, policy)


def _assembled(backbone: PreTrainedModel, spec: LoraSpec, heads: Heads, seed: int, policy: Path | None) -> ScoringModel:
    device = backbone.device
    if policy is not None:
        merge_adapter(backbone, policy)
    return ScoringModel(attach_lora(backbone, spec, seed=seed), heads).to(device).eval()


def save_scoring_model(
    model: ScoringModel, description: HeadDescription, folder: Path, policy: Path | None = None
) -> list[Path]:
    """Writes adapter, heads and description, and the policy's adapter that came in between; returns the files."""
    files = save_lora(model.backbone, folder)
    if policy is not None:
        files += copy_policy(policy, folder)
    save_heads(model.head, folder / HEAD_WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1, sort_keys=True) + "\n")
    return [*files, folder / HEAD_WEIGHTS, folder / DESCRIPTION]


def load_scoring_model(base: Path, folder: Path, *, device: torch.device) -> tuple[ScoringModel, HeadDescription]:
    """What `save_scoring_model` wrote, on its base. Raises `InputError` when a file is missing or the base differs."""
    for name in (HEAD_WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; expected a reward model's folder")
    description = read_description(folder)
    backbone = load_headless_model(base, description.dtype, device, layers=description.layers)
    heads = load_heads(folder / HEAD_WEIGHTS)
    if hidden_size_of(heads) != backbone.config.hidden_size:
        raise InputError(
            f"{folder}: the head is {hidden_size_of(heads)} wide, the base {base} has {backbone.config.hidden_size}; "
            "score with the base that the reward model was trained on"
        )
    if (folder / f"{POLICY_PREFIX}{ADAPTER_WEIGHTS}").is_file():
        merge_adapter(backbone, folder, POLICY_PREFIX)
    model = ScoringModel(load_lora(backbone, folder, trainable=False), heads)
    return model.to(device).eval(), description


def read_description(folder: Path) -> HeadDescription:
    """What `reward_model.json` says of heads; one number of a time with one head stands for a list of one."""
    found: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    several = {name: value if isinstance(value, list) else [value] for name, value in found.items() if name in LISTS}
    return HeadDescription(**found | {name: tuple(value) for name, value in several.items() if value != [None]})


def ended(response: TokenIds, end_token_id: int) -> TokenIds:
    """The response with its end of turn: scores are read there, also where sampling was cut off."""
    if len(response) and response[-1] == end_token_id:
        return response
    return np.append(response, end_token_id).astype(np.int32)


def score_rows(
    model: ScoringModel, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], *, tokens_per_microbatch: int
) -> Float[np.ndarray, "rows members"]:
    """Raw scores in the order of the rows; scores are read at a response's last token.

    Equal prompts are computed once.
    """
    groups = group_rows(prompts, responses, max_tokens=tokens_per_microbatch)
    scores = np.zeros((len(prompts), len(model.head.weight)))
    with torch.inference_mode(), freed_memory_kept():
        for microbatch in plan_microbatches(groups, tokens_per_microbatch):
            batch = pack(microbatch, pad_token_id=0, device=model.device)
            scores[batch.rows] = model(batch).T.cpu().numpy()
    return scores


def score_heads(
    base: Path,
    folder: Path,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Sequence[Sequence[int]],
    *,
    device: str = "auto",
    tokens_per_microbatch: int | None = None,
) -> MemberScores:
    """Scores of a reward model that `save_scoring_model` saved, in the order of the rows."""
    model, description = load_scoring_model(base, folder, device=choose_device(device))
    suffix = np.array(description.suffix_token_ids, dtype=np.int32)
    prompts = [np.asarray(prompt, dtype=np.int32) for prompt in prompt_token_ids]
    answers = [ended(np.asarray(ids, dtype=np.int32), description.end_token_id) for ids in response_token_ids]
    asked = [np.concatenate([answer, suffix]) for answer in answers] if len(suffix) else answers
    budget = microbatch_tokens(tokens_per_microbatch, model.device.type)
    raw = score_rows(model, prompts, asked, tokens_per_microbatch=budget)
    return MemberScores(raw, np.array(description.score_mean), np.array(description.score_std))
