#!/usr/bin/env bash
# Runs a report of imdb_sentiment and its benchmarks without internet. Written by `imdb-sentiment kit`.
# Needs bash, and Python @PYTHON@ as python3. Arguments after a step are passed to its command.
set -uo pipefail

usage() {
    cat <<END
bash run.sh install            join the parts and install the kit
bash run.sh test               run the tests that need a GPU
bash run.sh report             run the report, for example: run.sh report --set limit=200 --set epochs=1
bash run.sh bench training     compare training with Hugging Face's Trainer
bash run.sh bench inference    compare prediction with transformers.pipeline; needs the report's model
bash run.sh all                run the tests, the report and both benchmarks, even if one of them fails
bash run.sh keep               copy the parts that have arrived to KIT_WORK, if not all fit at once

KIT_WORK   working folder (default: kit-work beside the kit)
RESULTS    folder for logs and results to copy back (default: kit-results)
END
}

fail() {
    echo "kit: $1" >&2
    exit 1
}

KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
WORK=${KIT_WORK:-$(dirname "$KIT")/kit-work}
RESULTS=${RESULTS:-kit-results}
mkdir -p "$WORK" "$RESULTS" || exit 1
WORK=$(cd "$WORK" && pwd)
RESULTS=$(cd "$RESULTS" && pwd)
export PYTHONUNBUFFERED=1

REPORT=(@REPORT@)
TRAINING=(@TRAINING@)
INFERENCE=(@INFERENCE@)

python_part() {
    python3 - "$@" <<'END_OF_PYTHON'
@CODE@
END_OF_PYTHON
}

install_wheels() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python_part unzip "$WORK/wheels" "$1"
        return
    fi
    PIP_CONFIG_FILE=/dev/null python3 -m pip --isolated install -q --disable-pip-version-check --no-index --no-deps \
        --no-compile --no-cache-dir --target "$1" "$WORK"/wheels/*.whl
}

install_kit() {
    local manifest stamp
    command -v python3 >/dev/null || fail "python3 was not found"
    manifest=$(cksum <"$KIT/manifest.json") || fail "manifest.json is missing in $KIT"
    stamp="$manifest $(python3 -c 'import sys; print(sys.version)')"
    if [ "$(cat "$WORK/.installed" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$WORK/.installed" "$WORK/site-packages" "$WORK/site-packages.tmp"
        python_part unpack "$KIT" "$WORK" || exit 1
        install_wheels "$WORK/site-packages.tmp" || fail "the wheels could not be installed in $WORK/site-packages"
        mv "$WORK/site-packages.tmp" "$WORK/site-packages"
        echo "$stamp" >"$WORK/.installed"
    fi
    export PYTHONPATH="$WORK/site-packages${PYTHONPATH:+:$PYTHONPATH}"
    export JUPYTER_PATH="$WORK/site-packages/share/jupyter${JUPYTER_PATH:+:$JUPYTER_PATH}"
    export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
}

imdb_sentiment() {
    python3 -c "from @MODULE@ import main; main()" "$@"
}

gpu_tests() {
    python3 -m pytest -q -m cuda --continue-on-collection-errors -p no:cacheprovider \
        --junitxml="$WORK/tests/tests.xml" tests "$@"
}

# step NAME COMMAND ...: run the command in the checkout, log its output, and pack the results
step() {
    local name=$1 began=$SECONDS since status
    shift
    since=$(date +%s)
    rm -f "$RESULTS/$name.tar.gz"
    {
        echo "== $name: started $(date '+%F %T')"
        cd "$WORK/checkout" && "$@"
    } 2>&1 | tee "$RESULTS/$name.log"
    status=$?
    echo "== $name: ended with status $status after $((SECONDS - began)) s" | tee -a "$RESULTS/$name.log"
    python_part pack "$RESULTS/$name.tar.gz" "$since" "$WORK/checkout/reports" "$WORK/tests" || status=1
    return "$status"
}

run() {
    local name=$1
    shift
    case $name in
    test) step test gpu_tests "$@" ;;
    report) step report imdb_sentiment "${REPORT[@]}" "$@" ;;
    training) step bench-training imdb_sentiment "${TRAINING[@]}" "$@" ;;
    inference) step bench-inference imdb_sentiment "${INFERENCE[@]}" "$@" ;;
    esac
}

name=${1:-}
[ $# -gt 0 ] && shift
if [ "$name" = bench ]; then
    name=${1:-}
    [ "$name" = training ] || [ "$name" = inference ] || fail "use bench training or bench inference"
    shift
fi
case $name in
keep)
    mkdir -p "$WORK/parts" && cp -R "$KIT"/part-* "$WORK/parts/" || fail "there are no parts in $KIT"
    ls "$WORK/parts"
    ;;
install)
    install_kit
    echo "Installed in $WORK"
    ;;
test | report | training | inference)
    install_kit
    run "$name" "$@"
    ;;
all)
    install_kit
    failed=0
    run test || failed=1
    run report "$@" || failed=1
    run training || failed=1
    # a short benchmark: minutes instead of an hour
    run inference --rounds 3 --test-reviews 2000 --requests 400 --rows 20000 || failed=1
    exit "$failed"
    ;;
*)
    usage
    [ -z "$name" ] || fail "there is no step $name"
    ;;
esac
