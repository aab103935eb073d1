"""The random steps: each with its action and the world afterwards.

A seeded generator chooses a step from the model alone, so a seed always gives the same steps.
Several commands to the engine are one step if the result between them is not certain.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from random import Random
from typing import Any

from tests.harness import exchange, until
from tests.harness.sandbox import HOST_TOO
from tests.stress.soak.ground import Ground
from tests.stress.soak.model import Box, Mode, Net, Protocol, Publish, World

BOXES, NETS = 9, 6
"""The maximum number of containers and networks, without the resident's."""
RESIDENT = "resident"
"""A permanent container on its own network, with clients."""

Do = Callable[[Ground], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; `kind` groups equal steps in the report."""

    text: str
    kind: str = ""
    after: World
    do: Do
    touched: frozenset[str] = frozenset()
    """Containers whose open flows may end, and whose new connections may fail meanwhile."""
    edits: bool = False
    """True if the step removes rules. New flows are not checked until the repair."""
    cuts: bool = False
    """True if every open flow may end."""
    keeps_policy: bool = True
    """True if the policy of FORWARD does not change meanwhile."""


Maker = Callable[[World, Random], Step | None]


def ups(world: World, *states: str) -> list[Box]:
    """The containers that steps may change, by state."""
    wanted = states or ("running",)
    return [b for b in world.boxes.values() if b.name != RESIDENT and b.state in wanted]


def pick(rng: Random, some: list[Any]) -> Any:
    return rng.choice(some) if some else None


# Containers


def taken(world: World) -> set[tuple[Protocol, int]]:
    """The host ports of running containers."""
    return {
        (each.protocol, port)
        for box in world.boxes.values()
        if box.up
        for each in box.publish
        for port, _ in each.pairs()
    }


def free_address(world: World, net: Net, rng: Random) -> IPv6Address:
    """An address that no container uses, outside the range of the engine's choices."""
    used = {box.ends.get(net.name) for box in world.boxes.values()}
    return rng.choice([net.subnet[n] for n in range(0x20, 0x2C) if net.subnet[n] not in used])


def either(rng: Random) -> Protocol:
    return "tcp" if rng.random() < 0.5 else "udp"


def published(world: World, net: Net, rng: Random) -> tuple[Publish, ...]:
    """The published ports of a new container, none used by a running container."""
    used, found = taken(world), []
    opening = net.opens
    asked: list[tuple[Protocol, int, str]] = [
        ("tcp", 80, rng.choice(["any"] * 4 + ["chosen", "one", "four", "none"])),
        ("udp", 53, rng.choice(["any"] * 4 + ["chosen", "one", "none"])),
        (either(rng), 7000, rng.choice(["none"] * 3 + ["same", "shifted"])),
    ]
    for protocol, inside, kind in asked:
        pool = range(9000, 9012) if inside != 7000 else (9100, 9110, 9120, 7000)
        port = pick(rng, [p for p in pool if not any((protocol, p + n) in used for n in range(3))])
        if port is None or kind == "none":
            continue
        made = Publish(protocol=protocol, inside=inside, port=port)
        match kind:
            case "chosen":
                made = replace(made, port=None)
            case "one" if net.binding is None and not opening:
                made = replace(made, host=str(HOST_TOO))
            case "four" if not opening:
                made = replace(made, host="127.0.0.1")
            case "same":
                made = replace(made, port=7000, count=3)
                if any((protocol, 7000 + n) in used for n in range(3)):
                    continue
            case "shifted":
                made = replace(made, count=3)
        found.append(made)
    return tuple(found)


def born(world: World, rng: Random) -> Box | None:
    net = pick(rng, [n for n in world.nets.values() if n.name != RESIDENT])
    if net is None or len(world.boxes) > BOXES:
        return None
    name = rng.choice([f"box{n}" for n in range(BOXES * 3) if f"box{n}" not in world.boxes])
    fixed = rng.random() < 0.6
    return Box(
        name=name,
        ends={net.name: free_address(world, net, rng) if fixed else None},
        fixed=frozenset([net.name] if fixed else []),
        publish=published(world, net, rng),
        always=rng.random() < 0.5,
    )


def new_box(world: World, rng: Random) -> Step | None:
    box = born(world, rng)
    if box is None:
        return None
    words = " ".join(each.words() for each in box.publish) or "nothing"
    return Step(
        kind="run",
        text=f"run {box.name} on {next(iter(box.ends))}, publishing {words}",
        after=world.having(box),
        do=lambda ground: ground.run(box),
        touched=frozenset({box.name}),
    )


def remove_box(world: World, rng: Random) -> Step | None:
    box = pick(rng, ups(world, "running", "stopped"))
    if box is None:
        return None
    return Step(
        kind="remove",
        text=f"remove {box.name}",
        after=world.without(box.name),
        do=lambda ground: ground.engine.rm(box.name),
        touched=frozenset({box.name}),
    )


def order(verb: str, *words: str, states: tuple[str, ...], becomes: Callable[[Box], Box]) -> Maker:
    """A step with one command to the engine about one container."""

    def made(world: World, rng: Random) -> Step | None:
        box = pick(rng, [b for b in ups(world, *states) if may(world, verb, b)])
        if box is None:
            return None
        return Step(
            kind=verb,
            text=f"{verb} {box.name}",
            after=world.having(becomes(box)),
            do=lambda ground: ground.engine.docker(verb, *words, box.name),
            # The server is not a process of the container, and continues during a pause.
            touched=frozenset({box.name} if "pause" not in verb else ()),
        )

    return made


def may(world: World, verb: str, box: Box) -> bool:
    """True if the command succeeds and its result lasts.

    Another container may use the ports and addresses by now. A container that always restarts would
    come back with the engine and conflict with the later user of its ports.
    """
    if verb != "start":
        return not (box.always and verb in ("stop", "kill"))
    used = taken(world)
    ports = {(p.protocol, port) for p in box.publish for port, _ in p.pairs()}
    there = {(name, at) for b in world.boxes.values() if b.up for name, at in b.ends.items() if at}
    return not ports & used and not set(box.ends.items()) & there


def rename(world: World, rng: Random) -> Step | None:
    box = pick(rng, ups(world))
    if box is None:
        return None
    name = rng.choice([f"r{n}" for n in range(9) if f"r{n}" not in world.boxes])
    return Step(
        kind="rename",
        text=f"rename {box.name} to {name}",
        after=world.without(box.name).having(replace(box, name=name)),
        do=lambda ground: ground.rename(box.name, name),
        touched=frozenset({box.name, name}),
    )


def burst(world: World, rng: Random) -> Step | None:
    """Restart some containers and create others at once."""
    old = rng.sample(ups(world), k=min(2, len(ups(world))))
    after, new = world.having(*(box.started() for box in old)), []
    for _ in range(2):
        box = born(after, rng)
        if box is not None:
            new.append(box)
            after = after.having(box)
    if len(old) + len(new) < 2:
        return None

    def do(ground: Ground) -> None:
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(ground.engine.docker, "restart", "--time=0", each.name) for each in old
            ]
            jobs += [pool.submit(ground.run, each) for each in new]  # type: ignore[arg-type]
        for job in jobs:
            job.result()

    names = [each.name for each in (*old, *new)]
    return Step(
        kind="several at once",
        text=f"at once: restart {[b.name for b in old]}, run {[b.name for b in new]}",
        after=after,
        do=do,
        touched=frozenset(names),
    )


