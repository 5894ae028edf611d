"""Text: names and sizes as people see them on a terminal."""


def shown(text: str) -> str:
    """``text`` with everything escaped that could move the cursor, hide or reorder characters, or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(nbytes: int) -> str:
    """``12 B``, ``43.3 MiB``."""
    if nbytes < 1024:
        return f"{nbytes} B"
    value, unit = nbytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB", "PiB", "EiB"):
        if value < 1023.95:  # what would be shown as 1024.0
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def ratio(stored: int, nbytes: int) -> str:
    """Stored size as a part of the size of the values; ``-`` if there are none."""
    return f"{100 * stored / nbytes:.1f} %" if nbytes else "-"


def count(n: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
