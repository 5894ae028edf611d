"""Rules: the quantizer that a rule of a recipe names, with its parameters."""

from dataclasses import replace
from typing import Any

from mzstore.quality import expected_overhead_nbytes
from mzstore.quantizers import Quantizer
from mzstore.quantizers.codebooks import Lloyd, Vectors, fp4, nf4
from mzstore.quantizers.columns import ColumnScaled
from mzstore.quantizers.ecsq import LAGRANGIAN, Target, Uniform
from mzstore.quantizers.floats import Floats, mxfp4, mxfp8, nvfp4
from mzstore.quantizers.integers import Integers
from mzstore.recipe import Rule
from mzstore.tensors import TensorSpec


def quantizer_for(rule: Rule, spec: TensorSpec, *, weighted: bool = False) -> Quantizer:
    """The quantizer that ``rule`` names, with its parameters; ``weighted`` if there is an importance, which a search serves."""
    if rule.scales == "row*column":
        return ColumnScaled(
            quantizer_for(replace(rule, scales="row"), spec, weighted=weighted),
            rule.scale_dtype or "float32",
            spec.dtype.name,
        )
    granularity: Any = {"group": rule.group, "tile": rule.tile}.get(rule.scales or "", rule.scales)
    search = weighted if rule.search is None else rule.search
    match rule.quantizer:
        case "uniform":
            overhead, outliers_overhead = expected_overhead_nbytes(spec)
            target = None
            if rule.step is None:
                target = Target(rule.bits, rule.nmse, rule.snr_db, rule.max_error, 8.0 * overhead)
            return Uniform(
                rule.step,
                target,
                rule.levels,
                LAGRANGIAN if rule.lagrangian is None else rule.lagrangian,
                outliers_overhead_bits=8.0 * outliers_overhead,
                dtype=spec.dtype.name,
            )
        case "symmetric" | "affine":
            return Integers(
                int(rule.bits or 0),
                granularity,
                rule.quantizer == "affine",
                "mse" if search else "none",
                None if rule.low is None or rule.high is None else (rule.low, rule.high),
                rule.scale_dtype or "float32",
                spec.dtype.name,
            )
        case "codebook" if rule.codebook == "kmeans":
            levels, dimension = rule.levels or 0, rule.dimension or 1
            return Lloyd(levels) if dimension == 1 else Vectors(levels, dimension)
        case "codebook":
            made = nf4() if rule.codebook == "nf4" else fp4()
            return replace(
                made, granularity=granularity, scale_dtype=rule.scale_dtype or "float32", dtype=spec.dtype.name
            )
        case "float8":
            return Floats(
                f"float8_{rule.format}",
                granularity,
                search=search,
                scale_dtype=rule.scale_dtype or "float32",
                dtype=spec.dtype.name,
            )
        case "mxfp8":
            return mxfp8(f"float8_{rule.format}", search=search, dtype=spec.dtype.name)
        case "mxfp4":
            return mxfp4(search=search, dtype=spec.dtype.name)
        case "nvfp4":
            return nvfp4(search=search, dtype=spec.dtype.name)
    raise ValueError(f"quantizer {rule.quantizer!r} is unknown")
