"""Measured from outside: the peak resident memory of a merge stays under what the plan projected."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from paramdelta_dist.driver.sizing import GPU_LIBRARIES
from paramdelta_dist.engine.machine import torch_is_for_gpus
from paramdelta_dist.sizes import parse_size
from paramdelta_dist.storage import StorageConfig, open_store
from tests import giants, quantised
from tests.models import save_model

BIG = 1 << 26
"""Elements of one bfloat16 tensor: 128 MiB, far more than any buffer."""


LIBRARIES = GPU_LIBRARIES if torch_is_for_gpus() else 0
"""Bytes that torch takes here more than a build for CPUs."""


def run(*arguments, env=None):
    """The document of `merge --json` and the process's peak resident size, in bytes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paramdelta_dist", "merge", *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    peak = 0
    while process.poll() is None:
        with suppress(OSError, StopIteration):
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max(peak, int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024)
        time.sleep(0.02)
    out, err = process.communicate()
    assert out, f"exit {process.returncode}: {err.decode()[-2000:]}"
    return json.loads(out), peak


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tensors = {"big": torch.randn(1 << 16).bfloat16().repeat(BIG >> 16), "small": torch.randn(100).bfloat16()}
    return [save_model(root / name, tensors) for name in ("new", "post", "old")]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_local_merge_stays_under_its_projection_with_a_tensor_larger_than_its_buffers(models, tmp_path, workers):
    new, post, old = models
    arguments = ["--base", str(new), "--delta", f"{post}:{old}", "--output", str(tmp_path / "out"), "--workers", workers]
    document, peak = run(*arguments, "--memory", "512MiB")
    assert document["state"] == "merged"
    assert peak <= document["projected_memory"] <= 512 << 20


@pytest.mark.slow
def test_a_report_on_what_torch_makes_stays_under_the_projection_even_while_its_kernels_are_compiled(tmp_path):
    new, post = (save_model(tmp_path / name, {f"{n}": torch.randn(1 << 21).bfloat16() for n in range(16)}) for name in ("new", "post"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: ties\nparameters: {{density: 0.2}}\nbase: {new}\ndeltas: [{{post: {post}}}]\noutput: {tmp_path / 'out'}\n")
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}  # where nothing is yet
    document, peak = run(str(recipe), "--workers", "1", "--memory", str((768 << 20) + LIBRARIES), "--report", env=env)
    assert "error" not in document, document
    assert peak <= document["projected_memory"] <= (768 << 20) + LIBRARIES


@pytest.mark.parametrize(("memory", "readings"), [("512MiB", 4), pytest.param("2GiB", 1, marks=pytest.mark.slow)])
def test_a_method_that_looks_at_whole_tensors_streams_them_or_has_them_whole_as_the_budget_allows(models, tmp_path, memory, readings):
    new, post, _ = models
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: ties\nparameters: {{density: 0.2}}\nbase: {new}\ndeltas: [{{post: {post}}}]\noutput: {tmp_path / 'out'}\n")
    budget = parse_size(memory) + LIBRARIES
    document, peak = run(str(recipe), "--workers", "2", "--memory", str(budget))
    assert "error" not in document, document
    assert peak <= document["projected_memory"] <= budget
    assert document["bytes_read"] == pytest.approx(readings * 2 * 2 * BIG, rel=0.001)


@pytest.mark.parametrize("method", ["della", pytest.param("nuslerp", marks=pytest.mark.slow)])
def test_rows_longer_than_any_block_stay_under_the_projection(tmp_path, method):
    new, post = (save_model(tmp_path / name, {"row": torch.randn(1 << 16).bfloat16().repeat(1 << 6)}) for name in ("new", "post"))
    given = f"deltas: [{{post: {post}, density: 0.5}}]" if method == "della" else f"models: [{{model: {post}}}]"
    recipe = tmp_path / "recipe.yaml"
    extra = "parameters: {nuslerp_flatten: false}\n" if method == "nuslerp" else ""
    recipe.write_text(f"method: {method}\n{extra}base: {new}\n{given}\noutput: {tmp_path / 'out'}\n")
    document, peak = run(str(recipe), "--workers", "1", "--memory", "2GiB")
    assert "error" not in document, document
    assert peak <= document["projected_memory"] <= 2 << 30


def uploaded(folders, server):
    """URL of a fresh bucket that holds the folders under their names."""
    bucket = f"s3://{server.make_bucket()}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        for folder in folders:
            store = open_store(f"{bucket}/{folder.name}", StorageConfig())
            for path in folder.iterdir():
                store.put(path.name, [path.read_bytes()], size=path.stat().st_size)
    return bucket


@pytest.fixture(scope="module")
def bucket(models, s3_server):
    return uploaded(models, s3_server)


@pytest.mark.parametrize("engine", ["obstore", pytest.param("fsspec", marks=pytest.mark.slow)])
def test_a_merge_over_s3_stays_under_its_projection(bucket, tmp_path, s3_server, engine):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {bucket}/new\ndeltas: [{{post: {bucket}/post, base: {bucket}/old}}]\noutput: {bucket}/{engine}\n"
        f"storage: {{'s3://': {{engine: {engine}}}}}\n"
    )
    document, peak = run(str(recipe), "--memory", "900MiB", env={**os.environ, **s3_server.environ})
    assert document["state"] == "merged"
    assert peak <= document["projected_memory"] <= 900 << 20


