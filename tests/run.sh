#!/bin/sh
# The whole test: every track, the ledger, the prose, the figures, and the notebooks with the network cut.
# A track whose Python this machine cannot have is reported with the reason, and its notebooks are left out; any other failure fails the
# whole.
set -u
failed=
skipped=
left_out=
ready=
note() { printf '\n== %s\n' "$1"; }

for track in pytorch mpc; do
    note "$track: set-up"
    sh setup_track.sh $track
    case $? in
    0) ready="$ready $track" ;;
    3) skipped="$skipped $track" ;;
    *) failed="$failed $track" ;;
    esac
    [ -x .venv-$track/bin/python ] || for notebook in $(grep -l "\"pprml-$track\"" notebooks/*.ipynb); do
        left_out="$left_out --ignore=$notebook"
    done
done

# The tests of these two mostly wait for processes: they run beside the core's, and what they say is shown after it.
said=$(mktemp -d)
(
    trap 'kill $!; exit 143' TERM
    for track in $ready; do
        .venv-$track/bin/python -m pytest tests/$track >"$said/$track" 2>&1 &
        wait $! || echo $track >>"$said/failed"
    done
) &
beside=$!
trap 'kill $beside 2>/dev/null; rm -rf "$said"' EXIT
trap 'exit 130' INT TERM

note "core: unit tests, ledger, prose, contract"
.venv/bin/python -m pytest tests --ignore=tests/pytorch --ignore=tests/mpc || failed="$failed core"

wait $beside
for track in $ready; do
    note "$track: unit tests"
    cat "$said/$track"
done
[ ! -e "$said/failed" ] || failed="$failed $(tr '\n' ' ' <"$said/failed")"

note "notebooks: each runs once, from cache, with the network cut"
rm -rf build
.venv/bin/pprml data >/dev/null || failed="$failed data"
# shellcheck disable=SC2086
.venv/bin/python tests/without_network.py \
    .venv/bin/python -m pytest -p tests.notebook_run --nbval-lax notebooks $left_out || failed="$failed notebooks"
.venv/bin/pprml figures check build/figures || failed="$failed figures"
PPRML_OUTPUT=build .venv/bin/pprml claims || failed="$failed claims"

note "summary"
[ -z "$skipped" ] || echo "skipped, with the reason above:$skipped"
if [ -n "$failed" ]; then
    echo "FAILED:$failed"
    exit 1
fi
echo "all passed"
