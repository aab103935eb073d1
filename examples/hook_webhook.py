"""Send each change of a forwarded port to a web server, as JSON:

    ipv6natctl monitor --json=short | python3 hook_webhook.py https://example.org/changes

A change that the server does not accept is written to the error output, and not sent again.
"""

import json
import sys
import urllib.error
import urllib.request

EVENTS = ("added", "removed", "more")
TIMEOUT = 10  # seconds


def send(url: str, line: str) -> None:
    """Send one event. Raises OSError."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, line.encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT):
        pass


def main() -> None:
    """Send the events on the standard input until it ends."""
    if len(sys.argv) != 2 or not sys.argv[1].startswith(("http://", "https://")):
        sys.exit(__doc__)
    for line in sys.stdin:
        if json.loads(line)["Event"] in EVENTS:
            try:
                send(sys.argv[1], line.strip())
            except OSError as error:
                print(f"not delivered: {error}: {line.strip()}", file=sys.stderr)


if __name__ == "__main__":
    main()
