"""Cluster: workers of Dask that carry out the tasks of a conversion."""

import contextlib
from collections.abc import Iterator
from typing import Any

RETRIES = 3  # of a task that fails; one whose worker was killed is carried out again by another one anyway


@contextlib.contextmanager
def open_cluster(address: str) -> Iterator[Any]:
    """An executor, as concurrent.futures has them, over the Dask cluster at ``address``, or over N processes here for ``local:N``.

    Raises ImportError without ``distributed``, ValueError for what is no address, OSError if there is no cluster.
    """
    kind, _, count = address.partition(":")
    if kind == "local" and not (count.isascii() and count.isdigit() and int(count)):
        raise ValueError(
            f"--dask {address!r}: local:N with a number of processes, or the address of a scheduler will do"
        )
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError("a Dask cluster needs distributed: pip install 'mzstore[dask]'") from error
    with contextlib.ExitStack() as stack:
        if kind == "local":
            cluster = LocalCluster(
                n_workers=int(count),
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=40,
            )
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        else:
            client = stack.enter_context(Client(address, timeout=30))
        yield stack.enter_context(client.get_executor(pure=False, retries=RETRIES))
