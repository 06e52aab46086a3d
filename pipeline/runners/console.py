"""What the terminal shows while a pipeline runs: which node, how far, how long."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.status import Status

_LOG_WIDTH = 132  # Of tables in a file, where nobody says how wide a line may be.


class NodeProgress:
    """Progress of one node; `line` is called for each line the node prints."""

    def __init__(self, console: RichConsole, status: Status | None, title: str) -> None:
        self._console = console
        self._status = status
        self._title = title
        self._started = time.perf_counter()
        self._outcome = ""

    def line(self, text: str) -> None:
        """Shows a line of the node: live on a terminal, as a line of its own elsewhere."""
        if not text:
            return
        self._console.print(f"      [dim]{escape(text)}[/dim]", highlight=False, soft_wrap=True)

    def finish(self, cached: bool, peak_rss_bytes: int) -> None:
        """States how the node ended."""
        seconds = time.perf_counter() - self._started
        self._outcome = (
            f"[cyan]cached[/cyan]   {seconds:6.1f} s"
            if cached
            else f"[green]done[/green]     {seconds:6.1f} s   peak {peak_rss_bytes / 2**30:.1f} GiB"
        )

    def close(self) -> None:
        """Prints the node's last line."""
        self._console.print(f"{self._title} {self._outcome or '[red]failed[/red]'}", highlight=False)


class Console:
    """Progress on a stream; a spinner with the running node where the stream is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.rich = RichConsole(file=stream or sys.stdout, soft_wrap=True)
        if not self.rich.is_terminal:
            self.rich = RichConsole(file=stream or sys.stdout, soft_wrap=True, width=_LOG_WIDTH)

    @contextlib.contextmanager
    def node(self, name: str, number: int, total: int) -> Iterator[NodeProgress]:
        """Frames the run of one node."""
        title = f"[bold][{number:2d}/{total}][/bold] {name:<24}".replace("[bold][", r"[bold]\[")
        if self.rich.is_terminal:
            with self.rich.status(f"{title} running") as status:
                progress = NodeProgress(self.rich, status, title)
                try:
                    yield progress
                finally:
                    progress.close()
            return
        self.rich.print(f"{title} started", highlight=False)
        progress = NodeProgress(self.rich, None, title)
        try:
            yield progress
        finally:
            progress.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        self.rich.print(escape(text), highlight=False)

    def fail(self, text: str) -> None:
        """Prints a failure."""
        self.rich.print(f"[red]{escape(text)}[/red]", highlight=False)

    @contextlib.contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Frames work without a node of its own."""
        started = time.perf_counter()
        if self.rich.is_terminal:
            with self.rich.status(text):
                yield
        else:
            self.say(f"{text} ...")
            yield
        self.say(f"{text}: {time.perf_counter() - started:.1f} s")
