# Sourced by scripts/demo, scripts/test and .ci/run: the project's virtual environment.
#
#   ensure_venv base|dev    sets $root (the checkout) and $venv (its .venv), with the project
#                           installed in place; "dev" adds what the tests and checks need.
#
# The environment is made on first use and brought up to date when what it was made from has
# changed. Nothing is written to standard output, and pip is heard only when it fails.
# shellcheck shell=bash

root=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/.pageferry

# Another active environment, or settings meant for it, are none of our business.
unset VIRTUAL_ENV PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

fail() {
    printf 'pageferry: %s\n' "$*" >&2
    exit 1
}

# What the installation depends on: the guests are compiled into it, and it knows its own place.
fingerprint() {
    (
        cd -- "$root"
        pwd
        find pyproject.toml scripts/hatch_build.py scripts/venv.sh scripts/bench vmm/guest/{build,builds,compiler,inputs}.py guests \
            -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -d ' ' -f 1
}

# up_to_date PROFILE FINGERPRINT: the stamp holds "PROFILE FINGERPRINT"; dev includes base.
up_to_date() {
    local profile='' print=''
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ -d "$root/vmm/_guests/bin" ] || return 1
    read -r profile print < "$stamp" || return 1
    [ "$print" = "$2" ] && [[ $profile = "$1" || $profile = dev ]]
}

# The first Python that is new enough and can make virtual environments. Each is run, not just
# looked up: a version manager has a stand-in on PATH for every version it has ever heard of.
find_python() {
    local name found='' candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
    for name in ${PAGEFERRY_PYTHON:+"$PAGEFERRY_PYTHON"} "${candidates[@]}"; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || continue
        found=$name
        if "$name" -c 'import ensurepip, venv' 2> /dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    [ -z "$found" ] || fail "$found has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"
    fail "Python 3.11 or newer is needed: install it (Debian 12, Ubuntu 24.04: apt install python3 python3-venv)"
}

# quietly COMMAND...: its output is shown only when it fails.
quietly() {
    local status=0
    [ -n "${announced-}" ] || printf 'pageferry: preparing %s (once; a minute or so)\n' "$venv" >&2
    announced=yes
    "$@" > "$venv/.pageferry.log" 2>&1 || status=$?
    [ "$status" -eq 0 ] || cat -- "$venv/.pageferry.log" >&2
    return "$status"
}

# make_venv: an environment in $venv that has a pip. One of ours that was interrupted is made
# anew, since pip takes half a package for a whole one; one that is not ours is used as it is.
make_venv() {
    local state='' python
    [ ! -f "$stamp" ] || read -r state _ < "$stamp" || true
    if [ "$state" != unfinished ] && "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
        return
    fi
    python=$(find_python)
    if [ -n "$state" ]; then rm -rf -- "$venv"; fi
    [ ! -e "$venv" ] || fail "$venv has no working pip: remove it, and one will be made"
    mkdir -- "$venv"
    echo unfinished > "$stamp"
    quietly "$python" -m venv "$venv" || fail "could not make $venv; the reason is above"
}

# install PROFILE FINGERPRINT. While it works the stamp of an environment of ours says so.
install() {
    local profile=$1 old='' options=(--disable-pip-version-check --no-input) status=0
    trap 'exit 130' INT TERM
    make_venv
    [ ! -f "$stamp" ] || read -r old _ < "$stamp" || true
    if [ "$old" = dev ]; then profile=dev; fi
    # What builds is among what tests: with it in place, a build needs no environment of its own.
    if "$venv/bin/python" -c 'import editables, hatchling, ziglang' 2> /dev/null; then
        options+=(--no-build-isolation)
    fi
    if [ "$profile" = dev ]; then options+=(--editable "$root[dev]"); else options+=(--editable "$root"); fi
    if [ -f "$stamp" ]; then echo unfinished > "$stamp"; fi
    quietly "$venv/bin/python" -m pip install "${options[@]}" || status=$?
    if [ "$status" -eq 0 ]; then
        printf '%s %s\n' "$profile" "$2" > "$stamp.new"
        mv -- "$stamp.new" "$stamp"
    elif [ "$status" -lt 128 ] && [ -f "$stamp" ]; then
        # A guest that does not compile, say: pip has left the environment as it was.
        printf '%s failed\n' "$profile" > "$stamp"
    fi
    [ "$status" -eq 0 ] || fail "could not be installed in $venv; the reason is above"
}

ensure_venv() {
    local print
    print=$(fingerprint)
    if up_to_date "$1" "$print"; then return; fi
    (
        # One at a time; who waited finds the work done. The lock goes with this subshell.
        if command -v flock > /dev/null; then flock 9; fi
        if up_to_date "$1" "$print"; then exit 0; fi
        install "$1" "$print"
    ) 9> "$root/.venv.lock"
}
