"""The command ``mzstore``. What a command does is in the module of its name; here are options, output, exit status.

Modules are imported by the command that needs them, so that ``--help`` comes at once.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NoReturn

import typer

from mzstore.text import count, ratio, shown, size

FAILED, DIFFERENT, TROUBLE, INTERRUPTED, BROKEN_PIPE = 1, 1, 2, 130, 141

# Plain help and plain errors: Typer's own boxes wrap names, and its tracebacks show the values of variables.
app = typer.Typer(
    help="A compressed store for model weights, open by tensor and by slice.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; one for each processor if not given.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and no line at the end.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="An archive or a tree: a path, or a URL of fsspec.")]


def main() -> None:
    """The entry point."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _command[**P](failed: int = FAILED) -> Callable[[Callable[P, None]], Callable[P, None]]:
    ...
