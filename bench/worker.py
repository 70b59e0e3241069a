"""Runs one contender of a task in a process of its own; `run.py` starts it and talks with it by lines of JSON."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def imported(path: str):
    spec = importlib.util.spec_from_file_location("contender", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def version_of(name: str) -> str:
    version = getattr(sys.modules[name], "__version__", None) or importlib.metadata.version(name)
    return version.split("+")[0]


def two_threads() -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def memory(key: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def main() -> None:
    path, arguments = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Whatever a contender prints is no answer.

    def answer(**values) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    contender = imported(path)
    two_threads()
    state = contender.setup(**arguments)
    two_threads()
    answer(ready=True)
    results = None
    Path("/proc/self/clear_refs").write_text("5")  # The most memory is counted anew.
    before = memory("VmRSS")
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "run":
            wall, cpu = time.perf_counter(), time.process_time()
            results = None
            results = contender.run(state)
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            if hasattr(contender, "overhead"):
                taken["overhead"] = contender.overhead(state)
            answer(**taken, memory=memory("VmHWM") - before)
        elif request["do"] == "save":
            import torch

            torch.save(results, request["path"])
            answer(versions=[f"{name} {version_of(name)}" for name in request["modules"] if name in sys.modules])
        else:
            break
    answers.close()
    os._exit(0)  # Taking down a large process is no part of a task.


if __name__ == "__main__":
    main()
