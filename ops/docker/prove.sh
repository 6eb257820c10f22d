#!/usr/bin/env bash
# Proves docker-compose.yml by running it: the image is built, the stack comes up healthy and without root, rows
# reach the client's replica and change there as they change in MongoDB, a killed server comes back without a
# difference, and `down -v` leaves nothing.
#
#   ops/docker/prove.sh [--install]      --install: get missing Debian packages (implied by CI=true)
#
# Uses the engine that runs; where none does, root on Debian gets one started and stopped again, with base images
# made on the spot (engine.sh). Exit: 0 proven, 77 skipped since no engine can be had here, 1 not proven.
#
# Environment: COMPOSE (the compose program), MONGOD (for the stand-in image), PROFILE (cargo's, default dev).
# shellcheck disable=SC2016  # what is in single quotes is for another shell
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
# Bounds, in seconds. Images are slow only where their cache is empty.
seconds_images_max=900
seconds_proof_max=300

install=${CI:-no}
[[ $install == true || ${1:-} == --install ]] && install=yes

# Everything below runs in a process group that ends when its time is over.
if [[ -z ${TIDEWIRE_PROVE_BOUNDED:-} ]]; then
  export TIDEWIRE_PROVE_BOUNDED=1
  exec timeout --kill-after=60 $((seconds_images_max + seconds_proof_max)) "${BASH_SOURCE[0]}" "$@"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/tidewire-prove.XXXXXX")
project=tidewireprove$$
export TIDEWIRE_PORT=0 # any free one

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
proven() { say "proven: $*"; }
fail() {
  printf '\nNOT PROVEN: %s\n' "$*"
  show_logs
  exit 1
}

# `wait_until SECONDS WHAT COMMAND…`: asks until the command succeeds.
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < end)) || { printf 'waited in vain until %s\n' "$what"; return 1; }
    sleep 0.3
  done
}

# shellcheck source=engine.sh
source "$here/engine.sh"

compose() {
  "${compose_program[@]}" --project-name "$project" --file "$top/docker-compose.yml" --file "$work/override.yml" "$@"
}

show_logs() {
  [[ -n ${up:-} ]] || return 0
  compose ps
  compose logs --no-color --tail=25 server seeder client
}

clean() {
  local status=$?
  trap - EXIT
  if [[ -n ${up:-} ]]; then compose down -v --timeout 5 >>"$work/down.log" 2>&1; fi
  stop_engine
  rm -rf "$work"
  exit "$status"
}
trap clean EXIT
trap 'fail "stopped after $SECONDS s"' INT TERM

# `inside SERVICE COMMAND…`; the engine's own exec is much faster than compose v1's.
declare -A container
inside() {
  local service=$1
  shift
  docker exec "${container[$service]}" "$@"
}
query() { inside client tidewire query --json "$1" 2>/dev/null; }
mongo() { inside mongo mongosh --quiet invoify --eval "$1" 2>/dev/null; }

build_image() {
  # An image and a profile of the proof's own; our engine has no default network to build in.
  printf 'services: {server: {image: tidewire:prove, build: {args: {PROFILE: %s}%s}}, seeder: {image: tidewire:prove}, client: {image: tidewire:prove}}\n' \
    "${PROFILE:-dev}" "$([[ $engine == ours ]] && echo ', network: host')" >"$work/override.yml"
  say "building the image (profile ${PROFILE:-dev}) with ${compose_program[*]}"
  if ! compose build server >"$work/build.log" 2>&1; then
    tail -n 30 "$work/build.log"
    fail 'the image does not build'
  fi
  # Named, so that pruning leaves the layer with the dependencies.
  [[ $engine == ours ]] && docker build --quiet --network host --build-arg "PROFILE=${PROFILE:-dev}" --target build \
    --tag tidewire:prove-build --file "$here/Dockerfile" "$top" >"$work/tag.log" 2>&1
  proven "the multi-stage image builds: $(docker image inspect --format '{{.Size}}' tidewire:prove | numfmt --to=iec)"
}

healthy() {
  local service
  for service in "$@"; do
    [[ $(docker inspect --format '{{.State.Health.Status}}' "${container[$service]}") == healthy ]] || return 1
  done
}

comes_up() {
  local service
  up=yes
  compose up -d --no-build >"$work/up.log" 2>&1 || { tail -n 20 "$work/up.log"; fail 'the stack does not come up'; }
  for service in mongo server seeder client; do
    container[$service]=$(compose ps -q "$service")
    [[ -n ${container[$service]} ]] || fail "there is no container of $service"
  done
  wait_until 60 'the stack is healthy' healthy mongo server client || fail 'the stack does not get healthy'
  proven 'mongo, server and client are healthy; the replica set initiated itself'
}

runs_without_root() {
  local service owners
  for service in "${!container[@]}"; do
    owners=$(docker top "${container[$service]}" -eo pid,uid | awk 'NR > 1 { print $2 }')
    [[ -n $owners ]] || fail "$service does not run"
    ! grep -qx 0 <<<"$owners" || fail "a process of $service runs as root"
  done
  proven 'no process of any container runs as root'
}

every_collection_has_rows() {
  local collection
  for collection in users plans enrollments invoices payments; do
    query "SELECT 'rows' AS found FROM $collection LIMIT 1" | grep -q rows || return 1
  done
}

replica_position() {
  query 'SELECT max(p) AS position FROM (SELECT max(_position) AS p FROM users UNION ALL SELECT max(_position) FROM enrollments UNION ALL SELECT max(_position) FROM invoices UNION ALL SELECT max(_position) FROM payments)' | grep -oE '[0-9a-f]{16}\.[0-9a-f]{8}'
}

