#!/usr/bin/env bash
# The image's health checks: `healthy server`, `healthy client`. The image holds no HTTP client, bash is enough.
set -euo pipefail

case ${1:-} in
  server)
    exec 3<>/dev/tcp/127.0.0.1/8787
    printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
    answer=$(timeout 3 cat <&3)
    printf '%s\n' "$answer" | tail -n 1
    [[ $answer == 'HTTP/1.1 200 '* ]]
    ;;
  client)
    # Healthy is a replica that is complete and being kept up to date, by whatever transport.
    status=$(timeout 3 tidewire status --json)
    printf '%s\n' "$status"
    [[ $status =~ \"state\":\ *\"(live|polling)\" ]]
    ;;
  *)
    echo 'usage: healthy server|client' >&2
    exit 2
    ;;
esac
