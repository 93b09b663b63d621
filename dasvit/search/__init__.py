"""The search: Algorithm 1, for any space and any method.

The package can be called: `dasvit.search(config, out)` is `dasvit.search.loop.search(config, out)`.
Python gives the name `dasvit.search` to the package as soon as one of its modules is imported, so
the function cannot have it.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _function() -> Callable[..., Any]:
    from dasvit.search.loop import search

    return search


class _Search(ModuleType):
    # A package that is called like its function, with its signature and its help.

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _function()(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function())

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{_DOC}\nsearch{self.__signature__}\n    {_function().__doc__}"


_DOC = __doc__
sys.modules[__name__].__class__ = _Search
