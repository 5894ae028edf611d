"""Benchmarks of mzstore beside what else there is, on real weights.

    python tools/bench.py lossless [MODEL] [--dtype bf16|fp16|fp32|all] [--big [GB]] [--json] [--quick]
    python tools/bench.py coder [MODEL] [--dtype bf16|fp16|fp32] [--json] [--quick]
    python tools/bench.py load [MODEL] [--big GB] [--links GBIT ...] [--parts models|open|shards ...] [--json] [--quick]
    python tools/bench.py lossy [MODEL] [--plot PNG] [--offline] [--json] [--quick]
    python tools/bench.py sparse [MODEL] [--json] [--quick]
    python tools/bench.py convert [MODEL] [--dtype bf16|fp16|fp32] [--big GB] [--parts formats|throughput|gguf|dask|memory ...] [--json] [--quick]
    python tools/bench.py checkpoint [MODEL] [--steps N] [--saves N] [--runs dense|frozen|last ...] [--json] [--quick]

MODEL is a safetensors file or a directory of such, its floats cast to --dtype if that is given; without MODEL,
all-MiniLM-L6-v2 (tools/real_models.py), cast to bf16 if not told otherwise; for load, as bf16 and as fp32; for lossy,
as fp32; for sparse, as both; for checkpoint, fine-tuned. lossy and sparse look at embeddings too if MODEL is the directory of a sentence embedding model, with its tokenizer.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from bench_checkpoint import RUNS, checkpoint
from bench_coder import coder
from bench_convert import PARTS as CONVERT_PARTS
from bench_convert import convert
from bench_load import LINKS, PARTS, load
from bench_lossless import lossless
from bench_lossy import lossy
from bench_sparse import sparse
from peers import DTYPES
from real_models import minilm
from rich.console import Console
from rich.table import Table

PLOT = Path(__file__).parents[1] / "results" / "lossy.png"  # git ignores it


def main() -> None:
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its folders go, which hold gigabytes with --big
    result = _run(arguments)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        console = Console(width=None if Console().is_terminal else 150)
        show = {
            "checkpoint": _show_checkpoint,
            "coder": _show_coder,
            "lossless": _show_lossless,
            "load": _show_load,
            "lossy": _show_lossy,
            "sparse": _show_sparse,
            "convert": _show_convert,
        }
        show[arguments.benchmark](result, console)


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.benchmark == "load":
        big = arguments.big if arguments.big is not None else (0.1 if arguments.quick else 1.0)
        return load(arguments.model, quick=arguments.quick, big=big, links=arguments.links, parts=arguments.parts)
    model = arguments.model or minilm()
    if arguments.benchmark == "lossy":
        return lossy(model, quick=arguments.quick, fetch=not arguments.offline, plot=arguments.plot)
    if arguments.benchmark == "sparse":
        return sparse(model, quick=arguments.quick)
    if arguments.benchmark == "checkpoint":
        return checkpoint(
            model, quick=arguments.quick, steps=arguments.steps, saves=arguments.saves, runs=arguments.runs
        )
    dtype = arguments.dtype or (None if arguments.model else "bf16")
    if arguments.benchmark == "convert":
        big = arguments.big if arguments.big is not None else (0.02 if arguments.quick else 4.0)
        return convert(model, arguments.dtype, quick=arguments.quick, big=big, parts=arguments.parts)
    if arguments.benchmark == "coder":
        return coder(model, dtype, quick=arguments.quick)
    return lossless(model, list(DTYPES) if dtype == "all" else [dtype], quick=arguments.quick, big=arguments.big)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, dtypes, about in (
        ("lossless", [*DTYPES, "all"], "size, speed and memory beside other stores and compressors; the goals"),
        ("coder", list(DTYPES), "settings of zstd on the plane of the exponents"),
        ("load", [], "time to load from an S3 server over slow links, beside other loaders; shards; the goals"),
        (
            "lossy",
            [],
            "bits, error, speed and embeddings at rates of 2 to 8.5 bits, beside llama.cpp's types; the goals",
        ),
        (
            "convert",
            list(DTYPES),
            "time, memory and size of conversions for each format, by threads and Dask; the goals",
        ),
        (
            "sparse",
            [],
            "bits and speed of sparse matrices beside SciPy and PyTorch; pruning, factors, outliers; the goals",
        ),
        (
            "checkpoint",
            [],
            "bytes, stalls and speed of checkpoints of training beside torch.save, safetensors, DCP and moonclip; the goals",
        ),
    ):
        command = benchmarks.add_parser(name, help=about)
        command.add_argument("model", nargs="?", type=Path, help="a safetensors file or a directory of such")
        if dtypes:
            command.add_argument("--dtype", choices=dtypes, help="cast the floats")
        command.add_argument("--json", action="store_true", help="for programs, with all times")
        command.add_argument("--quick", action="store_true", help="one round: to see that it works, not how fast")
        if name == "lossless":
            command.add_argument("--big", nargs="?", type=float, const=4.0, metavar="GB", help="convert a big file too")
        if name == "lossy":
            command.add_argument(
                "--plot", type=Path, default=PLOT, metavar="PNG", help="of SNR against bits (%(default)s)"
            )
            command.add_argument("--offline", action="store_true", help="leave out what would have to be fetched")
        if name == "convert":
            command.add_argument("--big", type=float, metavar="GB", help="of the sources whose memory is measured")
            command.add_argument("--parts", nargs="+", choices=CONVERT_PARTS, default=list(CONVERT_PARTS), help="leave out the others")  # fmt: skip
        if name == "checkpoint":
            command.add_argument("--steps", type=int, metavar="N", help="of each training run")
            command.add_argument("--saves", type=int, metavar="N", help="at even distances")
            command.add_argument("--runs", nargs="+", choices=RUNS, help="leave out the others")
        if name == "load":
            command.add_argument("--big", type=float, metavar="GB", help="of the synthetic model; 0: without it")
            command.add_argument("--links", nargs="+", type=float, default=list(LINKS), metavar="GBIT", help="Gb/s")
            command.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="leave out the others")
    return parser


def _show_lossless(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    n = result["threads"]
    for model in result["models"]:
        table = Table(
            title=f"{model['model']} as {model['dtype']}: {model['n_tensors']} tensors, "
            f"{model['file_nbytes']} bytes in safetensors; GB/s with 1 and with {n} threads"
        )
        table.add_column("", no_wrap=True)
        for column in ("bytes", "ratio", "encode", "save", "decode", "load", "container"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in model["rows"]:
            speeds = [_speeds(row["gb_per_s"].get(operation)) for operation in ("encode", "save", "decode", "load")]
            share = f"{row['container_share']:.2%}" if "container_share" in row else ""
            table.add_row(row["name"], str(row["nbytes"]), f"{row['ratio']:.4f}", *speeds, share)
        console.print(table)

        table = Table(title=f"{model['model']} as {model['dtype']}: in a new process, {n} threads")
        table.add_column("", no_wrap=True)
        for column in ("call, ms", "process, ms", "peak memory, MB", "of the tensors' size"):
            table.add_column(column, justify="right")
        for name, call in model["new_process"].items():
            table.add_row(
                name,
                f"{call['call_seconds']['best'] * 1e3:.0f}",
                f"{call['process_seconds']['best'] * 1e3:.0f}",
                f"{call['peak_nbytes'] / 1e6:.0f}",
                f"{call['peak_nbytes'] / model['nbytes']:.2f}",
            )
        console.print(table)
    seconds = result["import"]["seconds_beyond_numpy"]["best"]
    console.print(f"import mzstore beyond numpy: {seconds * 1e3:.0f} ms")
    if big := result["big"]:
        console.print(
            f"convert {big['nbytes']} bytes of bfloat16: {big['seconds']:.1f} s "
            f"({big['nbytes'] / big['seconds'] / 1e9:.2f} GB/s), peak memory {big['peak'] / 1e6:.0f} MB"
        )
    for name, why in result["missing"].items():
        console.print(f"left out: {name} ({why}); pip install 'mzstore[bench]'", markup=False)
    _show_goals(result["goals"], console)
    for condition in result["conditions"]:
        console.print(f"- {condition}", markup=False)


def _show_load(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    rtt = {link["rtt_ms"] for link in result["links"]}
    for model in result["models"]:
        table = Table(
            title=f"{model['model']} as {model['dtype']}: {model['n_tensors']} tensors, {model['file_nbytes']} bytes in "
            f"safetensors, {model['archive_nbytes'] / model['file_nbytes']:.3f} of that in mzstore; "
            f"{', '.join(f'{ms:g}' for ms in rtt)} ms"
        )
        table.add_column("", no_wrap=True)
        for column in (
            "Gb/s",
            "seconds",
            "of best uncompressed",
            "MB",
            "requests",
            "connections",
            "peak, MB",
            "above, MB",
        ):
            table.add_column(column, justify="right")
        for gbit in dict.fromkeys(row["gbit_per_s"] for row in model["rows"]):
            rows = [row for row in model["rows"] if row["gbit_per_s"] == gbit]
            best = min((row["seconds"]["best"] for row in rows if not row["compressed"]), default=None)
            for row in rows:
                seconds = row["seconds"]["best"]
                table.add_row(
                    row["name"], f"{gbit:g}", f"{seconds:.3f}", f"{seconds / best:.3f}" if best else "",
                    f"{row['nbytes'] / 1e6:.1f}", str(row["requests"]), str(row["connections"]),
                    f"{row['peak_nbytes'] / 1e6:.0f}", f"{row['above_nbytes'] / 1e6:.0f}",
                    end_section=row is rows[-1],
                )  # fmt: skip
        console.print(table)
    for row in result["open"]:
        console.print(
            f"open, {row['name']}: {row['seconds']['best'] * 1e3:.0f} ms, {row['requests']} requests, {row['nbytes']} of "
            f"{row['archive_nbytes']} bytes",
            markup=False,
        )
    _show_shards(result["shards"], console)
    for name, why in result["missing"].items():
        console.print(f"left out: {name} ({why}); pip install 'mzstore[bench]'", markup=False)
    _show_goals(result["goals"], console)
    for condition in result["conditions"]:
        console.print(f"- {condition}", markup=False)


def _show_shards(rows: list[dict[str, Any]], console: Console) -> None:
    if not rows:
        return
    table = Table(title="shards of bfloat16 tensors, the worst of each kind; 'loaded': that one, counted at the link")
    table.add_column("tensor", no_wrap=True)
    for column in ("axis", "of", "needed, MB", "fetched, MB", "ratio", "requests", "limit", "loaded, MB", "requests"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["tensor"], str(row["axis"]), str(row["count"]), f"{row['needed_nbytes'] / 1e6:.3f}",
            f"{row['fetched_nbytes'] / 1e6:.3f}", f"{row['ratio']:.3f}", str(row["requests"]),
            f"{row['requests_limit']:.1f}", f"{row['loaded']['nbytes'] / 1e6:.3f}", str(row["loaded"]["requests"]),
        )  # fmt: skip
    console.print(table)


def _show_lossy(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    table = Table(
        title=f"{result['model']}: {result['n_tensors']} matrices, {result['n_weights']} weights; bits of a weight, weights "
        "coded and decoded in a second with 1 thread; on the right: mzstore at the same SNR, and at the same size"
    )
    table.add_column("", no_wrap=True)
    for column in (
        "bits",
        "SNR, dB",
        "above bound",
        "encode, M/s",
        "bf16, G/s",
        "fp32, G/s",
        "1 - cosine",
        "bits at its SNR",
        "fewer",
        "dB at its size",
        "1 - cosine there",
    ):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        speed, at_snr, at_size = row["weights_per_s"], row.get("at_its_snr"), row.get("at_its_size")
        table.add_row(
            row["name"], f"{row['bits']:.3f}", f"{row['snr_db']:.2f}", f"{row['above_bound']:+.3f}",
            f"{speed['encode'] / 1e6:.1f}" if "encode" in speed else "", f"{speed['decode_bfloat16'] / 1e9:.2f}",
            f"{speed['decode_float32'] / 1e9:.2f}", _loss(row),
            f"{at_snr['bits']:.3f}" if at_snr else "", f"{at_snr['fewer']:.1%}" if at_snr else "",
            f"{at_size['snr_db']:.2f}" if at_size else "", _loss(at_size),
        )  # fmt: skip
    console.print(table)
    if result["plot"]:
        console.print(f"plot: {result['plot']}", markup=False, soft_wrap=True)
    for name, why in result["missing"].items():
        console.print(f"left out: {name} ({why})", markup=False)
    _show_goals(result["goals"], console)
    for condition in result["conditions"]:
        console.print(f"- {condition}", markup=False)


def _show_sparse(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    for density in dict.fromkeys(row["density"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["density"] == density]
        table = Table(title=f"{density:.0%} of the values, H(p) = {rows[0]['entropy_bits']:.4f} bits a weight")
        table.add_column("", no_wrap=True)
        for column in ("index, bits", "/ H(p)", "values, bits", "all, bits", "decode, G weights/s"):
            table.add_column(column, justify="right")
        for row in rows:
            cells = [
                f"{row[key]:.{digits}f}" if key in row else ""
                for key, digits in (("index_bits", 4), ("index_to_entropy", 3), ("value_bits", 3), ("bits", 3))
            ]
            speed = f"{row['weights_per_s'] / 1e9:.2f}" if "weights_per_s" in row else ""
            table.add_row(row["name"], *cells, speed)
        console.print(table)
    pruned = result["pruned"]
    console.print(
        f"{result['model']} as bf16, {pruned['kept']:.1%} of the matrices' values kept: {pruned['stored_nbytes']} of "
        f"{pruned['nbytes']} bytes, {pruned['ratio']:.4f}",
        markup=False,
    )
    table = Table(
        title=f"{result['model']}: {result['n_weights']} weights; on the right: quantized alone, at the same size"
    )
    table.add_column("", no_wrap=True)
    for column in ("bits", "SNR, dB", "1 - cosine", "bits", "SNR, dB", "1 - cosine"):
        table.add_column(column, justify="right")
    for row in result["approximations"]:
        at_size = row.get("at_its_size")
        table.add_row(
            row["name"], f"{row['bits']:.3f}", f"{row['snr_db']:.2f}", _loss(row),
            f"{at_size['bits']:.3f}" if at_size else "", f"{at_size['snr_db']:.2f}" if at_size else "", _loss(at_size),
        )  # fmt: skip
    console.print(table)
    for name, why in result["missing"].items():
        console.print(f"left out: {name} ({why})", markup=False)
    _show_goals(result["goals"], console)
    for condition in result["conditions"]:
        console.print(f"- {condition}", markup=False)


def _show_convert(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    n = result["threads"]
    if result["formats"]:
        table = Table(title=f"to an archive, and back with {n} threads; each in a new process")
        table.add_column("", no_wrap=True)
        columns = ("bytes", "stored", f"s, 1 and {n} threads", "peak, MB", "back, s", "peak, MB", "identical")
        for column in columns:
            table.add_column(column, justify="right")
        for row in result["formats"]:
            if row["missing"]:
                table.add_row(row["format"], row["missing"])
                continue
            one, many, back = row["threads_1"], row[f"threads_{n}"], row["back"]
            table.add_row(
                row["format"], str(row["nbytes"]), f"{row['stored_nbytes'] / row['nbytes']:.4f}",
                f"{one['seconds']:.2f}, {many['seconds']:.2f}", f"{max(one['peak_nbytes'], many['peak_nbytes']) / 1e6:.0f}",
                f"{back['seconds']:.2f}", f"{back['peak_nbytes'] / 1e6:.0f}", "yes" if row["identical"] else "NO",
            )  # fmt: skip
        console.print(table)
    if throughput := result["throughput"]:
        table = Table(title=f"{throughput['nbytes']} bytes of bfloat16, GB/s by threads")
        table.add_column("", no_wrap=True)
        for threads in throughput["gb_per_s"]["encode"]:
            table.add_column(threads, justify="right")
        for name, speeds in throughput["gb_per_s"].items():
            table.add_row(name, *(f"{speed:.3f}" for speed in speeds.values()))
        console.print(table)
    if gguf := result["gguf"]:
        if gguf["missing"]:
            console.print(f"left out: SmolLM2 as GGUF ({gguf['missing']})", markup=False)
        else:
            sizes = [
                f"{level} {gguf[level]['stored_nbytes']} in {gguf[level]['seconds']:.1f} s"
                for level in ("balanced", "max")
            ]
            sizes += [f"lmz {level} {nbytes}" for level, nbytes in gguf["lmz"]["nbytes"].items()]
            console.print(f"SmolLM2 Q4_1, {gguf['nbytes']} bytes: {', '.join(sizes)}", markup=False)
    if dask := result["dask"]:
        if dask["missing"]:
            console.print(f"left out: Dask ({dask['missing']})", markup=False)
        else:
            times = ", ".join(
                f"{count} worker{'s' if count != '1' else ''} {s:.2f} s" for count, s in dask["seconds"].items()
            )
            console.print(f"Dask, {dask['nbytes']} bytes into archives: {times}", markup=False)
    for row in result["memory"] or ():
        if row["missing"]:
            console.print(f"left out: memory of {row['format']} ({row['missing']})", markup=False)
        else:
            console.print(
                f"{row['nbytes'] / 1e9:.1f} GB of {row['format']}: {row['seconds']:.1f} s, peak memory {row['peak_nbytes'] / 1e6:.0f} MB"
            )
    _show_goals(result["goals"], console)
    for condition in result["conditions"]:
        console.print(f"- {condition}", markup=False)


def _show_checkpoint(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    for run in result["runs"]:
        copies = run["copy_seconds"]
        table = Table(
            title=f"{run['name']}: {result['saves']} checkpoints in {result['steps']} steps, {run['n_tensors']} tensors, "
            f"{run['nbytes'] / 1e6:.1f} MB, {run['frozen']:.1%} of the weights frozen; a copy takes {copies['new'] * 1e3:.0f} ms into "
            f"new memory, {copies['used'] * 1e3:.0f} ms into used; GB/s"
        )
        table.add_column("", no_wrap=True)
        for column in ("MB, all", "/ torch.save", "stall, ms", "/ copy, new", "used", "save", "load", "slowest load"):
            table.add_column(column, justify="right")
        whole = {row["s3"]: row["total_nbytes"] for row in run["rows"] if row["name"] == "torch.save"}
        for i, row in enumerate(sorted(run["rows"], key=lambda row: row["s3"])):
            stall = row["stall_seconds"]
            table.add_row(
                f"{row['name']}{', S3' if row['s3'] else ''}", f"{row['total_nbytes'] / 1e6:.1f}",
                f"{row['total_nbytes'] / whole[row['s3']]:.3f}", f"{stall * 1e3:.0f}", f"{stall / copies['new']:.2f}",
                f"{stall / copies['used']:.2f}", f"{row['save_gb_per_s']:.3f}", f"{row['load_gb_per_s']:.3f}",
                f"{row['slowest_load_gb_per_s']:.3f}", end_section=2 * (i + 1) == len(run["rows"]),
            )  # fmt: skip
        console.print(table)
    for name, why in result["missing"].items():
        console.print(f"left out: {name} ({why}); pip install 'mzstore[bench]'", markup=False)
    _show_goals(result["goals"], console)
    for condition in result["conditions"]:
        console.print(f"- {condition}", markup=False)


def _loss(row: dict[str, Any] | None) -> str:
    return f"{1 - row['cosine']['mean']:.2e}" if row and "cosine" in row else ""


def _show_goals(goals: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="goals")
    table.add_column("goal", no_wrap=True)
    for column in ("limit", "measured", "met"):
        table.add_column(column, justify="right")
    for goal in goals:
        measured = "not measured" if goal["measured"] is None else f"{goal['measured']:.4g}"
        met = {None: "", True: "[green]yes[/]", False: "[red]NO[/]"}[goal["met"]]
        table.add_row(goal["goal"], goal["limit"], measured, met)
    console.print(table)


def _show_coder(result: dict[str, Any], console: Console) -> None:
    _show_machine(result, console)
    table = Table(
        title=f"{result['model']} as {result['dtype']}: first plane, {result['nbytes']} bytes, "
        f"entropy {result['entropy']:.4f}"
    )
    table.add_column("setting", no_wrap=True)
    for column in ("ratio", "compress, MB/s", "decompress, MB/s"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        speeds = (f"{row[f'{do}_mb_per_s']:.0f}" for do in ("compress", "decompress"))
        table.add_row(row["name"], f"{row['ratio']:.4f}", *speeds)
    console.print(table)


def _show_machine(result: dict[str, Any], console: Console) -> None:
    machine, commit = result["machine"], result["commit"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items() if version)
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']:.1f}; Python {machine['python']}; {versions}",
        markup=False,
    )
    console.print(f"commit {commit['hash']}{' with changes' if commit['changed'] else ''}", markup=False)


def _speeds(found: dict[str, float] | None) -> str:
    return " ".join(f"{speed:5.2f}" for speed in found.values()) if found else ""


if __name__ == "__main__":
    main()
