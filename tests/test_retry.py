"""Retries: what is worth another attempt, and when an operation ends."""

import concurrent.futures
import threading
from concurrent.futures import Future

import pytest

import mzstore
from mzstore.storage import Retry
from mzstore.storage.retry import Changed, Stopped, TooLarge, Transient, is_transient, status_of


def failing(error: BaseException, calls: list[int]):
    def start(attempt):
        calls.append(1)
        future: Future[None] = Future()
        future.set_exception(error)
        return future

    return start


def attempts(error: BaseException, **retry: float) -> tuple[int, mzstore.StorageError]:
    calls: list[int] = []
    with pytest.raises(mzstore.StorageError) as raised:
        Retry(**{"attempts": 3, "backoff": 0, **retry}).start().run(failing(error, calls), "read 'x', bytes 5-9")
    assert raised.value.__cause__ is error
    assert str(raised.value).startswith("cannot read 'x', bytes 5-9: ")
    return len(calls), raised.value


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), TimeoutError(), Transient("cut"), RuntimeError(), ValueError()]
)
def test_what_may_pass_is_tried_again(error):
    n_calls, raised = attempts(error)
    assert n_calls == 3
    assert str(raised).endswith("(3 attempts)")


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), Changed("x"), TooLarge("x"), TypeError("x"), KeyError("x")])  # fmt: skip
def test_what_cannot_pass_is_not(error):
    n_calls, raised = attempts(error)
    assert n_calls == 1
    assert "attempts" not in str(raised)


def test_any_number_of_attempts():
    """Pauses that double without end would be beyond any float."""
    assert attempts(ConnectionResetError(), attempts=1500)[0] == 1500


def test_an_interrupt_is_no_error_of_the_storage():
    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        Retry().start().run(failing(KeyboardInterrupt(), calls), "read")
    assert len(calls) == 1


def test_stopping_ends_who_waits_for_an_answer_or_a_pause():
    operation = Retry(timeout=60, backoff=60).start()
    waiting = threading.Barrier(3)

    def unanswered(attempt):
        waiting.wait()
        return never

    def failing_once(attempt):
        waiting.wait()
        return failing(ConnectionResetError(), [])(attempt)

    never: Future[None] = Future()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(operation.run, start, "read") for start in (unanswered, failing_once)]
        waiting.wait()
        operation.stop()
        operation.stop()
        for run in runs:
            with pytest.raises(Stopped):
                run.result()
    assert never.cancelled()
    with pytest.raises(Stopped):
        operation.run(lambda attempt: Future(), "read")


def test_an_answer_that_is_there_counts_more_than_a_stop():
    operation = Retry().start()
    operation.stop()
    answer: Future[int] = Future()
    answer.set_result(7)
    assert operation.run(lambda attempt: answer, "read") == 7


@pytest.mark.parametrize("retry", [{"timeout": 0}, {"attempts": 0}, {"backoff": -1}, {"deadline": 0}])
def test_times_that_make_no_sense(retry):
    with pytest.raises(ValueError, match="times are positive"):
        Retry(**retry)


# The errors of the backends

STATUSES = [(400, False), (401, False), (403, False), (404, False), (408, True), (412, False), (416, False), (429, True), (500, True), (501, False), (503, True)]  # fmt: skip


def of_aiohttp(status):
    aiohttp = pytest.importorskip("aiohttp")
    return aiohttp.ClientResponseError(None, (), status=status)


def of_botocore(status):
    exceptions = pytest.importorskip("botocore.exceptions")
    return exceptions.ClientError({"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def of_s3fs(status):
    """Which translates what botocore says."""
    error = OSError(5, "made by a test")
    error.__cause__ = of_botocore(status)
    return error


def of_gcsfs(status):
    return pytest.importorskip("gcsfs.retry").HttpError({"code": status, "message": "made by a test"})


def of_gcsfs_as_text(status):
    return of_gcsfs(str(status))


def of_azure(status):
    exceptions = pytest.importorskip("azure.core.exceptions")
    error = exceptions.HttpResponseError("made by a test")
    error.status_code = status
    return error


def of_requests(status):
    """As huggingface_hub raises them."""
    requests = pytest.importorskip("requests")
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError("made by a test", response=answer)


def of_obstore(status):
    exceptions = pytest.importorskip("obstore.exceptions")
    return exceptions.GenericError(f"Server returned non-2xx status code: {status}: made by a test")


KINDS = [of_aiohttp, of_botocore, of_s3fs, of_gcsfs, of_gcsfs_as_text, of_azure, of_requests, of_obstore]


@pytest.mark.parametrize(("status", "transient"), STATUSES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_status_decides(kind, status, transient):
    error = kind(status)
    assert (status_of(error), is_transient(error)) == (status, transient)


def test_errors_without_a_status():
    exceptions = pytest.importorskip("botocore.exceptions")
    aiohttp = pytest.importorskip("aiohttp")
    for error in (
        exceptions.EndpointConnectionError(endpoint_url="x"),
        exceptions.ReadTimeoutError(endpoint_url="x"),
        aiohttp.ClientPayloadError("x"),
        aiohttp.ServerDisconnectedError(),
    ):
        assert is_transient(error), error
    for error in (
        exceptions.NoCredentialsError(),
        exceptions.ParamValidationError(report="x"),
        exceptions.ProfileNotFound(profile="x"),
        aiohttp.InvalidURL("x"),
    ):
        assert not is_transient(error), error
