"""The command ``mzstore``: options, output and exit status. What a command does is in the module of its name.

Modules are imported by the command that needs them, so that nothing waits for what it does not use.
"""

import functools
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mzstore.errors import MzError
from mzstore.text import count, ratio, shown, size
from mzstore.version import __version__

if TYPE_CHECKING:
    from mzstore.recipe import Recipe

FAILED, INTERRUPTED, BROKEN_PIPE = 1, 130, 141  # the last two are what a shell reports of a process that a signal ended
DIFFERENT, TROUBLE = 1, 2  # as diff and cmp have it

# Plain help and plain errors: Typer's own boxes wrap names, and its tracebacks show the values of variables.
app = typer.Typer(
    help="A compressed store for model weights, open by tensor and by slice.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

checkpoints = typer.Typer(
    help="Checkpoints of a training run.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(checkpoints, name="checkpoint")

Location = Annotated[str, typer.Argument(metavar="URL", help="Archive or tree: a path, or a URL such as s3://b/m.mz.")]
Threads = Annotated[int | None, typer.Option(min=1, help="One for each processor if not given.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and no line when all is well.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Moved = Annotated[
    list[str] | None,
    typer.Option(
        "--base", metavar="URL=LOCATION", help="Where a model is that this one refers to; may be given again."
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="What OUT has for its base, instead of the path or URL at which it is now."),
]
Store = Annotated[str, typer.Argument(metavar="URL", help="Where checkpoints are: a directory or a prefix.")]
Step = Annotated[str, typer.Argument(metavar="[STEP]", help="A number, or 'latest'.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
Dequantize = Annotated[
    bool,
    typer.Option("--dequantize", help="Values instead of what GPTQ, AWQ, bitsandbytes and the like have quantized."),
]
LevelName = Annotated[
    str, typer.Option("--level", metavar="fast|balanced|max", help="The fastest to decode, or the smallest.")
]


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names hold any character, and not every terminal does
    app(prog_name="mzstore")


def _command(
    failed: int = FAILED, group: typer.Typer = app, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of ``group``, which ends with one line on stderr and status ``failed`` where it cannot go on."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
                sys.stdout.flush()
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:
                # Python flushes once more when it ends; that must not fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(BROKEN_PIPE) from None
            except (MzError, ValueError, LookupError, OSError, MemoryError, ImportError) as error:
                text = error.args[0] if isinstance(error, KeyError) and error.args else error
                notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
                print(f"mzstore: {shown(str(text) + notes) or type(error).__name__}", file=sys.stderr)
                raise typer.Exit(failed) from None

        return group.command(name)(run)

    return decorate


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mzstore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@_command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A model in any format that can be read: an archive, a tree, a file of weights, the index of several, a directory.",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path or a URL.")],
    lossless: Annotated[bool, typer.Option("--lossless", help="Bit for bit, which is what is done anyway.")] = False,
    bits: Annotated[
        float | None, typer.Option(metavar="B", help="Quantize to so many bits per weight, with all overhead.")
    ] = None,
    nmse: Annotated[
        float | None, typer.Option(metavar="E", help="Quantize to this squared error / squared weights.")
    ] = None,
    snr_db: Annotated[float | None, typer.Option(metavar="S", help="The same in decibels.")] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Prune: this part of the weights becomes 0. With --bits, what is left is quantized."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="Factors of this rank. With --bits, these are quantized.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="Quantize as these rules say, see README.")
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="By name of tensor, how much errors matter in each column, or of each value: .safetensors or .npz.",
        ),
    ] = None,
    level: LevelName = "balanced",
    to: Annotated[
        str | None,
        typer.Option(
            metavar="archive|tree|manifest|safetensors|directory",
            help="What to write; by the name of DST if not given.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Take only tensors of such names; may be given again."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave out tensors of such names; may be given again.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE|GLOB=DTYPE", help="Cast floats of 16 bits and more; may be given again, the first decides."
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=>NAME",
            help="'model.*=>*', or a regular expression: '/^model\\.(.*)/=>\\1'; may be given again, one after the other.",
        ),
    ] = None,
    dequantize: Dequantize = False,
    check: Annotated[
        bool, typer.Option("--check", help="Open what was written, and compare every tensor with SRC.")
    ] = False,
    report: Annotated[str | None, typer.Option(metavar="OUT.json", help="Write what became of each tensor.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Write nothing; show what each tensor would become, from a part of it."),
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of a DST that ends in .json: bytes of values to an archive, as in 5GB; 1GB if not given.",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local:N", help="Of such a DST: let a Dask cluster write the archives, or N processes here."
        ),
    ] = None,
    base: Moved = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Convert a model, bit for bit or quantized.

    From any format to an archive or a tree, and back to the files that it came from. Norms, biases and small tensors are
    not quantized, unless a recipe says so; what is quantized already stays as it is, unless it is asked for again. All
    names and patterns are of names in SRC. A DST that ends in .json becomes several archives; what was interrupted is
    gone on with by the same command. Ends with status 1 if that fails, or --check finds a difference.
    """
    from mzstore.check import check as check_target
    from mzstore.cluster import open_cluster
    from mzstore.convert import convert
    from mzstore.importance import open_importance

    start = time.monotonic()
    rules = _recipe(
        lossless, recipe, {"bits": bits, "nmse": nmse, "snr_db": snr_db}, {"sparsity": sparsity, "rank": rank}
    )
    if importance and not rules:
        raise ValueError("--importance is for quantizing; give --bits, --nmse, --snr-db or --recipe as well")
    edits: dict[str, Any] = {"include": include, "exclude": exclude, "dtype": _casts(dtype), "rename": rename}
    edits["dequantize"] = dequantize
    common: dict[str, Any] = {"threads": threads, "show_progress": _shown(quiet), "bases": _moved(base)}
    with (
        open_importance(importance) if importance else nullcontext() as weights,
        open_cluster(dask) if dask is not None else nullcontext() as executor,
    ):
        found = convert(
            source,
            target,
            **edits,
            recipe=rules,
            importance=weights,
            level=level,  # type: ignore[arg-type]
            to=to,
            dry_run=dry_run,
            shard_nbytes=None if shard_size is None else _nbytes_of(shard_size),
            executor=executor,
            **common,
        )
    if check and not dry_run:
        found = found.with_check(check_target(source, target, **edits, **common))
    if report:
        with open(report, "w", encoding="utf-8") as file:
            json.dump(found.to_json(), file, indent=2, allow_nan=False)
            file.write("\n")
    if not found.ok:
        first, *others = found.all_problems()
        also = f"; and {count(len(others), 'problem')} more" if others else ""
        raise ValueError(f"{target}: what was written is not the source: {first}{also}")
    if dry_run:
        _print(found.lines())
    elif not quiet:
        before, after = _nbytes(source), _nbytes(target)
        seconds = time.monotonic() - start
        reached = f"; {_reached(target)}" if rules else ""
        print(f"{shown(target)}: {size(after)}, {ratio(after, before)} of {size(before)}, {seconds:.1f} s{reached}")
        _print(found.remarks())


@_command()
def inspect(location: Location, as_json: Json = False) -> None:
    """Show what a model holds and how it is stored.

    Reads the index and the documents, and no values; of a checkpoint that another tool has quantized what says how it is.
    """
    import mzstore
    from mzstore.inspect import render, summarize

    with mzstore.open(location) as model:
        summary = summarize(model)
    if as_json:
        _print_json(summary.to_json())
        return
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 1 << 16)  # a pipe gets one line for a tensor
    with console.capture() as capture:
        for part in render(summary, console.width if terminal else None):
            console.print(part)
    _print([capture.get().rstrip("\n")])


@_command()
def verify(
    location: Location, base: Moved = None, threads: Threads = None, quiet: Quiet = False, as_json: Json = False
) -> None:
    """Check everything, and name all that is broken.

    That is headers, checksums, documents, every chunk, the digest of every tensor, assets. Ends with status 1 if
    anything is wrong.
    """
    from mzstore.verify import verify

    report = verify(location, threads=threads, show_progress=_shown(quiet or as_json), bases=_moved(base))
    if as_json:
        _print_json(report.to_json())
    elif report.ok and not quiet:
        checked = f"{count(report.tensors, 'tensor')}, {count(report.chunks, 'chunk')}"
        checked += f", {count(report.assets, 'asset')}" if report.assets else ""
        _print([f"{shown(report.location)}: {checked}, {size(report.nbytes)} of values: all as it should be"])
    else:
        _print(shown(str(problem)) for problem in report.problems)
    if not report.ok:
        print(f"mzstore: {count(len(report.problems), 'problem')} in {report.location!r}", file=sys.stderr)
        raise typer.Exit(FAILED)


@_command()
def get(
    location: Location,
    name: Annotated[str, typer.Argument(metavar="NAME[SLICE]", help="As in 'w', 'w[-1]', 'w[1024:2048, ::2]'.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE.npy", help="Where to save the values; '-' is standard output."),
    ] = None,
    dequantize: Dequantize = False,
    base: Moved = None,
) -> None:
    """Show or save a tensor, or a slice of it.

    Saves a .npy file; without -o, shows the first values.
    """
    import numpy as np

    import mzstore
    from mzstore.get import find, preview, write_npy
    from mzstore.model import check_threads

    with mzstore.open(location, bases=_moved(base)) as model:
        tensor, index = find(mzstore.dequantized(model) if dequantize else model, name)
        if output is None:
            width = os.get_terminal_size().columns if sys.stdout.isatty() else 80
            _print(preview(tensor, index, width))
            return
        if index is ... and isinstance(tensor, mzstore.Tensor):
            values = tensor.read(threads=check_threads(None))
        else:
            values = np.asarray(tensor[index])
        bits = write_npy(sys.stdout.buffer if output == "-" else output, values)
    if bits:
        print(f"mzstore: saved as {bits}, the raw bits: a .npy file has no {tensor.dtype.name}", file=sys.stderr)


@_command()
def plan(
    location: Location,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[SLICE]]...", help="Names, globs, or slices; all if none.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="INDEX/COUNT", help="The part of one rank of several, as in 3/8.")
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS|GLOB=AXIS", help="On which axis shards are cut; may be given again. 0 if not given."
        ),
    ] = None,
    base: Moved = None,
    as_json: Json = False,
) -> None:
    """Show what a load would read from remote storage.

    That is bytes, requests and memory. Reads the index and the documents, and no values.
    """
    import mzstore
    from mzstore.get import find_all
    from mzstore.shards import parse_axis, parse_shard

    cut = parse_shard(shard) if shard else None
    if axis and not cut:
        raise ValueError("--axis says how --shard cuts; give both, or neither")
    with mzstore.open(location, bases=_moved(base)) as model:
        chosen = find_all(model, names) if names else None
        found = model.plan(chosen, shard=cut, axis=parse_axis(axis) if axis else 0)
    if as_json:
        _print_json(found.to_json())
    else:
        _print(found.lines())


@_command(failed=TROUBLE)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A model in any format that convert reads.")],
    b: Annotated[str, typer.Argument(metavar="B")],
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=>NAME", help="What tensors of A are called in B, as convert has it."),
    ] = None,
    base: Moved = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare two models, tensor by tensor.

    Shows what only one of them has, and by how much values differ. Ends with status 0 if the models are equal, 1 if
    they differ, 2 if they cannot be compared.
    """
    from mzstore.diff import diff, render

    difference = diff(a, b, rename=rename, threads=threads, show_progress=_shown(quiet or as_json), bases=_moved(base))
    if as_json:
        _print_json(difference.to_json())
    elif not (quiet and difference.equal):
        _print(render(difference))
    if not difference.equal:
        raise typer.Exit(DIFFERENT)


