"""Forks the processes of tests from one that has imported the frameworks already.

Importing TensorFlow and Keras takes four seconds of a processor, and the tests start some hundred processes that need
them. A fork has the state of a fresh process: the frameworks are imported, nothing has been built with them. The
processes from which they are forked serve all workers of a session. `install` replaces `subprocess.run` for processes
that kresume starts for exports; tests call `run` and `start`. `FRESH` starts a process as users do.

    done = forking.run([sys.executable, "-m", "kresume", "train", ...], check=True, env=environment)
    process = forking.start([sys.executable, "-c", script])
"""

import atexit
import fcntl
import hashlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from multiprocessing import connection as waiting
from pathlib import Path
from typing import NoReturn

from tests.helpers import quick_graphs
from tests.helpers.paths import ROOT

SCRIPTS = ROOT / "kresume" / "runtimes" / "scripts"
PRELOADED = {
    "frameworks": ("numpy", "tensorflow", "keras"),
    "kresume": ("tensorflow", "keras", "kresume.cli", "kresume.exports.formats", "kresume.training.resume"),
}
"""The imports that a process may find done."""
EXPORTS = (str(SCRIPTS / "saved_model.py"), str(SCRIPTS / "keras.py"), "kresume.exports.tensorflow_process")
"""Scripts and modules that exports start as processes."""
READ_AT_IMPORT = ("JAX_", "KERAS_BACKEND", "PYTHONPATH", "TF_ENABLE_")
"""How environment variables begin that the frameworks read as they are imported."""
FOLDER = "KRESUME_TEST_FORKS"
"""The environment variable that names a folder of the session. The processes to fork from end when it is removed."""
SESSION = "session"
"""The file in it with the id of pytest's first process, without which they end too: a killed one removes nothing."""
FRESH = subprocess.run


def install() -> None:
    """Makes `subprocess.run` fork the processes of exports."""
    subprocess.run = _run_export


def _run_export(command, **options):
    forked = isinstance(command, list) and any(word in EXPORTS for word in command)
    return run(command, **options) if forked else FRESH(command, **options)


def run(command, *, check=False, **options):
    """Runs a command of Python as `subprocess.run` does, in a fork; returns what it returns, with text."""
    options = {name: value for name, value in options.items() if name in {"env", "cwd"}}
    process = start(command, **options)
    process.wait()
    done = subprocess.CompletedProcess(command, process.returncode, process.stdout, process.stderr)
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stderr}")
    return done


def start(command, *, env=None, cwd=None):
    """Starts a command of Python in a fork: its interpreter, options, then a file, `-m` and a module or `-c` and code."""
    words = [str(word) for word in command[1:]]
    while words[0] in {"-P", "-W"}:
        words = words[1:] if words[0] == "-P" else words[2:]
    environment = {name: str(value) for name, value in (os.environ if env is None else env).items()}
    ours = words[0] == "-m" and words[1].startswith("kresume")
    address = _address("kresume" if ours else "frameworks", environment)
    asked = {"words": words, "env": environment, "cwd": str(cwd or Path.cwd()), "optimized": quick_graphs.optimized()}
    return Forked(address, asked)


class Forked:
    """Is a started process, with the attributes and methods of `subprocess.Popen` that tests use."""

    def __init__(self, address, request):
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(address))
        self._answers = self._connection.makefile("r")
        self._connection.sendall((json.dumps(request | {"printed": [*map(str, self._printed)]}) + "\n").encode())
        self.pid, self.returncode = int(self._answers.readline()), None

    def poll(self):
        """Returns the exit code, None while the process runs."""
        ended = self.returncode is not None or waiting.wait([self._connection], 0)
        return self.wait() if ended else None

    def wait(self):
        """Waits for the end of the process and returns its exit code."""
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
            self.stdout, self.stderr = (path.read_text() for path in self._printed)
            self._answers.close()
            self._connection.close()
            self._folder.cleanup()
        return self.returncode

    def send_signal(self, number):
        """Sends the process a signal."""
        os.kill(self.pid, number)


def _address(kind: str, environment) -> Path:
    """Returns the address of the process to fork from; starts it if it is the first request of the session."""
    told = {name: value for name, value in sorted(environment.items()) if name.startswith(READ_AT_IMPORT)}
    name = hashlib.sha256(json.dumps([kind, told]).encode()).hexdigest()[:16]
    address = Path(os.environ[FOLDER]) / name
    with (address.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.forking", kind, str(address)]
            variables = {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])}
            with address.with_suffix(".log").open("wb") as log:
                FRESH(command, env=variables, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return address


def serve(kind: str, address: Path):
    """Imports what processes of this kind need, goes to the background, and forks once for each connection.

    Returns:
        The request, in each fork.
    """
    for name in PRELOADED[kind]:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen(64)
    if os.fork():
        os._exit(0)  # the process is ready: `_address` has waited for this
    os.setsid()  # a terminal that closes, such as that of a notebook's command, does not end it
    supervisors = set()
    session = int((address.parent / SESSION).read_text())
    while address.exists() and _runs(session):
        supervisors -= {process for process in supervisors if os.waitpid(process, os.WNOHANG)[0]}
        if not waiting.wait([listening], 0.5):
            continue
        connection, _ = listening.accept()
        supervisor = os.fork()
        if supervisor == 0:
            listening.close()
            return _supervise(connection)
        supervisors.add(supervisor)
        connection.close()
    os._exit(0)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _supervise(connection):
    """Reads a request, forks the process that it asks for, and tells its id and, at last, its exit code."""
    request = json.loads(connection.makefile().readline())
    process = os.fork()
    if process == 0:
        connection.close()
        return request
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(request) -> NoReturn:
    """Runs the request in this process, which ends as Python would end it, but for the last collection of garbage."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request["printed"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    # An editable install puts the repository last.
    sys.path[:] = [*(path for path in sys.path if path != str(ROOT)), str(ROOT)]
    sys.path += [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.fsync = lambda descriptor: None  # as in `conftest`
    quick_graphs.build_quickly(optimized=request["optimized"])
    code = 0
    try:
        _execute(request["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _execute(words):
    """Runs the words of a command after `python`."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), module.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    asked = serve(sys.argv[1], Path(sys.argv[2]))
    become(asked)
