#!/bin/sh
# Make the virtual environment: uv, then posttrain with the vLLM build that suits this machine.
# An NVIDIA GPU gets vLLM's GPU build, any other machine its CPU build. Where neither can be installed the
# transformers engine serves.
set -eu

: "${PYTHON:=python3.11}" "${VENV:=.venv}"

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "posttrain needs Python 3.11 or 3.12; found $("$PYTHON" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 2
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
[ -x "$VENV/bin/uv" ] || "$VENV/bin/python" -m pip install --quiet 'uv>=0.9,<1'

# uv doesn't read pip's settings: pass them on. Without a folder of wheels, uv finds torch's build by itself.
if [ -n "${PIP_INDEX_URL:-}" ]; then
    export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
fi
backend="--torch-backend=auto"
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"
    backend=""
fi

install() {
    # shellcheck disable=SC2086
    "$VENV/bin/uv" pip install --python "$VENV/bin/python" --compile-bytecode $backend --editable ".[$1]"
}

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    engine=gpu
else
    engine=cpu
fi
if ! install "$engine,quickstart,servers,dev"; then
    echo "vLLM's $engine build can't be installed on this machine: the transformers engine will serve instead." >&2
    install "quickstart,servers,dev"
fi
