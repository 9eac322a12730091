# The second half of a lane's first process, in the root: runs the command, and says how it ended. See init.sh.
# shellcheck shell=sh disable=SC1091,SC2154

say() { printf '\npageferry-lane: %s\n' "$*" > /dev/ttyS0; }
halt() { say "$@"; while :; do sleep 1000; done; }

# lane, shell, rows, columns, output and output_disk; the last two may be empty.
. /lane/settings

export PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin
export HOME=/root LANG=C.UTF-8 PYTHONUNBUFFERED=1
# Of pytest's plugins only what the project's settings need: to look for the others, and to import them, takes as long as
# all the rest of its start.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTEST_PLUGINS=pytest_timeout
export PAGEFERRY_LANE="$lane" PAGEFERRY_REQUIRE_KVM=1
hostname "$lane"
ulimit -n 65536
ulimit -c 0

run_shell() {
    say ready
    # A terminal forgets its size when nobody has it open.
    export TERM=linux PS1="$lane:\\w# "
    setsid -c sh -c 'stty 115200 sane rows "$1" cols "$2"; exec sh /lane/command' sh "$rows" "$columns" \
        < /dev/ttyS1 > /dev/ttyS1 2>&1
    status=$?
}

# The command writes to a pipe: to a terminal it would speak otherwise, with colours and progress bars.
run_command() {
    stty -F /dev/ttyS1 115200 raw -echo
    mkfifo /lane/pipe
    cat < /lane/pipe > /dev/ttyS1 &
    cat=$!
    say ready
    setsid sh /lane/command < /dev/null > /lane/pipe 2>&1
    status=$?
    # What the command has left running in the background may hold the pipe open for ever.
    (sleep 3; kill $cat 2> /dev/null) &
    wait $cat 2> /dev/null
}

if [ "$shell" = yes ]; then run_shell; else run_command; fi

if [ -n "$output" ]; then
    tar -c -f "$output_disk" -C "$output" . 2> /lane/tar.log || halt "failed: output: $(tail -n 1 /lane/tar.log)"
    sync
fi
halt "exit $status"
