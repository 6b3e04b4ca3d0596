"""What users meet when something is wrong: one message, the right exit code, no traceback, and nothing written."""

import inspect
import json
import os
import subprocess
import sys
import typing

import pytest
import typer

from paramdelta_dist.cli import commands as cli
from tests.raw_checkpoints import entry, folder, one_tensor, weight_file
from tests.terminal import call

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "paramdelta_dist", *map(os.fspath, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ROOT, "TERM": "dumb", "COLUMNS": "200", **environment},
        capture_output=True,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
        timeout=120,
        check=False,
    )


@pytest.fixture
def here(tmp_path):
    """A folder with three models that fit together, a recipe of them, and one with a typo."""
    for name in ("new", "post", "old"):
        folder(tmp_path / name, {"model.safetensors": one_tensor("a.weight")})
    recipe = "base: new\ndeltas:\n  - post: post\n    base: old\noutput: out\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "typo.yaml").write_text(recipe.replace("deltas", "delats"))
    return tmp_path


def refused(here, *arguments, code):
    """Call what must fail, and return its one message."""
    before = sorted(here.rglob("*"))
    done = call(*arguments, cwd=here)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(here.rglob("*")) == before, "something was written"
    if "--json" in arguments:
        error = json.loads(done.stdout)["error"]
        assert error["exit_code"] == code
        assert done.stderr == f"error: {error['message']}\n"
    else:
        assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error:") == 1
    return done.stderr


FLAGS = ("--base", "new", "--delta", "post:old", "--output", "out")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["merge", "nope.yaml"], "there is no recipe at nope.yaml"),
        (["merge", "nowhere/recipe.yaml"], "there is no recipe at nowhere/recipe.yaml"),
        (["merge", "new"], "new is a folder; name the recipe's YAML file"),
        (["merge", "new/model.safetensors"], "new/model.safetensors"),
        (["merge", "typo.yaml"], "line 2: unknown key 'delats'; did you mean 'deltas'?"),
        (["plan", "typo.yaml"], "'deltas' is missing"),
        (["merge", "recipe.yaml", "--base", "new"], "give a recipe file or flags, not both"),
        (["merge"], "name a recipe file, or give --base, --delta and --output"),
        (["merge", "--base", "new", "--output", "out"], "needed together (given: --base, --output)"),
        (["check", "--base", "new"], "needed together (given: --base)"),
        (["merge", "--base", "new", "--delta", "a:b:c", "--output", "out"], "--delta a:b:c: write POST, POST:BASE or POST:BASE:WEIGHT"),
        (["merge", "--base", "new", "--delta", "post", "--output", "new/out"], "write to a folder of its own"),
        (["merge", "recipe.yaml", "--memory", "abc"], "--memory: 'abc' is not a size; write a number with a unit, such as 5GB or 512MiB"),
        (["merge", "recipe.yaml", "--memory", "0"], "--memory: 0 is nothing"),
        (["plan", "recipe.yaml", "--bandwidth", "fast"], "--bandwidth: 'fast' is not a size"),
        (["merge", "--base", "", "--delta", "post", "--output", "out"], "--base: an empty string is given"),
        (["inspect", ""], "URL: an empty string is given"),
        (["inspect", "s3://key:SECRET@bucket/x"], "credentials do not belong in a URL"),
        (["inspect", "gopher://host/x"], "gopher://host/x"),
        (["inspect", "local:///x"], "local:///x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_of_usage_is_one_message_and_exit_code_2(here, arguments, named):
    message = refused(here, *arguments, code=2)
    assert named in message
    assert "SECRET" not in message


def texts():
    """Every command with each of its arguments and options that take text."""
    for each in cli.app.registered_commands:
        name = each.name or each.callback.__name__
        defaults = inspect.signature(each.callback, eval_str=True).parameters
        hints = {key: parameter.annotation for key, parameter in defaults.items()}
        taken = {key: hint.__metadata__[0] for key, hint in hints.items()}
        text = [key for key in taken if typing.get_args(hints[key])[0] in (str, str | None, list[str] | None)]
        arguments = [key for key in taken if isinstance(taken[key], typer.models.ArgumentInfo)]
        needed = ["x" for key in arguments if defaults[key].default is inspect.Parameter.empty]
        numbers = [key for key in taken if typing.get_args(hints[key])[0] is int and defaults[key].default is inspect.Parameter.empty]
        counted = [word for key in numbers for word in (f"--{key}", "1")]
        for key in text:
            flags = taken[key].param_decls or (f"--{key.replace('_', '-')}",)
            yield from [[name, *counted, "{}"]] if key in arguments else [[name, *needed, *counted, flag, "{}"] for flag in flags]


TEXTS = list(texts())


@pytest.mark.parametrize("arguments", TEXTS, ids=" ".join)
def test_an_empty_string_is_a_mistake_wherever_text_is_taken(here, arguments):
    for empty in ("", " "):
        message = refused(here, *(argument.format(empty) for argument in arguments), code=2)
        assert "an empty string is given, perhaps from a variable that is not set" in message
        if len(arguments) > 2 and arguments[-2].startswith("--"):
            assert f"{arguments[-2]}: " in message


def test_every_way_to_name_a_place_is_among_those_that_may_not_be_empty():
    for flag in ("--address", "--output", "--recipe", "--base", "--delta", "--ship", "--memory", "--patience", "--older-than"):
        assert any(flag in arguments for arguments in TEXTS)
    assert ["inspect", "{}"] in TEXTS


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["merge", "--frobnicate"],
        ["merge", "recipe.yaml", "--engine", "spark"],
        ["merge", "recipe.yaml", "--workers", "0"],
        ["inspect"],
        ["merge", "a", "b"],
    ],
    ids=" ".join,
)
def test_what_the_command_line_does_not_know_is_exit_code_2(here, arguments):
    done = call(*arguments, cwd=here)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Usage:" in done.stderr


