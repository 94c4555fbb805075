#!/bin/bash
# Runs the listener of one instance and acts on how it ends. GitHub's own run.sh turns most endings into 0, and its
# unit has no Restart=; this keeps the endings apart, so that systemd restarts what a restart can help.
cd "$GITHUB_RUNNER_FOLDER" || exit 1
listener=
stopping=
# Its first line says why the host takes no new jobs (host_check, or an administrator).
marker=/var/lib/train-classifier/drain
# What a shell without job control starts beside itself ignores SIGINT, and so would the listener.
set -m
trap 'stopping=1; [ -z "$listener" ] || kill -INT "$listener" 2>/dev/null' TERM INT

say() { echo "github-runner $(basename "$GITHUB_RUNNER_FOLDER"): $*"; }

working() { grep -qszE "^$GITHUB_RUNNER_FOLDER/bin[^/]*/Runner\.Worker\$" /proc/[0-9]*/cmdline; }

# A host that is taken out of service: the listener goes when it has no job. GitHub keeps the runner, as offline.
leave_when_drained() {
    until [ -e "$marker" ] && ! working; do sleep 1; done
    kill -INT "$1"
}

# True when it had to wait.
wait_while_drained() {
    [ -e "$marker" ] || return 1
    say "the host is out of service ($(head -n 1 "$marker" 2>/dev/null)): waiting until $marker is gone"
    while [ -e "$marker" ] && [ -z "$stopping" ]; do sleep 1; done
    say "the host is back in service"
}

while :; do
    if wait_while_drained; then
        # A registration for one job does not keep that long: prepare mints another.
        if [ -n "$stopping" ] || [ "$GITHUB_RUNNER_MODE" != persistent ]; then exit 0; fi
    fi
    rm -f update.finished
    bin/Runner.Listener run --startuptype service &
    listener=$!
    leave_when_drained "$listener" &
    watcher=$!
    [ -z "$stopping" ] || kill -INT "$listener"
    while kill -0 "$listener" 2>/dev/null; do wait "$listener"; done
    wait "$listener"
    status=$?
    listener=
    kill -- "-$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
    [ -z "$stopping" ] || exit 0
    [ ! -e "$marker" ] || continue
    case $status in
        0) exit 0 ;;
        1)
            [ "$GITHUB_RUNNER_MODE" = persistent ] || exit 1
            say "ended for good: its registration is gone or not accepted. Run the role github_runner again."
            exit 78
            ;;
        2) sleep 5 ;;
        3 | 4)
            say "the listener updates itself"
            for ((second = 0; second < 300; second++)); do
                [ ! -e update.finished ] || break
                [ -z "$stopping" ] || exit 0
                sleep 1
            done
            ;;
        5)
            say "another process has this runner's session; trying again later."
            exit 75
            ;;
        6) say "reconfigured, starting again" ;;
        7)
            say "GitHub no longer accepts this version. Run the role with github_runner_update: true."
            exit 76
            ;;
        *)
            say "the listener ended with $status"
            exit "$status"
            ;;
    esac
done
