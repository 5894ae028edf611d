"""Progress of long work on a terminal: rate and remaining time, on stderr, and nothing anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOWN_AFTER_S = 0.5  # what is done sooner needs no bar


@contextmanager
def progress(label: str, total_nbytes: int, enabled: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A function to be told of every bytes done. ``enabled`` None: only if stderr is a terminal."""
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda nbytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    task = bar.add_task(label, total=total_nbytes)
    started, shown = time.monotonic(), False

    def advance(nbytes: int) -> None:
        nonlocal shown
        bar.advance(task, nbytes)
        if not shown and time.monotonic() - started > SHOWN_AFTER_S:
            shown = True
            bar.start()

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
