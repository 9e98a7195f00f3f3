"""How a function or class of one's own is called: told by the names of its parameters.

A function is called in one of two ways; leading underscores of a name don't count:

1. `(text, answer, params)`, exactly these three: a verifier; one with `whole_sample = True` takes the sample alone.
2. `(prompt, completion, ...)`, these two first: any further parameter is filled by its name, out of `answer`, `params`,
   `messages`, `domain`, `rubric`; one of another name must have a default.

A class has `grade_batch(prompts, completions, ...)`; further parameters are filled with lists out of `answers`,
`messages`, `domains`, `rubrics`. It is made once, of the grader's `params` by name.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import InputError
from storage.plugins import import_named
from tasks.grading.sample import Sample

VERIFIER_FORM = ("text", "answer", "params")
FUNCTION_START, BATCH_START = ("prompt", "completion"), ("prompts", "completions")
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VALUES: dict[str, Callable[[Sample], Any]] = {
    "answer": lambda sample: sample.answer,
    "params": lambda sample: dict(sample.params),
    "messages": lambda sample: [dict(message) for message in sample.messages],
    "domain": lambda sample: sample.domain,
    "rubric": lambda sample: sample.rubric,
}
LISTS = {"answers": "answer", "messages": "messages", "domains": "domain", "rubrics": "rubric"}


@dataclass(frozen=True)
class Form:
    """How a function is called. `optional`: parameter -> the value that fills it, a key of `VALUES`."""

    path: str
    is_verifier: bool
    is_async: bool
    optional: Mapping[str, str]
    whole_sample: bool = False

    def arguments(self, sample: Sample) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """By place, and by name. Raises `InputError` for parameters that the function would never see."""
        if self.whole_sample:
            return (sample,), {}
        if self.is_verifier:
            return (sample.text, sample.answer, sample.params), {}
        if sample.params and "params" not in self.optional.values():
            raise InputError(
                f"grader {self.path} takes no params, found {dict(sample.params)}; add a parameter `params`"
            )
        named = {name: VALUES[value](sample) for name, value in self.optional.items()}
        return (prompt_of(sample), sample.text), named


def prompt_of(sample: Sample) -> str:
    """The last user turn: what the completion answers. The whole chat is `messages`."""
    turns = [message["content"] for message in sample.messages if message["role"] == "user"]
    return turns[-1] if turns else ""


def form_of(path: str, function: Any) -> Form:
    """How the function at that path is called. Raises `InputError` when its parameters fit no form."""
    parameters = _parameters(path, function)
    names = [name.lstrip("_") for name in parameters]
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    if getattr(function, "whole_sample", False):
        return Form(path, True, is_async, {}, whole_sample=True)
    if tuple(names) == VERIFIER_FORM:
        return Form(path, True, is_async, {})
    optional = _optional(path, parameters, FUNCTION_START, {name: name for name in VALUES})
    return Form(path, False, is_async, optional)


def batch_form(path: str, grader: type, params: Mapping[str, Any]) -> Mapping[str, str]:
    """Parameter of `grade_batch` -> the value that fills it, for a class that can be made of `params`.

    Raises `InputError` when it can't, or when the parameters fit no form.
    """
    method = getattr(grader, "grade_batch", None)
    if not callable(method):
        raise InputError(f"grader {path} is a class without a method grade_batch(self, prompts, completions, ...)")
    try:
        inspect.signature(grader).bind(**params)
    except TypeError as error:
        raise InputError(f"grader {path}: params {dict(params)} don't fit its constructor: {error}") from error
    parameters = _parameters(path, method, skip=1)
    return _optional(path, parameters, BATCH_START, LISTS)


def _parameters(path: str, function: Any, skip: int = 0) -> dict[str, inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.items())
    except (TypeError, ValueError) as error:
        raise InputError(f"grader {path} can't be called: {error}; name a function or a class") from error
    return dict(parameters[skip:])


def _optional(
    path: str, parameters: Mapping[str, inspect.Parameter], start: tuple[str, str], values: Mapping[str, str]
) -> dict[str, str]:
    items = list(parameters.items())
    by_place = [name.lstrip("_") for name, parameter in items if parameter.kind in BY_PLACE]
    if tuple(by_place[:2]) != start:
        raise _misfit(path, parameters, start, values, "")
    optional = {}
    for name, parameter in items[2:]:
        value = values.get(name.lstrip("_"))
        if value is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            optional[name] = value
        elif parameter.default is parameter.empty and parameter.kind in (*BY_PLACE, inspect.Parameter.KEYWORD_ONLY):
            raise _misfit(path, parameters, start, values, f"; nothing fills {name!r}, give it a default")
    return optional


def _misfit(
    path: str, parameters: Mapping[str, Any], start: tuple[str, str], values: Mapping[str, str], why: str
) -> InputError:
    verifier = f" or ({', '.join(VERIFIER_FORM)})" if start is FUNCTION_START else ""
    return InputError(
        f"grader {path} has the parameters ({', '.join(parameters)}), expected ({', '.join(start)}, and by name "
        f"any of {', '.join(values)}){verifier}{why}"
    )


def imported(path: str) -> Any:
    """The function or class at `package.module:name`. Raises `InputError` when there is none."""
    found = import_named("grader", path)
    if not callable(found):
        raise InputError(f"grader {path} is a {type(found).__name__}; name a function or a class")
    return found


def version_at(path: str) -> str:
    """The `version` of the function or class, else '0'."""
    return str(getattr(imported(path), "version", "0"))
