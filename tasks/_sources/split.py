"""The held-out part of the pool: whole clusters, chosen by a seeded hash."""

from collections import Counter
from collections.abc import Sequence

from storage.fingerprints import digest


def split_by_cluster(cluster_ids: Sequence[str], eval_prompts: int, seed: int) -> list[str]:
    """'train' or 'eval' for each prompt; at most `eval_prompts` prompts are held out.

    Clusters are taken in the order of a hash of the seed and their name; one that is larger than what is left
    is passed over. No cluster is in both parts, and the order of the prompts doesn't matter.
    """
    sizes = Counter(cluster_ids)
    held_out: set[str] = set()
    left = eval_prompts
    for cluster_id in sorted(sizes, key=lambda name: digest([seed, "split", name])):
        if sizes[cluster_id] <= left:
            held_out.add(cluster_id)
            left -= sizes[cluster_id]
        if left == 0:
            break
    return ["eval" if cluster_id in held_out else "train" for cluster_id in cluster_ids]