def test_too_little_memory_is_refused_by_the_plan_with_the_way_out(here):
    message = refused(here, "merge", "recipe.yaml", "--memory", "1KiB", code=2)
    assert "the budget is 1 KiB" in message
    assert "--memory" in message
    enough = message.rpartition("--memory ")[2].rstrip(")\n")
    assert call("plan", "recipe.yaml", "--memory", enough, cwd=here).returncode == 0


def test_a_row_that_is_too_long_is_named_and_the_least_memory_and_leaving_it_out_both_help(here):
    for name in ("new", "post"):
        whole = here / name / "model.safetensors"
        whole.write_bytes(weight_file({"flat": entry(0, 80_000_000), "norm": entry(80_000_000, 80_000_008)}))
        with whole.open("r+b") as file:  # a hole: no plan reads it
            file.truncate(whole.stat().st_size + 80_000_008)
    recipe = "method: della\nparameters: {density: 0.5}\nbase: new\ndeltas: [{post: post}]\noutput: out\n"
    (here / "recipe.yaml").write_text(recipe)
    message = refused(here, "merge", "recipe.yaml", "--memory", "1GiB", code=2)
    assert "della works on whole rows, and one of 'flat' has 20,000,000 elements" in message
    enough = int(message.rpartition("--memory ")[2].partition("MiB")[0])
    assert run("plan", "recipe.yaml", "--memory", f"{enough}MiB", cwd=here).returncode == 0
    assert f"(--memory {enough}MiB)" in refused(here, "plan", "recipe.yaml", "--memory", f"{enough - 1}MiB", code=2)
    assert "`exclude:`" in message
    (here / "recipe.yaml").write_text(recipe + "exclude: [flat]\n")
    assert run("plan", "recipe.yaml", "--memory", "1GiB", cwd=here).returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "nope"],
        ["inspect", "new/model.safetensors"],
        ["plan", "--base", "nope", *FLAGS[2:]],
        ["merge", "--base", "nope", *FLAGS[2:]],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["text", "json"])
def test_a_model_that_is_not_there_is_exit_code_3(here, command, json_flag):
    assert "no such folder, or it is empty" in refused(here, *command, *json_flag, code=3)


