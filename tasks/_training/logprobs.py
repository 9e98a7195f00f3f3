"""Log-probabilities of the response tokens, without ever holding the logits of a whole batch."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from storage.errors import InputError
from tasks._training.attention import packed_rows
from tasks._training.packing import PackedBatch

TOKENS_AT_ONCE = 128
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logs at the rows' temperatures, and the entropy in nats (no gradient); 0 where padded."""

    logprobs: Float[Tensor, "rows length"]
    entropy: Float[Tensor, "rows length"]


def hidden_states(decoder: Any, batch: PackedBatch) -> Float[Tensor, "tokens hidden"]:
    """The last hidden states of a packed batch, its batch and time axes flattened."""
    with packed_rows(decoder):
        output = decoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, segments=batch.segments, use_cache=False
        )
    return output.last_hidden_state.flatten(0, 1)


def token_logprobs(model: Any, batch: PackedBatch, temperatures: Float[Tensor, " rows"]) -> TokenLogprobs:
    """Log-probabilities and entropies of every response token, at each row's own temperature.

    `model` is a causal language model of transformers, with or without a PEFT adapter, whose output
    projection is frozen.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = hidden_states(causal.get_decoder(), batch)[batch.sources[batch.mask]]
    per_token = temperatures[:, None].expand_as(batch.mask)[batch.mask]
    logprobs, entropy = _ProjectedLogprobs.apply(
        hidden, causal.get_output_embeddings().weight, batch.targets[batch.mask], per_token
    )
    padded = torch.zeros(batch.mask.shape, device=hidden.device)
    return TokenLogprobs(padded.masked_scatter(batch.mask, logprobs), padded.masked_scatter(batch.mask, entropy))


def check_plain_head(config: Any) -> None:
    """Raises `InputError` for a model that transforms its logits: `token_logprobs` would silently not."""
    for name in LOGIT_TRANSFORMS:
        found = getattr(config, name, None)
        if found not in (None, 1, 1.0):
            raise InputError(
                f"model type {config.model_type!r}: {name} is {found}, and the trainer only knows plain logits; "
                "choose a model without it"
            )


class _ProjectedLogprobs(torch.autograd.Function):
    """log softmax(h W^T / T)[target] per token, and its entropy.

    A token's log-probability depends on its own hidden state only, so the gradient with respect to it,
    (W[target] - p W) / T, is taken in the forward pass while the chunk's logits are at hand: the logits are
    neither kept nor computed twice. The softmax is in float32 whatever the projection's precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens hidden"],
        weight: Float[Tensor, "vocabulary hidden"],
        targets: Int[Tensor, " tokens"],
        temperatures: Float[Tensor, " tokens"],
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Chunked over tokens; keeps one gradient of the size of `hidden`."""
        if weight.requires_grad:
            raise ValueError("the output projection must be frozen: its gradient is not computed")
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        logprobs = torch.empty(len(targets), device=hidden.device)
        entropy = torch.empty_like(logprobs)
        # Buffers live through all chunks: fresh memory of this size costs the system more than the arithmetic.
        projected = hidden.new_empty(min(TOKENS_AT_ONCE, len(targets)), len(weight))
        logits, probabilities = projected.float(), torch.empty_like(projected, dtype=torch.float32)
        for start in range(0, len(targets), TOKENS_AT_ONCE):
            part = slice(start, start + TOKENS_AT_ONCE)
            temperature, target = temperatures[part, None], targets[part]
            size = len(target)
            torch.mm(hidden[part], weight.T, out=projected[:size])
            scaled = logits[:size].copy_(projected[:size]).div_(temperature)
            softmax = torch.softmax(scaled, dim=-1, out=probabilities[:size])
            top = scaled.amax(dim=-1)
            normaliser = top - softmax.amax(dim=-1).log()
            logprobs[part] = scaled.gather(1, target[:, None]).squeeze(1) - normaliser
            entropy[part] = normaliser - torch.linalg.vecdot(softmax, scaled)
            if gradient is not None:
                expected = projected[:size].copy_(softmax) @ weight
                gradient[part] = ((weight[target] - expected) / temperature).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, logprobs_gradient: Float[Tensor, " tokens"], entropy_gradient: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        """The chain rule with the gradient from the forward pass."""
        del entropy_gradient
        (gradient,) = ctx.saved_tensors
        return (logprobs_gradient[:, None] * gradient.float()).to(gradient.dtype), None, None, None
