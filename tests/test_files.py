"""Files are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from retriever.errors import RetrieverError
from retriever.files import (
    explain_full_disk,
    fingerprint,
    hidden_folder,
    lock,
    made_once,
    make_folder,
    recover_folder,
    replace_folder,
    sha256_file,
    sha256_folder,
    text_hash,
    write_atomic,
    write_json,
    write_text,
)


def test_a_fingerprint_is_the_beginning_of_a_sha256_and_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"b": 1, "a": [True, None]}) == hashlib.sha256(b'{"a":[true,null],"b":1}').hexdigest()[:16]
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint(1) != fingerprint("1")
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


def test_a_text_s_hash_is_the_first_64_bits_of_its_sha256() -> None:
    assert text_hash("") == 0xE3B0C44298FC1C14  # SHA-256 of nothing begins with e3b0c442 98fc1c14
    assert text_hash("abc") == 0xBA7816BF8F01CFEA
    assert text_hash("é") != text_hash("e\u0301")
    assert text_hash("\ud800") != text_hash("\ud801")  # lone surrogates have a hash too


def test_a_folder_s_checksum_changes_with_names_and_contents_of_all_but_hidden_files(tmp_path: Path) -> None:
    write_text(tmp_path / "one" / "a.txt", "text")
    whole = sha256_folder(tmp_path)
    write_text(tmp_path / ".hidden", "x")
    write_text(tmp_path / "one" / ".cache" / "b.txt", "x")
    assert sha256_folder(tmp_path) == whole
    write_text(tmp_path / "one" / "a.txt", "texts")
    changed = sha256_folder(tmp_path)
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "b.txt")
    assert len({whole, changed, sha256_folder(tmp_path)}) == 3
    assert sha256_file(tmp_path / "one" / "b.txt") == hashlib.sha256(b"texts").hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_value_that_json_cannot_carry_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"ü": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", float("inf"))
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == '{\n  "ü": 1\n}\n'


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),  # as safetensors says it
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),  # as torch does
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_one_line_from_whatever_library_it_comes(tmp_path: Path, error: Exception) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(RetrieverError) as caught:
        write_atomic(tmp_path / "file.txt", fail)
    advice = "the disk is full; nothing half-written was kept. Free some space and run the same command again"
    assert str(caught.value) == f"{tmp_path / 'file.txt'}: {advice}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("shapes do not fit"), KeyError("x")], ids=repr)
def test_another_error_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_full_disk(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_really_full_is_recognised() -> None:
    with pytest.raises(RetrieverError, match=r"^/dev/full: the disk is full"), explain_full_disk(Path("/dev/full")), Path("/dev/full").open("w") as stream:
        stream.write("x" * 100_000)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    for folder in (tmp_path / "work", tmp_path / "work" / "inner" / "folder"):
        with pytest.raises(RetrieverError) as caught:
            make_folder(folder)
        assert str(caught.value) == f"{tmp_path / 'work'}: is a file, and a folder is needed in its place. Move it away, or name another folder"
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def two_folders(parent: Path) -> tuple[Path, Path]:
    """A new folder and the old one that it shall replace."""
    write_text(parent / "new" / "inner" / "file", "new")
    write_text(parent / "final" / "inner" / "file", "old")
    return parent / "new", parent / "final"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    new, final = two_folders(tmp_path)
    replace_folder(new, final)
    assert (final / "inner" / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_stop_after_either_rename_leaves_one_of_the_two_folders_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    new, final = two_folders(tmp_path)
    done: list[Path] = []
    rename = os.replace

    def stop_after(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt

    monkeypatch.setattr("retriever.files.os.replace", stop_after)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, final)
    monkeypatch.undo()
    recover_folder(final)
    assert (final / "inner" / "file").read_text() == ("old" if renames == 1 else "new")
    assert not (tmp_path / ".final.old").exists()
    write_text(tmp_path / "new" / "inner" / "file", "newest")
    replace_folder(tmp_path / "new", final)
    assert (final / "inner" / "file").read_text() == "newest"
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


def test_there_is_nothing_to_recover_where_nothing_was_replaced(tmp_path: Path) -> None:
    recover_folder(tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with lock(tmp_path / "deep" / ".lock", "scoring"), pytest.raises(RetrieverError) as caught, lock(tmp_path / "deep" / ".lock", "scoring"):
        pass
    assert str(caught.value) == f"{tmp_path / 'deep'}: process {os.getpid()} is already scoring here. Wait for it, or stop it first"
    with lock(tmp_path / "deep" / ".lock", "scoring"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holding = f"""
import pathlib, time
from retriever.files import lock
with lock(pathlib.Path({str(tmp_path / ".lock")!r}), "working"):
    print("held", flush=True)
    time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen([sys.executable, "-c", holding], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RetrieverError, match=f"process {process.pid} is already working here"), lock(tmp_path / ".lock", "working"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock(tmp_path / ".lock", "working"):
            pass


def test_of_two_that_make_the_same_folder_at_once_the_first_ones_stays_and_the_second_makes_none(tmp_path: Path) -> None:
    begun, asked = threading.Event(), threading.Event()

    def first(new: Path) -> None:
        begun.set()
        assert asked.wait(10)
        (new / "table").write_text("first")

    def second(new: Path) -> None:
        (new / "table").write_text("second")

    def come_later() -> None:
        begun.wait(10)
        asked.set()
        assert made_once(tmp_path / "cache" / "final", "making a table", second) == tmp_path / "cache" / "final"

    later = threading.Thread(target=come_later)
    later.start()
    made_once(tmp_path / "cache" / "final", "making a table", first)
    later.join(10)
    assert not later.is_alive()
    assert (tmp_path / "cache" / "final" / "table").read_text() == "first"


def test_a_folder_that_is_not_finished_is_not_there_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "kept").touch()
    with pytest.raises(ZeroDivisionError), hidden_folder(tmp_path / "final") as new:
        (new / "begun").write_bytes(bytes(1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    with hidden_folder(tmp_path / "final") as new:
        assert list(new.iterdir()) == []
        (new / "whole").touch()
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["whole"]
