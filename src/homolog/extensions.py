"""Methods, backbones and tasks of other distributions, through napari-plugin-engine.

Hook specifications of our own; toward napari itself we register by the npe2 manifest
alone. A distribution takes part with an entry point in the group ``homolog.extension``
naming a module that implements some of the hooks::

    from napari_plugin_engine import HookImplementationMarker

    extends = HookImplementationMarker("homolog")

    @extends
    def homolog_methods():
        return {"jigsaw": "my_package.jigsaw:Jigsaw"}
"""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import entry_points
from typing import Any

from homolog.registry import Registry

GROUP = "homolog.extension"


def load(registry: Registry[Any]) -> list[str]:
    """Add what other distributions offer for a registry; returns the names added.

    An extension that fails to load is reported by a warning that names it; the others
    and the built-in entries stay usable.
    """
    if not entry_points(group=GROUP):
        return []
    kind = registry.package.rpartition(".")[2]
    manager = _manager()
    hook = getattr(manager.hook, f"homolog_{kind}")
    added: list[str] = []
    for implementation in hook.get_hookimpls():
        try:
            for name, target in implementation().items():
                module, _, attribute = target.partition(":")
                registry.add(name, getattr(importlib.import_module(module), attribute))
                added.append(name)
        except Exception as error:  # noqa: BLE001 - foreign code, named and reported
            warnings.warn(
                f"the {kind} of extension {implementation.plugin_name!r} could not be "
                f"loaded: {error}",
                stacklevel=2,
            )
    return added


def _manager() -> Any:
    """A plugin manager that knows our hooks and has discovered who implements them."""
    from napari_plugin_engine import HookSpecificationMarker, PluginManager

    specifies = HookSpecificationMarker("homolog")

    class _Hooks:
        """Each returns name -> ``"module:Class"``; called once, at first use."""

        def homolog_methods(self) -> None:
            """Pretraining methods: subclasses of homolog.methods._base.Method."""

        def homolog_backbones(self) -> None:
            """Encoders: subclasses of homolog.backbones._base.Backbone."""

        def homolog_tasks(self) -> None:
            """Tasks: subclasses of homolog.tasks._base.Task."""

    for name in ("homolog_methods", "homolog_backbones", "homolog_tasks"):
        specifies(getattr(_Hooks, name))
    manager = PluginManager("homolog", discover_entry_point=GROUP)
    manager.add_hookspecs(_Hooks)
    _, errors = manager.discover(entry_point=GROUP)
    for error in errors:
        warnings.warn(f"an extension could not be loaded: {error}", stacklevel=3)
    return manager