# Networks


def new_net(world: World, rng: Random) -> Step | None:
    used = {net.subnet for net in world.nets.values()}
    slots = [n for n in range(1, 10) if IPv6Network(f"fd00:50:{n}::/64") not in used]
    if len(world.nets) > NETS or not slots:
        return None
    slot = rng.choice(slots)
    # The names decide which of two networks is the gateway network. See Engine.run for "net".
    name = f"{rng.choice('abcdefgh')}net{slot}"
    net = Net(name=name, subnet=IPv6Network(f"fd00:50:{slot}::/64"))
    match rng.choice(["nat"] * 5 + ["icc", "open", "source", "binding", "internal", "routed"]):
        case "icc":
            net = replace(net, icc=False)
        case "open":
            unprotected, trusted = {"mode": Mode.UNPROTECTED}, {"trusted": True}
            net = replace(net, **rng.choice([unprotected, trusted]))  # type: ignore[arg-type]
        case "source":
            how: dict[str, Any] = rng.choice([{"source": HOST_TOO}, {"masquerade": False}])
            net = replace(net, **how)
        case "binding":
            net = replace(net, binding=HOST_TOO)
        case "internal":
            mode = rng.choice([Mode.NAT, Mode.ISOLATED])
            net = replace(net, internal=True, mode=mode, icc=rng.random() < 0.7)
        case "routed":
            net = replace(net, mode=Mode.ROUTED)
    return Step(
        kind="create a network",
        text=f"create {net.name} ({kind(net)})",
        after=world.holding(net),
        do=lambda ground: ground.create(net),
    )


