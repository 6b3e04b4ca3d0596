"""Ray from an environment of its own, which has no package of ours and lies on nobody's PATH; the package is in another one."""

import json
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.clusters import ray_cluster
from tests.jobs.conftest import Site

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "paramdelta_dist":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hide())
"""


def environment(folder: Path) -> Path:
    """A virtual environment that has all that this one has, but not the package."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (site / "sitecustomize.py").write_text(HIDE)
    ray = folder / "bin/ray"
    ray.write_text(f"#!{folder}/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n")
    ray.chmod(0o755)
    return folder


@pytest.mark.slow
def test_the_named_interpreter_is_that_of_driver_and_workers(models, s3_server, s3_proxy, tmp_path):
    s3_proxy.clear()
    rays = environment(tmp_path / "rays")
    environ = {**s3_server.environ, "AWS_ENDPOINT_URL": s3_proxy.endpoint, "PYTHONPATH": ""}
    with ray_cluster(environ, workers=1, ray=rays / "bin/ray") as cluster:
        site = Site(cluster, models, s3_server, s3_proxy, tmp_path)
        recipe = site.recipe("elsewhere")
        refused = site.run("submit", recipe)
        assert refused.returncode == 2, refused.stderr
        assert f"{rays}/bin/python on the cluster's head has no paramdelta-dist" in refused.stderr
        assert "--python PATH" in refused.stderr

        named = ("--python", sys.executable)
        done = site.run("submit", recipe, *named, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"]["state"] == "merged"
        sound = site.run("submit", recipe, "--do", "verify", "--deep", *named)
        assert sound.returncode == 0, sound.stderr
        assert "every byte by digest" in sound.stdout
        analysis = site.run("submit", recipe, "--do", "analyze", "--output", f"s3://{site.bucket}/elsewhere-analysis", *named)
        assert analysis.returncode == 0, analysis.stderr
        again = site.run("submit", recipe, "--overwrite", "--yes", *named, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["result"]["shards"] == {"made": 8, "kept": 0}
