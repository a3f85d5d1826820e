"""Where the inputs of each block come from when blocks are trained one after another."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from edgeff import disk
from edgeff.artifact import Artifact
from edgeff.rows import Rows
from edgeff.runtime.features import FeatureFile, HandedOverRows, cannot_write, fingerprint
from edgeff.runtime.network import Network
from edgeff.runtime.plan_parts import Features, Plan
from edgeff.runtime.stops import Interrupted, Stop, never
from edgeff.runtime.store import BlockFiles

_CHUNK_BYTES = 1 << 16
# Room that is left alone on the disk: for checkpoints, and for everybody else.
_KEPT_FREE = 1 << 24


class StageInputs:
    """Runs the blocks before a block, or reads what they gave from files of the run's folder.

    Args:
        folder: Of the run.
        artifact: What is trained.
        files: Blocks that are finished.
        rows: Names the rows, so that features of other rows are not taken for theirs.
        stop: Asked while a file is written; what is written of it is gone on with.
    """

    def __init__(self, folder: Path, artifact: Artifact, files: BlockFiles, rows: str, stop: Stop = never) -> None:
        self._folder = folder
        self._artifact = artifact
        self._files = files
        self._rows = rows
        self._stop = stop
        self._made: dict[int, FeatureFile] = {}

    def prepare(self, network: Network, x: Rows, block: int, plan: Plan) -> list[str]:
        """Write the features for a block, if that is planned, and remove those for blocks before it.

        Args:
            network: With no block in memory.
            x: What the first block takes.
            block: Its number.
            plan: Says how, and how many rows at once.

        Returns:
            Warnings: where the disk has no room the run goes on without the file.

        Raises:
            RunError: A file is there that was made from something else.
            Interrupted: There was a reason to stop.
        """
        if block == 0 or plan.features == "rerun":
            return []
        file = self._file(block, len(x), plan.features)
        warnings = []
        try:
            self._check_room(file)
            self._find_made(range(1, block), len(x), plan.features)
            for _ in file.fill(self._source(network, x, block, plan), plan.micro_batch):
                if self._stop():
                    raise Interrupted
            self._made[block] = file
        except OSError as error:
            _remove(file)
            why = cannot_write(file.path, error)
            warnings = [f"{why}; the blocks before `{network.manifest.blocks[block].name}` are run again instead"]
        for other in range(1, block):
            self._made.pop(other, None)
            _remove(self._file(other, len(x), plan.features))
        return warnings

    def _find_made(self, blocks: Iterable[int], rows: int, features: Features) -> None:
        """Take files of an interrupted run: from what is rounded in them, other features come than from the rows."""
        for block in blocks:
            file = self._file(block, rows, features)
            if block not in self._made and file.is_whole():
                self._made[block] = file

    def of(self, network: Network, x: Rows, block: int, plan: Plan) -> Rows:
        """What goes into a block, after `prepare`."""
        if block in self._made:
            return self._made[block].read()
        return self._source(network, x, block, plan)

    def remove_all(self) -> None:
        """Leave no features behind."""
        for path in self._folder.glob("features.*"):
            with suppress(OSError):
                disk.remove(path)

    def _source(self, network: Network, x: Rows, block: int, plan: Plan) -> Rows:
        """Rows run through the blocks before, from the nearest file there is."""
        if block == 0:
            return x
        nearest = max((one for one in self._made if one < block and self._made[one].path.exists()), default=0)
        rows = self._made[nearest].read() if nearest else x
        return HandedOverRows(network, rows, first=nearest, stop=block, micro_batch=plan.micro_batch)

    def _file(self, block: int, rows: int, features: Features) -> FeatureFile:
        spec = self._artifact.manifest.blocks[block]
        return FeatureFile(
            path=self._folder / f"features.{spec.name}.bin",
            features=features,
            row_shape=spec.input.shape,
            rows=rows,
            made_from=fingerprint(self._artifact.manifest_sha256, self._rows, *self._weights_before(block)),
        )

    def _weights_before(self, block: int) -> Iterator[str]:
        """What tells the weights of the blocks before from all others."""
        for spec in self._artifact.manifest.blocks[:block]:
            path = self._files.path(spec)
            if not path.exists():
                yield spec.name
                continue
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
            yield digest.hexdigest()

    def _check_room(self, file: FeatureFile) -> None:
        there = file.path.stat().st_size if file.path.exists() else 0
        free = shutil.disk_usage(self._folder).free
        if free - _KEPT_FREE < file.nbytes - there:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free, {file.nbytes - there:,} are needed")


def _remove(file: FeatureFile) -> None:
    """Remove a file of features if it can be: one that stays is of no use, and does no harm."""
    with suppress(OSError):
        file.remove()
