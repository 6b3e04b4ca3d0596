"""The launcher and the Slurm script: nodes as processes of this machine, real Ray between them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.deploy.files import CLUSTER, DEPLOY, ROOT
from tests.faults import fault_proxy, stalled
from tests.raw_checkpoints import folder, one_tensor
from tests.servers import free_ports

ANY_WORKER_PORTS = "--min-worker-port=0 --max-worker-port=0"
"""Those that Ray would take otherwise, 10002 to 19999, may have the port in them that a test asked for."""
LAUNCH = str(DEPLOY / "launch.sh")
MERGE = [sys.executable, "-m", "paramdelta_dist", "merge"]
SECONDS = 120


def environment(**more: object) -> dict[str, str]:
    """That of a node, without what this machine or another test has set."""
    foreign = ("RAY_", "PDD_", "AWS_BATCH", "SLURM", "SKYPILOT", "BATCH_")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    fixed = {"PATH": path, "PYTHONPATH": str(ROOT), "RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_AUTH_TOKEN": "0" * 64}
    return {**mine, **fixed, **{name: str(value) for name, value in more.items()}}


def node(*command: str, cwd: Path, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAUNCH, *command], cwd=cwd, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=SECONDS)
        pytest.fail(f"did not end:\n{output[-3000:]}")
    return process.returncode, output


@pytest.fixture
def place(tmp_path):
    """Three small models with a recipe, and one of a model that is not there."""
    for name in ("new", "post", "old"):
        folder(tmp_path / name, {"model.safetensors": one_tensor("a.weight")})
    recipe = f"base: {tmp_path}/new\ndeltas:\n  - post: {tmp_path}/post\n    base: {tmp_path}/old\noutput: {tmp_path}/out\n"
    (tmp_path / "good.yaml").write_text(recipe)
    (tmp_path / "missing.yaml").write_text(recipe.replace("/new", "/nowhere"))
    return tmp_path


@pytest.fixture
def rays():
    """A short folder for Ray, and ports for two nodes: the head's, and what each would otherwise take from a fixed place."""
    with tempfile.TemporaryDirectory(prefix="pdd", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        port, *agents, client = free_ports(4)
        arguments = [f"--num-cpus=1 --temp-dir={temporary} --dashboard-agent-listen-port={agent} {ANY_WORKER_PORTS}" for agent in agents]
        arguments[0] += f" --ray-client-server-port={client}"
        yield port, arguments


def aws(index: int, nodes: int = 2) -> dict[str, object]:
    child = {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": own_address()} if index else {}
    return {"AWS_BATCH_JOB_NODE_INDEX": index, "AWS_BATCH_JOB_MAIN_NODE_INDEX": 0, "AWS_BATCH_JOB_NUM_NODES": nodes, **child}


def own_address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "code"), [("good.yaml", 0), ("missing.yaml", 3)])
def test_two_nodes_of_aws_batch_merge_and_the_exit_code_is_the_commands(place, rays, recipe, code):
    port, arguments = rays
    first, second = (
        node(*MERGE, recipe, "--engine", "ray", cwd=place, PDD_PORT=port, PDD_START_SECONDS=60, PDD_RAY_ARGUMENTS=arguments[i], **aws(i))
        for i in range(2)
    )
    got, told = ended(first)
    assert got == code, told
    assert f"launch: the command ended with {code}" in told
    assert "only" not in told, ended(second)[1]
    assert (place / "out/config.json").exists() == (code == 0)
    got, told = ended(second)
    assert got == 0, told
    assert "its exit code is the result" in told


@pytest.mark.slow
def test_nodes_of_google_batch_find_the_first_by_the_list_of_hosts(place, rays):
    port, arguments = rays
    (place / "hosts").write_text(f"{own_address()}\n127.0.0.2\n")
    show = [sys.executable, "-c", "import os, ray; ray.init(); print('NODES', sum(n['Alive'] for n in ray.nodes()))"]
    first, second = (
        node(
            *show,
            cwd=place,
            PDD_PORT=port,
            PDD_START_SECONDS=60,
            PDD_RAY_ARGUMENTS=arguments[i],
            PDD_NODE_IP=address,
            BATCH_HOSTS_FILE="hosts",
        )
        for i, address in enumerate((own_address(), "127.0.0.2"))
    )
    got, told = ended(first)
    assert (got, "NODES 2" in told) == (0, True), told
    got, told = ended(second)
    assert got == 0, told


