"""The audit of the teachers."""

from __future__ import annotations

import typer

from retriever.commands.console import WORK, File, Json, Set, Work, pipeline_of, print_table, tell_next


def teachers(file: File, set_: Set = None, work: Work = WORK, as_json: Json = False) -> None:
    """Say which teacher is worth copying, and why."""
    from retriever.audit.step import audit_teachers
    from retriever.eval.audit_terminal import audit_table

    pipeline = pipeline_of(file, set_, work)
    done, audit = audit_teachers(pipeline)
    if as_json:
        typer.echo((done.folder / "teachers.json").read_text(encoding="utf-8"))
        return
    print_table(audit_table(audit))
    typer.echo(f"\n{audit.verdict.reason}\nreport: {done.folder / 'teachers.html'}")
    if audit.verdict.distil:
        others = [f"ensemble.select={name}" for name in audit.verdict.distil if name != done.result["chosen"]]
        tell_next("distill", file, [*(set_ or ()), *others], work)
