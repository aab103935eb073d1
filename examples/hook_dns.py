"""Give each container with a forwarded port a name in the DNS, with the address of this host:

    ipv6natctl monitor --json=short | python3 hook_dns.py ZONE 2001:db8::1 -k ddns.key

The words after the address are options of nsupdate. After each change the script reads all
mappings, so it also corrects what it has missed. It removes only names that it has added itself.
"""

import json
import re
import subprocess
import sys

EVENTS = ("now", "started", "added", "removed", "more")
LABEL = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A name in the DNS. Other names of containers get none."""
TTL = 60


def wanted_names() -> set[str]:
    """The containers with a forwarded port. Raises CalledProcessError."""
    command = ("ipv6natctl", "mappings", "--json=short")
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {row["ContainerName"] for row in rows if LABEL.fullmatch(row["ContainerName"])}


def update(zone: str, address: str, options: list[str], old: set[str], new: set[str]) -> None:
    """Send the differences to the server of the zone. Raises CalledProcessError."""
    lines = [f"update delete {name}.{zone} AAAA" for name in sorted(old - new)]
    lines += [f"update add {name}.{zone} {TTL} AAAA {address}" for name in sorted(new - old)]
    text = "\n".join([f"zone {zone}", *lines, "send", ""])
    subprocess.run(["nsupdate", *options], check=True, input=text.encode())


def main() -> None:
    """Follow the events on the standard input until it ends."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    zone, address, *options = sys.argv[1:]
    names: set[str] = set()
    for line in sys.stdin:
        if json.loads(line)["Event"] not in EVENTS:
            continue
        try:
            if (new := wanted_names()) != names:
                update(zone, address, options, names, new)
                names = new
        except (OSError, subprocess.CalledProcessError) as error:
            # The next change tries again.
            print(f"the names are not up to date: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
