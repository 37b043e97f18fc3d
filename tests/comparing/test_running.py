"""What goes wrong in one cell is that cell's finding; the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from homolog.comparing.cells import Cell
from homolog.comparing.plan import Arm
from homolog.comparing.running import Runner
from homolog.errors import JobError
from homolog.events import drain


class Ended:
    """Cells whose runs have all ended."""

    def __init__(self, count: int) -> None:
        parts: Any = SimpleNamespace(fold=0)
        self.all = tuple(
            Cell(Arm("scratch"), 1, seed, parts, ("a",)) for seed in range(count)
        )

    def works(self, cell: Cell) -> Iterator[Any]:
        return iter(())

    def stages(self, cell: Cell) -> list[str]:
        return []


def test_scores_that_cannot_be_read_leave_the_other_cells_alone() -> None:
    read = []

    def done(cell: Cell) -> None:
        if cell.seed == 1:
            raise JobError("its scores are damaged.")
        read.append(cell.seed)

    cells: Any = Ended(3)
    runner = Runner(cells, 1, done)
    assert drain(runner.work()) is False
    assert read == [0, 2]
    (trouble,) = runner.troubles
    assert "seed 1" in str(trouble)
    assert "damaged" in str(trouble)
