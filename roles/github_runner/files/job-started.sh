#!/bin/bash
# Hook before each job: notes what is there, for job-completed.sh to compare with. Never fails the job.
exec 2>/dev/null
{
    echo "containers $(timeout 10 docker ps -q --filter label=train-classifier=1 | tr '\n' ' ')"
    echo "free $(timeout 10 df -Pk "$GITHUB_RUNNER_FOLDER" | awk 'NR > 1 {print $4}')"
} >"$GITHUB_RUNNER_FOLDER/.job-started"
exit 0