replica_moved_past() {
  local now
  now=$(replica_position) && [[ $now > $1 ]]
}

# `replica_goes_on WHEN`: three times in a row something newer is there.
replica_goes_on() {
  local before round
  for round in 1 2 3; do
    before=$(replica_position) || before=
    wait_until 30 "the replica moves on $1 ($round of 3)" replica_moved_past "$before" \
      || fail "the seeder's writes do not reach the replica $1"
  done
  proven "the seeder's writes keep reaching the replica $1"
}

replica_says() { [[ $(query "SELECT json_extract(_doc, '\$.name') AS name FROM plans WHERE _id = 'proof'") == *"$1"* ]]; }
replica_says_nothing() { query "SELECT count(*) AS n FROM plans WHERE _id = 'proof'" | grep -qE '"n": *0|^\[*\[0'; }

follows_a_write() {
  mongo 'db.plans.insertOne({_id: "proof", name: "first"})' >/dev/null || fail 'MongoDB refuses a write'
  wait_until 20 'an insert is in the replica' replica_says first || fail 'an insert does not arrive'
  mongo 'db.plans.updateOne({_id: "proof"}, {$set: {name: "second"}})' >/dev/null
  wait_until 20 'an update is in the replica' replica_says second || fail 'an update does not arrive'
  mongo 'db.plans.deleteOne({_id: "proof"})' >/dev/null
  wait_until 20 'a delete is in the replica' replica_says_nothing || fail 'a delete does not arrive'
  proven 'an insert, an update and a delete made with mongosh arrive'
}

# Any program may open the file while the client writes. Where the volume is in a virtual machine it can't be reached.
opens_from_outside() {
  local folder
  folder=$(docker volume inspect --format '{{.Mountpoint}}' "${project}_replica")
  [[ -r $folder/replica.db ]] || { say "not tried: the replica's volume is not on this machine"; return; }
  python3 - "$folder/replica.db" <<'PYTHON' || fail 'another program cannot read the replica, or can write it'
import sqlite3, sys
replica = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
assert replica.execute("SELECT count(*) FROM invoices").fetchone()[0] > 0
try:
    sqlite3.connect(sys.argv[1]).execute("DELETE FROM invoices")
except sqlite3.Error as refused:
    assert "read-only" in str(refused), refused
else:
    sys.exit("a write was not refused")
PYTHON
  proven 'another program reads the live replica, and its write is refused'
}

answers_on_the_host() {
  local address
  address=$(compose port server 8787)
  [[ $address == 127.0.0.1:* ]] || fail "the server is published on $address, not on the loopback address"
  python3 - "$address" <<'PYTHON' || fail 'the published port does not answer as it should'
import sys, urllib.error, urllib.request
assert urllib.request.urlopen(f"http://{sys.argv[1]}/readyz", timeout=5).status == 200
try:
    urllib.request.urlopen(f"http://{sys.argv[1]}/api/sync/pull", timeout=5)
except urllib.error.HTTPError as refused:
    assert refused.code == 401, refused.code
else:
    sys.exit("a pull without a token was answered")
PYTHON
  proven "the server answers on the host's loopback address, and nobody without a token"
}

restarts() { docker inspect --format '{{.RestartCount}}' "${container[$1]}"; }
restarted() { (($(restarts "$1") > $2)); }

# kill -9 from inside is a crash to the engine; `docker kill` would be an operator's stop.
survives_a_kill() {
  local service=$1 before
  before=$(restarts "$service")
  inside "$service" bash -c 'kill -KILL $(cat /proc/1/task/1/children)' >/dev/null 2>&1
  wait_until 30 "the $service is started again" restarted "$service" "$before" || fail "a killed $service stays down"
  wait_until 60 "the $service is healthy again" healthy "$service" || fail "a killed $service does not recover"
  replica_goes_on "after kill -9 of the $service"
}

no_difference() { inside client tidewire-ops verify >"$work/verify.log" 2>&1; }

is_equal_in_the_end() {
  compose stop seeder >/dev/null 2>&1
  wait_until 60 'replica and source are equal' no_difference || { tail -n 20 "$work/verify.log"; fail 'the replica differs from the source'; }
  proven "no difference between replica and source: $(tail -n 1 "$work/verify.log")"
}

leaves_nothing() {
  local label=label=com.docker.compose.project=$project left
  compose down -v --timeout 15 >"$work/down.log" 2>&1 || { tail "$work/down.log"; fail 'down -v fails'; }
  left=$(docker ps -aq --filter "$label"; docker volume ls -q --filter "$label"; docker network ls -q --filter "$label")
  [[ -z $left ]] || fail "down -v leaves behind: $left"
  up=
  proven 'down -v leaves no container, no volume and no network'
}

find_engine
start_engine
get_base_images
build_image
images_done=$SECONDS
comes_up
runs_without_root
wait_until 60 'every collection has rows' every_collection_has_rows || fail 'the sample data does not reach the replica'
proven 'rows of all five collections are in the replica'
replica_goes_on 'live'
follows_a_write
opens_from_outside
answers_on_the_host
survives_a_kill server
survives_a_kill client
is_equal_in_the_end
leaves_nothing
printf '\nPROVEN: docker-compose.yml, with %s, in %d s (images %d s)\n' \
  "$("${compose_program[@]}" version --short 2>/dev/null || echo "${compose_program[*]}")" "$SECONDS" "$images_done"
