"""How long `retriever --help` takes: the median of ten runs, beside Python's own start. Bar: 0.4 s.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys
import time

from record import MACHINE, keep

BAR_SECONDS = 0.4
RUNS = 10


def median_seconds(*command: str) -> float:
    """The median wall-clock time of a command; its first run, which warms the disk cache and writes bytecode, does not count."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    """Prints both medians and the bar; 1 where the bar is missed."""
    bare = median_seconds(sys.executable, "-c", "pass")
    command = median_seconds(sys.executable, "-m", "retriever", "--help")
    print(f"python -c pass      {bare:.3f} s")
    print(f"retriever --help    {command:.3f} s   bar {BAR_SECONDS} s: {'met' if command < BAR_SECONDS else 'MISSED'}   (median of {RUNS})")
    keep("startup", {"python_seconds": round(bare, 3), "help_seconds": round(command, 3), "bar_seconds": BAR_SECONDS, "runs": RUNS, "machine": MACHINE})
    return int(command >= BAR_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
