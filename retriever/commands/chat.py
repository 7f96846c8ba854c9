"""Conversational search in the terminal: each turn is read with those before it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from retriever.commands.console import Json, Url, print_json
from retriever.commands.hits import plain_hit, show_hits
from retriever.errors import ConfigError, DataError

if TYPE_CHECKING:
    from retriever.conversations.chat import Contributions, Conversation
    from retriever.conversations.reading import ReadText
    from retriever.filters import Condition
    from retriever.search import Hit, SearchIndex
    from retriever.types import Query

COMMANDS = {
    "/why": "what the history contributed",
    "/answer TEXT": "what the agent answered",
    "/take N": "the text of result N is the answer",
    "/history": "what was said",
    "/new": "another conversation",
    "/quit": "leave",
}
PROMPT = "> "


def chat(
    index: Annotated[
        Path | None, typer.Argument(help="Index folder, or the folder of the experiment that built it; with --url the name of a served index.", metavar="INDEX")
    ] = None,
    student: Annotated[
        Path | None, typer.Option("--student", help="Another student that encodes the turns, whose documents were frozen.", metavar="FOLDER")
    ] = None,
    reads: Annotated[
        str | None, typer.Option("--reads", help="What the student reads of a conversation, such as all or latest_first.", metavar="READING")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Documents for each turn.", metavar="NUMBER")] = 5,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="A condition on a field, such as 'year>=2020' or 'language in de,fr'.", metavar="CONDITION")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Search turn by turn, each read with those before it."""
    from retriever.conversations.chat import Conversation
    from retriever.filters import parse_condition

    conditions = [parse_condition(one) for one in filters or []]
    if url is None:
        talk = _opened(index, student, reads)
    else:
        from retriever.commands.served import served_search

        talk = served_search("chat", url, None if index is None else str(index), reads=reads, student=student)
    session = _Session(talk, k, conditions, as_json, Conversation())
    if sys.stdin.isatty():
        typer.echo("  ".join(f"{name}: {does}" for name, does in COMMANDS.items()), err=True)
    try:
        for line in _lines():
            if line == "/quit":
                break
            session.take(line)
    except KeyboardInterrupt:
        typer.echo("", err=True)


def _opened(index: Path | None, student: Path | None, reads: str | None) -> Talk:
    from retriever.progress import silence_libraries
    from retriever.search import open_index

    if index is None:
        raise ConfigError("chat: names no index. Give its folder, or a server's address: --url URL")
    silence_libraries()
    found = open_index(index, student)
    _set_reading(found.encoder, reads, index)
    return _Here(found)


class Talk(Protocol):
    """Something that answers turns."""

    def ask(self, query: Query, k: int, where: Sequence[Condition] = ()) -> tuple[ReadText, Sequence[Hit]]:
        """What the student read of a query, and the best k documents."""
        ...

    def why(self, query: Query, k: int, where: Sequence[Condition] = ()) -> Contributions:
        """What the history contributed."""
        ...


@dataclasses.dataclass(frozen=True)
class _Here:
    """An index on this machine."""

    index: SearchIndex

    def ask(self, query: Query, k: int, where: Sequence[Condition] = ()) -> tuple[ReadText, Sequence[Hit]]:
        from retriever.queries import reader_of

        return reader_of(self.index.encoder).text(query), self.index.hits(query, k, where)

    def why(self, query: Query, k: int, where: Sequence[Condition] = ()) -> Contributions:
        from retriever.conversations.chat import contributions

        return contributions(self.index.encoder, query, lambda asked: self.index.hits(asked, k, where))


