"""Invocations of busybox that do the same whenever they are run: argv, standard input, files.

None needs a process of its own: no pipes in `sh`, no `$(...)`, nothing that decompresses in another
process. None prints the time, its directory, or what depends on the order of a directory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Mapping

from linux_case import Case

WORDS = b"the quick brown fox jumps over the lazy dog and the cat\n"
LINES = b"pear 5\napple 12\nfig 7\napple 3\nbanana 12\ncherry 1\nfig 7\n"
TABLE = b"name,city,age\nAda,London,36\nLinus,Helsinki,21\nGrace,New York,85\nKen,,40\n"
TABBED = b"a\tb\tc\n1\t22\t333\n\tx\t\ty\n"
NUMBERS = b"".join(b"%d\n" % (n * n % 1009) for n in range(1500))
BINARY = bytes(n * 7 & 0xFF for n in range(5000)) + b"hidden text here\0" + bytes(100)
TEXT = (
    b"It was the best of times, it was the worst of times,\n"
    b"it was the age of wisdom, it was the age of foolishness,\n"
    b"\n"
    b"it was the epoch of belief, it was the epoch of incredulity,\n"
    b"it was the season of Light, it was the season of Darkness.\n"
) * 3
CHANGED = TEXT.replace(b"best", b"finest", 1).replace(b"Light", b"light") + b"The end.\n"
PATCH = b"--- /dev/null\n+++ out/patched\n@@ -0,0 +1,2 @@\n+the slow brown fox\n+sleeps\n"
PROGRAM = b"""\
BEGIN { FS = "," }
NR > 1 { sum += $3; ages[$1] = $3; n++ }
END {
    printf "%d people, mean %.2f\\n", n, sum / n
    print length("text"), substr("substring", 4, 3), index("haystack", "st"), toupper("up")
    print match("foo123", /[0-9]+/), RSTART, RLENGTH, split("a:b:c", parts, ":"), parts[3]
    s = "aaa"; print gsub(/a/, "b", s), s
    print sprintf("%x|%5.1f|%-4s|", 255, 3.14159, "ab"), int(7.9), 17 % 5
    print ("Ada" in ages), ("Bob" in ages), -3 % 2, 1e6, 0.1 + 0.2
    while ((getline line < "in/words") > 0) print "read:", line
    print "to a file" > "out/awk"; close("out/awk")
    for (i = 1; i <= 3; i++) { if (i == 2) continue; printf "%d ", fib(i * 7) }
    print ""
}
function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2) }
"""
SED = b"""\
1!G
h
$!d
"""


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (("dir/words", WORDS), ("dir/numbers", NUMBERS), ("lines", LINES)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 1000000000
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def _zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("words", WORDS), ("text", TEXT)):
            archive.writestr(zipfile.ZipInfo(name, (2001, 9, 9, 1, 46, 40)), data)
    return made.getvalue()


def _ar() -> bytes:
    made = b"!<arch>\n"
    for name, data in (("words/", WORDS), ("lines/", LINES)):
        header = f"{name:16}{1000000000:<12}{0:<6}{0:<6}{0o644:<8o}{len(data):<10}`\n"
        made += header.encode() + data + b"\n" * (len(data) % 2)
    return made


FILES: Mapping[str, bytes] = {
    "words": WORDS,
    "lines": LINES,
    "table": TABLE,
    "tabbed": TABBED,
    "numbers": NUMBERS,
    "binary": BINARY,
    "text": TEXT,
    "changed": CHANGED,
    "patch": PATCH,
    "program.awk": PROGRAM,
    "script.sed": SED,
    "archive.tar": _tar(),
    "archive.zip": _zip(),
    "archive.ar": _ar(),
    "text.gz": gzip.compress(TEXT, mtime=0),
    "text.bz2": bz2.compress(TEXT),
    "text.xz": lzma.compress(TEXT, check=lzma.CHECK_CRC32),
    "text.lzma": lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
}

_made: list[Case] = []


def _case(*argv: str, stdin: bytes = b"", code: int = 0, name: str = "") -> None:
    """Add an invocation: of the files, those that it names."""
    files = {file: data for file, data in FILES.items() if any(f"in/{file}" in a for a in argv)}
    _made.append(Case(name or " ".join(argv), ("busybox", *argv), stdin, files, code=code))


def _shell(name: str, script: str, *arguments: str, stdin: bytes = b"", code: int = 0) -> None:
    """Add a script for `sh -c`."""
    files = {file: data for file, data in FILES.items() if f"in/{file}" in script}
    argv = ("busybox", "sh", "-c", script, "sh", *arguments)
    _made.append(Case(f"sh: {name}", argv, stdin, files, code=code))


# ---- Text ----

_case("cat", "in/words", "-", "in/lines", stdin=b"standard input\n")
_case("cat", "-n", "in/text")
_case("cat", "-A", "in/tabbed")
_case("cat", "in/none", "in/words", code=1)
_case("head", "-n", "3", "in/text")
_case("head", "-c", "20", "in/words")
_case("tail", "-n", "4", "in/text")
_case("tail", "-c", "+20", "in/words")
_case("wc", "in/text", "in/words", "in/numbers")
_case("wc", "-L", "in/text")
_case("sort", "in/lines")
_case("sort", "-n", "in/numbers")
_case("sort", "-k2,2n", "-k1,1r", "in/lines")
_case("sort", "-t,", "-k3", "-n", "-r", "in/table")
_case("sort", "-u", "-o", "out/sorted", "in/lines")
_case("sort", "-c", "in/lines", code=1)
_case("uniq", "-c", stdin=b"a\na\nb\na\nc\nc\nc\n")
_case("uniq", "-d", stdin=b"a\na\nb\na\nc\nc\nc\n")
_case("cut", "-d,", "-f1,3", "in/table")
_case("cut", "-c5-9", "in/words")
_case("tr", "a-z", "A-Z", stdin=WORDS)
_case("tr", "-d", "aeiou", stdin=WORDS)
_case("tr", "-s", "[:space:]", "\n", stdin=b"many   spaces\t\there\n")
_case("tr", "-cd", "[:alnum:]", stdin=BINARY)
_case("paste", "-d:", "in/lines", "in/table")
_case("paste", "-s", "in/lines")
_case("fold", "-w", "20", "-s", "in/text")
_case("nl", "in/text")
_case("rev", "in/words")
_case("tac", "in/lines")
_case("expand", "-t", "4", "in/tabbed")
_case("unexpand", "-a", stdin=b"        eight\n    four\n")
_case("grep", "-n", "was", "in/text")
_case("grep", "-c", "-i", "LIGHT", "in/text")
_case("grep", "-v", "-e", "age", "-e", "epoch", "in/text")
_case("grep", "-o", "-E", "[a-z]+ing|o[a-z]", "in/text", "in/words")
_case("grep", "-q", "absent", "in/text", code=1)
_case("grep", "-w", "-A1", "-B1", "wisdom", "in/text")
_case("egrep", "^(it|It) was .*,$", "in/text")
_case("fgrep", "-x", "fig 7", "in/lines")
_case("sed", "s/was/is/g;s/\\(best\\|worst\\)/<\\1>/", "in/text")
_case("sed", "-n", "2,4p;$=", "in/text")
_case("sed", "-e", "/^$/d", "-e", "y/abc/xyz/", "in/text")
_case("sed", "-E", "s/([a-z]+) ([a-z]+)/\\2 \\1/2", "in/words")
_case("sed", "-f", "in/script.sed", "in/lines")
_case("sed", "/age/{s//AGE/;w out/ages\nn;d};i\\\nbefore", "in/text")
_case("awk", "-f", "in/program.awk", "in/table", "in/words")
_case("awk", '{ n[$1] += $2 } END { print n["apple"], n["fig"], NR }', "in/lines")
_case("awk", "-F,", "-v", "OFS=|", "{ $1 = $1; print NF, $0 }", "in/table")
_case("awk", 'length > 55 { print FNR ": " $NF } /Dark/, /best/ { print }', "in/text")
_case("diff", "-L", "a", "-L", "b", "-u", "in/text", "in/changed", code=1)
_case("diff", "in/words", "in/words")
_case("diff", "-q", "in/words", "in/lines", code=1)
_case("cmp", "in/text", "in/changed", code=1)
_case("cmp", "-l", "in/words", "in/lines", code=1)
_case("ed", "in/lines", stdin=b",p\n2,3d\n1i\nnew\n.\n2s/pear/PEAR/\n2p\nw out/edited\nq\n")
_case("strings", "-n", "6", "in/binary")
_case("dos2unix", stdin=b"one\r\ntwo\r\n")
_case("unix2dos", stdin=b"one\ntwo\n")
_case("more", "in/lines")

# ---- Digests and encodings ----

for _digest in ("md5sum", "sha1sum", "sha256sum", "sha512sum", "sha3sum", "crc32"):
    _case(_digest, "in/binary", "in/words")
_case("sha256sum", "-c", stdin=b"0" * 64 + b"  in/words\n", code=1, name="sha256sum -c")
_case("base64", "in/binary")
_case("base64", "-d", stdin=b"aGVsbG8gd29ybGQK\n")
_case("uuencode", "words", stdin=WORDS)
_case("uudecode", "-o", "-", stdin=b"begin 644 x\n%:&5L;&\\\n`\nend\n")
_case("od", "-A", "x", "-t", "x1", "in/binary")
_case("od", "-c", "in/tabbed")
_case("hexdump", "-C", "in/binary")
_case("xxd", "-l", "64", "in/binary")
_case("xxd", "-r", "-p", stdin=b"68656c6c6f0a\n")
_case("mkpasswd", "-m", "sha256", "-S", "saltsalt", "password")

# ---- Archives ----

_case("gzip", "-c", "in/text")
_case("gunzip", "-c", "in/text.gz")
_case("zcat", "in/text.gz", code=1, name="zcat, which wants a process of its own")
_case("gzip", "-t", "in/words", code=1)
_case("bzip2", "-c", "in/text")
_case("bzcat", "in/text.bz2")
_case("xzcat", "in/text.xz")
_case("unxz", "-c", "in/text.xz")
_case("lzcat", "in/text.lzma")
_case("tar", "-tf", "in/archive.tar")
_case("tar", "-xf", "in/archive.tar", "-C", "out")
_case("tar", "-xOf", "in/archive.tar", "dir/words")
_case("unzip", "-p", "in/archive.zip", "text")
_case("unzip", "-q", "in/archive.zip", "-d", "out")
_case("ar", "-t", "in/archive.ar")
_case("ar", "-p", "in/archive.ar", "lines")

# ---- Calculation ----

_case(
    "bc",
    stdin=b"scale=30; 1/7; 2^200; sqrt(2)\ndefine f(n){if(n<2)return 1;return n*f(n-1)}\nf(30)\n",
)
_case("bc", "-l", stdin=b"e(1); l(10); s(0.5); obase=16; 255*255; ibase=2; 1010\n")
_case("dc", "-e", "20k 2v p 3 5^p 10 3 ~ f")
_case("expr", "6", "*", "(", "3", "+", "4", ")")
_case("expr", "string", ":", "\\(...\\)")
_case("expr", "1", "-", "1", code=1)
_case("factor", "1234567890", "97", "600851475143")
_case("seq", "-w", "5", "5", "50")
_case("seq", "1", "0.25", "2")
_case("cal", "9", "1752")
_case("date", "-u", "-d", "@1000000000", "+%Y-%m-%dT%H:%M:%S %j %a")
_case("ipcalc", "-n", "-b", "-m", "192.168.5.77/20")
_case("printf", "%05d|%-6s|%x|%o|%c|%.3f|%b\\n", "42", "ab", "255", "8", "z", "2.5", "t\\tb")
_case("ascii")

# ---- Files ----

_case("ls", "-1", "in/words", "in/text", "in/lines")
_case("ls", "in/none", code=1)
_case("stat", "-c", "%n %s %F", "in/words", "in/binary")
_case("find", "in/words", "-type", "f", "-size", "-10", "-name", "w*")
_case("cp", "in/binary", "out/copy")
_case("dd", "if=in/binary", "of=out/part", "bs=100", "skip=3", "count=7", "status=none")
_case("tee", "out/one", "out/two", stdin=WORDS)
_case("truncate", "-s", "10000", "out/sparse")
_case("mkdir", "-p", "out/a/b/c")
_case("touch", "-d", "@1000000000", "out/touched")
_case("patch", "-p0", "-i", "in/patch")
_case("readlink", "-f", "/dev/null")
_case("basename", "/usr/lib/name.suffix", ".suffix")
_case("dirname", "/usr/lib/name")
_case("rm", "-rf", "out/none")
_case("rmdir", "out/none", code=1)
_case("test", "in/words", "-ef", "in/words")
_case("[", "abc", "=", "abd", "]", code=1)
_case("env", "-i", "A=1", "B=2")
_case("getopt", "-o", "ab:c", "--", "-a", "-b", "value", "rest", "-c")
_case("echo", "-n", "-e", "one\\ttwo\\x41\\c three")
_case("true")
_case("false", code=1)
_case("tty", code=1, stdin=b"")
_case("sleep", "0.01")
_case("no_such_applet", code=127)

# ---- The shell, with what is built into it ----

_shell(
    "arithmetic",
    """
    x=7
    echo $((x * 6)) $((x / 2)) $((x % 4)) $((x << 3 | 1)) $((0x1f ^ 017))
    echo $((x > 3 ? 1 : 2)) $((x += 5)) $x $((-x)) $((~x))
    """,
)
_shell(
    "parameters",
    """
    p=/usr/lib/name.tar.gz
    echo "${p##*/} ${p%.*} ${p%%.*} ${#p} ${none:-default} ${p:5:3} ${p/name/other}"
    echo "$# $1 $2 ${3}"
    set -- a "b c"
    for w in "$@"; do echo "<$w>"; done
    """,
    *("first", "second one", "third"),
)
_shell(
    "loops",
    """
    i=0
    while [ $i -lt 1000 ]; do
        i=$((i + 1))
        case $i in *00) echo $i;; 5??) continue;; esac
    done
    until false; do break; done
    for a in 1 2 3; do for b in x y; do echo $a$b; done; done
    """,
)
_shell(
    "functions",
    """
    fact() {
        local n=$1
        [ $n -le 1 ] && { r=1; return; }
        fact $((n - 1))
        r=$((r * n))
    }
    fact 15; echo $r
    f() { return 3; }
    f || echo status $?
    type fact
    unset -f f; f 2> /dev/null; echo $?
    """,
)
_shell(
    "files",
    """
    while read -r a b; do echo "$b-$a"; done < in/lines
    echo new > out/new; echo more >> out/new
    read line < out/new; echo $line
    exec 3> out/three; echo three >&3; exec 3>&-
    echo gone >&3
    """,
    code=1,
)
_shell(
    "standard input",
    'while IFS=: read -r a b; do printf "%s=%s\\n" "$b" "$a"; done',
    stdin=b"k:v\nname:value\nlast:one",
)
_shell(
    "here-document",
    'x=value; while read l; do echo "[$l]"; done <<END\nwith $x and $((1 + 1))\n\tsecond\nEND',
)
_shell("traps and exit", "trap 'echo bye $?' EXIT; echo hi; exit 9", code=9)
_shell(
    "quoting",
    r"""
    echo 'single $x' "double \$ \" " plain\ space $'\t|\x41'
    eval 'y=5; echo $y'
    echo "a  b" a  b
    """,
)
_shell(
    "globs",
    """
    cd in
    echo w* l??es [t]e*t none*
    case words in w*s) echo matches;; esac
    : in/words in/lines in/text
    """,
)
_shell("options", "set -e; false || echo kept; set -u; echo ${x-unset}; echo $x; echo no", code=2)
_shell(
    "getopts",
    """
    while getopts "ab:c" o; do echo "$o ${OPTARG-}"; done
    shift $((OPTIND - 1))
    echo "$*"
    """,
    *("-a", "-b", "v", "-c", "rest"),
)
_shell(
    "tests",
    """
    [ -f in/words ] && [ ! -e in/none ] && [ -d in ] && [ -s in/words ] && echo yes
    test 5 -gt 10 || echo no
    [[ abc = a* ]] && echo pattern
    """,
)
_shell(
    "printf, umask and what is read-only",
    """
    printf "%s %03d %x\\n" a 5 255 b 6 16
    command -v echo
    umask 022; umask
    export E=1
    readonly R=2; R=3
    """,
    code=2,
)
_shell("a command that is not there", "no_such_command; echo $?")
_shell("a syntax error", "if then", code=2)
_shell(
    "a long loop",
    "i=0; s=0; while [ $i -lt 20000 ]; do i=$((i + 1)); s=$((s + i * i)); done; echo $s",
)

CASES = tuple(_made)
