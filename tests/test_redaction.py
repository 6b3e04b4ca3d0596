"""Secrets are taken out of any text, by their form and by the value of variables; ordinary text stays as it is."""

import json
import logging
import string
import sys
import threading
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta_dist import redaction
from paramdelta_dist.errors import CredentialsError, UsageError
from paramdelta_dist.redaction import by_form, redacted, redacted_values

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

FORMS = {
    "az://c/x?sv=2021&sig=PLANTED%2Fdef%3D&se=1": "az://c/x?sv=2021&sig=***&se=1",
    "GET https://a.blob.core.windows.net/c?sig=PLANTED/efg+h= failed": "GET https://a.blob.core.windows.net/c?sig=*** failed",
    "gs://b/o?X-Goog-Signature=PLANTED&X-Goog-Date=1": "gs://b/o?X-Goog-Signature=***&X-Goog-Date=1",
    "?X-Amz-Credential=PLANTED%2F1&X-Amz-Security-Token=PLANTED": "?X-Amz-Credential=***&X-Amz-Security-Token=***",
    "s3://key:PLANTED@bucket/x": "s3://***@bucket/x",
    "http://clerk:PLAN@TED@proxy:3128/": "http://***@proxy:3128/",
    "https://PLANTED@host/x": "https://***@host/x",
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/2026, Signature=PLANTED\nHost: h": "Authorization: ***\nHost: h",
    "{'Authorization': 'Bearer PLANTED', 'x': 1}": "{'Authorization': '***', 'x': 1}",
    "sent Bearer PLANTED-token-of-a-user": "sent Bearer ***",
    "the key AKIAIOSFODNN7EXAMPLE was sent": "the key *** was sent",
    f"AccountName=x;AccountKey={KEY};EndpointSuffix=c": "AccountName=x;AccountKey=***;EndpointSuffix=c",
    "SharedAccessSignature=sv=2020&sig=PLANTED;BlobEndpoint=h": "SharedAccessSignature=***;BlobEndpoint=h",
    '{"private_key": "-----BEGIN PRIVATE KEY-----\\nPLANTED\\n-----END PRIVATE KEY-----\\n", "x": 1}': '{"private_key": "***", "x": 1}',
    "-----BEGIN RSA PRIVATE KEY-----\nPLANTED\n-----END RSA PRIVATE KEY-----\n!": "***!",
    "aws_secret_access_key = PLANTED": "aws_secret_access_key = ***",
    "token hf_abcdefghijABCDEFGHIJabcdefghij12 is wrong": "token *** is wrong",
    "--token=PLANTED": "--token=***",
    "?url=https%3A%2F%2Fa%3Fsig%3DPLANTED%26x": "?url=https%3A%2F%2Fa%3Fsig%3D***%26x",
    '{"password": "PLANTED"}': '{"password": "***"}',
}


@pytest.mark.parametrize("text", FORMS, ids=range(len(FORMS)))
def test_a_secret_is_known_by_its_form(text):
    assert redacted(text) == FORMS[text]
    assert redacted(redacted(text)) == FORMS[text]


ORDINARY = [
    "s3://models/Llama-3.1-70B/sig=0.5/token=3/weight=1/model-00001-of-00030.safetensors",
    "s3://bucket/a b#1?x=1&y=2",
    "gs://bucket/o?generation=1700000000000000",
    "abfss://container@account.dfs.core.windows.net/a/b",
    "sftp://me@host/models/x",
    "hf://meta-llama/Llama-3.1-8B@main/x",
    "model.layers.0.self_attn.k_proj.weight: base 1 x 2, post 1 x 3; tokens 128256, max_tokens=5, bos_token='<s>'",
    "design=1, key=value, signal=2, the signature of a function, its secret: none, a token; password of the store",
    "there are no credentials: the bearer authentication is off; Bearer certificates and tokens",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "d41d8cd98f00b204e9800998ecf8427e-12",
    "http://127.0.0.1:8265/api?view=summary",
    "/data/models/x@y:z/a?b",
    "basic_auth.signature.weight = 5; AKIA; ASIA; hf_transfer; gh_pages",
]


@pytest.mark.parametrize("text", ORDINARY, ids=range(len(ORDINARY)))
def test_ordinary_text_comes_out_unchanged(text, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "models")
    monkeypatch.setenv("HF_TOKEN", "token")
    assert redacted(text) == text


NAME = st.text(string.ascii_letters + string.digits + "._-=+ ", min_size=1, max_size=20).filter(str.strip)


