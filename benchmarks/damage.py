"""Ways to spoil a bundle by accident, so that its hashes tell. ``hostility`` has those by design.

Each way changes a copy of a bundle in place and returns what an error must name: a pattern of file names.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from towers.index.manifest import MANIFEST, SEAL, write_manifest

Damage = Callable[[Path, Random], str]
SEALED = r"manifest\.(json|sha256)"


def files(root: Path) -> list[str]:
    """Names of all files."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def named(name: str) -> str:
    """The pattern of an error about a file; the two that vouch for each other cannot tell which of them is wrong."""
    return SEALED if name in (MANIFEST, SEAL) else re.escape(name)


def reseal(root: Path) -> None:
    """Hashes anew, as a hostile or careless hand would write them."""
    facts = json.loads((root / MANIFEST).read_text())
    for name in ("files", "format", "format_version"):
        facts.pop(name, None)
    (root / MANIFEST).unlink()
    (root / SEAL).unlink()
    write_manifest(root, facts)


# By accident: the hashes are those of the export.


def flip(root: Path, rng: Random) -> str:
    """One bit."""
    name = rng.choice(files(root))
    content = bytearray((root / name).read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (root / name).write_bytes(content)
    return named(name)


def overwrite(root: Path, rng: Random) -> str:
    """A stretch of bytes, by zeros, ones or noise: a sector that was not written."""
    name = rng.choice(files(root))
    before = (root / name).read_bytes()
    start, length = rng.randrange(len(before)), rng.choice((4, 64, 512))
    by = rng.choice((lambda n: bytes(n), lambda n: b"\xff" * n, rng.randbytes))
    content = (before[:start] + by(length) + before[start + length :])[: len(before)]
    (root / name).write_bytes(content if content != before else before[:-1])
    return named(name)


def truncate(root: Path, rng: Random) -> str:
    """The end is not there: a copy that broke off."""
    name = rng.choice(files(root))
    os.truncate(root / name, rng.randrange((root / name).stat().st_size))
    return named(name)


def append(root: Path, rng: Random) -> str:
    """Something follows the end; some parsers would read on, or find an archive there."""
    name = rng.choice(files(root))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("../../outside", b"x")
    with (root / name).open("ab") as f:
        f.write(rng.choice((b"\0", b"\n", rng.randbytes(100), archive.getvalue())))
    return named(name)


def swap_files(root: Path, rng: Random) -> str:
    """Two files under each other's name."""
    while True:
        a, b = rng.sample(files(root), 2)
        if (root / a).read_bytes() != (root / b).read_bytes():
            break
    (root / a).rename(root / "between")
    (root / b).rename(root / a)
    (root / "between").rename(root / b)
    return f"{named(a)}|{named(b)}"


def remove(root: Path, rng: Random) -> str:
    """A file is missing."""
    name = rng.choice(files(root))
    (root / name).unlink()
    return named(name)


def rename(root: Path, rng: Random) -> str:
    """A file under a name that differs by little."""
    name = rng.choice([n for n in files(root) if n not in (MANIFEST, SEAL)])
    new = rng.choice((name.upper(), name + " ", name + ".bak", name.replace(".", "\u2024")))
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / name).rename(root / new)
    return f"{named(name)}|{named(new)}|{re.escape(new.split('/')[0])}: a folder"


def add(root: Path, rng: Random) -> str:
    """A file or a folder more."""
    name = f"{rng.choice(('', 'items/', 'users/', 'vocab/'))}{rng.choice(('.DS_Store', 'x.npy', 'core', 'items.zip'))}"
    if rng.random() < 0.3:
        (root / name).mkdir()
    else:
        (root / name).write_bytes(rng.randbytes(rng.randrange(100)))
    return named(name)


def special(root: Path, rng: Random) -> str:
    """A link, a folder or a pipe in the place of a file: following it would leave the bundle, or wait for ever."""
    name = rng.choice(files(root))
    content = (root / name).read_bytes()
    (root / name).unlink()
    kind = rng.choice(("link", "dangling", "folder", "pipe"))
    if kind == "link":
        elsewhere = root.with_name("elsewhere")
        elsewhere.write_bytes(content)
        (root / name).symlink_to(elsewhere)
    elif kind == "dangling":
        (root / name).symlink_to("/nowhere")
    elif kind == "folder":
        (root / name).mkdir()
    else:
        os.mkfifo(root / name)
    return named(name)


def linked_folder(root: Path, rng: Random) -> str:
    """A folder that lies elsewhere."""
    name = rng.choice(("items", "users", "vocab", "user_tower", "item_tower"))
    elsewhere = root.with_name("elsewhere_folder")
    (root / name).rename(elsewhere)
    (root / name).symlink_to(elsewhere, target_is_directory=True)
    return name


ACCIDENTS: tuple[Damage, ...] = (
    flip, overwrite, truncate, append, swap_files, remove, rename, add, special, linked_folder
)  # fmt: skip
