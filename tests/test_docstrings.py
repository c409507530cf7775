"""Every exported class shows how it is used; the doctests run what it shows."""

import importlib
import inspect
import pkgutil

import llmdpd_torchrl


def public_classes():
    for module in pkgutil.walk_packages(llmdpd_torchrl.__path__, "llmdpd_torchrl."):
        if not module.name.endswith("__main__"):
            names = vars(importlib.import_module(module.name))
            for name in names.get("__all__", ()):
                if inspect.isclass(names[name]) and not issubclass(names[name], Exception):
                    yield names[name]


def test_every_public_class_has_an_example():
    classes = set(public_classes())
    assert len(classes) > 50
    assert [cls.__qualname__ for cls in classes if ">>>" not in (cls.__doc__ or "")] == []
