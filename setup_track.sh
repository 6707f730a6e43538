#!/bin/sh
# Set up one track: find or fetch uv, find its Python, sync its environment from the lock, register its kernel.
# Usage: sh setup_track.sh core|pytorch|mpc|spark
# Exit codes: 0 ready; 3 this machine cannot have the track (the reason is printed and kept for `pprml`); other: the set-up failed.
set -eu
cd "$(dirname "$0")"
track=$1
case $track in
core) python=3.11 home=.venv groups= ;;
# What one file of tests needs beside the core track: 400 MB that no chapter uses.
spark) track=core python=3.11 home=.venv groups="--group spark" ;;
pytorch) python=3.11 home=.venv-pytorch groups="--no-group lab --no-group lint" ;;
mpc) python=3.10 home=.venv-mpc groups="--no-group lab --no-group lint" ;;
*) echo "unknown track '$track'; known: core, pytorch, mpc, spark" >&2; exit 2 ;;
esac
# Spark, once there, stays.
if [ $track = core ] && [ -d .venv/lib/python3.11/site-packages/pyspark ]; then groups="--group spark"; fi

# The other tracks' reasons stand where `pprml` finds them.
cannot() {
    echo "the $track track: $1" >&2
    [ $track = core ] || ! [ -d .venv ] || echo "$1" >".venv/no-$track.txt"
    exit "$2"
}

# uv: the user's if it is 0.9 or newer, or one of our own in a private environment made by the system's python3.
is_new() { "$1" --version 2>/dev/null | awk '{ split($2, v, "."); exit !(v[1] + 0 > 0 || v[2] + 0 >= 9) }'; }
uv=$(command -v uv || true)
if [ -z "$uv" ] || ! is_new "$uv"; then
    [ -z "$uv" ] || echo "$("$uv" --version 2>/dev/null || echo "the uv on PATH") is older than 0.9: using one of our own" >&2
    uv=.uv/bin/uv
    if [ ! -x $uv ]; then
        echo "setting up uv in .uv" >&2
        if ! { python3 -m venv .uv && .uv/bin/python -m pip install --quiet "uv>=0.9,<1"; } >&2; then
            rm -rf .uv
            # Debian's python3 comes without venv: pip alone can do it too.
            python3 -m pip install --quiet --target .uv/lib "uv>=0.9,<1" >&2 ||
                cannot "uv is missing and could not be installed; install uv, or python3 with venv or pip" 1
            mkdir -p .uv/bin && ln -sf ../lib/bin/uv .uv/bin/uv
        fi
    fi
fi

# The track's Python: one that uv knows, one that pyenv built, or one that uv can download.
interpreter=$("$uv" python find --no-project "$python" 2>/dev/null || true)
if [ -z "$interpreter" ]; then
    for candidate in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/"$python".*/bin/python; do
        [ -x "$candidate" ] && interpreter=$candidate
    done
fi
if [ -z "$interpreter" ]; then
    "$uv" python install --quiet "$python" >/dev/null 2>&1 || true
    interpreter=$("$uv" python find --no-project "$python" 2>/dev/null || true)
fi
[ -n "$interpreter" ] || cannot "it needs Python $python, which this machine has not and uv could not download" 3

before=$(cksum "$home/.synced" 2>/dev/null || true)
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# shellcheck disable=SC2086
if ! UV_PROJECT_ENVIRONMENT=$home "$uv" sync --quiet --locked --extra "$track" --python "$interpreter" $groups 2>"$said"; then
    cat "$said" >&2
    if grep -q "wheel for the current platform" "$said"; then
        package=$(sed -n 's/.*Distribution `\([^ @`]*\).*/\1/p' "$said" | head -n 1)
        cannot "${package:-a package} has no wheel for this machine ($(uname -sm))" 3
    fi
    cannot "its packages could not be installed: $(grep -m 1 . "$said")" 1
fi
# Compiled once per lock: TensorFlow's first import is slow without it.
cksum uv.lock >"$home/.synced.new"
if [ "$before" != "$(cksum "$home/.synced.new" | sed 's/\.new$//')" ]; then
    "$home/bin/python" -m compileall -q -j 0 "$home"/lib/python*/site-packages >/dev/null 2>&1 || true
fi
mv "$home/.synced.new" "$home/.synced"
rm -f ".venv/no-$track.txt"

# All kernels are registered beside the core track's Jupyter. Their settings keep TensorFlow's start-up chatter out of
# the outputs, telemetry off, and the arithmetic the same from run to run.
kernel=.venv/share/jupyter/kernels/pprml-$track
mkdir -p "$kernel"
cat >"$kernel/kernel.json" <<JSON
{
 "argv": ["$PWD/$home/bin/python", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"],
 "display_name": "pprml $track",
 "language": "python",
 "env": {
  "CUDA_VISIBLE_DEVICES": "-1",
  "FLWR_TELEMETRY_ENABLED": "0",
  "PYTHONHASHSEED": "0",
  "TF_CPP_MIN_LOG_LEVEL": "3"
 }
}
JSON
