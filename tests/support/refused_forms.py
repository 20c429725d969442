"""Archives whose form is refused, whatever they hold: most as a directory alone, without a file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archives import good_members, write_members
from refused_files import Written, row

from opdf_compile.errors import ArtefactError
from opdf_compile.io.screening.archive import screen_archive
from opdf_compile.io.screening.container import form_problem


def listed(name: str = "archive/extra/a", **changes: Any) -> Callable[[Path], Any]:
    """A directory that lists one member of ten bytes twice, by two names."""

    def make(_: Path) -> Callable[[], object]:
        first, second = zipfile.ZipInfo(name), zipfile.ZipInfo("archive/extra/b")
        for entry in (first, second):
            entry.file_size = entry.compress_size = 10
        for key, value in changes.items():
            setattr(first, key, value)
        return lambda: refuse([first, second], size=19 if not changes else 1000)

    return make


def refuse(entries: list[zipfile.ZipInfo], size: int) -> None:
    problem = form_problem(entries, size)
    if problem:
        raise ArtefactError(problem)


def other_root(folder: Path) -> Callable[[], object]:
    path = write_members(folder / "a.pt2", good_members())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("elsewhere/extra/a", b"x")
    return lambda: screen_archive(path)


def compressed(trust: bool) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        members = {**good_members(), "extra/zeros": b"0" * 999}
        path = write_members(folder / "a.pt2", members, compression=zipfile.ZIP_DEFLATED)
        return lambda: screen_archive(path, trust_pickle=trust)

    return make


def written(data: bytes) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        (folder / "a.pt2").write_bytes(data)
        return lambda: screen_archive(folder / "a.pt2")

    return make


def changed(craft: Callable[[bytes], bytes]) -> Callable[[Path], Callable[[], object]]:
    """An archive whose bytes are changed after it was written."""

    def make(folder: Path) -> Callable[[], object]:
        path = write_members(folder / "a.pt2", good_members())
        path.write_bytes(craft(path.read_bytes()))
        return lambda: screen_archive(path)

    return make


FORMS: dict[str, Written] = {
    f"form: {name}": made
    for name, made in {
        "no bytes for all members": row(listed(), "more than the file, so some overlap"),
        "a link": row(listed(external_attr=0o120777 << 16), "is a symbolic link"),
        "a locked member": row(listed(flag_bits=1), "is encrypted"),
        "a name that ends early": row(
            listed(orig_filename="archive/extra/a\0b"), "has no proper name"
        ),
        "a size that is not stored": row(listed(compress_size=9), "is compressed"),
        "two root folders": row(other_root, "several root folders"),
        "compressed members": row(compressed(trust=False), "is compressed"),
        "compressed members of a trusted file": row(compressed(trust=True), "is compressed"),
        "no members": row(written(b"PK\x05\x06" + bytes(18)), "it has 0 members"),
        "no archive": row(written(bytes(range(256))), "is no .pt2 archive"),
        "half an archive": row(changed(lambda whole: whole[:1000]), "is damaged or cut short"),
        "a folder": row(lambda folder: lambda: screen_archive(folder), "."),
    }.items()
}
