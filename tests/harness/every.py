"""A property of many texts as one test, which lists all texts that violate it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping


def every(
    argument: str, cases: Mapping[str, object] | Iterable[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call the test with each case as `argument`. Raises all failures in one ExceptionGroup.

    `cases` maps names to values, or contains texts, which are their own names.
    """
    named = cases if isinstance(cases, Mapping) else {case: case for case in cases}

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def called(**fixtures: object) -> None:
            failed = []
            for name, case in named.items():
                try:
                    test(**fixtures, **{argument: case})
                except Exception as error:
                    error.add_note(f"{argument}: {name[:200]!r}")
                    failed.append(error)
            if failed:
                raise ExceptionGroup(f"{len(failed)} of {len(named)}", failed)

        # With the argument in the signature, pytest would look for a fixture.
        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name != argument]
        called.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return called

    return decorated
