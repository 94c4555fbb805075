#!/bin/sh
# The bare script: rsync, docker run, tar, over one ssh connection. What a careful person would write by hand.
# Usage: bare.sh REPO MODEL IMAGE OUTPUT, with SSH (an ssh command line, ControlMaster on) and TARGET in the environment.
set -eu
repo=$1 model=$2 image=$3 output=$4
# SSH is a command line, meant to be split.
# shellcheck disable=SC2086
on_host() { $SSH "$TARGET" "$@"; }

rsync -a --delete -e "$SSH" "$repo/" "$TARGET:bench/bare/"
if [ -s "$repo/$model/requirements.txt" ]; then
    # Requirements first, so that an edit of the code does not install them anew.
    on_host "cd bench/bare && printf 'FROM $image\nCOPY $model/requirements.txt /r.txt\nRUN pip install -q --break-system-packages -r /r.txt\n' |
        docker build -q -f - -t bench-bare . >/dev/null"
    image=bench-bare
fi
# shellcheck disable=SC2016
on_host 'docker run --rm -u "$(id -u):$(id -g)" -v "$PWD/bench/bare:/w" -w /w '"$image python3 -um $model"
on_host "tar -C bench/bare -czf - artefacts" >"$output.part"
mv "$output.part" "$output"
