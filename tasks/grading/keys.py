"""What a grade depends on, hashed: who grades, and what is graded. Ids of rollouts and labels are no part."""

from collections.abc import Sequence

from storage.fingerprints import digest, hashed_part
from tasks.grading.config import GraderConfig
from tasks.grading.sample import Sample

# What becomes of an answer, not what the grader answers: changing these costs nothing.
USE_OF_ANSWER = frozenset(
    {"name", "weight", "from_iteration", "judge", "pass_score", "truncated_factor", "score_range", "latency"}
)


def grader_key(config: GraderConfig, version: str) -> str:
    """The identity of a grader: its name, parameters, model, and the version of its rule."""
    content = {
        name: value for name, value in hashed_part(config).items() if name not in USE_OF_ANSWER and value is not None
    }
    return digest([content, version])


def row_key(sample: Sample) -> str:
    """What is graded: prompt, reference answer, rubric, domain, parameters, and the output."""
    messages = [dict(message) for message in sample.messages]
    params = dict(sample.params)
    prompt = [messages, sample.answer, sample.rubric, sample.domain, params]
    return digest([*prompt, sample.text, sample.tokens, sample.truncated])


def row_keys(samples: Sequence[Sample], *, compares_group: bool) -> list[str]:
    """The key of each sample; where a grader compares a prompt's samples, all of them are part of it."""
    own = [row_key(sample) for sample in samples]
    if not compares_group:
        return own
    members: dict[str, list[str]] = {}
    for sample, key in zip(samples, own, strict=True):
        members.setdefault(sample.prompt_id, []).append(key)
    groups = {prompt_id: digest(sorted(keys)) for prompt_id, keys in members.items()}
    return [digest([key, groups[sample.prompt_id]]) for sample, key in zip(samples, own, strict=True)]
