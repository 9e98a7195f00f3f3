"""The datasets of reasoning-gym: what makes their prompts and what grades the answers open them alike."""

import warnings
from typing import Any

from storage.errors import InputError

# Entries that don't survive JSON: these scorers compare tuples.
TUPLES = {"arc_agi": "output", "rearc": "output"}


def open_dataset(name: str, options: dict[str, Any]) -> Any:
    """A `ProceduralDataset`. Raises `InputError` for a name or an option that there isn't."""
    with warnings.catch_warnings():
        # Packages that it imports compare with `is`: their affair.
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise InputError(f"reasoning-gym can't be imported: {error}; install posttrain[reasoning]") from error
    import reasoning_gym as _  # noqa: F401 registers the datasets

    if name not in DATASETS or name == "composite":
        raise InputError(f"no dataset {name!r} in reasoning-gym; there are {', '.join(sorted(DATASETS))}")
    try:
        return create_dataset(name, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"reasoning-gym dataset {name}: {error}; found {options}") from error


def restored(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry as its dataset made it, from what JSON left of it."""
    field = TUPLES.get(name)
    if field is None:
        return entry
    metadata = entry["metadata"]
    return {**entry, "metadata": {**metadata, field: tuple(tuple(row) for row in metadata[field])}}
