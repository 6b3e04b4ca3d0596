"""The network between here and a store: proxies, and the causes of connections that do not come about."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import unquote, urlsplit

from paramdelta_dist.errors import CredentialsError, ParamDeltaError, UsageError
from paramdelta_dist.redaction import redacted
from paramdelta_dist.storage.environment import checked_url

_URL = re.compile(r"(https?)://(?:[^\s/@\"']*@)?([^\s/\"',)]+)")


def proxy_for(url: str) -> tuple[str, str] | None:
    """The variable that names a proxy for requests to `url`, and the proxy's URL with its password; None where there is none.

    Raises UsageError, naming the variable, for a value that no proxy can have.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return None if not host or _goes_direct(host, parts.port) else _named(parts.scheme)


def _named(scheme: str) -> tuple[str, str] | None:
    for name in (f"{scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if value := os.environ.get(variable):
                return variable, _checked(value, variable)
    return None


def check_proxies() -> None:
    """Raises UsageError for a variable of the environment that should name a proxy and cannot."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if value := os.environ.get(variable):
                _checked(value, variable)


def _checked(value: str, variable: str) -> str:
    url = value if "://" in value else f"http://{value}"
    user, at, rest = url.partition("://")[2].rpartition("@")
    scheme = url.partition("://")[0]
    if scheme.lower().startswith("socks"):
        raise UsageError(f"{variable}: SOCKS proxies are not supported; name one that speaks HTTP")
    checked_url(f"{scheme}://{rest}", variable)
    if any(ord(character) <= 32 for character in user):
        raise UsageError(f"{variable}: the user or password of the proxy holds white space; write it as %20")
    return f"{scheme}://{user}{at}{rest}"


def _goes_direct(host: str, port: int | None) -> bool:
    """Whether NO_PROXY has a host: by name, by the end of its name, by address or network, or all with `*`."""
    entries = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    for entry in (each.strip().lower() for each in entries.split(",")):
        name, _, number = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        if number and number != str(port):
            continue
        name = name.removeprefix("*").lstrip(".").strip("[]")
        if entry == "*" or (name and (host == name or host.endswith(f".{name}"))):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


def proxies(url: str) -> dict[str, str]:
    """The proxy for `url` in the form that botocore takes: by the scheme of what is asked for; empty where there is none."""
    found = proxy_for(url)
    return {urlsplit(url).scheme: found[1]} if found else {}


def for_obstore(url: str) -> dict[str, str]:
    """Options of obstore's client that make it go to `url` as NO_PROXY says, of whose entries it knows fewer: no `*` for addresses."""
    parts = urlsplit(url)
    named = _named(parts.scheme)
    if named is None:
        return {}
    return {"proxy_url": named[1], **({} if proxy_for(url) else {"proxy_excludes": parts.hostname or ""})}


def explained(error: BaseException, where: str, endpoint: str | None = None) -> ParamDeltaError | None:
    """The error for a connection that failed for a reason no repetition mends; None for all others.

    `endpoint` is the URL of the service where it is known; else the first URL in the error's words counts.
    """
    text = _words(error)
    scheme, host = _asked(text, endpoint)
    if re.search(r"InvalidCertificate|CERTIFICATE_VERIFY_FAILED|certificate verify failed|hostname '[^']*' doesn't match", text):
        return CredentialsError(f"{where}: {_distrusted(text, host)}")
    if scheme == "https" and re.search(r"InvalidContentType|WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|SSL: HTTP_REQUEST", text):
        return UsageError(f"{where}: {host} does not speak TLS; is its address http:// and not https://?")
    if scheme == "http" and re.search(r"HTTP request (?:was sent )?to (?:an )?HTTPS|plain HTTP request", text):
        return UsageError(f"{where}: {host} speaks TLS only; is its address https:// and not http://?")
    if re.search(r"ProxyAuthRequired|\b407\b.{0,120}(?i:proxy)|(?i:proxy)[^\n]{0,120}\b407\b", text, re.DOTALL):
        found = proxy_for(f"{scheme}://{host}")
        variable, proxy = found if found else (f"{scheme.upper()}_PROXY", "")
        shown = f"the proxy {without_user(proxy)}" if proxy else "the proxy"
        wanted = "wants another user or password" if urlsplit(proxy).username else "wants a user and a password"
        return CredentialsError(f"{where}: {shown} {wanted} (407): write USER:PASSWORD@ before its host in {variable}")
    return None


def by_proxy(error: BaseException, endpoint: str | None = None) -> str:
    """Words about the proxy that a request went through, to stand after what happened to it; empty where it went directly."""
    scheme, host = _asked(_words(error), endpoint)
    found = proxy_for(f"{scheme}://{host}") if host else None
    return f"; requests to it go through the proxy {without_user(found[1])} ({found[0]})" if found else ""


def without_user(url: str) -> str:
    """A proxy's URL without user and password."""
    scheme, _, rest = url.partition("://")
    return redacted(f"{scheme}://{rest.rpartition('@')[2]}")


def _asked(text: str, endpoint: str | None) -> tuple[str, str]:
    found = _URL.search(text)
    if endpoint:
        parts = urlsplit(endpoint)
        return parts.scheme, parts.netloc.rpartition("@")[2]
    if found:
        return found[1], unquote(found[2])
    named = re.search(r"Cannot connect to host (\S+)", text)
    return "https", named[1] if named else "the server"


def _words(error: BaseException) -> str:
    """All that an exception, and what it came from, says."""
    said: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(said) < 10:
        said.append(f"{type(seen).__name__}: {seen}")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(said)


def _distrusted(text: str, host: str) -> str:
    if re.search(r"NotValidForName|[Hh]ostname mismatch|IP address mismatch|doesn't match", text):
        return f"the certificate of {host} is for another name; use the name that it is for as the endpoint's"
    if re.search(r"Expired|has expired", text):
        return f"the certificate of {host} has expired, or the clock of this machine is wrong; whoever runs it has to renew it"
    if re.search(r"NotValidYet|not yet valid", text):
        return f"the certificate of {host} is not valid yet; is the clock of this machine right?"
    return (
        f"the certificate of {host} is signed by nobody who is trusted here. If that is your own authority, name the PEM file of its "
        "certificate in AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE or SSL_CERT_FILE, or as ca_bundle in an AWS profile, here and on the machines of "
        "all workers"
    )
