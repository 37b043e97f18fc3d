"""The folder is the registry: a package of modules as a name -> class table."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import warnings
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Modules of one package, each holding one subclass of a base class.

    The module's name is the key; ``base`` and names that begin with ``_`` are skipped.
    An entry of several files is a sub-package whose module of the registry's kind
    holds the class (``tasks/segment/task.py``). Listing names imports nothing; a
    module is imported when its class is needed. Other distributions add classes
    through the hooks at the end of this file.

    Args:
        package: Dotted name of the package.
        base: Dotted ``module:Class`` of the base class, resolved when first needed.
        kind: The word for one entry in messages, e.g. ``"method"``.
    """

    def __init__(self, package: str, base: str, kind: str) -> None:
        self.package = package
        self.kind = kind
        self._base = base
        self._extra: dict[str, type[T]] = {}
        self._asked_extensions = False

    def names(self) -> list[str]:
        """All keys, sorted; no module of the package is imported."""
        self._ask_extensions()
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{self.package} is not a package.")
        found = pkgutil.iter_modules(spec.submodule_search_locations)
        return sorted({m.name for m in found if _is_entry(m.name)} | set(self._extra))

    def add(self, name: str, cls: type[T]) -> None:
        """Add a class of another distribution; built-in names cannot be replaced."""
        if name in self.names() and self._extra.get(name) is not cls:
            raise ValueError(f"the {self.kind} {name!r} exists already.")
        self._extra[name] = cls

    def name_of(self, cls: type[T]) -> str:
        """The key of a class.

        Raises:
            ValueError: It is none of this registry's.
        """
        for name, own in self._extra.items():
            if own is cls:
                return name
        module = cls.__module__.removesuffix(f".{self.kind}")
        package, _, name = module.rpartition(".")
        if package != self.package or name not in self.names():
            raise ValueError(f"{cls.__name__} is no {self.kind} known by name.")
        return name

    def _ask_extensions(self) -> None:
        if not self._asked_extensions:
            self._asked_extensions = True
            load(self)

    def get(self, name: str) -> type[T]:
        """The class behind a key.

        Raises:
            ValueError: Unknown name; the message lists the known ones.
            TypeError: The module does not define exactly one subclass.
        """
        known = self.names()
        if name in self._extra:
            return self._extra[name]
        if name not in known:
            raise ValueError(
                f"unknown {self.kind} {name!r}; known: {', '.join(known)}."
            )
        module = importlib.import_module(f"{self.package}.{name}")
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{self.package}.{name}.{self.kind}")
        base_module, _, base_name = self._base.partition(":")
        base: type[T] = getattr(importlib.import_module(base_module), base_name)
        own = [
            c
            for _, c in inspect.getmembers(module, inspect.isclass)
            if issubclass(c, base)
            and c is not base
            and c.__module__ == module.__name__
            and not c.__name__.startswith("_")
        ]
        if len(own) != 1:
            raise TypeError(
                f"{module.__name__} must define exactly one {base.__name__}, "
                f"found {len(own)}: {', '.join(c.__name__ for c in own) or 'none'}."
            )
        return own[0]


# Methods, backbones, decoders and tasks of other distributions, through
# napari-plugin-engine. Hook specifications of our own; toward napari itself we register
# by the npe2 manifest alone. A distribution takes part with an entry point in the group
# ``homolog.extension`` naming a module that implements some of the hooks:
#
#     from napari_plugin_engine import HookImplementationMarker
#
#     extends = HookImplementationMarker("homolog")
#
#     @extends
#     def homolog_methods():
#         return {"jigsaw": "my_package.jigsaw:Jigsaw"}
GROUP = "homolog.extension"


def _is_entry(name: str) -> bool:
    return name != "base" and not name.startswith("_")


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
            """Pretraining methods: subclasses of homolog.methods.base.Method."""

        def homolog_backbones(self) -> None:
            """Encoders: subclasses of homolog.backbones.base.Backbone."""

        def homolog_decoders(self) -> None:
            """Decoders of their maps: subclasses of homolog.nn.decoders.Decoder."""

        def homolog_tasks(self) -> None:
            """Tasks: subclasses of homolog.tasks.base.Task."""

    for kind in ("methods", "backbones", "decoders", "tasks"):
        specifies(getattr(_Hooks, f"homolog_{kind}"))
    manager = PluginManager("homolog", discover_entry_point=GROUP)
    manager.add_hookspecs(_Hooks)
    _, errors = manager.discover(entry_point=GROUP)
    for error in errors:
        warnings.warn(f"an extension could not be loaded: {error}", stacklevel=3)
    return manager
