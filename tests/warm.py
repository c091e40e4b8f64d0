"""Answers the processes that exports and runtimes start in processes that stay: importing TensorFlow takes seconds.

    warm = Processes()
    monkeypatch.setattr(process, "subprocess", warm)      # which has `run`, as the module has

A process of its own is kept for each script and environment. It calls the same `main` with the same request, in the same
current directory. A test marked `fresh_processes` gets a new process for each request, as users do.
"""

import json
import os
import subprocess
import sys
import tempfile

SERVER = """
import io, json, os, runpy, sys, traceback

kind, target = sys.argv[1:3]
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a script prints is no answer
if kind == "script":
    main = runpy.run_path(target, run_name="warm")["main"]
else:
    import importlib
    main = importlib.import_module(target).main
for line in sys.stdin:
    request = json.loads(line)
    os.chdir(request["cwd"])
    with open(request["stderr"], "w") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
        keras = sys.modules.get("keras")
        known = dict(keras.saving.get_custom_objects()) if keras else {}
        try:
            code = main(request["place"]) or 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        keras = sys.modules.get("keras")
        if keras:  # as in a new process: no class of another user, no names in use, the usual precision
            keras.saving.get_custom_objects().clear()
            keras.saving.get_custom_objects().update(known)
            keras.utils.clear_session()
            keras.config.set_dtype_policy("float32")
        sys.stderr.flush()
    answers.write(json.dumps({"code": code}) + "\\n")
    answers.flush()
"""


class Processes:
    """Has `run` as the module `subprocess` has it, for the two commands that kresume starts."""

    def __init__(self):
        self.kept: dict[tuple, subprocess.Popen] = {}

    def run(self, command, *, env, **options):
        """Answers one command in the process that is kept for it."""
        kind = {"-P": "script", "-m": "module"}[command[1]]
        target, place = command[2:]
        process = self._process(kind, target, env)
        with tempfile.NamedTemporaryFile("r", suffix=".txt") as stderr:
            request = {"place": place, "cwd": os.getcwd(), "stderr": stderr.name}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            code = json.loads(line)["code"] if line else process.wait()
            return subprocess.CompletedProcess(command, code, "", stderr.read())

    def _process(self, kind, target, env):
        lasting = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
        key = (kind, target, tuple(sorted(lasting.items())))
        kept = self.kept.get(key)
        if kept is None or kept.poll() is not None:
            safe = ["-P"] if kind == "script" else []
            kept = self.kept[key] = subprocess.Popen(
                [sys.executable, *safe, "-c", SERVER, kind, target],
                env=lasting,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return kept

    def close(self):
        """Ends every process."""
        for process in self.kept.values():
            process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()