def kind(net: Net) -> str:
    words = [net.mode.value]
    words += ["internal"] if net.internal else []
    words += ["icc off"] if not net.icc else []
    words += ["no masquerade"] if not net.masquerade else []
    words += ["trusted ext0"] if net.trusted else []
    words += [f"source {net.source}"] if net.source else []
    words += [f"binding {net.binding}"] if net.binding else []
    return ", ".join(words)


def remove_net(world: World, rng: Random) -> Step | None:
    used = {name for box in world.boxes.values() for name in box.ends}
    net = pick(rng, [n for n in world.nets.values() if n.name not in used])
    if net is None:
        return None
    return Step(
        kind="remove a network",
        text=f"remove network {net.name}",
        after=world.without_net(net.name),
        do=lambda ground: ground.engine.docker("network", "rm", net.name),
    )


def connect(world: World, rng: Random) -> Step | None:
    box = pick(rng, ups(world))
    if box is None:
        return None
    nets = [n for n in world.nets.values() if n.name not in (*box.ends, RESIDENT)]
    # For networks that open more, the model has no answer for bindings to one address.
    plain = all(each.host is None for each in box.publish)
    net = pick(rng, [n for n in nets if plain or not (n.opens or n.binding)])
    if net is None or len(box.ends) > 2:
        return None
    fixed = rng.random() < 0.5
    address = free_address(world, net, rng) if fixed else None
    ends = {**box.ends, net.name: address}
    return Step(
        kind="connect",
        text=f"connect {box.name} to {net.name}",
        after=world.having(
            replace(box, ends=ends, fixed=box.fixed | {net.name} if fixed else box.fixed)
        ),
        do=lambda ground: ground.connect(box.name, net.name, address),
        touched=frozenset({box.name}),
    )


def disconnect(world: World, rng: Random) -> Step | None:
    box = pick(rng, [b for b in ups(world) if len(b.ends) > 1])
    if box is None:
        return None
    name = rng.choice(sorted(box.ends))
    ends = {key: at for key, at in box.ends.items() if key != name}
    return Step(
        kind="disconnect",
        text=f"disconnect {box.name} from {name}",
        after=world.having(replace(box, ends=ends, fixed=box.fixed - {name})),
        do=lambda ground: ground.engine.docker("network", "disconnect", name, box.name),
        touched=frozenset({box.name}),
    )


# The host, and other programs that write rules


def late(world: World, rng: Random) -> Step:  # noqa: ARG001
    return Step(
        kind="address of the host",
        text="the host loses an address" if world.late else "the host gets an address",
        after=replace(world, late=not world.late),
        do=lambda ground: ground.late(not world.late),
    )


def policy(world: World, rng: Random) -> Step:  # noqa: ARG001
    word = "ACCEPT" if world.drop else "DROP"
    return Step(
        kind="policy of FORWARD",
        text=f"ip6tables -P FORWARD {word}",
        after=replace(world, drop=not world.drop),
        do=lambda ground: ground.ip6tables("-P", "FORWARD", word),
    )


def repaired(ground: Ground, before: str, what: str, form: Callable[[str], str] = str) -> None:
    """Wait until the rules are as before, byte for byte."""
    after = until(lambda: form(ground.sandbox.rules()), form(before), timeout=30)
    if after != form(before):
        ground.wrong.append(f"{what}: the rules were not restored:\n{after}")


def by_chain(rules: str) -> str:
    """The rules, sorted by table and chain. The kernel lists them in the order of creation."""
    tables = (each.splitlines() for each in rules.split("*")[1:])
    return "\n".join(
        line
        for name, *lines in sorted(tables)
        for line in (name, *sorted(lines, key=lambda line: line.split()[:2]))
    )


def edited(text: str, edit: Do, *, cuts: bool = False) -> Maker:
    """A step that removes rules and waits for their repair."""

    def made(world: World, rng: Random) -> Step:  # noqa: ARG001
        def do(ground: Ground) -> None:
            before = ground.settled_rules()
            edit(ground)
            repaired(ground, before, text)

        return Step(text=text, after=world, do=do, edits=True, cuts=cuts)

    return made