@pytest.mark.parametrize(
    ("engine", "report"),
    [
        pytest.param("local", False, marks=pytest.mark.slow),
        ("local", True),
        pytest.param("ray", True, marks=pytest.mark.slow),
        pytest.param("s3", True, marks=pytest.mark.slow),
    ],
)
def test_five_points_of_a_sweep_stay_under_the_projection(models, tmp_path, request, engine, report):
    names, output, environment = [str(model) for model in models], str(tmp_path / "out"), dict(os.environ)
    if engine == "s3":
        server = request.getfixturevalue("s3_server")
        bucket, environment = uploaded(models, server), environment | server.environ
        names, output = [f"{bucket}/{model.name}" for model in models], f"{bucket}/out"
    recipe, budget = tmp_path / "recipe.yaml", {"local": 640, "ray": 800, "s3": 3000}[engine] << 20
    recipe.write_text(
        f"base: {names[0]}\ndeltas: [{{post: {names[1]}, base: {names[2]}}}]\noutput: {output}\nsweep: {{weight: [0, 0.25, 0.5, 1, 1.5]}}\n"
    )
    flags = ["--report"] if report else []
    flags += ["--engine", "ray", "--workers", "1"] if engine == "ray" else ["--workers", "2"]
    document, peak = run(str(recipe), "--memory", str(budget), *flags, env=environment)
    assert "error" not in document, document
    measured = document["peak_memory"] if engine == "ray" else peak
    print(f"five points, {engine}: peak {measured >> 20} <= projected {document['projected_memory'] >> 20} <= {budget >> 20} MiB")
    assert document["bytes_read"] == pytest.approx(3 * 2 * BIG, rel=0.001)
    assert measured <= document["projected_memory"] <= budget


HUGE = 300 << 20
"""Elements of a bfloat16 tensor of 600 MiB, for budgets below that."""


def twins(root, source, count):
    """Folders that look like `count` models and hold the same files, so that eight deltas need no eight times the disk."""
    folders = [root / f"model{n}" for n in range(count)]
    for folder in folders:
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).hardlink_to(path)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "ray", "s3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("deltas", [1, 3, 8])
def test_the_budget_holds_for_any_number_of_deltas_dtype_and_place(tmp_path, s3_server, where, dtype, deltas):
    budget = {"local": 560, "ray": 700, "s3": 900}[where] << 20
    elements = HUGE // dtype.itemsize * 2 if where != "s3" else (96 << 20) // dtype.itemsize
    source = save_model(
        tmp_path / "source", {"w": torch.zeros(1 << 16, dtype=dtype).repeat(elements >> 16), "b": torch.ones(3, dtype=dtype)}
    )
    folders, environment = twins(tmp_path, source, 1 + 2 * deltas), dict(os.environ)
    names, output = [str(folder) for folder in folders], str(tmp_path / "out")
    if where == "s3":
        environment |= s3_server.environ
        bucket = uploaded(folders, s3_server)
        names, output = [f"{bucket}/{folder.name}" for folder in folders], f"{bucket}/out"
    flags = [flag for n in range(deltas) for flag in ("--delta", f"{names[2 * n + 1]}:{names[2 * n + 2]}:0.5")]
    engine = ["--engine", "ray", "--workers", "1"] if where == "ray" else []
    document, peak = run("--base", names[0], *flags, "--output", output, "--memory", str(budget), *engine, env=environment)
    assert "error" not in document, document
    measured = document["peak_memory"] if where == "ray" else peak
    print(
        f"{deltas} deltas, {dtype}, {where}: peak {measured >> 20} <= projected {document['projected_memory'] >> 20} <= {budget >> 20} MiB"
    )
    assert measured <= document["projected_memory"] <= budget


