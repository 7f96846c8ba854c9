"""The command line: it reads arguments, calls the public functions and prints. Nothing heavy is imported before it is used."""

from __future__ import annotations

import errno
import sys

import typer

from retriever.commands import caption, chat, formats, generate, index, reinforce, rewrite, search, serve, setup, steps, store, teachers
from retriever.commands.console import AROUND_COMMAND
from retriever.errors import RetrieverError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distils slow, good rankers into fast retrievers: score, train, index, search, evaluate.",
)

for command in (
    setup.doctor,
    setup.init,
    setup.check,
    generate.generate,
    rewrite.rewrite,
    steps.candidates,
    steps.teach,
    steps.score,
    teachers.teachers,
    caption.caption,
    reinforce.reinforce,
    steps.train,
    steps.evaluate,
    steps.distill,
    search.search,
    chat.chat,
    serve.serve,
    serve.feedback,
    formats.export,
    setup.demo,
):
    app.command()(command)
app.command("import")(formats.import_)
app.add_typer(index.app, name="index")
app.add_typer(store.app, name="store")

PLACES_THAT_CANNOT_BE_USED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOSPC, errno.EIO)
"""What the operating system says of a work folder that is a file, write-protected, full or broken."""


def main() -> None:
    """Runs the command; a user's mistake is one line and exit status 2, Ctrl-C is 130."""
    try:
        with AROUND_COMMAND:
            app(prog_name="retriever")
    except RetrieverError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns Ctrl-C into exit status 130
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        typer.echo("stopped; what is done is kept, and the same command goes on from there", err=True)
        sys.exit(130)
    except OSError as error:
        if error.errno not in PLACES_THAT_CANNOT_BE_USED:
            raise
        place = error.filename2 or error.filename or "a file"
        typer.echo(f"error: {place}: {error.strerror}. Mend that, or name another place, and run the same command again", err=True)
        sys.exit(2)
