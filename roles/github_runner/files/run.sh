#!/bin/bash
# Runs the listener of one instance and acts on how it ends. GitHub's own run.sh turns most endings into 0, and its
# unit has no Restart=; this keeps the endings apart, so that systemd restarts what a restart can help.
cd "$GITHUB_RUNNER_FOLDER" || exit 1
listener=
stopping=
# Its first line says why the host takes no new jobs (host_check, or an administrator).
marker=/var/lib/train-classifier/drain
# Set by root while it updates this instance.
hold=/run/github-runner/hold-$(basename "$GITHUB_RUNNER_FOLDER")
# What a shell without job control starts beside itself ignores SIGINT, and so would the listener.
set -m
trap 'stopping=1; [ -z "$listener" ] || kill -INT "$listener" 2>/dev/null' TERM INT

say() { echo "github-runner $(basename "$GITHUB_RUNNER_FOLDER"): $*"; }

working() { grep -qszE "^$GITHUB_RUNNER_FOLDER/bin[^/]*/Runner\.Worker\$" /proc/[0-9]*/cmdline; }

held() { [ -e "$marker" ] || [ -e "$hold" ]; }

# A host that is taken out of service: the listener goes when it has no job. GitHub keeps the runner, as offline.
leave_when_held() {
    until held && ! working; do sleep 1; done
    kill -INT "$1"
}

# True when it had to wait.
wait_while_held() {
    held || return 1
    if [ -e "$marker" ]; then
        say "the host is out of service ($(head -n 1 "$marker" 2>/dev/null)): waiting until $marker is gone"
    else
        say "waiting for its update"
    fi
    while held && [ -z "$stopping" ]; do sleep 1; done
    say "taking jobs again"
}

while :; do
    if wait_while_held; then
        # A registration for one job does not keep that long: prepare mints another.
        if [ -n "$stopping" ] || [ "$GITHUB_RUNNER_MODE" != persistent ]; then exit 0; fi
    fi
    "$GITHUB_RUNNER_FOLDER/bin/Runner.Listener" run --startuptype service &
    listener=$!
    leave_when_held "$listener" &
    watcher=$!
    [ -z "$stopping" ] || kill -INT "$listener"
    while kill -0 "$listener" 2>/dev/null; do wait "$listener"; done
    wait "$listener"
    status=$?
    listener=
    kill -- "-$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
    [ -z "$stopping" ] || exit 0
    ! held || continue
    case $status in
        0) exit 0 ;;
        1)
            [ "$GITHUB_RUNNER_MODE" = persistent ] || exit 1
            say "ended for good: its registration is gone or not accepted. Run the role github_runner again."
            exit 78
            ;;
        2) sleep 5 ;;
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
