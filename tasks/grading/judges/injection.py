"""Graded text that talks to its judge: made harmless where it could be taken for the chat's own form, and noticed.

What keeps a judge from following such text is its delimiting (`prompts`); this only tells of attempts. The signs are
patterns, so they miss some attempts and flag some innocent texts: they are reported, and change no score.
"""

import re
from collections.abc import Iterable

# What chat templates write between turns. Spelled out in a text, a tokenizer reads them as the real thing.
CONTROL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|"
    r"\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]|<(?:bos|eos|pad)>"
)
SIGNS = {
    "control_token": CONTROL,
    "boundary": re.compile(
        r"\[\[\s*[\w-]*\s*(?:begin|end)\b[^\]\n]{0,40}\]\]|-{3,}\s*end of (?:the )?(?:answer|data)", re.I
    ),
    "closing_tag": re.compile(
        r"</(?:answer_to_grade|response|completion|student|submission|data|untrusted|input)>", re.I
    ),
    "verdict": re.compile(
        r"""["'](?:score|rating|grade|verdict|met|better|points|winner)["']\s*:\s*(?:\d|true|false|["'])""", re.I
    ),
    "override": re.compile(
        r"\b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:above|previous|prior|earlier|preceding|instructions?|"
        r"rubric|criteria|system prompt)\b",
        re.I,
    ),
    "demand": re.compile(
        r"\b(?:give|award|assign|rate|grade|score|deserves?)\b[^.\n]{0,40}?\b(?:(?:10|ten|100)\b(?=\s*(?:$|[.!?,;)\"']|/\s*10|"
        r"out of|points?\b|marks?\b|to (?:this|it)\b|because|please))|full (?:marks|points|credit)|"
        r"(?:maximum|max|highest|perfect|top) (?:possible )?(?:score|grade|rating|marks|points))",
        re.I | re.M,
    ),
    "criteria": re.compile(
        r"\b(?:all|every|each|new|additional|updated|revised)\b[^.\n]{0,20}\bcriteri(?:a|on)\b[^.\n]{0,40}"
        r"\b(?:met|satisfied|fulfilled|passed|replaced?|apply|applies)\b|^\s*(?:new |additional )?criterion \d*\s*:",
        re.I | re.M,
    ),
    "role": re.compile(
        r"^\W{0,3}(?:system|developer|judge|grader)\s*:|\b(?:note|message|attention|instructions?) "
        r"(?:to|for) (?:the )?(?:judge|grader|evaluator)\b|\byou are (?:now )?(?:a|an|the) "
        r"(?:\w+ )?(?:judge|grader|evaluator)\b",
        re.I | re.M,
    ),
}


def signs_of_injection(text: str) -> list[str]:
    """The kinds of attempt that the text shows signs of, by name; none for most texts."""
    return [name for name, pattern in SIGNS.items() if pattern.search(text)]


def neutralise(text: str, control_tokens: Iterable[str] = ()) -> str:
    """The text with a blank put into every control token, the usual ones and the judge's own."""
    broken = CONTROL.sub(lambda found: _broken(found.group()), text)
    for token in control_tokens:
        if token and token in broken:
            broken = broken.replace(token, _broken(token))
    return broken


def _broken(token: str) -> str:
    return f"{token[0]} {token[1:]}" if len(token) > 1 else f" {token}"
