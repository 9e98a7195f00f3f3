"""Losses on pairs of scores: the chosen answer's and the rejected one's."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Scores = Float[Tensor, " pairs"]


def bradley_terry(chosen: Scores, rejected: Scores, *, centering: float = 0.0) -> Scores:
    """-log sigma(r_c - r_r) + centering (r_c + r_r)^2, one loss per pair, in nats.

    The second term keeps the scores around zero, which the first leaves free (arXiv 2312.09244; TRL
    recommends 0.01).
    """
    return -logsigmoid(chosen - rejected) + centering * (chosen + rejected).square()
