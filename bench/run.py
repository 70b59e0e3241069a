"""Measures speed: bench/run.py [task …] [--rounds N] [--write]

A task is a folder of bench/tasks, a contender a file in it. A contender has `setup(**case)`, which gives a state, and
`run(state)`, which gives results (a tensor, or a dict or list of results); `ENVIRONMENT = "tl"` sends it to .venv-tl.
With `overhead(state)` it says what of the last run's time, in seconds, is overhead by its own measure.
The task's `task.py` has a `TITLE`, `CASES` (a dict from a name to setup's arguments), a `TOLERANCE` (the largest
difference allowed, as a share of the largest value; 0 means equal) and `FRESH = True` where each round takes a new
process, whose whole life is measured too, and how much more memory than after `setup` it had at most. `ROUNDS` and
`THREADS` are its own where it has them.

Each contender runs in a process of its own. Before anything is timed the results of all contenders must agree; then
the contenders take turns, so that what else happens on the machine hits all alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
REPORT = ROOT / "docs" / "benchmarks.md"
OURS = "glassformer"
LIBRARIES = ["glassformer", "torch", "transformers", "transformer_lens", "tokenizers", "nnsight"]


def read_module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Task:
    name: str
    title: str
    cases: dict[str, dict]
    tolerance: float
    fresh: bool
    rounds: int
    threads: int | None
    contenders: list[Path]


def find_task(folder: Path) -> Task:
    about = read_module(folder / "task.py") if (folder / "task.py").exists() else None
    contenders = sorted(path for path in folder.glob("*.py") if path.name != "task.py")
    contenders.sort(key=lambda path: path.stem != OURS)
    return Task(
        folder.name,
        getattr(about, "TITLE", folder.name),
        getattr(about, "CASES", {"": {}}),
        getattr(about, "TOLERANCE", 0.0),
        getattr(about, "FRESH", False),
        getattr(about, "ROUNDS", 7),
        getattr(about, "THREADS", None),
        contenders,
    )


def python_for(contender: Path) -> Path:
    environment = ""
    for line in contender.read_text().splitlines():
        if line.startswith("ENVIRONMENT"):
            environment = "-" + line.split('"')[1]
    python = ROOT / f".venv{environment}" / "bin" / "python"
    if not python.exists():
        raise SystemExit(
            f"{contender.stem} needs {python.parent.parent.name}; run 'make {python.parent.parent.name}/.stamps/done'"
        )
    return python


class Contender:
    """A contender's process."""

    def __init__(self, path: Path, case: dict, threads: int):
        self.path = path
        self.name = path.stem
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment.update(
            HF_HUB_OFFLINE="1",
            TRANSFORMERS_OFFLINE="1",
            TRANSFORMERS_VERBOSITY="error",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
        environment.update(PYTHONWARNINGS="ignore", TQDM_DISABLE="1", PYTHONPATH=str(ROOT / "build/release/python"))
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [python_for(path), BENCH / "worker.py", path, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.path.parent.name}/{self.name} failed:\n{self.log.read()[-4000:]}")
        return json.loads(line)

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@dataclass
class Measured:
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    overhead: list[float] = field(default_factory=list)


@dataclass
class Result:
    case: str
    error: float
    versions: set[str]
    measured: dict[str, Measured]


def difference(found, expected) -> float:
    """The largest difference, as a share of the largest value; infinite where the shapes or names differ."""
    import torch

    if isinstance(expected, dict):
        if set(found) != set(expected):
            return float("inf")
        return max(difference(found[name], expected[name]) for name in expected)
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return float("inf")
        found, expected = found.double(), expected.double()
        if not torch.equal(found.isfinite(), expected.isfinite()):
            return float("inf")
        finite = expected.isfinite()
        largest = expected[finite].abs().max().clamp(min=1e-30) if finite.any() else torch.tensor(1.0)
        return ((found - expected)[finite].abs().max() / largest).item() if finite.any() else 0.0
    if isinstance(expected, float) and isinstance(found, float):
        return abs(found - expected) / max(abs(expected), 1e-30)
    return 0.0 if found == expected else float("inf")


def check(contenders: list[Contender], tolerance: float) -> tuple[float, set[str]]:
    """The largest difference between two contenders' results; stops where it is above the tolerance."""
    import torch

    largest, versions, first = 0.0, set(), None
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders:
            contender.ask(do="run")
            path = str(Path(folder) / contender.name)
            versions |= set(contender.ask(do="save", path=path, modules=LIBRARIES)["versions"])
            results = torch.load(path, weights_only=False)
            if first is None:
                first = (contender.name, results)
                continue
            error = difference(first[1], results)
            if not error <= tolerance:
                raise SystemExit(
                    f"{contender.path.parent.name}: {first[0]} and {contender.name} differ by {error:.3g} of the "
                    f"largest value; allowed: {tolerance:g}. Nothing was timed."
                )
            largest = max(largest, error)
    return largest, versions


def start_all(task: Task, case: dict, threads: int) -> list[Contender]:
    contenders = []
    for path in task.contenders:
        contenders.append(Contender(path, case, threads))
        contenders[-1].answer()  # One after the other: they would share the cores.
    return contenders


def measure(task: Task, case_name: str, rounds: int, threads: int) -> Result:
    case, threads = task.cases[case_name], task.threads or threads
    contenders = start_all(task, case, threads)
    error, versions = check(contenders, task.tolerance)
    measured = {contender.name: Measured() for contender in contenders}
    if task.fresh:
        for contender in contenders:
            contender.close()
    for turn in range(rounds):
        order = contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
        for contender in order:
            if task.fresh:
                contender = Contender(contender.path, case, threads)
                contender.answer()
            answer = contender.ask(do="run")
            own = measured[contender.name]
            own.wall.append(answer["wall"])
            own.cpu.append(answer["cpu"])
            own.overhead += [answer["overhead"]] if "overhead" in answer else []
            if task.fresh:
                own.whole.append(time.perf_counter() - contender.started)
                own.memory.append(answer["memory"])
                contender.close()
    if not task.fresh:
        for contender in contenders:
            contender.close()
    return Result(case_name, error, versions, measured)


def shown(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def table(task: Task, results: list[Result]) -> str:
    columns = [("time", "wall"), ("processor time", "cpu")]
    if task.fresh:
        columns += [("whole process", "whole"), ("peak memory", "memory")]
    if all(own.overhead for result in results for own in result.measured.values()):
        columns = [("time", "wall"), ("overhead", "overhead")]
    many = len(task.cases) > 1
    head = [*(["case"] if many else []), "contender"]
    for title, _ in columns:
        head += [title, f"times {OURS}'s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        base = result.measured.get(OURS)
        for name, own in result.measured.items():
            row = [*([result.case] if many else []), name]
            for _, key in columns:
                values = getattr(own, key)
                ratio = ""
                middle = statistics.median(values)
                if base is not None and key == "overhead":  # A difference: a single one may be about nothing.
                    least = statistics.median(base.overhead)
                    ratio = f"{middle / least:.3g}" if least > 0 else ""
                elif base is not None:
                    ratios = [value / other for value, other in zip(values, getattr(base, key), strict=True)]
                    ratio = f"{statistics.median(ratios):.3g}"
                row += [f"{middle / 2**20:.0f} MB" if key == "memory" else shown(middle), ratio]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def section(task: Task, results: list[Result], rounds: int) -> str:
    largest = max(result.error for result in results)
    agreed = f"at most {largest:.1g} of the largest value (allowed: {task.tolerance:g})" if task.tolerance else "equal"
    return (
        f"## {task.name}\n\n{task.title}\n\n{table(task, results)}\n\n"
        f"Results compared before timing: {agreed}. Medians of {rounds} interleaved rounds.\n"
    )


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores ({model})"


def write(sections: dict[str, str], versions: set[str], threads: int) -> None:
    """Puts the sections into the report; those of other tasks stay."""
    old = {}
    if REPORT.exists():
        for part in REPORT.read_text().split("\n## ")[1:]:
            old[part.split("\n")[0].strip()] = "## " + part.rstrip("\n") + "\n"
    order = [folder.name for folder in task_folders()]
    merged = {name: text for name, text in {**old, **sections}.items() if name in order}
    head = (
        "# Benchmarks\n\n"
        f"Written by `make bench BENCH_ARGS=--write` on a machine with {machine()}: {threads} threads, float32, no "
        "gradients unless a task says so, each system at its fastest documented settings; "
        f"{', '.join(sorted(versions))}. Before anything is timed, the systems' results are compared. "
        "Times are medians; a ratio is the median of the rounds' ratios. "
        "Processor time is summed over threads.\n"
    )
    body = [merged[name] for name in order if name in merged]
    REPORT.write_text("\n".join([head, *body]))


def task_folders() -> list[Path]:
    return sorted(folder for folder in (BENCH / "tasks").iterdir() if any(folder.glob("*.py")))


def main() -> None:
    folders = task_folders()
    parser = argparse.ArgumentParser(description="Measures speed; see the top of this file.")
    parser.add_argument("tasks", nargs="*", choices=[[], *(folder.name for folder in folders)])
    parser.add_argument("--rounds", type=int, help="how many rounds (by default as the task says)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contender; 2 by default")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--case", help="only this case of the task")
    given = parser.parse_args()
    sections, versions = {}, set()
    for folder in folders:
        if given.tasks and folder.name not in given.tasks:
            continue
        task = find_task(folder)
        rounds = given.rounds or task.rounds
        cases = [name for name in task.cases if given.case in (None, name)]
        results = [measure(task, case, rounds, given.threads) for case in cases]
        versions |= set().union(*(result.versions for result in results))
        sections[task.name] = section(task, results, rounds)
        print(sections[task.name], flush=True)
    if given.write:
        write(sections, versions, given.threads)


if __name__ == "__main__":
    sys.exit(main())
