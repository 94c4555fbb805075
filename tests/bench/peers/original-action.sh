#!/bin/sh
# The original action's way: an image of everything per run (sources before packages), one fixed container name, tar from it.
# Usage: original-action.sh REPO MODEL IMAGE OUTPUT, with SSH and TARGET in the environment. It ran on the host itself: the
# checkout gets there by rsync, as actions/checkout would bring it.
set -eu
repo=$1 model=$2 image=$3 output=$4
# shellcheck disable=SC2086
on_host() { $SSH "$TARGET" "$@"; }

rsync -a --delete -e "$SSH" "$repo/" "$TARGET:bench/original/"
on_host "set -e; cd bench/original
printf 'FROM $image\nCOPY . /classifiers\nWORKDIR /classifiers\nRUN if [ -s $model/requirements.txt ]; then pip install -q --break-system-packages -r $model/requirements.txt; fi\n' >/tmp/bench-original.Dockerfile
docker build -q -f /tmp/bench-original.Dockerfile -t bench-original . >/dev/null
docker rm -f bench-original-run >/dev/null 2>&1 || :
docker run --name bench-original-run bench-original python3 -Bum $model
docker cp bench-original-run:/classifiers/artefacts - | gzip -1 >/tmp/bench-original.tar.gz
docker rm bench-original-run >/dev/null
docker image prune -f >/dev/null"
rsync -e "$SSH" "$TARGET:/tmp/bench-original.tar.gz" "$output"
