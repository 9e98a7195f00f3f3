"""Where this machine keeps what isn't an artifact: converted models, scratch, the two servers' databases."""

import os
from pathlib import Path

HOME_VARIABLE = "POSTTRAIN_HOME"


def home() -> Path:
    """The folder of local state, `$POSTTRAIN_HOME` or `.posttrain` here, created when missing."""
    folder = Path(os.environ.get(HOME_VARIABLE, ".posttrain")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
