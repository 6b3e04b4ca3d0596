"""Trusted certificates: those of the public authorities, and those that the usual variables name, for every library alike.

Each library has a variable of its own and leaves out the others'. Here all of them, and a profile's `ca_bundle`, mean the same: these
certificates are trusted too, beside those of the system and the public authorities. They add and do not replace, because one run
may speak to a company's store and to a public one, and no longer would if naming the first's authority shut the second out.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import ssl
import tempfile
import threading
from functools import lru_cache
from pathlib import Path

from paramdelta_dist.errors import UsageError

VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

_SYSTEM = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Red Hat
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
_TOLD = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_REPLACED: dict[str, str | None] = {}
"""Values that variables had before they named our bundle."""
_MAKING = threading.Lock()
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL)


def bundle(profile_bundle: str | None = None) -> Path | None:
    """A PEM file with all certificates that are trusted here; None where nothing but the public and the system's are.

    `profile_bundle` is what an AWS profile names. The file lives as long as this process.
    Raises UsageError, naming the variable, for a file that is not there or holds no certificate.
    """
    named = [("ca_bundle of the AWS profile", profile_bundle), *((name, _given(name)) for name in VARIABLES)]
    given = tuple((source, path) for source, path in named if path)
    with _MAKING:  # models are opened by several threads, and none may read what another is writing
        return _bundle(given) if given else None


def tell_environment() -> Path | None:
    """Name the bundle to libraries that take it from the environment alone; the same as `bundle`.

    Each variable is set once: other threads read the environment meanwhile.
    """
    path = bundle()
    with _MAKING:
        for name in _TOLD if path else ():
            if os.environ.get(name) != str(path):
                _REPLACED[name] = _given(name)
                os.environ[name] = str(path)
    return path


def _given(name: str) -> str | None:
    """The value of a variable as it was given: where it names our own bundle, the one before."""
    value = os.environ.get(name)
    return _REPLACED.get(name) if value and os.path.dirname(value) == _folder() else value


def certificates(profile_bundle: str | None = None) -> bytes | None:
    """The content of `bundle`, for a library that takes no file."""
    path = bundle(profile_bundle)
    return path.read_bytes() if path else None


@lru_cache(maxsize=16)
def _bundle(given: tuple[tuple[str, str], ...]) -> Path:
    found: dict[bytes, None] = {}
    for source, text in given:
        found.update(dict.fromkeys(_named(source, text)))
    for path in _public():
        found.update(dict.fromkeys(_read(path)))
    made = Path(_folder(), f"{abs(hash(given)):x}.pem")
    made.write_bytes(b"\n".join(found) + b"\n")
    return made


def _named(source: str, text: str) -> list[bytes]:
    """The certificates that a variable names: those of a file, of the files of a folder, or of several folders."""
    paths = text.split(os.pathsep) if source == "SSL_CERT_DIR" else [os.path.expanduser(text)]
    found: list[bytes] = []
    for path in map(Path, paths):
        try:
            files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
            for file in files:
                found += _read(file)
        except OSError as error:
            if source != "SSL_CERT_DIR":  # of its folders some may be missing, as on a system of another kind
                raise UsageError(f"{source}: {path} cannot be read ({error.strerror}); name a file of certificates in PEM form") from None
    if not found:
        raise UsageError(f"{source}: {text} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=b"\n".join(found).decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise UsageError(f"{source}: {text} holds a certificate that cannot be read") from None
    return found


def _read(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return _PEM.findall(file.read(16 << 20))


def _public() -> list[Path]:
    """The system's authorities, and those that Python's libraries bring along."""
    import certifi

    system = next((path for path in map(Path, _SYSTEM) if path.is_file()), None)
    return [*([system] if system else []), Path(certifi.where())]


@lru_cache(maxsize=1)
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="paramdelta-certificates-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
