"""Near duplicates by the cosine of vectors, by blocks of matrix products: exact, and quadratic in the prompts.

Two kinds of vectors: TF-IDF of words hashed with signs to a few hundred dimensions (Weinberger et al. 2009), and the
mean of a language model's last hidden states. The latter all point one way (Ethayarajh 2019), so the pool's mean
vector is taken off first (Mu and Viswanath 2018).
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array

from storage.errors import InputError
from tasks._maths.near_duplicates import Clusters, Labels
from tasks._maths.words import hashed_words, mixed
from tasks.curate.dedup_config import EmbeddingConfig

Vectors = Float32[np.ndarray, "texts dimensions"]
Chunks = Iterator[list[str]]
Embed = Callable[[Chunks], Vectors]
ROWS, COLUMNS = 1024, 8192
TEXTS_PER_BATCH = 32


def embedder(config: EmbeddingConfig, model: Path | None) -> Embed:
    """From chunks of texts to unit vectors, as configured; `model` is the folder that method `model` needs."""
    if config.method == "hashed":
        return partial(hashed_vectors, dimensions=config.dimensions)
    if model is None:
        raise InputError("curate.embeddings: method model needs the folder of a model")
    return partial(model_vectors, folder=model, max_tokens=config.max_tokens)


def join_by_cosine(clusters: Clusters, members: Labels, vectors: Vectors, threshold: float) -> None:
    """Join the clusters of members whose unit vectors have a cosine of at least `threshold`.

    `members`: (texts,) the index of each vector's text among the labels. Takes texts^2 x dimensions multiplications and
    memory for one block of products beside the vectors.
    """
    for top in range(0, len(members), ROWS):
        rows = members[top : top + ROWS]
        for left in range(top - top % COLUMNS, len(members), COLUMNS):
            columns = members[left : left + COLUMNS]
            near = vectors[top : top + ROWS] @ vectors[left : left + COLUMNS].T >= threshold
            one, other = np.nonzero(near)
            apart = clusters.labels[rows[one]] != clusters.labels[columns[other]]
            clusters.join(rows[one[apart]], columns[other[apart]])


def refuse_too_many(prompts: int, config: EmbeddingConfig) -> None:
    """Raises `InputError` for more prompts than every pair of which may be compared."""
    if prompts > config.max_prompts:
        raise InputError(
            f"curate.embeddings would compare every two of {prompts} prompts, more than its max_prompts "
            f"{config.max_prompts}; raise it (time grows with the square), or leave curate.embeddings out: "
            "near_duplicate_threshold works for millions"
        )


def hashed_vectors(chunks: Chunks, dimensions: int) -> Vectors:
    """Unit TF-IDF vectors: 1 + log(count) of a word times log((1 + texts) / (1 + texts with it)) + 1.

    Words that share a dimension add up with the sign that each has of its own. A text without words gets zeros.
    """
    parts = [_counted(texts, dimensions) for texts in chunks]
    vectors = np.concatenate(parts) if parts else np.zeros((0, dimensions), np.float32)
    with_it = np.count_nonzero(vectors, axis=0)
    vectors *= (np.log((1 + len(vectors)) / (1 + with_it)) + 1).astype(np.float32)
    return _unit(vectors)


def _counted(texts: list[str], dimensions: int) -> Vectors:
    words = hashed_words(texts)
    known, numbers = np.unique(words.values, return_inverse=True)
    ones = np.ones(len(numbers), np.float32)
    counts = csr_array((ones, numbers, words.offsets), shape=(len(texts), len(known)))
    counts.sum_duplicates()
    counts.data = 1 + np.log(counts.data)
    spread = mixed(known)
    signs = np.where(spread >> np.uint64(63), 1.0, -1.0).astype(np.float32)
    places = (spread % np.uint64(dimensions)).astype(np.int64)
    projection = csr_array((signs, places, np.arange(len(known) + 1)), shape=(len(known), dimensions))
    return np.asarray((counts @ projection).toarray(), np.float32)


def model_vectors(chunks: Chunks, folder: Path, max_tokens: int) -> Vectors:
    """Unit vectors: the mean over a text's tokens of the last hidden states, less the mean of all texts."""
    import torch
    from transformers import AutoModel

    from tasks._devices import choose_device
    from tasks._engines.chat import load_tokenizer

    device = choose_device("auto")
    tokenizer = load_tokenizer(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device).eval()

    def means(batch: list[list[int]]) -> np.ndarray:
        longest = max(1, *map(len, batch))
        padded = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, tokens in enumerate(batch):
            padded[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        padded, mask = padded.to(device), mask.to(device)
        with torch.inference_mode():
            states = model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            return ((states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).float().cpu().numpy()

    vectors = []
    for texts in chunks:
        tokens = tokenizer(texts, truncation=True, max_length=max_tokens, add_special_tokens=False)["input_ids"]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        made = [
            means([tokens[i] for i in order[at : at + TEXTS_PER_BATCH]]) for at in range(0, len(order), TEXTS_PER_BATCH)
        ]
        part = np.empty((len(texts), made[0].shape[1]), np.float32)
        part[order] = np.concatenate(made)
        vectors.append(part)
    whole = np.concatenate(vectors)
    return _unit(whole - whole.mean(axis=0))


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
