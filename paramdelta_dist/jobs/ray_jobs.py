"""Ray's Jobs API. The only module of this room that names ray, and what Ray's client itself speaks through.

Ray's client is used as it is, with four things put right: an address that is given wins over the environment, every
request has a time limit, a connection that falls silent is noticed, and errors are told in our words.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import ray.exceptions
import requests
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.job_submission import JobDetails, JobSubmissionClient

from paramdelta_dist.errors import CredentialsError, EngineError, NotFound, ParamDeltaError, UsageError
from paramdelta_dist.jobs.address import VARIABLES, Address
from paramdelta_dist.jobs.job import Job, JobExists, State, Unreachable
from paramdelta_dist.storage import bundle, explained, redact

REQUEST_SECONDS = (10.0, 120.0)
"""Seconds that a request may take to connect, and to be answered: the dashboard itself asks other processes."""
CONNECT_SECONDS = 10.0
"""Seconds for which an address is tried when nothing listens there."""
SILENCE_SECONDS = 15.0
"""After so much of it the state of a followed job is asked for; a driver speaks every ten seconds."""
_DENIED = getattr(ray.exceptions, "AuthenticationError", ())
"""Absent from older versions, whose messages are read instead."""
_STATUS = re.compile(r"status code (\d{3}): (.*)", re.DOTALL)


_STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}


class _Client(JobSubmissionClient):
    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": REQUEST_SECONDS, **options})


class RayCluster:
    """A cluster, by the URL of its dashboard."""

    def __init__(self, address: Address, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        """Raises EngineError when none answers there, UsageError when something else does, CredentialsError when it wants
        a token that we do not have."""
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.hint = f" --address {redact(str(address.text))}" if address.source == "--address" else ""
        self._client = self._connect(address, connect_seconds)
        self.url = self._client.get_address()

    @staticmethod
    def _connect(address: Address, seconds: float) -> _Client:
        deadline = time.monotonic() + seconds
        with _without_variables():
            while True:
                try:
                    url = _dashboard(address)
                    with _told(url):
                        return _Client(url, headers=_headers(), verify=_certificates())
                except Unreachable as error:
                    if address.text is None or time.monotonic() > deadline:
                        raise EngineError(_nobody(address, error)) from error
                    time.sleep(0.5)

    def submit(self, job_id: str, command: str, *, folder: Path, environment: Mapping[str, str], metadata: Mapping[str, str]) -> None:
        runtime = {"working_dir": str(folder), "env_vars": dict(environment)}
        try:
            with _told(self.url):
                self._client.submit_job(entrypoint=command, submission_id=job_id, runtime_env=runtime, metadata=dict(metadata))
        except ParamDeltaError as error:
            if "already exists" in str(error.__cause__):
                raise JobExists(job_id) from error
            raise

    def job(self, job_id: str) -> Job:
        with _told(self.url, job_id):
            return _job(self._client.get_job_info(job_id))

    def jobs(self) -> list[Job]:
        with _told(self.url):
            return [_job(details) for details in self._client.list_jobs() if details.submission_id]

    def stop(self, job_id: str) -> bool:
        with _told(self.url, job_id):
            return bool(self._client.stop_job(job_id))

    def log(self, job_id: str) -> str:
        with _told(self.url, job_id):
            return self._client.get_job_logs(job_id)

    def tail(self, job_id: str) -> Generator[str, None, None]:
        loop = asyncio.new_event_loop()
        stream = self._client.tail_job_logs(job_id)
        coming: asyncio.Future[str] | None = None
        try:
            while True:
                if coming is None:
                    coming = asyncio.ensure_future(stream.__anext__(), loop=loop)
                with _told(self.url, job_id):
                    loop.run_until_complete(asyncio.wait({coming}, timeout=SILENCE_SECONDS))
                    if not coming.done():
                        text = ""
                    elif isinstance(coming.exception(), StopAsyncIteration):
                        return
                    else:
                        text, coming = coming.result(), None
                yield text
        finally:
            with suppress(Exception):  # of a connection that is given up
                loop.run_until_complete(_close(stream, coming))
            loop.close()

    def python(self) -> str:
        """Asked of the dashboard, which tells how the head's raylet starts its workers; `python` where it does not."""
        for pause in (0.0, 1.0, 2.0):  # a head that has just started does not say it yet
            time.sleep(pause)
            with suppress(Exception):  # these pages are the dashboard's own, and no promise of Ray's
                nodes = self._client._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]
                heads = [node["raylet"]["nodeId"] for node in nodes if node.get("raylet", {}).get("isHeadNode")]
                detail = self._client._do_request("GET", f"/nodes/{heads[0]}").text
                if found := re.search(r'"--python_worker_command=(\S+) ', detail):
                    return str(json.loads(f'"{found[1]}"'))
        return "python"


async def _close(stream: Any, coming: asyncio.Future[str] | None) -> None:
    if coming is not None:
        coming.cancel()
        await asyncio.wait({coming}, timeout=1)
    await asyncio.wait_for(stream.aclose(), 1)