@given(
    st.sampled_from(["s3://", "gs://", "az://", "hf://", "/", "memory://"]), st.lists(NAME, min_size=1, max_size=6), st.binary(max_size=32)
)
def test_no_path_tensor_name_or_digest_is_changed(start, parts, digest):
    path = start + "/".join(parts)
    if not any(word in path.lower() for word in ("key", "token", "secret", "passw", "sig=", "akia", "asia", "hf_", "pwd=")):
        assert by_form(path) == path
    assert redacted(digest.hex()) == digest.hex()


@given(st.text(string.printable.strip() + "äß", min_size=redaction.LONG, max_size=60).filter(str.strip))
def test_the_value_of_a_variable_is_found_however_it_is_spelled(secret):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        for spelled in (secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1], f"x{secret}x"):
            shown = redacted(f"[{spelled}]")
            assert secret not in shown or secret in "[***]"
            assert "***" in shown


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "PLANTED-secret", "PLANTED-secret"),
        ("AWS_SESSION_TOKEN", "PLANTED-token\n", "PLANTED-token"),
        ("AWS_ACCESS_KEY_ID", "PLANTED-access-key", "PLANTED-access-key"),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY, KEY),
        ("AZURE_STORAGE_KEY", KEY, KEY),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=2024&sig=PLANTED%2Bsig", "PLANTED%2Bsig"),
        ("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=name;AccountKey={KEY};", KEY),
        ("AZURE_CLIENT_SECRET", "PLANTED-client", "PLANTED-client"),
        ("HF_TOKEN", "PLANTED-hf-token", "PLANTED-hf-token"),
        ("HUGGING_FACE_HUB_TOKEN", "PLANTED-hf-token", "PLANTED-hf-token"),
        ("RAY_AUTH_TOKEN", "PLANTED-ray-token", "PLANTED-ray-token"),
        ("RAY_JOB_HEADERS", '{"X-Door": "PLANTED-door"}', "PLANTED-door"),
        ("AWS_ENDPOINT_URL", "http://me:PLANTED1@host", "PLANTED1"),
        ("HTTPS_PROXY", "http://me:PLANTED%2F1@proxy", "PLANTED/1"),
        ("https_proxy", "me:PLANTED1@proxy:3128", "PLANTED1"),
        ("ALL_PROXY", "http://me:PLANTED1@proxy", "PLANTED1"),
        ("RAY_ADDRESS", "http://me:PLANTED1@head:8265", "PLANTED1"),
    ],
)
def test_the_secret_of_every_known_variable_is_hidden(name, value, secret, monkeypatch):
    monkeypatch.setenv(name, value)
    assert redacted(f"it said {secret} to us") == "it said *** to us"
    assert redacted("it said host, proxy, name, me and AccountName to us") == "it said host, proxy, name, me and AccountName to us"


def test_what_only_names_a_file_or_a_number_is_no_secret(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/var/run/token-file")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/eks")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled-here")
    text = "/var/run/token-file /var/run/secrets/eks disabled-here"
    assert redacted(text) == text


def test_a_short_value_is_hidden_as_a_word_and_not_inside_others(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "minioadmin")
    assert redacted("'minioadmin' does not match") == "'***' does not match"
    assert redacted("s3://minioadmin-models/x") == "s3://minioadmin-models/x"


def test_an_error_has_no_secret_from_the_moment_it_is_made(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "PLANTED-session-token")
    for kind in (UsageError, CredentialsError):
        error = kind("az://c/x?sig=abc said PLANTED-session-token")
        assert str(error) == "az://c/x?sig=*** said ***"
        assert error.args == ("az://c/x?sig=*** said ***",)


def test_documents_keep_their_form(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "12345678")
    document = {"size": 12345678, "url": "az://c/x?sig=abc", "list": [1.5, None, True, "12345678"], "12345678": {}}
    assert redacted_values(document) == {"size": 12345678, "url": "az://c/x?sig=***", "list": [1.5, None, True, "***"], "***": {}}


def test_no_library_logs_a_secret(monkeypatch, caplog):
    before = logging.getLogRecordFactory()
    for module in (sys, threading):
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "PLANTED-session-token")
    try:
        redaction.redact_process()
        for logger in ("botocore.endpoint", "urllib3.connectionpool", "anyone"):
            try:
                raise ValueError("PLANTED-session-token in a cause")
            except ValueError:
                logging.getLogger(logger).warning("%s of %s", "PLANTED-session-token", {"h": "https://a:PLANTED@b"}, exc_info=True)
    finally:
        logging.setLogRecordFactory(before)
    assert "PLANTED" not in caplog.text
    assert caplog.text.count("*** of {'h': 'https://***@b'}") == 3
    assert "ValueError: *** in a cause" in caplog.text
