"""The house rules: imports go down, each outside library has its room, and starting costs nothing."""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "paramdelta_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))

LEVELS = (
    ("redaction", "_version"),
    ("errors", "sizes"),
    ("stopping",),
    ("threads",),
    ("storage", "kernels"),
    ("checkpoint", "methods", "engine"),
    ("recipe", "plugin"),
    ("planning", "jobs"),
    ("output",),
    ("shards",),
    ("analysis",),
    ("driver",),
    ("api",),
    ("cli",),
    ("__main__", "__init__"),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

ROOMS = {
    "ray": ("engine/ray/", "jobs/ray_jobs.py"),
    "pydantic": ("recipe/",),
    "fsspec": ("storage/",),
    "s3fs": ("storage/",),
    "gcsfs": ("storage/",),
    "obstore": ("storage/",),
    "huggingface_hub": ("storage/",),
    "botocore": ("storage/",),
    "aiohttp": ("storage/", "jobs/ray_jobs.py"),
    "requests": ("jobs/ray_jobs.py",),
    "google": ("storage/",),
    "numba": ("kernels/jit.py", "kernels/sum_cpu.py", "kernels/measure_numba.py", "kernels/codecs/"),
    "llvmlite": ("kernels/jit.py", "kernels/codecs/vectors.py"),
    "torch": ("kernels/", "methods/", "shards/torch_compute.py", "engine/machine.py", "cli/demo.py"),
    "pyarrow": ("analysis/tables.py",),
    "triton": ("kernels/sum_triton.py",),
    "safetensors": ("cli/demo.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}

PLAIN = ("storage", "engine", "jobs", "checkpoint")
"""Rooms whose docstrings have been put into plain words."""
QUESTIONS = ("What ", "Who ", "Whose ", "Which ", "How ", "Where ")


@cache
def imports(path):
    """(module, line) of every import in a file, lazy ones included."""
    return tuple(_imports(path))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            folder = PACKAGE.parent / str(node.module).replace(".", "/")
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module, node.lineno


def room_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    if path == PACKAGE / "__init__.py":
        return
    here = room_of(path)
    for module, line in imports(path):
        if module.startswith("paramdelta_dist."):
            there = module.split(".")[1]
            allowed = there == here or LEVEL_OF[there] < LEVEL_OF[here]
            lazy_lookup = (here, there) == ("methods", "methods")
            assert allowed or lazy_lookup, f"{path.relative_to(PACKAGE)}:{line} imports {module}, which is not below it"


@pytest.mark.parametrize("room", sorted({str(path.parent.relative_to(PACKAGE)) for path in MODULES} - {"."}))
def test_no_module_of_a_room_imports_another_in_a_circle(room):
    """Not even lazily, nor by way of the package, and not where types alone are named: what a module is made of is below it."""
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in (PACKAGE / room).glob("*.py")
    }
    graph = {name: {module for module, _ in imports(path) if module in names.values()} - {name} for path, name in names.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_named_only_in_its_room(library):
    for path in MODULES:
        relative = str(path.relative_to(PACKAGE))
        for module, line in imports(path):
            if module.split(".")[0] == library:
                assert relative.startswith(ROOMS[library]), f"{relative}:{line} imports {module}"


def test_every_module_says_first_what_it_is():
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) in PLAIN], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_docstring_names_the_thing_and_is_whole(path):
    """It opens with a noun or a verb and not as a question does, and does not go on in that of the next field."""
    said = [node.value.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Expr) and _is_text(node.value)]
    assert [text for text in said if text.startswith(QUESTIONS) or text.endswith(",") or text.startswith(("and ", "or "))] == []


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/**/__init__.py")), ids=lambda p: str(p.parent.relative_to(PACKAGE)))
def test_a_room_says_first_what_it_must_not_know(path):
    first = ast.get_docstring(ast.parse(path.read_text())).partition("\n")[0]
    assert re.search(r"\bknows (no|nothing)\b", first, re.IGNORECASE), first


@pytest.mark.parametrize(
    "code",
    [
        "import paramdelta_dist",
        "commands.app(['--help'], standalone_mode=False)",
        "commands.app('plan --base /no/a --delta /no/b --output /no/c'.split(), standalone_mode=False)",
        "import paramdelta_dist.api, paramdelta_dist.planning, paramdelta_dist.checkpoint",
    ],
)
def test_starting_and_planning_load_neither_torch_nor_ray(code):
    report = "\nimport sys; print('LOADED', [m for m in ('torch', 'ray', 'numpy', 'pyarrow', 'transformers') if m in sys.modules])"
    imports = "from paramdelta_dist.errors import ParamDeltaError"
    imports += "\nfrom paramdelta_dist.cli import commands" if code.startswith("commands.") else ""
    guarded = f"{imports}\ntry:\n    {code}\nexcept (SystemExit, ParamDeltaError) as error:\n    print(type(error))"
    done = subprocess.run([sys.executable, "-c", guarded + report], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout, done.stdout
