"""A property that holds for many texts, as one test that tells of all texts that break it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping


def every(
    argument: str, cases: Mapping[str, object] | Iterable[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call the test with each case as `argument`. All that fail come in one ExceptionGroup.

    `cases` are values by their names, or texts that are their own names.
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

        # Else pytest would take the argument for a fixture.
        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name != argument]
        called.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return called

    return decorated
