"""The page on networks, followed behind a certificate of a company's own and a proxy with a password."""

import pytest
import torch

from tests.docs.pages import DOCS
from tests.models import save_model
from tests.networks import Authority, proxy, tls_before


@pytest.mark.slow
def test_the_page_on_networks(reader, s3_server, tmp_path):
    bucket, client = s3_server.make_bucket(), s3_server.client()
    for name in ("new", "post", "old"):
        for path in save_model(tmp_path / name, {"w": torch.ones(1000)}).iterdir():
            client.put_object(Bucket=bucket, Key=f"{name}/{path.name}", Body=path.read_bytes())
    models = f"base: s3://{bucket}/new\ndeltas: [{{post: s3://{bucket}/post, base: s3://{bucket}/old}}]\n"
    (reader.folder / "llama.yaml").write_text(f"{models}output: s3://{bucket}/merged\n")
    authority = Authority.at(reader.folder)
    page = tmp_path / "networks.md"
    with tls_before(s3_server.endpoint, authority.context()) as secure, proxy("secret-of-the-clerk") as between:
        text = (DOCS / "networks.md").read_text()
        assert "127.0.0.1:3128" in text
        text = text.replace("127.0.0.1:3128", f"127.0.0.1:{between.port}").replace("NO_PROXY=localhost,127.0.0.0/8,", "NO_PROXY=")
        page.write_text(text)
        output = "".join(reader.follow(page, {**s3_server.environ, "AWS_ENDPOINT_URL": secure, "CURL_CA_BUNDLE": str(authority.pem)}))
        assert f"merged into s3://{bucket}/merged" in output
        assert between.asked
        assert set(between.asked) == {f"CONNECT {secure.removeprefix('https://')}"}