def _set_reading(encoder: Any, reads: str | None, index: Path) -> None:
    """Has the student read conversations as asked; says so where it reads no history.

    Raises:
        ConfigError: it cannot, or it reads rewrites, which nobody writes here.
    """
    from retriever.conversations.chat import read_as
    from retriever.conversations.reading import rewriter_of
    from retriever.queries import reader_of

    if reads is not None:
        read_as(encoder, reads, str(index))
    reading = reader_of(encoder).reading
    if rewriter_of(reading) is not None:
        raise ConfigError(f'{index}: the student reads "{reading}", and a chat has no rewrites. Choose what it reads, for example with: --reads all')
    if reading == "last" and reads is None:
        typer.echo("hint: this student reads the last turn alone, not the history; to have it read all turns: --reads all", err=True)


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, line by line; empty lines are left out."""
    typed = sys.stdin.isatty()
    if typed and sys.stdout.isatty():
        import readline  # noqa: F401 (input() edits lines with it)
    while True:
        try:
            line = input(PROMPT) if typed and sys.stdout.isatty() else _read_line(typed)
        except EOFError:
            if typed:
                typer.echo("", err=True)
            return
        if line.strip():
            yield line.strip()


def _read_line(typed: bool) -> str:
    """A line of standard input; the prompt goes where no program reads."""
    if typed:
        typer.echo(PROMPT, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@dataclasses.dataclass
class _Session:
    """A conversation in the terminal, with what was asked and found last."""

    talk: Talk
    k: int
    where: Sequence[Condition]
    as_json: bool
    conversation: Conversation
    query: Query | None = None
    hits: Sequence[Hit] = ()

    def take(self, line: str) -> None:
        """Does what a line says; a mistake in it is told, and the conversation goes on."""
        name, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self.ask(line)
            return
        done = {"/why": self.why, "/answer": self.answer, "/take": self.take_result, "/history": self.history, "/new": self.new}.get(name)
        if done is None:
            typer.echo(f"{name} is no command; there are {', '.join(COMMANDS)}", err=True)
            return
        try:
            done(rest.strip())
        except (ConfigError, DataError) as error:
            typer.echo(str(error), err=True)

    def ask(self, text: str) -> None:
        """Searches with the conversation, and shows what was found."""
        self.query = self.conversation.asked(text)
        read, self.hits = self.talk.ask(self.query, self.k, self.where)
        self.conversation = self.conversation.said(text)
        if self.as_json:
            shown = {"read": read.text, "left_out": read.left_out, "cut": read.cut, "results": [plain_hit(hit) for hit in self.hits]}
            print_json({"turn": len(self.conversation.turns), "query": text, **shown})
            return
        if read.tokens:
            typer.echo(
                f"({read.tokens:,} tokens of the oldest turns are not read: {read.left_out:,} turns left out{', one cut' if read.cut else ''})", err=True
            )
        show_hits(self.hits, text)

    def why(self, _: str) -> None:
        """Shows what the history contributed to the last search."""
        if self.query is None:
            raise DataError("/why: nothing was asked yet")
        if not self.query.turns and not self.as_json:
            typer.echo("this is the first turn: there is no history")
            return
        found = self.talk.why(self.query, self.k, self.where)
        if self.as_json:
            print_json(dataclasses.asdict(found))
        else:
            _show_contributions(found, len(self.hits))

    def answer(self, text: str) -> None:
        """Adds what the agent answered."""
        self.conversation = self.conversation.heard(text)

    def take_result(self, number: str) -> None:
        """Takes the snippet of a result as the agent's answer."""
        from retriever.search import snippet

        if not number.isdigit() or not 1 <= int(number) <= len(self.hits) or self.query is None:
            raise DataError(f"/take {number}: " + (f"expected the rank of a result, from 1 to {len(self.hits)}" if self.hits else "there are no results yet"))
        text = snippet(self.hits[int(number) - 1].document.text, self.query.text).removeprefix("... ").removesuffix(" ...")
        self.answer(text)
        if not self.as_json:
            typer.echo(f"agent: {text}")

    def history(self, _: str) -> None:
        """Shows what was said."""
        if self.as_json:
            print_json(self.conversation.to_json())
            return
        for turn in self.conversation.turns:
            typer.echo(f"{turn.speaker}: {turn.text}")

    def new(self, _: str) -> None:
        """Begins another conversation."""
        self.conversation = dataclasses.replace(self.conversation, turns=())
        self.query, self.hits = None, ()


def _show_contributions(found: Contributions, results: int) -> None:
    from retriever.conversations.chat import LeftOut, Term, Word

    if found.kind == "words":
        typer.echo(f"the history gives {100 * found.whole:.0f} % of the score; its words with the largest share:")
    else:
        typer.echo(
            f"the history moves the query by {found.whole:.3f} (1 - cosine); " + ("its terms, with and without:" if found.kind == "terms" else "without:")
        )
    for row in found.rows:
        if isinstance(row, Term):
            typer.echo(f"  {row.term:<20} {row.weight:6.3f} {row.alone:6.3f}")
        elif isinstance(row, Word):
            typer.echo(f"  {row.word:<20} {100 * row.share:5.1f} %")
        elif isinstance(row, LeftOut):
            other = f"{len(row.gone)} of {results} results go ({', '.join(row.gone)})" if row.gone else "the same results"
            typer.echo(f"  turn {row.turn:<3} {row.moved:.3f}  {other}  {' '.join(row.text.split())[:60]}")
