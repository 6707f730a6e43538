#!/bin/sh
# The whole test: every track, the ledger, the prose, the figures, and the notebooks with the network cut.
# A track whose Python this machine cannot have is reported with the reason; any other failure fails the whole.
set -u
failed=
skipped=
note() { printf '\n== %s\n' "$1"; }

note "core: unit tests, ledger, prose, contract"
.venv/bin/python -m pytest tests --ignore=tests/pytorch --ignore=tests/mpc || failed="$failed core"

note "notebooks: each runs once, from cache, with the network cut"
rm -rf build
.venv/bin/pprml data >/dev/null || failed="$failed data"
.venv/bin/python tests/without_network.py .venv/bin/python -m pytest -p tests.notebook_run --nbval-lax notebooks ||
    failed="$failed notebooks"
.venv/bin/pprml figures check build/figures || failed="$failed figures"
PPRML_OUTPUT=build .venv/bin/pprml claims || failed="$failed claims"

for track in pytorch mpc; do
    note "$track"
    sh setup_track.sh $track
    case $? in
    0) .venv-$track/bin/python -m pytest tests/$track || failed="$failed $track" ;;
    3) skipped="$skipped $track" ;;
    *) failed="$failed $track" ;;
    esac
done

note "summary"
[ -z "$skipped" ] || echo "skipped, with the reason above:$skipped"
if [ -n "$failed" ]; then
    echo "FAILED:$failed"
    exit 1
fi
echo "all passed"