@_command()
def attach(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Archive or tree.")],
    adapter: Annotated[
        str,
        typer.Argument(metavar="ADAPTER", help="The directory of a LoRA adapter of PEFT, or its .safetensors file."),
    ],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A path or a URL.")],
    alpha: Annotated[
        float | None, typer.Option(metavar="A", help="Of a .safetensors file: the scale is A / rank.")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What stands before the names of BASE in ADAPTER; base_model.model. if not given."
        ),
    ] = None,
    base_url: BaseUrl = None,
    level: LevelName = "balanced",
    moved: Moved = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Attach a LoRA adapter to a model.

    OUT has the adapter, and refers to BASE, which is not copied, for all other values.
    """
    from mzstore.attach import attach

    attach(
        base,
        adapter,
        target,
        alpha=alpha,
        prefix=prefix,
        base_url=base_url,
        level=level,  # type: ignore[arg-type]
        threads=threads,
        show_progress=_shown(quiet),
        bases=_moved(moved),
    )
    _print_referring(target, quiet)


@_command()
def delta(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Archive or tree.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="A model in any format that convert reads.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A path or a URL.")],
    lossless: Annotated[bool, typer.Option("--lossless", help="Bit for bit, which is what is done anyway.")] = False,
    bits: Annotated[
        float | None, typer.Option(metavar="B", help="Quantize differences to so many bits per weight.")
    ] = None,
    nmse: Annotated[
        float | None,
        typer.Option(metavar="E", help="Approximate differences with this squared error / squared differences."),
    ] = None,
    snr_db: Annotated[float | None, typer.Option(metavar="S", help="The same in decibels.")] = None,
    max_error: Annotated[float | None, typer.Option(metavar="E", help="Of any weight.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="Approximate differences as these rules say, see README.")
    ] = None,
    base_url: BaseUrl = None,
    level: LevelName = "balanced",
    moved: Moved = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Store a model as its differences from another one.

    OUT has what TUNED changes, bit for bit or nearly so, and refers to BASE, which is not copied, for all other values.
    """
    from mzstore.deltas import delta

    delta(
        base,
        tuned,
        target,
        recipe=_recipe(lossless, recipe, {"bits": bits, "nmse": nmse, "snr_db": snr_db, "max_error": max_error}, {}),
        base_url=base_url,
        level=level,  # type: ignore[arg-type]
        threads=threads,
        show_progress=_shown(quiet),
        bases=_moved(moved),
    )
    _print_referring(target, quiet)


