#!/bin/bash
# Hook after each job: reports what it left. Repairs nothing, never fails the job; prints numbers and ids only, so that
# no name a job chose can speak to the workflow runner.
note=$GITHUB_RUNNER_FOLDER/.job-started
before=" $(sed -n 's/^containers //p' "$note" 2>/dev/null) "
left=
for id in $(timeout 10 docker ps -q --filter label=train-classifier=1 2>/dev/null); do
    case $before in *" $id "*) ;; *) left="$left $id" ;; esac
done
[ -z "$left" ] || echo "::warning title=containers left::containers of train-classifier still run:$left"

strange=$(timeout 60 find "$GITHUB_RUNNER_FOLDER/_work" -xdev ! -user "$(id -u)" -printf x 2>/dev/null | wc -c)
[ "${strange:-0}" -eq 0 ] ||
    echo "::warning title=foreign files left::$strange entries in _work belong to another user; root gives them back before the next start"

was=$(sed -n 's/^free //p' "$note" 2>/dev/null)
now=$(timeout 10 df -Pk "$GITHUB_RUNNER_FOLDER" 2>/dev/null | awk 'NR > 1 {print $4}')
if [ -n "$was" ] && [ -n "$now" ]; then
    echo "disk: $((now / 1024)) MiB free, $(((was - now) / 1024)) MiB taken by this job"
fi
rm -f "$note"
exit 0