@contextmanager
def _without_variables() -> Iterator[None]:
    """Ray's client lets the environment win over the address it is given."""
    kept = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _headers() -> dict[str, str]:
    """Of every request, as Ray's own commands take them."""
    try:
        headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}")
        return {str(name): str(value) for name, value in headers.items()}
    except (ValueError, AttributeError):
        raise UsageError("RAY_JOB_HEADERS: should be a JSON object of names and values") from None


def _certificates() -> str | bool:
    """Whom to trust, for the log's connection as for the requests: those whom the stores trust."""
    path = bundle()
    return str(path) if path else True


def _dashboard(address: Address) -> str:
    """The URL of a cluster's dashboard. A host:port may be the dashboard's, or the cluster's own, which is asked for it."""
    if address.is_url:
        return str(address.text)
    if address.text and (url := f"http://{address.text}") and _is_http(url):
        return url
    try:
        if address.text:
            host, _, port = address.text.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        return str(ray_address_to_api_server_url(address.text))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError, SystemExit) as error:
        raise Unreachable(str(error)) from error


def _is_http(url: str) -> bool:
    try:
        requests.get(f"{url}/api/version", timeout=CONNECT_SECONDS)
        return True
    except requests.RequestException:
        return False


def _nobody(address: Address, error: Unreachable) -> str:
    if address.text is None and isinstance(error.__cause__, ConnectionError):
        return "no Ray cluster runs on this machine: name one with --address http://HEAD:8265, or start one with `ray start --head`"
    if address.text is None:
        return (
            f"the Ray cluster on this machine has no dashboard that answers, and jobs go through it; name another with --address ({error})"
        )
    return (
        f"no Ray dashboard answers at {address}: start the cluster, forward the port (kubectl port-forward, ssh -L), or correct the "
        "address; it is the dashboard's, http://HEAD:8265 where nothing else was chosen"
    )


@contextmanager
def _told(url: str, job_id: str | None = None) -> Iterator[None]:
    """Turn the errors of Ray's client, and of what it speaks through, into ours."""
    shown = redact(url)
    try:
        yield
    except _DENIED as error:
        raise CredentialsError(_denied(shown)) from error
    except (requests.exceptions.JSONDecodeError, KeyError) as error:
        raise UsageError(f"what answers at {shown} is no Ray dashboard; its port is 8265 where no other was chosen") from error
    except requests.exceptions.HTTPError as error:
        status, text = (0, "") if error.response is None else (error.response.status_code, error.response.text)
        raise _refused(shown, job_id, status, text) from error
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise UsageError(f"{shown} is no address of a dashboard: {error}") from error
    except aiohttp.WSServerHandshakeError as error:
        raise _refused(shown, job_id, error.status, error.message) from error
    except (requests.RequestException, aiohttp.ClientError, OSError) as error:
        if told := explained(error, f"the cluster at {shown}", url):
            raise told from error
        raise Unreachable(f"the cluster at {shown} does not answer ({type(error).__name__})") from error
    except RuntimeError as error:
        found = _STATUS.search(str(error))
        if found is None and "WebSocket" in str(error):
            raise Unreachable(f"the cluster at {shown} broke the connection off") from error
        if found is None and "returned 404" in str(error):
            raise _refused(shown, None, 404, "") from error
        if found is None:
            raise UsageError(f"what answers at {shown} cannot run jobs: {str(error).partition(chr(10))[0]}") from error
        raise _refused(shown, job_id, int(found[1]), found[2]) from error


def _refused(url: str, job_id: str | None, status: int, text: str) -> ParamDeltaError:
    if status in (401, 403):
        return CredentialsError(_denied(url))
    if status == 404 and job_id:
        return NotFound(f"the cluster at {url} knows no job {job_id}; `paramdelta-dist jobs` lists those it knows")
    last = text.strip().rpartition("\n")[2].strip(". ")[:200]
    if status == 400:
        return UsageError(f"the cluster at {url} refuses that: {last}")
    if status in (404, 405, 501):
        return UsageError(
            f"what answers at {url} is no Ray dashboard that runs jobs ({status}); its port is 8265 where no other was chosen"
        )
    return Unreachable(f"the cluster at {url} cannot answer now ({status}: {last})")


def _denied(url: str) -> str:
    """The way out where a token is missing or wrong, in words; never the token."""
    source = next((f"the token in {name} was sent" for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)), "")
    source = source or ("the token in ~/.ray/auth_token was sent" if (Path.home() / ".ray/auth_token").exists() else "there is no token")
    if "authorization" in map(str.lower, _headers()):
        source = "the Authorization header of RAY_JOB_HEADERS was sent"
    elif os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return (
            f"the cluster at {url} wants a token, and none was sent: set RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN, "
            "in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
        )
    return (
        f"the cluster at {url} did not let us in: {source}. Give the cluster's own token in RAY_AUTH_TOKEN, in the file that "
        "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token (looked at in this order)"
    )


def _job(details: JobDetails) -> Job:
    return Job(
        id=str(details.submission_id),
        state=_STATES[details.status.value],
        metadata=details.metadata or {},
        exit_code=details.driver_exit_code,
        message=details.message or "",
        failure=str(getattr(details.error_type, "value", details.error_type)) if details.error_type else None,
        began=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
    )
