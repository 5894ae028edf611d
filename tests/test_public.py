"""Changing the public surface is a decision, so it shows up in a diff."""

import inspect

import pytest

import mzstore


def test_public_names():
    assert sorted(mzstore.__all__) == [
        "ConflictError", "CorruptError", "FormatError", "Model", "MzError", "Recipe", "Retry", "Rule", "StorageError", "Tensor",
        "UnsupportedError", "__version__", "attach", "check", "convert", "delta", "dequantized", "diff", "merge", "open", "save", "verify",
    ]  # fmt: skip
    for name in mzstore.__all__:
        assert hasattr(mzstore, name)


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (mzstore.open, "(location, *, storage_options=None, retry=None, cache_bytes=0, bases=None)"),
        (
            mzstore.save,
            "(location, tensors, *, metadata=None, assets=None, recipe=None, importance=None, level='balanced', "
            "kind=None, threads=None, show_progress=None, storage_options=None, retry=None)",
        ),
        (
            mzstore.convert,
            "(source, target, *, include=None, exclude=None, dtype=None, rename=None, dequantize=False, recipe=None, importance=None, "
            "level='balanced', to=None, check=False, dry_run=False, shard_nbytes=None, executor=None, threads=None, show_progress=None, "
            "storage_options=None, target_options=None, retry=None, bases=None)",
        ),
        (
            mzstore.check,
            "(source, target, *, include=None, exclude=None, dtype=None, rename=None, dequantize=False, threads=None, show_progress=None, "
            "storage_options=None, target_options=None, retry=None, bases=None)",
        ),
        (
            mzstore.diff,
            "(a, b, *, rename=None, threads=None, show_progress=None, storage_options=None, bases=None)",
        ),
        (
            mzstore.attach,
            "(base, adapter, target, *, alpha=None, prefix=None, base_url=None, level='balanced', kind=None, threads=None, "
            "show_progress=None, storage_options=None, adapter_options=None, target_options=None, retry=None, bases=None)",
        ),
        (
            mzstore.delta,
            "(base, tuned, target, *, base_url=None, recipe=None, level='balanced', kind=None, threads=None, "
            "show_progress=None, storage_options=None, tuned_options=None, target_options=None, retry=None, bases=None)",
        ),
        (
            mzstore.merge,
            "(location, target, *, level='balanced', kind=None, threads=None, show_progress=None, storage_options=None, "
            "target_options=None, retry=None, bases=None)",
        ),
        (
            mzstore.Model.load,
            "(self, names=None, *, shard=None, axis=0, dtype=None, framework='numpy', threads=None, show_progress=None)",
        ),
        (mzstore.Model.plan, "(self, names=None, *, shard=None, axis=0, dtype=None)"),
        (mzstore.Tensor.shard, "(self, axis, index, count)"),
        (mzstore.Model.names, "(self, patterns=None)"),
        (mzstore.Tensor.read, "(self, out=None, *, index=Ellipsis, dtype=None, threads=1)"),
        (mzstore.Tensor.components, "(self, framework='numpy')"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures(function, signature):
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    assert str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == signature


def test_public_attributes():
    def names(cls: type) -> list[str]:
        return sorted(name for name in vars(cls) if not name.startswith("_"))

    assert names(mzstore.Tensor) == [
        "base", "components", "dtype", "encoding", "name", "nbytes", "ndim", "quality", "read", "sha256", "shape", "shard",
        "size", "stored_nbytes", "to_scipy", "to_torch",
    ]  # fmt: skip
    assert names(mzstore.Model) == [
        "assets",
        "base_urls",
        "close",
        "load",
        "metadata",
        "names",
        "nbytes",
        "plan",
        "sources",
        "stats",
        "url",
        "zarr",
    ]


def test_every_error_is_one_of_ours():
    for error in (mzstore.FormatError, mzstore.UnsupportedError, mzstore.CorruptError, mzstore.StorageError):
        assert issubclass(error, mzstore.MzError)
        assert error.__bases__ == (mzstore.MzError,)
