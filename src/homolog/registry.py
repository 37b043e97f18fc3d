"""The folder is the registry: a package of modules as a name -> class table."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Modules of one package, each holding one subclass of a base class.

    The module's name is the key. Modules whose name starts with ``_`` are skipped.
    Listing names imports nothing; a module is imported when its class is asked for.
    Other distributions add classes through homolog.extensions.

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
        return sorted(
            {m.name for m in found if not m.name.startswith("_")} | set(self._extra)
        )

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
        package, _, name = cls.__module__.rpartition(".")
        if package != self.package or name not in self.names():
            raise ValueError(f"{cls.__name__} is no {self.kind} known by name.")
        return name

    def _ask_extensions(self) -> None:
        if not self._asked_extensions:
            self._asked_extensions = True
            from homolog import extensions

            extensions.load(self)

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
