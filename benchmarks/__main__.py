"""The benchmarks by name. `python -m benchmarks` runs each in a process of its own, `python -m benchmarks NAME` one."""

import importlib
import subprocess
import sys

from benchmarks import harness

BENCHMARKS = {
    "local": "benchmarks.local",
    "s3": "benchmarks.s3",
    "slow-store": "benchmarks.slow_store",
    "kernel": "benchmarks.kernel",
    "codecs": "benchmarks.codecs",
    "planning": "benchmarks.planning",
    "many-tensors": "benchmarks.many_tensors",
    "scale-out": "benchmarks.scale_out",
    "report": "benchmarks.report",
    "gpu": "benchmarks.gpu",
}
"""Modules with `measure()`, which returns what is kept as JSON, and `show(document)`, which prints a table of it."""


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
        return 2
    if len(names) != 1:
        commands = [[sys.executable, "-m", "benchmarks", name] for name in names or BENCHMARKS]
        codes = [subprocess.run(command, cwd=harness.REPOSITORY, check=False).returncode for command in commands]
        return int(any(codes))
    [name] = names
    module = importlib.import_module(BENCHMARKS[name])
    print(f"{name}: {(module.__doc__ or '').partition(chr(10))[0]}", flush=True)
    document = module.measure()
    module.show(document)
    harness.show_targets(document.get("targets", ()))
    if "skipped" not in document:
        print(f"  kept in {harness.write(name, document).relative_to(harness.REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
