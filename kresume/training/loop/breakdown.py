"""Says what to try after a training whose loss or state became NaN or infinite."""

from __future__ import annotations

from kresume.runs import Run
from kresume.spelling import option

LOWER = 0.1
"""Factor on the rate that a training which broke is advised to try."""


def what_to_try(run: Run, good: int) -> str:
    """Returns the advice that follows the error.

    Args:
        run: the run that broke.
        good: the step of its last good snapshot.
    """
    rate = option("lr", float(f"{run.record.rate.peak * LOWER:.3g}"))  # 3e-5, not 2.9999999999999997e-05
    precision = run.record.options.get("precision")
    or_precision = (
        f", or {option('precision', 'float32')} (it is {precision})" if precision not in {None, "float32"} else ""
    )
    if good == 0:
        again = f" and {option('overwrite', True)}" if run.record.given.get("out") else ""
        return f". The same command would break again: start again with {rate}{again}{or_precision}"
    return (
        f". The same command would break again: go on from that snapshot at a lower rate, with {option('from', str(run.path))} "
        f"and {rate}{or_precision}"
    )
