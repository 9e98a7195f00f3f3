"""JSON documents in the store (manifests, states, launches): read, and named when they are damaged."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from storage.errors import CorruptArtifact
from storage.store import Store

Document = TypeVar("Document", bound=BaseModel)


def read_document(store: Store, path: str, model: type[Document]) -> Document:
    """The document at a path. Raises `FileNotFoundError`, and `CorruptArtifact` for one that isn't a `model`."""
    content = store.read(path)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the document"
        raise CorruptArtifact(
            f"{store.uri(path)}: no {model.__name__}: {where}: {problem['msg']}. It was damaged or written by another "
            "version; restore it, or remove it to have it made again."
        ) from None
