"""The layers of a transformer, as units of what is computed again and of what is sharded."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from storage.errors import InputError


def transformer_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that transformers marks as such. Raises `InputError` for a model that has none."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"{type(model).__name__} marks no layers that gradient_checkpointing or sharding could work on; "
            "turn both off or choose another model"
        )
    return layers


def checkpoint_layers(model: nn.Module) -> None:
    """Has every layer keep its input only and compute the rest again in the backward pass.

    Not by transformers' own switch, which works in training mode only: there dropout would be on too. Nothing
    random is left in a layer, so no random state is kept for the second time.
    """
    for layer in transformer_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
