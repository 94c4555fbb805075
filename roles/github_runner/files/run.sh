#!/bin/bash
# Runs the listener of one instance and acts on how it ends. GitHub's own run.sh turns most endings into 0, and its
# unit has no Restart=; this keeps the endings apart, so that systemd restarts what a restart can help.
cd "$GITHUB_RUNNER_FOLDER" || exit 1
listener=
stopping=
trap 'stopping=1; [ -z "$listener" ] || kill -INT "$listener" 2>/dev/null' TERM INT

say() { echo "github-runner $(basename "$GITHUB_RUNNER_FOLDER"): $*"; }

while :; do
    rm -f update.finished
    bin/Runner.Listener run --startuptype service &
    listener=$!
    [ -z "$stopping" ] || kill -INT "$listener"
    while kill -0 "$listener" 2>/dev/null; do wait "$listener"; done
    wait "$listener"
    status=$?
    listener=
    [ -z "$stopping" ] || exit 0
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
