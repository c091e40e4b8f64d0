"""Forks the processes that run exports from one that has imported their framework already.

Importing TensorFlow takes two seconds, and the tests start some hundred such processes. A fork has the state of a fresh
process: the framework is imported, nothing has been built with it. `install` replaces `subprocess.run` for these
commands alone; `FRESH` is the original.
"""

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from tests.helpers.paths import ROOT

SCRIPTS = ROOT / "kresume" / "runtimes" / "scripts"
PRELOADED = {
    str(SCRIPTS / "saved_model.py"): ("numpy", "tensorflow"),
    str(SCRIPTS / "keras.py"): ("numpy", "keras"),
    "kresume.exports.tensorflow_process": ("tensorflow", "keras", "kresume.exports.formats", "kresume.models.load"),
}
"""The imports that each process needs for any request, by the file or module that it runs."""
_SERVERS: dict[tuple[str, str], subprocess.Popen] = {}
FRESH = subprocess.run
"""Starts a process as users do."""


def install() -> None:
    """Makes `subprocess.run` fork the processes of `PRELOADED`."""
    subprocess.run = run


def run(command, **options):
    """Runs a command as `subprocess.run` does; forks it if its imports are ready."""
    target = next((word for word in command if word in PRELOADED), None) if isinstance(command, list) else None
    if target is None:
        return FRESH(command, **options)
    environment = options.get("env") or dict(os.environ)
    backend = environment.get("KERAS_BACKEND", "")
    server = _SERVERS.get((target, backend))
    if server is None:
        server = _SERVERS[target, backend] = _start(target, environment)
    with tempfile.TemporaryDirectory() as name:
        printed = [Path(name) / "stdout", Path(name) / "stderr"]
        place = command.index(target)
        request = {
            "target": target,
            "arguments": command[place + 1 :],
            "env": environment,
            "cwd": str(options.get("cwd") or Path.cwd()),
            "printed": [str(path) for path in printed],
        }
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        done = subprocess.CompletedProcess(command, code, *(path.read_text() for path in printed))
    if options.get("check"):
        done.check_returncode()
    return done


def _start(target: str, environment) -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.forking", target],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_stop, server)
    return server


def _stop(server: subprocess.Popen) -> None:
    server.stdin.close()
    server.wait()
    server.stdout.close()


def serve(target: str) -> None:
    """Imports what `target` needs, then forks once for each request on standard input."""
    for name in PRELOADED[target]:
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _become(json.loads(line))
        _, status = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(request) -> NoReturn:
    """Runs the request in this process, which ends as Python would end it."""
    for number, path in enumerate(request["printed"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path.remove(str(ROOT))  # `-m` put it there
    sys.argv = [request["target"], *request["arguments"]]
    code = 0
    try:
        if request["target"].endswith(".py"):
            runpy.run_path(request["target"], run_name="__main__")
        else:
            runpy.run_module(request["target"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
