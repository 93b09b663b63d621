"""The search: Algorithm 1, for any space and any method.

The package has the name of its one function, and is called like it: `dasvit.search(config, out)` is
`dasvit.search.loop.search`. So the name means the same whether or not a module of the package has
been imported, which binds `dasvit.search` to the package.
"""

import sys
from types import ModuleType
from typing import Any


class _Search(ModuleType):
    """This package, which can be called: see "Customizing module attribute access" in the Python
    reference."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from dasvit.search.loop import search

        return search(*args, **options)


sys.modules[__name__].__class__ = _Search