HOSTILE = {
    "a header that lies": weight_file({"a.weight": entry(0, 2**62)}, bytes(8)),
    "a header without end": weight_file("[" * 100_000),
    "a file cut off": one_tensor("a.weight")[:-1],
    "a name that speaks to the terminal": weight_file({"a.weight": entry(0, 8), "\x1b[2J\r\n": None}, bytes(8)),
    "half a character": weight_file({"\ud800": entry(0, 8)}, bytes(8)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_is_refused_by_merge_and_nothing_is_written(here, case):
    (here / "post" / "model.safetensors").write_bytes(HOSTILE[case])
    message = refused(here, "merge", "recipe.yaml", "--json", code=3)
    assert str(here / "post" / "model.safetensors") in message
    assert message.removesuffix("\n").isprintable()
    assert not (here / "out").exists()


def test_models_that_do_not_fit_are_refused_by_merge_with_every_difference(here):
    folder(here / "post", {"model.safetensors": one_tensor("b.weight")}, config={"model_type": "other", "architectures": ["Toy"]})
    message = refused(here, "merge", "recipe.yaml", code=3)
    assert "3 differences" in message
    for part in ("'model_type' is 'other'", "'a.weight' is missing", "'b.weight' is not in the base"):
        assert part in message


def test_models_that_do_not_fit_are_listed_by_check(here):
    folder(here / "post", {"model.safetensors": one_tensor("\x1b[2J[red]b")})
    done = call("check", "recipe.yaml", cwd=here)
    assert done.returncode == 3
    assert done.stderr == "error: 2 differences; these models cannot be merged as they are\n"
    assert "\x1b" not in done.stdout
    assert "[red]b" in done.stdout
    done = call("check", "recipe.yaml", "--json", cwd=here)
    assert done.returncode == 3
    assert [row["subject"] for row in json.loads(done.stdout)["mismatches"]] == ["tensors", "tensors"]


def test_check_needs_no_output_wherever_it_is_called(here):
    done = call("check", "--base", ".", "--delta", "../post:../old", cwd=here / "new")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["text", "json"])
def test_a_model_of_odd_names_is_shown_and_cannot_speak_to_the_terminal(here, encoding, json_flag):
    names = ["\x1b[2J", "[bold]ü重🦙", "a\nb"]
    files = {"model.safetensors": weight_file({name: entry(8 * n, 8 * n + 8) for n, name in enumerate(names)}, bytes(24))}
    odd = folder(here / "odd", files, config={"model_type": "\ud800\x1b[31m", "architectures": ["\x07"]})
    with open(os.fsencode(odd) + b"/\xff.safetensors", "wb"):
        pass
    done = run("inspect", "odd", *json_flag, cwd=here, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\n", "").isprintable()
    if json_flag:
        assert [row["name"] for row in json.loads(done.stdout)["tensor_list"]] == names


def test_a_place_of_odd_bytes_is_refused(here):
    message = refused(here, "merge", "--base", "new", "--delta", "post", "--output", os.fsdecode(b"out\xff"), code=2)
    assert "not valid Unicode" in message


def test_a_good_recipe_is_no_mistake_and_a_bad_one_is_one_in_a_process_too(here):
    done = run("merge", "recipe.yaml", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "merged"
    bad = run("merge", "typo.yaml", cwd=here)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == call("merge", "typo.yaml", cwd=here).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["merge", "--help"],
        ["plan", "recipe.yaml"],
        ["check", "recipe.yaml"],
        ["inspect", "new"],
        ["merge", "typo.yaml"],
        ["merge", "nope.yaml"],
    ],
    ids=" ".join,
)
def test_only_computing_loads_torch_and_nothing_local_loads_ray(here, arguments):
    code = f"""
import sys
from paramdelta_dist.cli.commands import app
app({arguments!r}, standalone_mode=False)
print(sorted({{"torch", "ray", "transformers", "safetensors"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("[]\n"), done.stderr


def test_what_others_print_during_a_merge_does_not_get_into_the_result(capsys):
    from paramdelta_dist.cli import progress

    with progress.progress():
        print("(raylet) A worker died")
    print("{}")
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert "A worker died" in captured.err


def test_the_version_is_printed_without_a_command(here):
    from paramdelta_dist._version import __version__

    done = run("--version", cwd=here)
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")
    assert "complete" in run(cwd=here, _PARAMDELTA_DIST_COMPLETE="source_bash").stdout, "whichever shell this runs in"


@pytest.mark.parametrize("options", [["--deep"], ["--output", "s3://b/o"], ["--do", "verify", "--report"], ["--do", "analyze", "--deep"]])
def test_an_option_of_another_thing_to_submit_is_refused(here, options):
    (here / "recipe.yaml").write_text("base: new\ndeltas: [{post: post}]\noutput: out\n")
    message = refused(here, "submit", "recipe.yaml", *options, "--address", "http://127.0.0.1:1", code=2)
    assert "is no option of --do" in message


def test_an_analysis_on_a_cluster_is_written_where_the_cluster_can(here):
    (here / "recipe.yaml").write_text("base: new\ndeltas: [{post: post}]\noutput: out\n")
    assert "--output URL" in refused(here, "submit", "recipe.yaml", "--do", "analyze", "--address", "http://127.0.0.1:1", code=2)
    (here / "recipe.yaml").write_text("base: new\ndeltas: [{post: post}]\noutput: out\nsweep: {weight: [0, 1]}\n")
    assert "name the one to verify" in refused(here, "submit", "recipe.yaml", "--do", "verify", "--address", "http://127.0.0.1:1", code=2)
