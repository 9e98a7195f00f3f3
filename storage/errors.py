"""The errors that posttrain raises on purpose, by what the caller can do about them."""


class PosttrainError(Exception):
    """The root of every error that is ours."""


class InputError(PosttrainError):
    """Configuration or data is wrong: trying again can't help, editing it can. Never retried."""


class TooFew(InputError):
    """Too little data as yet: whoever has another way, such as keeping a model that is there, may take it."""


class CorruptArtifact(InputError):
    """A stored file doesn't hold what its manifest says."""


class TransientError(PosttrainError):
    """The network, a server or an engine failed in a way that may pass: retried with back-off."""


class StoreUnreachable(TransientError):
    """The object store can't be reached."""


class StageFailed(PosttrainError):
    """A stage failed for a reason that isn't the user's input; what was committed before it stays."""


class CampaignConflict(PosttrainError):
    """Another runner committed the iteration that this one was working on."""
