"""A stand-in for what `os` does to disks: it does it, and remembers the order."""

import os
import pathlib
import shutil


class Disk:
    """Events in order: `("sync", name, bytes)`, `("rename", old name, new name)`, `("remove", name)`.

    The bytes of a sync are those that the file system has by then: what a buffer still holds is not among them.
    """

    def __init__(self, monkeypatch) -> None:
        self.events: list[tuple] = []
        fsync, replace, rename, unlink, rmtree = os.fsync, os.replace, os.rename, os.unlink, shutil.rmtree

        def note(kind, *paths):
            self.events.append((kind, *(pathlib.Path(path).name for path in paths)))

        def recording_fsync(number):
            name = os.readlink(f"/proc/self/fd/{number if isinstance(number, int) else number.fileno()}")
            self.events.append(("sync", pathlib.Path(name).name, os.fstat(number).st_size))
            fsync(number)

        def recording(kind, function, paths):
            def call(*arguments, **options):
                note(kind, *arguments[:paths])
                return function(*arguments, **options)

            return call

        monkeypatch.setattr(os, "fsync", recording_fsync)
        monkeypatch.setattr(os, "replace", recording("rename", replace, 2))
        monkeypatch.setattr(os, "rename", recording("rename", rename, 2))
        monkeypatch.setattr(os, "unlink", recording("remove", unlink, 1))
        monkeypatch.setattr(shutil, "rmtree", recording("remove", rmtree, 1))

    def take(self) -> list[tuple]:
        """What has happened since the last call."""
        taken, self.events = self.events, []
        return taken
