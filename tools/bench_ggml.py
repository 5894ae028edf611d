"""What the blocks of ggml's quantized types become, and how fast: ``python tools/bench_ggml.py``.

The weights are matrices of all-MiniLM-L6-v2, quantized by ggml's own library, which is also what decoding is compared with. One
thread, from memory to memory; sizes are those of the chunks.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from ggml import TYPES, Ggml
from real_models import minilm
from safetensors.numpy import load_file

from mzstore import ggml, kernels
from mzstore.encodings import Coding
from mzstore.encodings.ggml import Ggml as Part
from mzstore.grid import Grid
from mzstore.payload import decompress

COLS = 1536  # the only width of its matrices that is a multiple of all blocks
WARM_NBYTES = 1 << 30


def seconds(run: Callable[[], object], rounds: int) -> float:
    """The median of ``rounds``."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    arguments = parser.parse_args()
    peer = Ggml(fetch=not arguments.offline)
    weights = load_file(minilm() / "model.safetensors")
    values = np.concatenate([w for w in weights.values() if w.ndim == 2 and w.shape[1] == COLS])
    kernels.expect(WARM_NBYTES)
    print(f"{values.shape[0]} x {values.shape[1]} weights; GB/s are of blocks written, and of values in float32 read")
    print("| type | bits | stored / blocks | encode | decode | ggml decodes |\n|---|---|---|---|---|---|")
    for name in TYPES:
        kind = ggml.TYPES[name]
        packed = np.empty(peer.nbytes(name, values.size), np.uint8)
        peer.quantize(name, np.ascontiguousarray(values), packed)
        blocks = packed.reshape(-1, kind.nbytes)
        part = Part.new(kind, Grid(values.shape, values.shape))
        whole = tuple(slice(0, n) for n in values.shape)
        frame = memoryview(part.compressed(part.body(blocks), Coding()))
        body, out, own = (
            np.empty(packed.size, np.uint8),
            np.empty(values.shape, np.uint32),
            np.empty(values.shape, np.float32),
        )

        def decode(part=part, frame=frame, body=body, out=out, whole=whole) -> None:  # type: ignore[no-untyped-def]
            decompress(frame, body, where="")
            part.decode(lambda _: body, whole, out, "")

        encoded = seconds(lambda: part.compressed(part.body(blocks), Coding()), arguments.rounds)  # noqa: B023
        decoded = seconds(decode, arguments.rounds)
        others = seconds(lambda: peer.dequantize(name, packed, own), arguments.rounds)  # noqa: B023
        assert (out == own.view(np.uint32)).all(), name
        speeds = packed.nbytes / encoded, values.nbytes / decoded, values.nbytes / others
        cells = [
            name,
            f"{kind.bits:g}",
            f"{len(frame) / packed.nbytes:.3f}",
            *(f"{speed / 1e9:.2f}" for speed in speeds),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
