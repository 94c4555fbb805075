# shellcheck shell=sh
# What scripts/demo and scripts/test share: installing what a bare machine lacks. Sourced, never run.
# Needs: $repo, the checkout, and $work, a folder for temporary files.

: "${repo:?}" "${work:?}"
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/train-classifier
uv_version=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' "$repo/scripts/requirements-uv.lock")

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '%s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 3
}

# Run a command as root: directly, or by sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for: $*. Run it as root, or install sudo."
    fi
}

# Install Debian packages that are missing.
need_packages() {
    missing=
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "these packages are missing, and there is no apt-get to install them:$missing"
    say "Installing$missing"
    # shellcheck disable=SC2086  # one word a package
    as_root env DEBIAN_FRONTEND=noninteractive sh -ec '
        apt-get -o Acquire::Retries=5 update -q
        apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=5 install -y -q --no-install-recommends "$@"
    ' sh $missing >"$work/apt.log" 2>&1 || {
        tail -n 20 "$work/apt.log" >&2
        die "could not install$missing"
    }
}

# The CA bundle that this machine uses beyond its distribution's; empty when there is none.
ca_bundle() {
    for file in "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" "${CURL_CA_BUNDLE:-}"; do
        if [ -n "$file" ] && [ -s "$file" ]; then
            echo "$file"
            return
        fi
    done
    if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
        echo /etc/ssl/certs/ca-certificates.crt
    fi
}

# Find uv, or fetch it from the Python index into the cache; sets $uv. Makes our tools trust the machine's CA bundle.
need_uv() {
    bundle=$(ca_bundle)
    if [ -n "$bundle" ]; then
        export SSL_CERT_FILE="$bundle" PIP_CERT="$bundle" REQUESTS_CA_BUNDLE="$bundle"
    fi
    [ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
    [ -z "${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"
    export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
    if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
        uv=uv
        return
    fi
    uv=$cache/uv-$uv_version/bin/uv
    [ ! -x "$uv" ] || return 0
    need_packages python3-venv ca-certificates
    say "Fetching uv $uv_version"
    rm -rf "$cache/uv-$uv_version.new"
    python3 -m venv "$cache/uv-$uv_version.new" || die "could not make a Python environment in $cache"
    "$cache/uv-$uv_version.new/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        --require-hashes -r "$repo/scripts/requirements-uv.lock" || die "could not fetch uv: is the Python index reachable? Look at PIP_INDEX_URL and HTTPS_PROXY."
    rm -rf "$cache/uv-$uv_version"
    mv "$cache/uv-$uv_version.new" "$cache/uv-$uv_version"
    # The move breaks the environment's own scripts; the binary is all we use.
}

# Make a Python environment from a lock file and install this checkout into it; sets $venv.
# Arguments: the lock file. It lies in .venv, or in the cache when the checkout cannot be written.
need_environment() {
    lock=$repo/$1
    if [ -w "$repo" ]; then
        venv=$repo/.venv
    else
        venv=$cache/venv-$(printf %s "$repo" | sha256sum | cut -c1-12)
    fi
    stamp=$(cat "$lock" "$repo/pyproject.toml" | sha256sum | cut -c1-16)
    # An environment with more packages than this lock is used, too.
    if grep -qs "$stamp" "$venv/train-classifier.stamp"; then
        return
    fi
    say "Installing Python packages into $venv"
    if [ ! -x "$venv/bin/python" ]; then
        "$uv" venv --quiet --python '>=3.11' "$venv" || die "no Python 3.11 or newer found"
    fi
    "$uv" pip install --quiet --python "$venv/bin/python" --require-hashes --only-binary :all: -r "$lock" ||
        die "could not install $1: is the Python index reachable? Look at PIP_INDEX_URL and HTTPS_PROXY."
    # The build tools are locked, too.
    "$uv" pip install --quiet --python "$venv/bin/python" --build-constraints "$repo/scripts/requirements-build.lock" \
        --no-deps --editable "$repo" || die "could not install $repo"
    echo "$stamp" >>"$venv/train-classifier.stamp"
}

# Start an engine that is installed and does not run.
start_engine() {
    docker version >/dev/null 2>&1 && return
    command -v dockerd >/dev/null || return 0
    say "Starting the Docker engine"
    if [ -d /run/systemd/system ]; then
        as_root systemctl start docker >&2
    else
        as_root "$repo/roles/docker_engine/files/engine-without-systemd" start >&2
    fi || die "the Docker engine does not start: journalctl -u docker, or /var/log/docker.log, has the reason"
}
