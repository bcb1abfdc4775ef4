"""S3 with patience: every request of s3fs through one bounded retry, and no cache of listings.

Credentials and the endpoint (``AWS_ENDPOINT_URL``) are botocore's to find, and to renew where they come from a role:
nothing here reads or keeps them. Retries of botocore and of s3fs are off, so that tries do not multiply; botocore's
adaptive mode stays for its rate limit, which slows a client down that is being throttled.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import s3fs
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper

from pipeline.config.credentials import scrubbed
from pipeline.errors import StoreError

log = logging.getLogger(__name__)

TRIES = 10  # of one request; the waits between them are at most a minute together
DENIED_TRIES = 3  # stores deny for a moment when they are throttled or renew credentials, but mostly they mean it
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0  # seconds; the wait doubles from try to try, and a random share of it is taken
BLOCK = 8 << 20  # bytes of one request; larger files are fetched in several at once
OPTIONS = {
    "use_listings_cache": False,  # another writer's new part must be seen
    "default_block_size": BLOCK,
    "max_concurrency": 4,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"mode": "adaptive", "total_max_attempts": 1},
        "max_pool_connections": 32,
    },
}

_PASSING = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"}
_PASSING |= {"InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException"}
_PASSING |= {"OperationAborted", "ConditionalRequestConflict"}  # another request for the same key was under way
_PASSING |= {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}  # damaged on its way
_RENEWED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed", "RequestExpired"}
_BROKEN = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    ResponseParserError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)


class _MissingError(StoreError, FileNotFoundError):
    pass


class _ExistsError(StoreError, FileExistsError):
    pass


class _DeniedError(StoreError, PermissionError):
    pass


class S3(s3fs.S3FileSystem):  # type: ignore[misc]
    """s3fs whose every request is tried TRIES times, then raises StoreError; where it applies, one that also is a
    FileNotFoundError, FileExistsError or PermissionError."""

    retries = 1

    async def _call_s3(self, method: str, *listed: Any, **named: Any) -> Any:
        request = super()._call_s3

        async def once() -> Any:
            answer = await request(method, *listed, **named)
            if method == "get_object":
                await _take_body(answer, "Range" in named)
            if method == "delete_objects" and answer.get("Errors"):
                raise boto.ClientError({"Error": answer["Errors"][0]}, "DeleteObjects")
            return answer

        where = "/".join(str(named[key]) for key in ("Bucket", "Key", "Prefix") if named.get(key))
        return await patiently(once, f"{method} s3://{where}")

    call_s3 = sync_wrapper(_call_s3)  # what files opened for writing use; the inherited one is bound to s3fs's own

    # s3fs and fsspec take a store that does not answer for "no", and a folder's manifest would be passed over.

    async def _is(self, kind: str, path: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == kind)
        except FileNotFoundError:
            return False

    async def _isfile(self, path: str) -> bool:
        return await self._is("file", path)

    async def _isdir(self, path: str) -> bool:
        return await self._is("directory", path)

    async def _exists(self, path: str) -> bool:
        bucket, key, _ = self.split_path(self._strip_protocol(path))
        try:
            await (self._info(path) if key else self._call_s3("head_bucket", Bucket=bucket))
        except FileNotFoundError:
            return False
        except PermissionError:
            if key:
                raise
        return True  # also a bucket that one may not ask about, whose objects may well be readable

    isfile, isdir, exists = (sync_wrapper(call) for call in (_isfile, _isdir, _exists))


async def _take_body(answer: dict[str, Any], ranged: bool) -> None:
    """Read the body while the request can still be repeated. One larger than a block is left alone: s3fs takes it as a
    sign to ask for ranges instead."""
    if ranged or answer.get("ContentLength", BLOCK + 1) <= BLOCK:
        body = answer["Body"]
        try:
            answer["Body"] = _Body(await body.read())
        finally:
            body.close()


class _Body:
    """A body that has been read, as s3fs reads one."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self._data.read(size)

    def close(self) -> None:
        self._data.close()


async def patiently(call: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Call, and call again after a growing random wait where the failure may pass."""
    tries = 1
    while True:
        try:
            return await call()
        except Exception as error:  # of botocore, aiohttp, s3fs or the system; those that cannot pass are told below
            if tries >= _allowed(error):
                raise _as_store_error(error, what, tries) from None
            say = log.warning if tries == TRIES // 2 else log.info
            say("%s: %s; try %d of %d", what, scrubbed(_sentence(error)), tries, _allowed(error))
        await asyncio.sleep(wait(tries))
        tries += 1


def wait(tries: int) -> float:
    """Seconds before the next try: full jitter, so that many workers do not come back at once."""
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)))


def _answer(error: BaseException) -> dict[str, Any] | None:
    """What the store answered, if it was its answer that failed; s3fs keeps it in the cause."""
    for one in (error, error.__cause__):
        if isinstance(one, boto.ClientError):
            response: dict[str, Any] = one.response
            return response
    return None


def _allowed(error: Exception) -> int:
    answer = _answer(error)
    if answer is None:
        return TRIES if isinstance(error, _BROKEN) else 1
    code = str(answer["Error"].get("Code"))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", code if code.isdecimal() else 0))
    if code == "NotImplemented" or status == 501:
        return 1
    if code in _PASSING or status >= 500 or status == 429:
        return TRIES
    return DENIED_TRIES if status == 403 or code in {*_RENEWED, "AccessDenied"} else 1


def _as_store_error(error: Exception, what: str, tries: int) -> StoreError:
    """The error that surfaces: of the kind that callers know, its text scrubbed, its cause left behind."""
    again = f" (tried {tries} times)" if tries > 1 else ""
    text = scrubbed(f"{what}: {_sentence(error)}{again}")
    if isinstance(error, boto.EndpointConnectionError):
        text += ". Check AWS_ENDPOINT_URL and the network, on every node"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return _DeniedError(f"{text}. Give the environment credentials: variables, a profile or a role.")
    answer = _answer(error)
    if answer is not None and answer["Error"].get("Code") == "PreconditionFailed":
        return _ExistsError(text)
    kinds = {FileNotFoundError: _MissingError, FileExistsError: _ExistsError, PermissionError: _DeniedError}
    return next((error_class for kind, error_class in kinds.items() if isinstance(error, kind)), StoreError)(text)


def _sentence(error: Exception) -> str:
    answer = _answer(error)
    if answer is None:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return ": ".join(str(answer["Error"][key]) for key in ("Code", "Message") if answer["Error"].get(key))
