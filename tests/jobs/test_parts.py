"""The parts of `jobs/` that need no cluster: addresses, names, what travels, following, endings."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from paramdelta_dist.errors import CredentialsError, EngineError, NotFound, OutputOccupied, UsageError
from paramdelta_dist.jobs import working_dir as parcel
from paramdelta_dist.jobs.address import choose_address
from paramdelta_dist.jobs.exit_code import ending_of
from paramdelta_dist.jobs.follow import Patience, follow
from paramdelta_dist.jobs.job import Job, JobExists, Unreachable
from paramdelta_dist.jobs.job_id import JobName, parse_job_id, stem_of
from paramdelta_dist.jobs.log_reader import LogReader
from paramdelta_dist.jobs.status import job_state
from paramdelta_dist.jobs.submit import Submission, Submitted, submit
from paramdelta_dist.recipe.model import Recipe
from paramdelta_dist.recipe.yaml_text import parse_recipe
from tests.terminal import call

BOTH = {"RAY_API_SERVER_ADDRESS": "http://api:1", "RAY_ADDRESS": "http://ray:2"}


@pytest.mark.parametrize(
    ("given", "environ", "text", "source"),
    [
        ("http://flag:3", BOTH, "http://flag:3", "--address"),
        ("flag:6379", BOTH, "flag:6379", "--address"),
        ("auto", BOTH, None, "the cluster on this machine"),
        (None, BOTH, "http://api:1", "RAY_API_SERVER_ADDRESS"),
        (None, {**BOTH, "RAY_API_SERVER_ADDRESS": ""}, "http://ray:2", "RAY_ADDRESS"),
        (None, {"RAY_API_SERVER_ADDRESS": " ", "RAY_ADDRESS": ""}, None, "the cluster on this machine"),
        (None, {"RAY_ADDRESS": "auto"}, None, "the cluster on this machine"),
        (None, {}, None, "the cluster on this machine"),
        ("https://host/prefix/", {}, "https://host/prefix", "--address"),
        ("head", {}, "http://head:8265", "--address"),
    ],
)
def test_a_given_address_wins_over_the_environment_and_that_over_this_machine(given, environ, text, source):
    assert choose_address(given, environ).text == text
    assert choose_address(given, environ).source == source


@pytest.mark.parametrize("given", ["", " ", "\t\n"])
def test_an_empty_address_goes_nowhere_whatever_runs_here_and_whatever_the_environment_says(given):
    with pytest.raises(UsageError, match="--address is empty"):
        choose_address(given, BOTH)


@pytest.mark.parametrize("text", ["ray://head:10001", "file:///x", "http://", "anyscale://x"])
def test_an_address_of_another_kind_is_refused_with_the_right_one(text):
    with pytest.raises(UsageError, match=r"http://\w+:8265"):
        choose_address(text, {})


def test_rays_own_helper_does_not_get_to_see_the_environment(monkeypatch):
    from paramdelta_dist.jobs import ray_jobs

    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1 \(--address\)"):
        ray_jobs.RayCluster(choose_address("http://127.0.0.1:1", {"RAY_ADDRESS": "http://127.0.0.1:2"}), connect_seconds=0.0)


def test_a_job_is_named_by_what_it_makes_and_where():
    stem = stem_of("fingerprint", "s3://a/out", {})
    assert stem != stem_of("fingerprint", "s3://a/other", {})
    assert stem != stem_of("other", "s3://a/out", {})
    assert stem != stem_of("fingerprint", "s3://a/out", {"endpoint": "http://minio:9000"})
    assert parse_job_id(str(JobName(stem, 12))) == JobName(stem, 12)
    for other in ("raysubmit_abc", f"{stem}", f"{stem}-01", f"{stem}-1/x", "pdd-XYZ-1", ""):
        assert parse_job_id(other) is None


def made(output="s3://bucket/out", **changes):
    return Recipe.model_validate(
        {"base": "s3://b/new", "deltas": [{"post": "s3://b/post", "base": "s3://b/old"}], "output": output, **changes}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bf16", "shard_size": "7GB", "tokenizer_from": 0, "allow_nonfinite": True},
        {"deltas": [{"post": "s3://b/ü 重 🦙'\"$(id)`", "weight": 1e-7}, {"post": "s3://b/post", "base": "s3://b/old", "weight": -0.25}]},
        {
            "deltas": [
                {"post": "s3://b/post", "weight": [{"match": "*.mlp.*", "value": 0.5}, {"layers": [0, 3], "value": [0, 1]}, {"value": 1}]}
            ]
        },
        {"method": "ties", "parameters": {"density": 0.2}, "deltas": [{"post": "s3://b/post", "density": 0.3}], "include": "*.q_proj.*"},
        {"output": "s3://bucket/{date}-{inputs}", "vocab": "pad"},
        {"storage": {"s3://b/": {"endpoint": "http://host:9000", "profile": "lab"}, "s3://c/": {"anonymous": True}}},
        {"deltas": [{"post": f"s3://b/{n}"} for n in range(3000)]},
    ],
)
def test_a_recipe_arrives_as_it_was_written(changes, tmp_path):
    recipe = made(**changes)
    parcel.pack(tmp_path, parcel.recipe_text(recipe), "image")
    assert parse_recipe((tmp_path / parcel.RECIPE_FILE).read_text(), where="there") == recipe
    assert [path.name for path in tmp_path.iterdir()] == [parcel.RECIPE_FILE]


def test_local_paths_travel_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({"base": "new", "deltas": [{"post": "~/post"}], "output": "out"})
    text = parcel.recipe_text(recipe)
    assert f"base: {tmp_path}/new\n" in text
    assert "~" not in text


def test_the_command_reaches_python_as_it_is_meant(tmp_path):
    (tmp_path / "python with 'quotes' $(id)").symlink_to("/bin/echo")
    line = parcel.command(str(tmp_path / "python with 'quotes' $(id)"), ["--memory=5", "--x=a b;`id`"])
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "-m paramdelta_dist merge recipe.yaml --engine ray --json --memory=5 --x=a b;`id`\n"


def test_the_package_that_is_sent_runs_where_nothing_is_installed(tmp_path):
    parcel.pack(tmp_path, "x", "package")
    assert not list(tmp_path.rglob("__pycache__"))
    code = "import paramdelta_dist; print(paramdelta_dist.__file__, paramdelta_dist.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.parametrize("ship", ["nothing.whl", "notes.whl", "empty.whl"])
def test_a_wheel_that_is_none_is_refused(ship, tmp_path, monkeypatch):
    import zipfile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.whl").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(UsageError, match=f"--ship {ship}: "):
        parcel.pack(tmp_path / "..", "x", ship)


LINES = [f"line {n}: ü重🦙 {'x' * (n % 7)}\n" for n in range(40)]
LOG = "".join(LINES)


class Flaky:
    """A cluster whose connection ends at chosen places of the log, as if the log ended or with an error, and always starts anew."""

    url = "http://fake"
    hint = ""

    def __init__(self, cuts, *, state="succeeded"):
        self.cuts, self.state = list(cuts), state
        self.over = False

    def tail(self, job_id):
        place, error = self.cuts.pop(0) if self.cuts else (len(LOG), None)
        for start in range(0, place, 17):
            yield LOG[start : min(start + 17, place)]
            yield ""
        if error:
            raise error
        self.over = place == len(LOG)

    def job(self, job_id):
        return Job(job_id, self.state if self.over else "running", {})

    def log(self, job_id):
        return LOG + "the last line"


QUICK = Patience(first_pause=0.001, longest_pause=0.001)


@pytest.mark.parametrize(
    "cuts",
    [
        [],
        [(0, None), (5, None), (5, None), (700, None), (300, None), (len(LOG), None)],
        [(400, Unreachable("away")), (0, Unreachable("away")), (0, Unreachable("away")), (401, None)],
    ],
    ids=["quiet", "ends early", "breaks"],
)
def test_following_neither_repeats_nor_loses_a_character(cuts):
    shown, notes = [], []
    assert follow(Flaky(cuts), "j", shown.append, notes.append, QUICK).state == "succeeded"
    assert "".join(shown) == LOG + "the last line"
    assert notes == ["away; trying again", "connected again"] * any(error for _, error in cuts)


def test_a_cluster_that_stays_away_ends_the_following_with_75():
    impatient = replace(QUICK, give_up=0.05)
    with pytest.raises(EngineError, match="away for 0 s; the job j was left as it is") as raised:
        follow(Flaky([(100, None)] + [(0, Unreachable("away"))] * 10**5), "j", lambda text: None, lambda text: None, impatient)
    assert raised.value.exit_code == 75


def test_a_cluster_that_was_started_anew_is_told():
    with pytest.raises(EngineError, match="no longer knows job j"):
        follow(Flaky([(100, NotFound("?"))]), "j", lambda text: None, lambda text: None, QUICK)


def test_refused_credentials_end_the_following_at_once():
    with pytest.raises(CredentialsError):
        follow(Flaky([(100, CredentialsError("no"))]), "j", lambda text: None, lambda text: None, QUICK)


class Heard:
    def __init__(self):
        self.lines, self.events = [], []

    def line(self, text):
        self.lines.append(text)

    def event(self, event, text):
        self.events.append(event.event)


RESULT = {"output": "s3://x", "state": "merged", "shards": {"made": 1, "kept": 0}}


@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_a_log_is_read_the_same_however_it_is_cut(size):
    log = (
        "Runtime env\n"
        '{"event": "started", "time": 5.0, "what": "merging", "bytes_total": 100, "bytes_done": 10, "shards": 2}\n{"event": 1}\n'
        '{"event": "progress", "time": 6.0, "bytes_total": 100, "bytes_done": 40, "bytes_per_second": 30, "seconds_left": 2.0}\n'
        '{"event": "finished", "time": 7.0, "file": "a", "size": 35, "worker": "h:1"}\n{\nno document\n}\n'
        + json.dumps(RESULT, indent=2)
        + "\nlast"
    )
    heard = Heard()
    reader = LogReader(heard)
    for start in range(0, len(log), size):
        reader.feed(log[start : start + size])
    reader.close()
    assert heard.lines == ["Runtime env", '{"event": 1}', "{", "no document", "}", "last"]
    assert heard.events == ["started", "progress", "finished"]
    assert reader.document == RESULT
    document = reader.progress.as_document()
    assert document["bytes"] == {"done": 45, "total": 100}
    assert document["shards"] == {"finished": 1, "total": 2}
    assert (document["workers"], document["bytes_per_second"], document["seconds_left"]) == (1, 30, 2.0)


@pytest.mark.parametrize(
    ("state", "code", "failure", "log", "expected", "words"),
    [
        ("succeeded", 0, None, "", 0, ""),
        ("stopped", None, None, "", 130, "was stopped"),
        ("stopped", 0, None, "", 130, "was stopped"),
        *(("failed", code, None, "", code, f"exit code {code}") for code in (1, 2, 3, 4, 5, 75, 130)),
        ("failed", 137, None, "", 75, "signal 9"),
        ("failed", -15, None, "", 75, "signal 15"),
        ("failed", None, "RUNTIME_ENV_SETUP_FAILURE", "", 75, "RUNTIME_ENV_SETUP_FAILURE"),
        ("failed", None, "JOB_SUPERVISOR_ACTOR_DIED", "", 75, "submit again"),
        ("failed", 1, None, "/usr/bin/python: No module named paramdelta_dist", 2, "--ship package"),
        ("failed", 1, None, "-m paramdelta_dist\nModuleNotFoundError: No module named 'numba.core'", 2, "/env/bin/python on the"),
        ("failed", 1, None, "-m paramdelta_dist\nModuleNotFoundError: No module named 'numba.core'", 2, "has no module numba"),
        ("failed", 1, None, "/usr/bin/python: No module named paramdelta_dist", 2, "/env/bin/python on the cluster's head has no"),
        ("failed", 127, None, "sh: 1: python: not found", 2, "no Python at /env/bin/python"),
        ("failed", 127, None, "sh: 1: python: not found", 2, "--python PATH"),
        ("failed", 42, None, "", 1, "unknown exit code 42"),
    ],
)
def test_a_job_ends_its_submitter_as_its_driver_ended(state, code, failure, log, expected, words):
    ending = ending_of(Job("pdd-0123456789ab-1", state, {"python": "/env/bin/python"}, exit_code=code, failure=failure), log)
    assert ending.exit_code == expected
    assert words in ending.words


def test_a_merge_that_was_finished_when_its_job_was_stopped_is_a_success():
    class Cluster:
        url = "http://fake"

        def job(self, job_id):
            return Job(job_id, "stopped", {})

        def log(self, job_id):
            return json.dumps(RESULT, indent=2) + "\n"

    found = job_state(Cluster(), "pdd-0123456789ab-1")
    assert (found["exit_code"], found["result"]) == (0, RESULT)


class Register:
    """A cluster that only keeps what is submitted."""

    url = "http://fake"
    hint = " --address http://fake"

    def __init__(self):
        self.known, self.commands, self.recipe = {}, [], made()

    def jobs(self):
        return list(self.known.values())

    def job(self, job_id):
        return self.known[job_id]

    def python(self):
        return "/opt/python"

    def submit(self, job_id, command, *, folder, environment, metadata):
        assert parse_recipe((folder / "recipe.yaml").read_text(), where="there") == self.recipe
        self.known[job_id] = Job(job_id, "running", metadata)
        self.commands.append(shlex.split(command))

    def end(self, name, state):
        self.known[str(name)] = Job(str(name), state, self.known[str(name)].metadata)


@pytest.mark.parametrize("fingerprint", ["abc", None])
def test_a_running_job_is_joined_and_an_ended_one_followed_by_the_next_attempt(fingerprint):
    cluster, wanted = Register(), Submission(made(), fingerprint, ("--workers=2",))
    first = submit(cluster, wanted)
    assert (first.name.attempt, first.joined) == (1, False)
    assert submit(cluster, wanted).joined
    assert len(cluster.commands) == 1
    for attempt, state in enumerate(["failed", "stopped", "succeeded", *["failed"] * 9], start=1):
        cluster.end(JobName(first.name.stem, attempt), state)
        assert submit(cluster, wanted).name.attempt == attempt + 1
    assert cluster.commands[0][-2:] == ["--json", "--workers=2"]


class LateRegister(Register):
    """One whose jobs are seen a moment after they were submitted."""

    def jobs(self):
        return []

    def submit(self, job_id, command, **more):
        if job_id in self.known:
            raise JobExists(job_id)
        super().submit(job_id, command, **more)


def test_who_submits_the_same_a_moment_later_joins():
    cluster = LateRegister()
    submit(cluster, Submission(made(), "abc"))
    assert submit(cluster, Submission(made(), "abc")).joined
    with pytest.raises(OutputOccupied):
        submit(cluster, Submission(made(), "abc", overwrite=True))


@pytest.mark.parametrize(
    ("options", "more", "told"),
    [
        (("--workers=4",), {}, "--workers is 2, asked for is 4"),
        ((), {}, "--workers is 2, asked for is not given"),
        (("--workers=2", f"--memory={2 << 30}"), {}, "--memory is not given, asked for is 2 GiB"),
        (("--workers=2", "--device=cuda"), {}, "--device is not given, asked for is cuda"),
        (("--workers=2", "--patience=60s"), {}, "--patience is not given, asked for is 60s"),
        (("--workers=2", "--report"), {}, "--report is not given, asked for is yes"),
        (("--workers=2",), {"ship": "package"}, "--ship is image, asked for is package"),
        (("--workers=2",), {}, ""),
    ],
)
def test_a_job_that_runs_with_other_options_is_joined_with_a_note_of_what_differs(options, more, told):
    cluster = Register()
    first = submit(cluster, Submission(made(), "abc", ("--workers=2",)))
    joined = submit(cluster, Submission(made(), "abc", options, **more))
    assert (joined.name, joined.joined) == (first.name, True)
    assert len(joined.notes) == bool(told)
    for note in joined.notes:
        assert told in note
        assert f"paramdelta-dist stop {first.name} --wait --address http://fake" in note
    assert len(cluster.commands) == 1


def test_other_ways_to_the_storage_are_noted_too_and_other_places_are_another_job():
    cluster = Register()
    first = submit(cluster, Submission(made(), "abc"))
    ways = made(storage={"s3://bucket/": {"anonymous": True}})
    [note] = submit(cluster, Submission(ways, "abc")).notes
    assert "storage is not given" in note
    assert "anonymous" in note
    cluster.recipe = made(storage={"s3://bucket/": {"endpoint": "http://minio:9000"}})
    other = submit(cluster, Submission(cluster.recipe, "abc"))
    assert other.name.stem != first.name.stem
    assert not other.joined


def test_what_is_to_be_replaced_is_not_left_to_a_job_that_would_keep_it():
    cluster = Register()
    first = submit(cluster, Submission(made(), "abc"))
    with pytest.raises(OutputOccupied, match=f"stop {first.name} --wait --address http://fake") as raised:
        submit(cluster, Submission(made(), "abc", overwrite=True))
    assert raised.value.exit_code == 3
    cluster.end(first.name, "stopped")
    second = submit(cluster, Submission(made(), "abc", overwrite=True))
    assert not second.joined
    assert "--overwrite" in cluster.commands[-1]
    assert submit(cluster, Submission(made(), "abc", overwrite=True)) == Submitted(second.name, joined=True)
    [note] = submit(cluster, Submission(made(), "abc")).notes
    assert "--overwrite is yes, asked for is not given" in note


def test_a_job_that_does_not_say_how_it_was_submitted_is_joined():
    cluster = Register()
    first = submit(cluster, Submission(made(), "abc"))
    for metadata in ({}, {"options": "no JSON"}, {"options": "[1]"}):
        cluster.known[str(first.name)] = Job(str(first.name), "running", metadata)
        assert submit(cluster, Submission(made(), "abc", ("--workers=4",))) == Submitted(first.name, joined=True)


def test_an_id_that_stands_for_no_job_is_answered_without_a_cluster(tmp_path):
    job, nowhere = "pdd-0123456789ab-0", ("--address", "http://127.0.0.1:1")
    for command, *options in (["status"], ["logs"], ["logs", "-f"], ["stop"], ["stop", "--wait"]):
        done = call(command, job, *options, *nowhere, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "nothing" in done.stdout or done.stdout == ""
        document = json.loads(call(command, job, *options, *nowhere, "--json", cwd=tmp_path).stdout)
        assert document["job"] == job
        assert document.get("exit_code", 0) == 0


def test_a_job_that_overwrites_may_delete_what_its_submitter_agreed_to():
    cluster = Register()
    submit(cluster, Submission(made("s3://bucket/out"), "abc", overwrite=True, yes=True))
    submit(cluster, Submission(made("s3://bucket/out"), "def", overwrite=True))
    submit(cluster, Submission(made("s3://bucket/out"), "ghi", yes=True))
    assert [[word for word in command if word in ("--overwrite", "--yes")] for command in cluster.commands] == [
        ["--overwrite", "--yes"],
        ["--overwrite"],
        [],
    ]


@pytest.mark.parametrize(("begun", "repeated"), [(True, False), (False, True)])
def test_an_output_is_overwritten_once_and_not_again_by_the_attempt_that_goes_on(begun, repeated):
    cluster = Register()
    first = submit(cluster, Submission(made(), "abc", overwrite=True))
    cluster.end(first.name, "failed")
    second = submit(cluster, Submission(made(), "abc", overwrite=True, begun=begun))
    cluster.end(second.name, "failed")
    submit(cluster, Submission(made(), "abc", overwrite=True, begun=begun))
    assert ["--overwrite" in command for command in cluster.commands] == [True, repeated, repeated]
