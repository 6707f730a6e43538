#!/bin/sh
# The whole test: every track's unit tests, then all chapters with the network cut, compared with what is committed.
# A track that this machine cannot have is reported with the reason, and its chapters are left out; any other failure fails the whole.
set -u
failed=
ready=
note() { printf '\n== %s\n' "$1"; }

sh setup_track.sh spark || failed="$failed spark"
for track in pytorch mpc; do
    if [ -x .venv-$track/bin/python ] && ! [ -e .venv/no-$track.txt ]; then
        ready="$ready $track"
    else
        note "$track: left out, $(cat .venv/no-$track.txt)"
        # A machine that cannot have a track is no failure; a set-up that failed is one.
        sh setup_track.sh $track 2>/dev/null
        [ $? = 3 ] || failed="$failed $track"
    fi
done

# The tests of these two mostly wait for processes: they run beside the core's, and what they say is shown after it.
said=$(mktemp -d)
(
    trap 'kill $!; exit 143' TERM
    for track in $ready; do
        .venv-$track/bin/python -m pytest -p no:xdist tests/$track >"$said/$track" 2>&1 &
        wait $! || echo $track >>"$said/failed"
    done
) &
beside=$!
trap 'kill $beside 2>/dev/null; rm -rf "$said"' EXIT
trap 'exit 130' INT TERM

note "core: unit tests, ledger, prose, contract, signatures"
.venv/bin/python -m pytest tests --ignore=tests/pytorch --ignore=tests/mpc -n 2 --dist loadfile || failed="$failed core"

wait $beside
for track in $ready; do
    note "$track: unit tests"
    cat "$said/$track"
done
[ ! -e "$said/failed" ] || failed="$failed $(tr '\n' ' ' <"$said/failed")"

note "chapters: all of them, two at a time, with the network cut, compared with what is committed"
.venv/bin/pprml data >/dev/null || failed="$failed data"
.venv/bin/python tests/without_network.py .venv/bin/pprml reproduce --force --strict || failed="$failed chapters"

note "summary"
if [ -n "$failed" ]; then
    echo "FAILED:$failed"
    exit 1
fi
echo "all passed"