BAND, ROWS, COLUMNS = 256, 16_384, 8192
"""Rows of a quantised matrix that are drawn, and all of them: one has 134 million numbers."""
SCHEMES = {
    "fp8": (lambda name, matrix: quantised.fp8_block(name, matrix, rows=128, columns=128), giants.DEEPSEEK["quantization_config"]),
    "int4": (quantised.int4, giants.THINKING["quantization_config"]),
}


def quantised_model(folder, scheme, seed):
    """A model of two large matrices, their rows the same again and again, and a plain one."""
    make, claim = SCHEMES[scheme]
    random = torch.Generator().manual_seed(seed)
    tensors = {"model.norm.weight": torch.ones(COLUMNS).bfloat16(), "lm_head.weight": torch.zeros(1 << 22).bfloat16().reshape(-1, COLUMNS)}
    for number in range(2):
        band = make(f"model.layers.{number}.mlp.up_proj.weight", torch.randn(BAND, COLUMNS, generator=random) * 0.02)
        for name, array in band.items():
            tensors[name] = torch.tensor([ROWS, COLUMNS]) if name.endswith("shape") else array.repeat(ROWS // BAND, 1)
    return save_model(folder, tensors, config={"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": claim})


@pytest.mark.parametrize("where", ["local", pytest.param("ray", marks=pytest.mark.slow), pytest.param("s3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("quantization", ["keep", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_budget_holds_for_quantised_models(tmp_path, request, scheme, quantization, where):
    budget = {"local": 560, "ray": 800, "s3": 900}[where] << 20
    folders, environment = (
        [quantised_model(tmp_path / name, scheme, seed) for seed, name in enumerate(("new", "post", "old"))],
        dict(os.environ),
    )
    names, output = [str(folder) for folder in folders], str(tmp_path / "out")
    if where == "s3":
        server = request.getfixturevalue("s3_server")
        bucket, environment = uploaded(folders, server), environment | server.environ
        names, output = [f"{bucket}/{folder.name}" for folder in folders], f"{bucket}/out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {names[0]}\ndeltas: [{{post: {names[1]}, base: {names[2]}}}]\noutput: {output}\nquantization: {quantization}\n"
    )
    flags = ["--engine", "ray", "--workers", "1"] if where == "ray" else []
    document, peak = run(str(recipe), "--memory", str(budget), *flags, env=environment)
    assert "error" not in document, document
    measured = document["peak_memory"] if where == "ray" else peak
    print(
        f"{scheme}, {quantization}, {where}: peak {measured >> 20} <= projected {document['projected_memory'] >> 20} <= {budget >> 20} MiB"
    )
    assert document["bytes_read"] == pytest.approx(sum(path.stat().st_size for folder in folders for path in folder.iterdir()), rel=0.001)
    assert measured <= document["projected_memory"] <= budget


@pytest.mark.parametrize(("method", "more"), [("ties", GPU_LIBRARIES), ("paramdelta", 0)])
def test_a_build_of_torch_for_gpus_is_projected_where_a_method_uses_torch(tmp_path, method, more):
    """PyPI's for Linux is one; planning imports nothing of it, so that a folder in its place is enough."""
    shapes = {"a.weight": torch.randn(64, 64).bfloat16()}
    new, post = (save_model(tmp_path / name, shapes) for name in ("new", "post"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: {method}\nbase: {new}\ndeltas: [{{post: {post}}}]\noutput: {tmp_path / 'out'}\n")
    projected = []
    for library in ("libtorch_cpu.so", "libtorch_cuda.so"):
        package = tmp_path / library / "torch"
        (package / "lib").mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('imported')")
        (package / "lib" / library).touch()
        command = [sys.executable, "-m", "paramdelta_dist", "plan", str(recipe), "--workers", "1", "--memory", "4GiB", "--json"]
        done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONPATH": str(package.parent)})
        projected.append(json.loads(done.stdout)["memory"]["projected"])
    assert projected[1] - projected[0] == more
