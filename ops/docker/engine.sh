# shellcheck shell=bash disable=SC2034,SC2154
# For prove.sh: finds a Docker engine, or starts one of its own and makes the base images, which it can't pull.
# Sets `engine` (theirs | ours), exports DOCKER_HOST for ours. Our engine keeps its images in the user's cache,
# so that the second proof is quick; its containers, networks, sockets and processes do not outlive the script.

store=${XDG_CACHE_HOME:-$HOME/.cache}/tidewire/docker
# The Debian package of each program that an engine of our own needs. Only what is missing is installed: a node or
# a docker from elsewhere can't be together with Debian's.
declare -A package_of=([dockerd]=docker.io [docker]=docker.io [docker-compose]=docker-compose [debootstrap]=debootstrap
  [iptables]=iptables [ip]=iproute2 [node]=nodejs [npm]=npm)

skip() {
  printf '\nSKIPPED: docker-compose.yml was not proven: %s\n' "$*"
  exit 77
}

# The compose program: the plug-in (v2) where there is one, else docker-compose (v1 or v2). COMPOSE overrides it.
find_compose() {
  if [[ -n ${COMPOSE:-} ]]; then
    read -ra compose_program <<<"$COMPOSE"
  elif docker compose version >/dev/null 2>&1; then
    compose_program=(docker compose)
  elif command -v docker-compose >/dev/null; then
    compose_program=(docker-compose)
  else
    return 1
  fi
}

find_engine() {
  if command -v docker >/dev/null && docker version >/dev/null 2>&1; then
    find_compose || skip 'an engine runs, but neither "docker compose" nor "docker-compose" is installed'
    engine=theirs
    return
  fi
  [[ $(uname -sm) == 'Linux x86_64' ]] || skip 'no engine runs; start Docker and try again'
  [[ $(id -u) == 0 ]] || skip 'no engine runs, and only root can start one'
  install_packages
  engine=ours
}

