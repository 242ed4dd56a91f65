"""Writes the files of a volume so that a reader never sees a part of a change, by the kubelet's way. `books` calls it.

Each file is a link into `..data`, which is a link to a folder of its own for each state; that link is replaced at once.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flexpert_operator.local.runtime.values import File

_DATA = "..data"


def write(folder: Path, files: Mapping[str, File]) -> None:
    """Have the folder hold these files and no others; a process that has one of before open goes on with it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = folder / _DATA
    before = data.resolve() if data.exists() else None
    state = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    for path, file in files.items():
        target = state / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(file.data)
        target.chmod(file.mode)
    _link(data, state.name)
    tops = {PurePosixPath(path).parts[0] for path in files}
    for top in tops:
        if not (folder / top).is_symlink():
            _link(folder / top, f"{_DATA}/{top}")
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in {*tops, _DATA}:
            link.unlink()
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _link(link: Path, target: str) -> None:
    """Have a link lead there, at once."""
    temporary = link.with_name(f"..{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
