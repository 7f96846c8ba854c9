"""How long work tells where it is: words and bars on the terminal, or nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

Advance = Callable[[int], None]
SENTENCE_TRANSFORMERS = logging.getLogger("sentence_transformers")


class Reporter(Protocol):
    """Where long work says what it does."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def bar(self, description: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """A bar; the function it gives is called with how much was just done."""
        ...

    def update(self, text: str) -> None:
        """What stands beside the running bar."""
        ...


class Quiet:
    """Says nothing: for tests and for programs that print something else."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """No bar."""
        yield lambda count: None

    def update(self, text: str) -> None:
        """Nothing."""


@contextlib.contextmanager
def bar_of_steps(reporter: Reporter, description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a loop that knows its length when its first step is done; the function is called with the step and the number of all."""
    with contextlib.ExitStack() as stack:
        advance: Advance | None = None
        done = 0

        def tell(step: int, steps: int) -> None:
            nonlocal advance, done
            advance = advance or stack.enter_context(reporter.bar(description, steps))
            advance(step - done)
            done = step

        yield tell


def silence_libraries() -> None:
    """Keeps the bars and notices of transformers, sentence-transformers and datasets away: ours say what there is to say."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    SENTENCE_TRANSFORMERS.setLevel("ERROR")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences libraries for as long as the block runs: a notebook's other cells keep their bars."""
    import datasets
    from transformers.utils import logging as transformers_logging

    verbosity, bars, datasets_bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
        not datasets.are_progress_bars_disabled(),
    )
    level = SENTENCE_TRANSFORMERS.level
    silence_libraries()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        SENTENCE_TRANSFORMERS.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if datasets_bars:
            datasets.enable_progress_bars()


def _rate(done: float, seconds: float) -> str:
    """How many a second, as a bar shows it; nothing before the first."""
    rate = done / seconds if seconds > 0 else 0.0
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s" if rate else ""


class Terminal:
    """Lines and bars on standard error; bars only where a person looks on."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        silence_libraries()
        self._note: Callable[[str], None] = lambda text: None

    def say(self, text: str) -> None:
        """One line on standard error."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def bar(self, description: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """A bar with counts and the time left (in the end the time taken); where nobody looks on, a line now and then."""
        if not total:
            return Quiet().bar(description, total)
        return self._drawn(description, total) if self.console.is_terminal else self._logged(description, total)

    def update(self, text: str) -> None:
        """A note beside the running bar."""
        self._note(text)

    @contextlib.contextmanager
    def _drawn(self, description: str, total: int) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.table import Column

        class Rate(ProgressColumn):
            def render(self, task: Task) -> str:
                return _rate(task.completed, task.elapsed or 0.0)

        wide = self.console.width >= 100
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", table_column=Column(width=36 if wide else 30, overflow="ellipsis", no_wrap=True)),
            BarColumn(bar_width=24 if wide else 8),
            MofNCompleteColumn(),
            *([Rate()] if wide else []),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", table_column=Column(overflow="ellipsis", no_wrap=True)),
        ]
        with Progress(*columns, console=self.console, speed_estimate_period=600) as progress:  # a shard of pairs takes a minute, or more
            task = progress.add_task(description, total=total, note="")
            progress.advance(task, 0)  # from here on there is a speed
            self._note = lambda text: progress.update(task, note=text)
            yield lambda count: progress.advance(task, count)
        self._note = lambda text: None

    @contextlib.contextmanager
    def _logged(self, description: str, total: int) -> Iterator[Advance]:
        """For log files: one line a minute at most, and one at the end."""
        start = told = time.monotonic()
        done, note = 0, ""

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            if time.monotonic() - told >= 60:
                told = time.monotonic()
                passed = told - start
                left = passed * (total - done) / done if done else 0.0
                self.say(f"{description}: {done:,} of {total:,}, {_rate(done, passed)}, {left / 60:.0f} min left  {note}".rstrip())

        def remember(text: str) -> None:
            nonlocal note
            note = text

        self._note = remember
        yield advance
        self._note = lambda text: None
        self.say(f"{description}: {done:,} in {time.monotonic() - start:.0f} s  {note}".rstrip())
