"""Another scan as B with a landmark of A in it: from the rows of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.data.landmarks import Landmark

if TYPE_CHECKING:
    from homolog.gui.landmarks.session import Session


class GoingToB:
    """Makes a scan scan B and goes to what was found there.

    Args:
        session: Whose scan B.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lent: Any | None = None

    def scan(
        self, key: str, mark: Landmark | None, found: Landmark | None = None
    ) -> None:
        """An open scan as B, with a landmark of A that is searched there if it is new.

        Args:
            key: Of the scan.
            mark: A landmark of this A, of any pair.
            found: What is known of it in that scan; None: search it.
        """
        session = self._session
        control = session.control
        if key not in control.book.scans or key == control.a:
            return
        session.choose_b(key)
        if mark is None:
            return
        table = control.table
        same = next((m for m in table if m.a_mm == mark.a_mm), None)
        if same is None:
            same = table.add(mark.a_mm, mark.name)
            if found is None:
                session.searching.search([same])
            else:
                table.found(same.id, found)
        session.open_view()
        if session.view is not None:  # a millimetre is as long in A as in B
            zoom = session.viewer.scene.camera.zoom
            session.view.model.scene.camera.zoom = zoom
        session.placing.choose(same.id)

    def file(
        self, path: Path, name: str, mark: Landmark | None, found: Landmark | None
    ) -> None:
        """As ``scan`` for one that may not be open yet.

        Of scans opened so, only the last one stays: a cohort may have hundreds.

        Args:
            path: Of the scan.
            name: Of its layer.
            mark: As in ``scan``.
            found: Likewise.
        """
        session = self._session

        def show(key: str) -> None:
            session.told.emit(f"{name} is scan B now.")
            self.scan(key, mark, found)

        for key, scan in session.control.book.scans.items():
            if scan.ref.path == path and key != session.control.a:
                show(key)
                return

        def take(layer: Any) -> None:
            before, self._lent = self._lent, layer
            session.take_b(layer, instead_of=before)
            show(str(layer.unique_id))

        session.open_b(path, name, take)
