"""Check a built wheel: every module, one manifest like the top-level one, resources."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def main(wheel: Path) -> None:
    """Raise SystemExit with one sentence when the wheel is not as it should be."""
    top = Path(__file__).parents[1]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        manifests = [n for n in names if n.endswith("napari.yaml")]
        if manifests != ["homolog/napari.yaml"]:
            sys.exit(
                f"expected homolog/napari.yaml once in {wheel.name}, got {manifests}."
            )
        if archive.read(manifests[0]) != (top / "napari.yaml").read_bytes():
            sys.exit(f"the manifest in {wheel.name} differs from napari.yaml.")
        shipped = {n.removeprefix("homolog/resources/") for n in names}
        missing = [
            p.relative_to(top / "resources").as_posix()
            for p in (top / "resources").rglob("*")
            if p.is_file()
            and p.suffix != ".pyc"
            and p.relative_to(top / "resources").as_posix() not in shipped
        ]
        if missing:
            sys.exit(f"{wheel.name} lacks the resources {missing}.")
        source = top / "src"
        modules = {p.relative_to(source).as_posix() for p in source.rglob("*.py")}
        if left_out := sorted(modules - set(names)):
            sys.exit(f"{wheel.name} lacks the modules {left_out}.")
    print(f"{wheel.name}: {len(names)} files, manifest and resources in place")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