@_command()
def merge(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Archive or tree that refers to others.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A path or a URL.")],
    level: LevelName = "balanced",
    base: Moved = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Make a model whole that refers to others.

    OUT has all values, the same bit for bit, and needs no other model.
    """
    from mzstore.deltas import merge

    merge(
        source,
        target,
        level=level,  # type: ignore[arg-type]
        threads=threads,
        show_progress=_shown(quiet),
        bases=_moved(base),
    )
    if not quiet:
        print(f"{shown(target)}: {size(_nbytes(target))}")


def _print_referring(target: str, quiet: bool) -> None:
    """What became of a model that refers to another one."""
    import mzstore
    from mzstore.inspect import summarize

    if quiet:
        return
    with mzstore.open(target) as model:
        own, values = summarize(model).container_nbytes, model.nbytes
        untouched = sum(tensor.encoding == "base" for tensor in model.values())
        urls = ", ".join(map(shown, model.base_urls))
    print(
        f"{shown(target)}: {size(own)}, {ratio(own, values)} of {size(values)}; "
        f"{count(untouched, 'tensor')} as in {urls}, {len(model) - untouched} others"
    )


@_command(group=checkpoints)
def ls(location: Store, as_json: Json = False) -> None:
    """List checkpoints: step, time, what was written for it, what it holds, metrics."""
    from mzstore.checkpoints import CheckpointStore

    with CheckpointStore(location) as store:
        found = store.checkpoints()
    if as_json:
        _print_json([_plain(each.to_json()) for each in found])
        return
    for each in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time))
        metrics = "  ".join(f"{shown(name)}={value:g}" for name, value in each.metrics.items())
        _print([f"{each.step:>10}  {when}  {size(each.new_nbytes):>10} of {size(each.nbytes):>10}  {metrics}".rstrip()])


@_command(group=checkpoints)
def show(location: Store, step: Step = "latest", as_json: Json = False) -> None:
    """Show what a checkpoint holds: its state, without the values of tensors."""
    from mzstore.checkpoints import CheckpointStore

    with CheckpointStore(location) as store:
        about, tensors = store.checkpoint(_step(step)), store.tensors(_step(step))
    if as_json:
        listed = {spec.name: {"dtype": spec.dtype.name, "shape": list(spec.shape)} for spec in tensors}
        _print_json(_plain(about.to_json()) | {"names": listed})
        return
    _print(
        [f"step {about.step}, save {about.save_id}, {count(about.tensors, 'tensor')}, {size(about.nbytes)} of values"]
    )
    _print([f"{size(about.new_nbytes)} written for it, {size(about.stored_nbytes)} with all that it refers to"])
    _print(f"{shown(name)} = {value:g}" for name, value in about.metrics.items())
    _print(f"{shown(spec.name)}  {spec.dtype.name} {list(spec.shape)}" for spec in tensors)


@_command(group=checkpoints, name="verify")
def check(
    location: Store,
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="All if not given.")] = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Read everything of one checkpoint, or of all, and compare it with its digests."""
    from mzstore.checkpoints import CheckpointStore

    with CheckpointStore(location) as store:
        chosen = None if step is None else store.checkpoint(_step(step)).step
        reports = store.verify(chosen, threads=threads)
    for number, report in reports.items():
        if report.ok and not quiet:
            _print(
                [
                    f"checkpoint {number}: {count(report.tensors, 'tensor')}, {count(report.chunks, 'chunk')}: all as it should be"
                ]
            )
        _print(f"checkpoint {number}: {shown(str(problem))}" for problem in report.problems)
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(FAILED)


@_command(group=checkpoints)
def prune(
    location: Store,
    keep: Annotated[int | None, typer.Option(metavar="N", help="Keep the last N.")] = None,
    every: Annotated[int | None, typer.Option(metavar="K", help="Keep those whose step is a multiple of K.")] = None,
    best: Annotated[str | None, typer.Option(metavar="METRIC", help="Keep the best by this metric.")] = None,
    mode: Annotated[str, typer.Option(metavar="min|max", help="Which values of the metric are good.")] = "min",
    dry_run: DryRun = False,
) -> None:
    """Delete all checkpoints but some. What they hold stays until 'gc' removes it."""
    from mzstore.checkpoints import CheckpointStore

    if keep is None and every is None:
        raise ValueError("say what to keep: --keep or --every, and --best if you like")
    with CheckpointStore(location, keep=keep, every=every, best=best, mode=mode) as store:  # type: ignore[arg-type]
        gone = store.prune(dry_run=dry_run)
    _print(f"{'would delete' if dry_run else 'deleted'} checkpoint {step}" for step in gone)


@_command(group=checkpoints)
def gc(
    location: Store,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long what is deleted or not committed stays; longer than any save or load takes.",
        ),
    ] = 3600.0,
    dry_run: DryRun = False,
) -> None:
    """Remove what no checkpoint needs, and nobody can be reading or writing any more."""
    from mzstore.checkpoints import CheckpointStore

    with CheckpointStore(location) as store:
        found = store.gc(grace, dry_run=dry_run)
    uploads = f", {count(len(found.uploads), 'unfinished upload')}" if found.uploads else ""
    _print(
        [
            f"{'would remove' if dry_run else 'removed'} {count(len(found.keys), 'object')}, {size(found.nbytes)}{uploads}"
        ]
    )
    if found.unlisted:
        print(f"unfinished uploads were not looked for: {found.unlisted}", file=sys.stderr)