@pytest.mark.slow
def test_the_first_node_goes_on_without_those_that_do_not_come(place, rays):
    port, arguments = rays
    first = node(
        *MERGE,
        "good.yaml",
        "--engine",
        "ray",
        cwd=place,
        PDD_PORT=port,
        PDD_START_SECONDS=3,
        PDD_RAY_ARGUMENTS=arguments[0],
        **aws(0, nodes=3),
    )
    got, told = ended(first)
    assert got == 0, told
    assert "only 1 of 3 nodes came in 3 s" in told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stop_reaches_the_merge_and_leaves_no_process_behind(place, rays, s3_server, number):
    """The command is a child that a script started in the background, where SIGINT is ignored."""
    port, arguments = rays
    with fault_proxy(s3_server.endpoint) as proxy:
        proxy.rule(stalled(), method="PUT", path="model", times=math.inf)  # so that the merge is under way when it is stopped
        (place / "held.yaml").write_text((place / "good.yaml").read_text().replace(f"{place}/out", f"s3://{s3_server.make_bucket()}/out"))
        store = {**s3_server.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
        merge = [*MERGE, "held.yaml", "--engine", "ray"]
        first = node(*merge, cwd=place, PDD_PORT=port, PDD_RAY_ARGUMENTS=arguments[0], **store)
        until = time.monotonic() + SECONDS
        while not proxy.faults:
            assert first.poll() is None, ended(first)
            assert time.monotonic() < until, "the merge never began"
            time.sleep(0.1)
        first.send_signal(number)
        got, told = ended(first)
    assert got == 130, told
    assert "stopped. What is finished is kept" in told
    temporary = arguments[0].split("--temp-dir=")[1].split()[0]
    until = time.monotonic() + 60
    while left := [pid for pid in filter(str.isdigit, os.listdir("/proc")) if temporary in command_line(pid)]:
        assert time.monotonic() < until, [command_line(pid) for pid in left]
        time.sleep(0.5)


def command_line(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_a_node_that_finds_no_first_one_says_try_again_later(tmp_path):
    [port] = free_ports(1)
    got, told = ended(node("true", cwd=tmp_path, PDD_PORT=port, PDD_START_SECONDS=1, **aws(1)))
    assert got == 75
    assert f"no answer from the first node at {own_address()}:{port} in 1 s" in told


def test_a_host_that_nobody_knows_is_to_be_tried_again_later(tmp_path):
    (tmp_path / "hosts").write_text("nobody.invalid\n")
    got, told = ended(node("true", cwd=tmp_path, PDD_START_SECONDS=1, BATCH_HOSTS_FILE="hosts"))
    assert (got, "no address is known of nobody.invalid" in told) == (75, True), told


def test_without_a_command_it_tells_its_usage(tmp_path):
    got, told = ended(node(cwd=tmp_path))
    assert (got, "usage: launch.sh COMMAND" in told) == (2, True)


@pytest.fixture
def slurm(place):
    """A folder as a user has it, and stand-ins for Slurm's own commands: srun starts two tasks, scontrol notes what it is asked."""
    (place / "bin").mkdir()
    programs = {
        "srun": f"""
            cores=1  # as since Slurm 22.05: it takes none from sbatch
            while [[ $1 == --* ]]; do [[ $1 == --cpus-per-task=* ]] && cores=${{1#*=}}; shift; done
            [[ $1 == rm ]] && exec "$@"
            echo "$cores" >cores
            read -ra agents <<<"$AGENTS"
            SLURM_PROCID=1 PDD_RAY_ARGUMENTS="$PDD_RAY_ARGUMENTS {ANY_WORKER_PORTS} ${{agents[1]}}" "$@" >second.log 2>&1 & second=$!
            code=0; SLURM_PROCID=0 PDD_RAY_ARGUMENTS="$PDD_RAY_ARGUMENTS {ANY_WORKER_PORTS} ${{agents[0]}}" "$@" || code=$?
            wait $second || code=$?
            exit $code""",
        "scontrol": 'if [[ $1 == show ]]; then hostname -I | tr " " "\\n" | head -n 1; else echo "$@" >>scontrol.log; fi',
        "paramdelta-dist": f'exec {sys.executable} -m paramdelta_dist "$@"',
    }
    for name, text in programs.items():
        (place / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (place / "bin" / name).chmod(0o755)
    agents = " ".join(f"--dashboard-agent-listen-port={port}" for port in free_ports(2))
    [job] = free_ports(1)

    def run(*arguments: str, **more: object) -> tuple[int, str]:
        given = environment(
            SLURM_JOB_ID=job, SLURM_NTASKS=2, AGENTS=agents, **{"SLURM_CPUS_PER_TASK": 1, "SLURM_JOB_NODELIST": "n[1-2]", **more}
        )
        given["PATH"] = f"{place}/bin:{given['PATH']}"
        done = subprocess.run(
            [str(CLUSTER / "slurm.sh"), *arguments], cwd=place, env=given, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_slurm_script_merges_on_the_nodes_of_its_job(place, slurm):
    (place / "deploy").symlink_to(DEPLOY)
    got, told = slurm("good.yaml")
    assert got == 0, told
    assert (place / "out/config.json").exists()
    assert "its exit code is the result" in (place / "second.log").read_text()
    assert not (place / "scontrol.log").exists()


@pytest.mark.parametrize(("code", "restarts", "again"), [(75, 0, True), (75, 3, False), (3, 0, False), (0, 0, False)])
def test_the_slurm_script_queues_again_what_may_pass(place, slurm, code, restarts, again):
    (place / "deploy").mkdir()
    (place / "deploy/launch.sh").write_text(f'#!/bin/sh\n[ "$SLURM_PROCID" = 0 ] && exit {code}; exit 0\n')
    (place / "deploy/launch.sh").chmod(0o755)
    got, told = slurm("good.yaml", SLURM_RESTART_COUNT=restarts, SLURM_CPUS_PER_TASK=7)
    assert got == code, told
    assert (place / "cores").read_text() == "7\n", "tasks get the cores that the job asked for"
    assert (place / "scontrol.log").exists() == again


def test_the_slurm_script_without_a_recipe_tells_its_usage(slurm):
    got, told = slurm()
    assert (got, "usage: sbatch slurm.sh RECIPE" in told) == (2, True)
