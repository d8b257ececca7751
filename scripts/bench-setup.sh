#!/usr/bin/env bash
# Makes ready what only the bench needs: its peers in a virtual environment of their own, and redis-server by apt where
# that may be. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/bench/venv
stamp=$(sha256sum bench/requirements.txt | cut -d' ' -f1)
if [ ! -f "$venv/.stamp" ] || [ "$(cat "$venv/.stamp")" != "$stamp" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "bench: the peers, into $venv"
    "${PYTHON:-.venv/bin/python}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
    echo "$stamp" >"$venv/.stamp"
fi
command -v redis-server >/dev/null && exit
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
echo "bench: redis-server, by apt"
# Started by the bench alone: the package must not leave a server running.
as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server >/dev/null 2>&1 ||
    echo "bench: redis-server could not be installed; Celery is left out"
