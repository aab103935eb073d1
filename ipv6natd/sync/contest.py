"""Who comes first in FORWARD, where another program wants that too.

Pure; the clock is passed in.
"""

from __future__ import annotations

from collections import deque

LIMIT = 5
WITHIN = 60.0
"""Seconds. Two programs that both insist would otherwise write for ever."""


class Contest:
    """Counts how often our order was changed back, and says when to leave it."""

    def __init__(self) -> None:
        """Nobody else is there yet."""
        self._lost: deque[float] = deque(maxlen=LIMIT)
        self.given_up = False
        """Whether the order is left as others make it."""

    def lost(self, now: float) -> None:
        """The order was changed back, at `now` seconds."""
        self._lost.append(now)
        if len(self._lost) == LIMIT and now - self._lost[0] <= WITHIN:
            self.given_up = True

    def over(self) -> None:
        """Begin anew: the order is right by itself, or a person asked for it."""
        self._lost.clear()
        self.given_up = False


def reason(first: str) -> str:
    """Why the order is not ours, with the rule that stands first where it is known."""
    who = f"`{first}` stands first" if first else "`ip6tables -S FORWARD` shows who"
    return (
        f"another program keeps putting its rules before ours in FORWARD ({who}), and after "
        f"{LIMIT} times in a minute it was left at that; when it has stopped: ipv6natctl resync"
    )
