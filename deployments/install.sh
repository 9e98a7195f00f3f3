#!/bin/sh
# Make the virtual environment: uv, then posttrain with the vLLM build that suits this machine.
# An NVIDIA GPU gets vLLM's GPU build, any other machine (or a GPU build that can't be installed) its CPU build.
# Where neither can be installed the transformers engine serves, and the next call tries again.
set -eu

: "${PYTHON:=python3.11}" "${VENV:=.venv}"

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "posttrain needs Python 3.11 or 3.12; found $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 2
}
"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV"
[ -x "$VENV/bin/uv" ] || "$VENV/bin/python" -m pip install --quiet 'uv>=0.9,<1'

# Code that a model writes is graded in bubblewrap. Without it everything else works, and that grader says what to do.
if ! command -v bwrap >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install -y -qq bubblewrap || { apt-get update -qq && apt-get install -y -qq bubblewrap; }; } \
        </dev/null >/dev/null 2>&1 || echo "bubblewrap can't be installed here: code can't be graded in a sandbox." >&2
fi

# uv doesn't read pip's settings: pass them on. Without a folder of wheels, uv finds torch's build by itself.
if [ -n "${PIP_INDEX_URL:-}" ]; then
    export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
fi
if [ -n "${PIP_EXTRA_INDEX_URL:-}" ]; then
    export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"
fi
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
fi

install() { # engine extra or nothing, torch backend
    backend="--torch-backend=$2"
    [ -z "${UV_FIND_LINKS:-}" ] || backend=""
    # shellcheck disable=SC2086
    "$VENV/bin/uv" pip install --python "$VENV/bin/python" --compile-bytecode $backend \
        --editable ".[${1:+$1,}quickstart,reasoning,servers,dev]"
}

engines="cpu"
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    engines="gpu cpu"
fi
for engine in $engines; do
    case "$engine" in gpu) torch=auto ;; *) torch=cpu ;; esac
    if install "$engine" "$torch"; then
        touch "$VENV/.installed"
        exit 0
    fi
    echo "vLLM's $engine build can't be installed on this machine." >&2
done
echo "The transformers engine will serve instead of vLLM, several times slower." >&2
install "" auto
