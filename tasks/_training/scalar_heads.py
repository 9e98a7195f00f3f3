"""Scalar heads side by side on one hidden state: the members of an ensemble cost little more than one of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu

from storage.fingerprints import derive_seed

LENGTH = "length_weight"


@dataclass(frozen=True)
class HeadSpec:
    """How many heads, of which form. `width` is that of an MLP's one hidden layer.

    With `length_head` each member has a second scalar on the same features (ODIN), which only training knows.
    """

    members: int = 1
    form: Literal["linear", "mlp"] = "linear"
    width: int = 64
    length_head: bool = False


class Heads(nn.Module):
    """r_m = w_m f_m with the features f_m = h (linear) or gelu(U_m h + u_m) (mlp), in float32."""

    def __init__(self, hidden_size: int, spec: HeadSpec) -> None:
        super().__init__()
        members, features = spec.members, spec.width if spec.form == "mlp" else hidden_size
        self.up: nn.Parameter | None = None
        self.up_bias: nn.Parameter | None = None
        if spec.form == "mlp":
            self.up = nn.Parameter(torch.zeros(members, spec.width, hidden_size))
            self.up_bias = nn.Parameter(torch.zeros(members, spec.width))
        self.weight = nn.Parameter(torch.zeros(members, features))
        self.length_weight: nn.Parameter | None = None
        if spec.length_head:
            self.length_weight = nn.Parameter(torch.zeros(members, features))

    def forward(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "members rows"]:
        """Raw scores."""
        return self._weighed(self.weight, self._features(hidden))

    def both(
        self, hidden: Float[Tensor, "rows hidden"]
    ) -> tuple[Float[Tensor, "members rows"], Float[Tensor, "members rows"] | None]:
        """The scores of quality and, where there is a length head, of length."""
        features = self._features(hidden)
        quality = self._weighed(self.weight, features)
        return quality, None if self.length_weight is None else self._weighed(self.length_weight, features)

    def _features(self, hidden: Tensor) -> Tensor:
        if self.up is None or self.up_bias is None:
            return hidden.float()
        return gelu(torch.einsum("mwh,rh->mrw", self.up, hidden.float()) + self.up_bias[:, None])

    def _weighed(self, weight: Tensor, features: Tensor) -> Float[Tensor, "members rows"]:
        """Linear heads share their features: one product for all members."""
        return weight @ features.T if self.up is None else torch.einsum("mf,mrf->mr", weight, features)


def fresh_heads(hidden_size: int, spec: HeadSpec, *, seed: int) -> Heads:
    """Heads whose every map is drawn with deviation 1 / sqrt(inputs + 1), a member's by a seed of its own.

    Stiennon et al. (arXiv 2009.01325), appendix C, for a reward model's head. Biases are 0.
    """
    heads = Heads(hidden_size, spec)
    for member in range(spec.members):
        generator = torch.Generator().manual_seed(derive_seed(seed, "member", member))
        for drawn in (heads.weight, heads.up, heads.length_weight):
            if drawn is not None:
                values = torch.randn(drawn.shape[1:], generator=generator)
                drawn.data[member] = values / (drawn.shape[-1] + 1) ** 0.5
    return heads


def save_heads(heads: Heads, path: Path) -> None:
    """Writes what scores: the length head is left out."""
    kept = {name: value for name, value in heads.state_dict().items() if name != LENGTH}
    save_file({name: value.detach().cpu().contiguous() for name, value in kept.items()}, path)


def load_heads(path: Path) -> Heads:
    """What `save_heads` wrote; a file with `weight` alone holds linear heads."""
    tensors = load_file(path)
    members, width = tensors["weight"].shape
    up = tensors.get("up")
    form: Literal["linear", "mlp"] = "linear" if up is None else "mlp"
    heads = Heads(width if up is None else up.shape[-1], HeadSpec(members, form, width))
    heads.load_state_dict(tensors)
    return heads


def hidden_size_of(heads: Heads) -> int:
    """The width of the hidden states that the heads read."""
    return heads.weight.shape[-1] if heads.up is None else heads.up.shape[-1]
