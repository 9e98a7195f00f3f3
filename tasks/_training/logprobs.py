"""Log-probabilities of the response tokens, without ever holding the logits of a whole batch."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from storage.errors import InputError
from tasks._training.attention import PACKED, rows_apart
from tasks._training.packing import PackedBatch

# Small chunks stay in a processor's caches; a GPU spends them on starting kernels.
TOKENS_AT_ONCE = {"cpu": 128, "cuda": 1024}
# Every chunk adds to a gradient as large as the whole weight: few large chunks touch it less often.
TOKENS_AT_ONCE_FOR_WEIGHT = 512
SHARDED_FORWARD = "response_logprobs"
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logs at the rows' temperatures, and the entropy in nats (no gradient); 0 where padded.

    `hidden` are the last hidden states that predicted the tokens, with their gradient, in the order in which a
    mask selects: `logprobs[batch.mask][i]` is the token that `hidden[i]` predicted.
    """

    logprobs: Float[Tensor, "rows length"]
    entropy: Float[Tensor, "rows length"]
    hidden: Float[Tensor, "response_tokens hidden"]


def hidden_states(decoder: Any, batch: PackedBatch) -> Float[Tensor, "tokens hidden"]:
    """The last hidden states of a packed batch, its batch and time axes flattened.

    A decoder whose weights are more precise than its configuration's dtype (float32 master weights of a bfloat16
    model) computes under autocast.
    """
    precision = decoder.config.dtype
    masters = next(decoder.parameters()).dtype != precision
    # No cache of cast weights: each is used once a forward, and the copies would outlive what FSDP frees.
    device = batch.input_ids.device.type
    # Another attention function would take no notice of the segments, and look at other rows.
    apart = decoder.config._attn_implementation == PACKED and rows_apart(device, precision)
    look = {"segments": batch.segments} if apart else {"attention_mask": batch.dense_mask()}
    with torch.autocast(device, precision, enabled=masters, cache_enabled=False):
        output = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **look)
    return output.last_hidden_state.flatten(0, 1)


def token_logprobs(model: Any, batch: PackedBatch, temperatures: Float[Tensor, " rows"]) -> TokenLogprobs:
    """Log-probabilities and entropies of every response token, at each row's own temperature.

    `model` is a causal language model of transformers, with or without a PEFT adapter, whole or sharded by
    `tasks._training.parallel.shard`. An output projection that requires a gradient gets one, tied or not.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    sharded = getattr(causal, SHARDED_FORWARD, None)
    return TokenLogprobs(*(sharded or partial(response_logprobs, causal))(batch, temperatures))


def response_logprobs(
    causal: Any, batch: PackedBatch, temperatures: Float[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows length"], Float[Tensor, "rows length"], Float[Tensor, "response_tokens hidden"]]:
    """The fields of `TokenLogprobs`: a tuple, in which FSDP finds the tensors."""
    hidden = hidden_states(causal.get_decoder(), batch)[batch.sources[batch.mask]]
    per_token = temperatures[:, None].expand_as(batch.mask)[batch.mask]
    weight = causal.get_output_embeddings().weight
    logprobs, entropy = _ProjectedLogprobs.apply(
        hidden, weight, batch.targets[batch.mask], per_token, causal.config.dtype
    )
    padded = torch.zeros(batch.mask.shape, device=hidden.device)
    return padded.masked_scatter(batch.mask, logprobs), padded.masked_scatter(batch.mask, entropy), hidden


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
    neither kept nor computed twice. Only the gradient of W needs them again, since it sums over tokens after
    weighting each: they are recomputed by chunks. Products are computed in `precision`, the softmax in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens hidden"],
        weight: Float[Tensor, "vocabulary hidden"],
        targets: Int[Tensor, " tokens"],
        temperatures: Float[Tensor, " tokens"],
        precision: torch.dtype,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Chunked over tokens; keeps one gradient of the size of `hidden`."""
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        logprobs = torch.empty(len(targets), device=hidden.device)
        entropy = torch.empty_like(logprobs)
        states, matrix = hidden.to(precision), weight.to(precision)
        # Buffers live through all chunks: fresh memory of this size costs the system more than the arithmetic.
        at_once = TOKENS_AT_ONCE[hidden.device.type]
        projected = states.new_empty(min(at_once, len(targets)), len(weight))
        logits, probabilities = projected.float(), torch.empty_like(projected, dtype=torch.float32)
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            temperature, target = temperatures[part, None], targets[part]
            size = len(target)
            torch.mm(states[part], matrix.T, out=projected[:size])
            scaled = logits[:size].copy_(projected[:size]).div_(temperature)
            softmax = torch.softmax(scaled, dim=-1, out=probabilities[:size])
            top = scaled.amax(dim=-1)
            normaliser = top - softmax.amax(dim=-1).log()
            logprobs[part] = scaled.gather(1, target[:, None]).squeeze(1) - normaliser
            entropy[part] = normaliser - torch.linalg.vecdot(softmax, scaled)
            if gradient is not None:
                expected = projected[:size].copy_(softmax) @ matrix
                gradient[part] = ((matrix[target] - expected) / temperature).to(hidden.dtype)
        ctx.save_for_backward(gradient, *((hidden, weight, targets, temperatures) if ctx.needs_input_grad[1] else ()))
        ctx.precision = precision
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, logprobs_gradient: Float[Tensor, " tokens"], entropy_gradient: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The chain rule with the gradient from the forward pass."""
        del entropy_gradient
        gradient, *inputs = ctx.saved_tensors
        for_hidden = for_weight = None
        if gradient is not None:
            for_hidden = (logprobs_gradient[:, None] * gradient.float()).to(gradient.dtype)
        if inputs:
            for_weight = _weight_gradient(*inputs, slopes=logprobs_gradient, precision=ctx.precision)
        return for_hidden, for_weight, None, None, None


def _weight_gradient(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    targets: Int[Tensor, " tokens"],
    temperatures: Float[Tensor, " tokens"],
    *,
    slopes: Float[Tensor, " tokens"],
    precision: torch.dtype,
) -> Float[Tensor, "vocabulary hidden"]:
    """sum over tokens of slope (onehot(target) - p) h^T / T, in the weight's own precision."""
    states, matrix = hidden.to(precision), weight.to(precision)
    total = torch.zeros_like(weight)
    for start in range(0, len(targets), TOKENS_AT_ONCE_FOR_WEIGHT):
        part = slice(start, start + TOKENS_AT_ONCE_FOR_WEIGHT)
        temperature = temperatures[part, None]
        logits = (states[part] @ matrix.T).float().div_(temperature)
        errors = torch.softmax(logits, dim=-1).neg_()
        errors.scatter_add_(1, targets[part, None], torch.ones_like(temperature))
        errors *= slopes[part, None] / temperature
        total += errors.to(precision).T @ states[part]
    return total