def flush_all(ground: Ground) -> None:
    """Flush both tables. Without rules that need conntrack the kernel translates no packet of an
    open flow, and the host itself answers with a reset."""
    ground.ip6tables("-F")
    ground.ip6tables("-t", "nat", "-F")


def flush_ruleset(world: World, rng: Random) -> Step:  # noqa: ARG001
    def do(ground: Ground) -> None:
        """Flush nf_tables, and restart the engine, which writes its IPv4 rules again."""
        before = ground.settled_rules().replace(":FORWARD DROP", ":FORWARD ACCEPT")
        ground.sandbox.host.run("nft", "flush", "ruleset")
        until(lambda: "IPV6NAT-FORWARD" in ground.sandbox.rules(), True, timeout=30)
        restart(ground, signal.SIGTERM)
        repaired(ground, before, "nft flush ruleset", by_chain)

    return Step(
        text="nft flush ruleset, and the engine restarts",
        after=replace(world, drop=False),
        do=do,
        edits=True,
        cuts=True,
        keeps_policy=False,
    )


# The engine, the daemon, the bus


def restart(ground: Ground, number: signal.Signals) -> None:
    if number == signal.SIGKILL:
        ground.engine.kill()
    else:
        ground.engine.stop()
    ground.daemon.wait_state("waiting-for-docker", timeout=30)
    ground.engine.start()
    # With a trusted or routed network the host may have findings.
    ground.daemon.wait_state("synced", "degraded", timeout=30)


def engine(text: str, number: signal.Signals) -> Maker:
    def made(world: World, rng: Random) -> Step:  # noqa: ARG001
        return Step(text=text, after=world, do=lambda ground: restart(ground, number))

    return made


def engine_cold(world: World, rng: Random) -> Step | None:
    """Restart the engine without live-restore: some containers restart with the engine."""
    if any(box.state == "paused" for box in world.boxes.values()):
        return None
    back = [box.started() if box.always and box.up else box for box in world.boxes.values()]
    after = world.having(*(b if b.always and b.up else b.stopped() for b in back))
    number = rng.choice((signal.SIGTERM, signal.SIGKILL))

    def do(ground: Ground) -> None:
        flags = ground.engine.args
        ground.engine.args = tuple(each for each in flags if each != "--live-restore")
        restart(ground, number)
        # Wait: an engine that is stopped while it starts containers leaves some of them running,
        # with their addresses, and starts others with the same addresses. So does an engine that is
        # killed without live-restore and started with it.
        ground.learn(after)
        ground.engine.args = flags
        restart(ground, signal.SIGTERM)

    return Step(
        kind="the engine restarts without live-restore",
        text=f"the engine restarts without live-restore, after {number.name}",
        after=after,
        do=do,
        touched=frozenset(world.boxes),
    )


def exchanged(world: World, rng: Random) -> Step:
    seed = rng.randrange(1 << 30)
    return Step(
        text="containers exchange their addresses",
        after=world,
        do=lambda ground: exchange.shuffle(ground.engine, Random(seed)),
    )


def daemon_restart(kill: bool) -> Maker:
    text = "ipv6natd is killed and started" if kill else "ipv6natd is restarted"

    def made(world: World, rng: Random) -> Step:  # noqa: ARG001
        def do(ground: Ground) -> None:
            before = ground.settled_rules()
            end(ground, kill)
            ground.daemon.start()
            ground.same_rules(text, before)

        return Step(text=text, after=world, do=do)

    return made


def end(ground: Ground, kill: bool) -> None:
    if kill:
        ground.daemon.kill9()
    elif (code := ground.daemon.stop()) != 0:
        ground.wrong.append(f"ipv6natd ended with {code}")


def meanwhile(world: World, rng: Random, text: str, before: Do, afterwards: Do) -> Step | None:
    """A step about a container while ipv6natd does not run."""
    makers: list[Maker] = [new_box, remove_box, RESTART, STOP]
    steps = [s for s in (make(world, rng) for make in makers) if s is not None]
    if not steps:
        return None
    step = rng.choice(steps)

    def do(ground: Ground) -> None:
        before(ground)
        try:
            step.do(ground)
        finally:
            afterwards(ground)

    return replace(step, kind=text, text=f"{text}: {step.text}", do=do)


def daemon_away(world: World, rng: Random) -> Step | None:
    kill = rng.random() < 0.5
    text = "while ipv6natd is " + ("dead" if kill else "stopped")
    return meanwhile(
        world, rng, text, lambda ground: end(ground, kill), lambda ground: ground.daemon.start()
    )


