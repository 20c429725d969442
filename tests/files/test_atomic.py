"""Nothing is half written: temporary neighbours, sentences, disk full."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opdf_compile.errors import ArtefactError
from opdf_compile.files.atomic import atomic_folder, atomic_write, existing_file, sha256


def test_atomic_write_replaces_and_leaves_no_neighbour(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".json"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert target.stat().st_mode & 0o400


def test_atomic_write_has_the_mode_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    with atomic_write(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "ours").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("failure", [ValueError("boom"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    with pytest.raises(type(failure)), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_unwritable_targets_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    cases = [
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "missing" / "plan.json", "does not exist; create it"),
        (tmp_path / "file" / "plan.json", "does not exist; create it"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]
    for target, words in cases:
        with pytest.raises(ArtefactError, match=words) as caught, atomic_write(target) as temporary:
            temporary.write_text("x")
        assert str(caught.value).startswith("cannot write")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
from opdf_compile.errors import ArtefactError
from opdf_compile.files.atomic import atomic_folder, atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
with atomic_write(folder / "small") as t:
    t.write_bytes(b"x" * 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for opener, put in ((atomic_write, lambda t: t.write_bytes(b"x" * 100_000)),
                    (atomic_folder, lambda t: (t / "a").write_bytes(b"x" * 100_000))):
    try:
        with opener(folder / "big") as temporary:
            put(temporary)
    except ArtefactError as error:
        print(error)
"""


def test_disk_full_leaves_nothing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    words = f"cannot write {tmp_path / 'big'}: File too large; free space"
    assert all(line.startswith(words) for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_atomic_folder_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("1")
    assert (target / "sub" / "a").read_text() == "1"
    with (
        pytest.raises(RuntimeError),
        atomic_folder(target, replaceable=lambda _: True) as temporary,
    ):
        (temporary / "b").write_text("2")
        raise RuntimeError
    assert (target / "sub" / "a").read_text() == "1"
    with atomic_folder(target, replaceable=lambda old: (old / "sub").is_dir()) as temporary:
        (temporary / "c").write_text("3")
    assert [p.name for p in target.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_atomic_folder_does_not_delete_somebodys_files(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, words in (("photos", "holds other files"), ("file", "it is a file")):
        with pytest.raises(ArtefactError, match=words), atomic_folder(tmp_path / name):
            pass
    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "a").write_text("x")
    assert (tmp_path / "empty" / "a").exists()
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_a_failed_swap_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
    rename = Path.rename

    def refuse(self: Path, other: Path) -> Path:
        if ".old." not in str(other) and ".old." not in str(self):
            raise OSError(5, "Input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(ArtefactError, match="Input/output error"),
        atomic_folder(target, replaceable=lambda _: True),
    ):
        pass
    assert (target / "a").read_text() == "1"


def test_sha256_and_existing_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert sha256(file) == hashlib.sha256(b"abc").hexdigest()
    assert existing_file(file) == file
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, words in [
        ("none", "does not exist"),
        ("", "is a folder"),
        ("empty", "is empty"),
        ("pipe", "no ordinary file"),
        ("x" * 300, "File name too long"),
    ]:
        with pytest.raises(ArtefactError, match=words):
            existing_file(tmp_path / name, wanted="a .pt2 archive")
    with pytest.raises(ArtefactError, match="cannot read"):
        sha256(tmp_path / "none")