@_command(group=checkpoints)
def export(
    location: Store,
    target: Annotated[str, typer.Argument(metavar="OUT", help="A path or a URL, in any format that convert writes.")],
    step: Annotated[str, typer.Option(metavar="STEP", help="A number, or 'latest'.")] = "latest",
    level: LevelName = "balanced",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Write the tensors of a checkpoint as one model, which needs no other file."""
    from mzstore.checkpoints import CheckpointStore
    from mzstore.convert import convert

    with CheckpointStore(location) as store:
        source = store.location(_step(step))
    convert(source, target, level=level, threads=threads, show_progress=_shown(quiet))  # type: ignore[arg-type]


def _step(text: str) -> Any:
    """A step as a store takes it."""
    if text == "latest":
        return text
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"step {text!r} is no number, nor 'latest'")
    return int(text)


def _plain(doc: dict[str, Any]) -> dict[str, Any]:
    """What JSON has no numbers for becomes null."""
    metrics = {name: value if math.isfinite(value) else None for name, value in doc["metrics"].items()}
    return doc | {"metrics": metrics}


def _moved(given: list[str] | None) -> dict[str, str] | None:
    """What ``--base`` says, for ``bases``."""
    found = {}
    for text in given or ():
        url, equals, location = text.partition("=")
        if not url or not equals or not location:
            raise ValueError(f"--base {text!r}: URL=LOCATION will do, the URL as the model has it")
        found[url] = location
    return found or None


def _nbytes_of(text: str) -> int:
    """What ``--shard-size`` says, for ``shard_nbytes``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError(f"--shard-size {text!r}: a number of bytes will do, as in 500MB or 5GB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))


def _casts(given: list[str] | None) -> dict[str, str] | None:
    """What ``--dtype`` says, for ``dtype``."""
    found: dict[str, str] = {}
    for text in given or ():
        pattern, equals, name = text.rpartition("=")
        if equals and not pattern:
            raise ValueError(f"--dtype {text!r}: DTYPE or GLOB=DTYPE will do")
        found.setdefault(pattern if equals else "*", name)
    return found or None


def _recipe(
    lossless: bool, file: str | None, targets: dict[str, float | None], forms: dict[str, float | None]
) -> "Recipe | None":
    """What the options of ``convert`` ask for: a recipe, or one of ``targets``, one of ``forms``, or one of each."""
    from mzstore.recipe import Recipe, Rule

    for keys in (targets, forms):
        given = ["--lossless"] if lossless else []
        given += [f"--{key.replace('_', '-')}" for key, value in keys.items() if value is not None]
        given += ["--recipe"] if file is not None else []
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; a recipe has several rules")
    if file is not None:
        return Recipe.load(file)
    asked = {key: value for key, value in (targets | forms).items() if value is not None}
    return Recipe([Rule(**asked)]) if asked else None  # type: ignore[arg-type]


def _reached(location: str) -> str:
    """What quantizing has made of a model."""
    import mzstore
    from mzstore.inspect import summarize

    with mzstore.open(location) as model:
        reached = summarize(model).reached
    return f"changed to {reached}" if reached else "no tensor was changed"


def _shown(quiet: bool) -> bool | None:
    """For ``show_progress``: None means on a terminal."""
    return False if quiet else None


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _nbytes(location: str) -> int:
    """Bytes that a model takes where it lies."""
    from mzstore import composite
    from mzstore.formats import BESIDE, huggingface, open_source
    from mzstore.storage import Folder, open_location

    if location.endswith((huggingface.INDEX_SUFFIX, *BESIDE)):
        # Values lie beside it, perhaps with those of other models.
        with open_source(location) as model:
            return model.nbytes
    if composite.is_manifest(location):
        return sum(archive.nbytes for archive in composite.read_manifest(location).archives)
    found = open_location(location)
    if isinstance(found, Folder):
        return sum(found.sizes().values())
    found.close()
    return found.nbytes
