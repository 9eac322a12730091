"""Text that a guest, or an image's author, has chosen, made fit to be shown.

All of it goes through here: names, symbols, files, logs, panics. What is printable steers no
terminal, begins no line of its own and reads in the order in which it is written.
"""

from __future__ import annotations

_MARK = "\N{REPLACEMENT CHARACTER}"


def printable(text: str, most: int | None = None) -> str:
    """Replace what could steer a terminal, start a line or turn the direction of reading.

    most    characters that are kept; what is cut off leaves an ellipsis
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else _MARK for c in text)


def decoded(raw: bytes, most: int | None = None) -> str:
    """Return bytes that may be UTF-8 as printable text."""
    return printable(raw.decode(errors="replace"), most)


def lines(raw: bytes) -> list[str]:
    """Return the lines of a text that a guest has logged, each printable."""
    return [printable(line) for line in raw.decode(errors="replace").splitlines()]