install_packages() {
  local missing=() program
  for program in dockerd docker debootstrap iptables ip node npm; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  find_compose || missing+=(docker-compose)
  [[ ${#missing[@]} == 0 ]] && return
  command -v apt-get >/dev/null || skip "no engine runs, and one can't be started without: ${missing[*]}"
  [[ $install == yes ]] || skip "no engine runs, and one can't be started without: ${missing[*]}; --install gets them"
  say "installing what is missing: ${missing[*]}"
  local packages=()
  for program in "${missing[@]}"; do
    packages+=("${package_of[$program]}")
  done
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${packages[@]}"; } \
    >"$work/apt.log" 2>&1 || skip "the packages can't be installed: $(tail -n 1 "$work/apt.log")"
  find_compose || skip 'no compose program'
}

start_engine() {
  [[ $engine == ours ]] || return 0
  mkdir -p "$store"
  exec 9>"$store/lock"
  flock --wait 60 9 || fail 'another proof has been using the engine for a minute'
  stop_leftover
  export DOCKER_HOST=unix://$work/docker.sock DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
  # No packet filter and no default bridge: containers reach each other inside their own networks, builds use the
  # host's network, and nothing of this machine's network set-up is changed.
  setsid dockerd --host "$DOCKER_HOST" --data-root "$store/engine" --exec-root "$work/exec" --pidfile "$store/pid" \
    --bridge=none --iptables=false --ip-forward=false --ip-masq=false >"$work/dockerd.log" 2>&1 9>&- &
  engine_pid=$!
  wait_until 30 'the engine answers' engine_answers || skip "no engine can be started here: $(tail -n 1 "$work/dockerd.log")"
}

engine_answers() {
  kill -0 "$engine_pid" 2>/dev/null || return 1
  docker version >/dev/null 2>&1
}

# An engine that a killed proof left behind: ours by its data folder, not by its name.
stop_leftover() {
  local pid
  pid=$(cat "$store/pid" 2>/dev/null) || return 0
  if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "--data-root $store/engine "; then
    kill "$pid" && wait_until 30 'the engine left behind by an earlier proof ends' gone "$pid"
  fi
  rm -f "$store/pid"
}

gone() { ! kill -0 "$1" 2>/dev/null; }

stop_engine() {
  [[ -n ${engine_pid:-} ]] || return 0
  # Older versions of the images go; the newest layers stay for the next proof.
  docker image prune --force >/dev/null 2>&1
  kill "$engine_pid" 2>/dev/null
  wait_until 30 'the engine ends' gone "$engine_pid" || kill -KILL "$engine_pid"
  # The engine leaves the host network's namespace mounted.
  umount "$work"/exec/netns/* 2>/dev/null
  engine_pid=
}

# --- Base images. Only ever in our own engine: nobody else's `mongo:…` is replaced by a stand-in.

get_base_images() {
  local rust mongo image version
  rust=$(sed -n 's/^FROM \(rust:[^ ]*\).*/\1/p' "$here/Dockerfile" | head -n 1)
  mongo=$(sed -n 's/^ *image: \(mongo:[^ ]*\).*/\1/p' "$top/docker-compose.yml")
  if [[ $engine == theirs ]]; then
    for image in debian:bookworm-slim "$rust" "$mongo"; do
      docker image inspect "$image" >/dev/null 2>&1 || docker pull "$image" || skip "the engine that runs can't pull $image"
    done
    return
  fi
  have debian:bookworm-slim bookworm || make_debian
  # Whatever changes the compiled dependencies makes another head start worth its time.
  version=$(cat <(rustc --version) "$top/Cargo.lock" "$top"/Cargo.toml "$top"/*/Cargo.toml | sha256sum | cut -c 1-16)
  have "$rust" "$version" || make_rust "$rust" "$version"
  have "$mongo" stand-in || make_mongo "$mongo"
}

# `have IMAGE VERSION`: the stand-in is there and was made of this version.
have() {
  [[ $(docker image inspect --format '{{index .Config.Labels "tidewire.stand-in"}}' "$1" 2>/dev/null) == "$2" ]]
}

make_debian() {
  say 'making debian:bookworm-slim'
  debootstrap --variant=minbase bookworm "$work/debian" >"$work/debootstrap.log" 2>&1 \
    || skip "debootstrap can't reach Debian's packages: $(tail -n 1 "$work/debootstrap.log")"
  # What this machine trusts and tolerates in a package archive, its images do.
  apt-config dump | grep '^Acquire::Check' >"$work/debian/etc/apt/apt.conf.d/90host" || true
  tar --directory "$work/debian" --create . \
    | docker import --change 'LABEL tidewire.stand-in=bookworm' - debian:bookworm-slim >/dev/null
  rm -rf "$work/debian"
}

# The official image plus a head start: the dependencies as this machine has compiled them, where the Dockerfile's
# build looks for them, so that the proof compiles our own code only. Cargo takes what is not right for it anew.
make_rust() {
  say "making $1 of this machine's toolchain and compiled dependencies"
  local context=$work/rust sysroot cargo=${CARGO_HOME:-$HOME/.cargo}
  sysroot=$(rustc --print sysroot)
  mkdir -p "$context/toolchain" "$context/cargo/registry" "$context/target/debug"
  cp -a "$sysroot/bin" "$sysroot/lib" "$context/toolchain/"
  cp -L /etc/ssl/certs/ca-certificates.crt "$context/"
  copy_dependencies "$cargo/registry" "$context/cargo/registry" "$context/target/debug"
  stand_in "$1" rust "$2" "$context" --build-arg "CARGO_HOME=$cargo"
}

# `copy_dependencies REGISTRY TO_REGISTRY TO_TARGET`: the sources and the artifacts that Cargo.lock names, no others.
copy_dependencies() {
  local target=${CARGO_TARGET_DIR:-$top/target}/debug package
  (cd "$top" && cargo build --locked --workspace --bins --message-format json) 2>"$work/cargo.log" >"$work/artifacts" \
    || { tail -n 20 "$work/cargo.log"; fail 'the programs do not compile'; }
  # Not in what Debian of another release has linked: the image's build could not load it.
  grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release || return 0
  cp -a "$1/index" "$2/"
  sed -n '/^name = /{s/name = "\(.*\)"/\1/;N;s/\n.*"\(.*\)"/-\1/;p}' "$top/Cargo.lock" | while read -r package; do
    (cd "$1" && find src cache -mindepth 2 -maxdepth 2 \( -name "$package" -o -name "$package.crate" \) -print0)
  done | tar --directory "$1" --null --files-from - --create | tar --directory "$2" --extract
  # An artifact and its fingerprint carry the same 16 digits in their names.
  grep -v '"package_id":"path+file' "$work/artifacts" | grep -oE -- '-[0-9a-f]{16}\b' | sort -u >"$work/hashes"
  (cd "$target" && find deps build .fingerprint -mindepth 1 -maxdepth 1) | grep -F -f "$work/hashes" \
    | tar --directory "$target" --files-from - --create | tar --directory "$3" --extract
}

make_mongo() {
  say "making $1 of the development mongod and mongosh"
  local context=$work/mongo mongod
  mkdir -p "$context/mongosh"
  mongod=${MONGOD:-$(cd "$top" && cargo run --quiet --package tidewire-ops -- mongod fetch)} || skip 'no mongod can be had'
  cp -L "$mongod" "$context/mongod"
  cp -L "$(command -v node)" "$context/node"
  npm install --silent --no-audit --no-fund --prefix "$context/mongosh" mongosh@2 >"$work/npm.log" 2>&1 \
    || skip "mongosh can't be installed: $(tail -n 1 "$work/npm.log")"
  stand_in "$1" mongo stand-in "$context"
}

# `stand_in IMAGE FILE VERSION CONTEXT [OPTION…]`
stand_in() {
  local image=$1 file=$2 version=$3 context=$4
  shift 4
  docker build --network host --tag "$image" --label "tidewire.stand-in=$version" "$@" \
    --file "$here/stand-ins/$file.Dockerfile" "$context" >"$work/$file.log" 2>&1 \
    || { tail -n 20 "$work/$file.log"; fail "the stand-in for $image can't be made"; }
  rm -rf "$context"
}