def daemon_hung(world: World, rng: Random) -> Step | None:
    return meanwhile(
        world,
        rng,
        "while ipv6natd hangs",
        lambda ground: ground.daemon.signal(signal.SIGSTOP),
        lambda ground: ground.daemon.signal(signal.SIGCONT),
    )


def simple(text: str, do: Do) -> Maker:
    def made(world: World, rng: Random) -> Step:  # noqa: ARG001
        return Step(text=text, after=world, do=do)

    return made


def bus_restart(ground: Ground) -> None:
    ground.bus.stop()
    ground.bus.start()


def started(box: Box) -> Box:
    return box.started()


START = order("start", states=("stopped",), becomes=started)
STOP = order("stop", "--time=0", states=("running",), becomes=Box.stopped)
RESTART = order("restart", "--time=0", states=("running",), becomes=started)
KILL = order("kill", states=("running",), becomes=Box.stopped)
PAUSE = order("pause", states=("running",), becomes=lambda box: replace(box, state="paused"))
UNPAUSE = order("unpause", states=("paused",), becomes=lambda box: replace(box, state="running"))

JUMP = ("FORWARD", "-m", "comment", "--comment", "ipv6natd", "-j", "IPV6NAT-FORWARD")
POST = ("POSTROUTING", "-m", "comment", "--comment", "ipv6natd", "-j", "IPV6NAT-POST")

OFTEN: list[tuple[int, Maker]] = [
    (14, new_box),
    (6, remove_box),
    (6, STOP),
    (9, START),
    (5, RESTART),
    (3, KILL),
    (3, PAUSE),
    (5, UNPAUSE),
    (2, rename),
    (8, new_net),
    (4, remove_net),
    (7, connect),
    (5, disconnect),
    (4, burst),
    (3, late),
    (2, policy),
    (3, edited("ip6tables -F in filter and nat", flush_all, cuts=True)),
    (2, edited("a rule of ours is deleted", lambda g: g.ip6tables("-D", "IPV6NAT-FORWARD", "1"))),
    (2, edited("our jump in FORWARD is deleted", lambda g: g.ip6tables("-D", *JUMP))),
    (2, edited("our jump in nat is deleted", lambda g: g.ip6tables("-t", "nat", "-D", *POST))),
    (2, engine("the engine restarts", signal.SIGTERM)),
    (2, engine("the engine is killed and started", signal.SIGKILL)),
    (2, engine_cold),
    (4, exchanged),
    (3, daemon_hung),
    (2, simple("ipv6natd reloads", lambda ground: ground.daemon.reload())),
    (2, simple("ipv6natctl resync", lambda ground: ground.daemon.ctl("resync"))),
    (2, simple("the bus restarts", bus_restart)),
]
NFT: list[tuple[int, Maker]] = [(2, flush_ruleset)]
"""Steps only for nf_tables."""
ENDING: list[tuple[int, Maker]] = [
    (5, daemon_restart(kill=False)),
    (5, daemon_restart(kill=True)),
    (5, daemon_away),
]
"""Steps that restart the daemon. Growth is measured without such steps."""


def chosen(world: World, rng: Random, *, nft: bool, ending: bool) -> Step:
    """The next random step."""
    table = OFTEN + (NFT if nft else []) + (ENDING if ending else [])
    step: Step | None = None
    while step is None:
        ((_, make),) = rng.choices(table, [weight for weight, _ in table])
        step = make(world, rng)
    return step if step.kind else replace(step, kind=step.text)


def first(rng: Random, proxy: bool) -> Iterator[Step]:
    """The first steps: the resident with its network, and two networks."""
    net = Net(name=RESIDENT, subnet=IPv6Network("fd00:50:ff::/64"))
    world = World(proxy=proxy).holding(net)
    yield Step(text="create the resident's network", after=world, do=lambda g: g.create(net))
    box = Box(
        name=RESIDENT,
        ends={net.name: net.subnet[2]},
        fixed=frozenset({net.name}),
        publish=(
            Publish(protocol="tcp", inside=80, port=8080),
            Publish(protocol="udp", inside=53, port=5353),
        ),
        always=True,
    )
    world = world.having(box)
    yield Step(text="run the resident", after=world, do=lambda g: g.run(box))
    for _ in range(2):
        step = new_net(world, rng)
        assert step is not None
        world = step.after
        yield step
