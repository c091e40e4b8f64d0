"""A bucket in memory, `flaky://`, which refuses operations, ends the process in them, is slow, or counts them.

    bucket.reset(fault=lambda number, name: number == 7 and "die")
    with pytest.raises(Died): mirror.copy()

A fault is asked before each operation, with its number and its name. `"refuse"` raises OSError before anything is done,
`"lose"` raises it after everything was done, as a lost answer does; `"die"` ends the process
before it is done: after it is the same as before the next one.
"""

import time

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Died(BaseException):
    """The process ended in an operation."""


class FlakyBucket(MemoryFileSystem):
    """Is the file system of `flaky://`."""

    protocol = "flaky"
    store = {}  # noqa: RUF012  # its own, not that of memory://
    pseudo_dirs = [""]  # noqa: RUF012
    fault = staticmethod(lambda number, name: None)
    count = 0
    delay = 0.0
    log = []  # noqa: RUF012

    @classmethod
    def reset(cls, fault=lambda number, name: None, *, empty=True, delay=0.0):
        """Sets the faults; starts counting again."""
        cls.fault, cls.count, cls.delay, cls.log = staticmethod(fault), 0, delay, []
        if empty:
            cls.store.clear()
            cls.pseudo_dirs[:] = [""]

    def _do(self, name, work, *arguments, **options):
        cls = type(self)
        cls.count += 1
        cls.log.append((name, arguments[-1] if name == "put_file" else arguments[0]))
        fault = cls.fault(cls.count, name)
        time.sleep(cls.delay)
        if fault == "refuse":
            raise OSError("the bucket refuses")
        if fault == "die":
            raise Died
        done = work(*arguments, **options)
        if fault == "lose":
            raise OSError("the answer is lost")
        return done

    def pipe_file(self, path, value, mode="overwrite", **options):
        return self._do("pipe_file", super().pipe_file, path, value, mode=mode, **options)

    def put_file(self, lpath, rpath, **options):
        return self._do("put_file", super().put_file, lpath, rpath, **options)

    def cat_file(self, path, **options):
        return self._do("cat_file", super().cat_file, path, **options)

    def get_file(self, rpath, lpath, **options):
        return self._do("get_file", super().get_file, rpath, lpath, **options)

    def rm_file(self, path):
        return self._do("rm_file", super().rm_file, path)


fsspec.register_implementation("flaky", FlakyBucket, clobber=True)
bucket = FlakyBucket
