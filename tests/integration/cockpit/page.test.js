"use strict";

const assert = require("node:assert");
const test = require("node:test");
const { setTimeout: pause } = require("node:timers/promises");
const { fakeCockpit, install } = require("./document.js");

const HOSTILE = "<img src=x onerror=alert(1)>\u202e\u0007\"'&";

function mapping(number, changes = {}) {
    return {
        Id: `m${number}`, ContainerId: `c${number}`, ContainerName: `web${number}`, Network: "front",
        NetworkId: "n1", Bridge: "br-1", Protocol: "tcp", HostAddress: "::", HostPort: 8000 + number,
        HostPortEnd: 8000 + number, ContainerAddress: "fd00:a::2", ContainerPort: 80,
        ContainerPortEnd: 80, State: "active", Since: 1, ...changes,
    };
}

const NETWORK = { Id: "n1", Name: "front", Bridge: "br-1", Mode: "nat", ManagedBy: "ipv6natd",
                  Subnets: ["fd00:a::/64"], Warnings: [] };
const FINDING = { About: "forwarding", Severity: "error", Text: "it is off; now",
                  Command: "sysctl -w a=1", Network: "" };

/* Rows as cockpit.js gives them: each value with its type. */
const typed = (row) => Object.fromEntries(Object.entries(row).map(([key, v]) => [key, { t: "s", v }]));

function daemon(state = {}) {
    const now = {
        properties: { State: "synced", StateReason: "", Version: "1", EngineVersion: "28", Backend: "nft",
                      DockerConnected: true, MappingCount: 1, NetworkCount: 1, Generation: 1 },
        Mappings: [mapping(0)], Networks: [NETWORK], Skipped: [], Findings: [], calls: [], error: null,
        Explain: [], ...state,
    };
    now.answer = async (member, args) => {
        now.calls.push(member);
        if (now.error)
            throw now.error;
        if (member === "GetAll")
            return [typed(now.properties)];
        if (member === "ipv6natctl") {
            assert.deepEqual(args.slice(0, 4), ["ipv6natctl", "explain", "--json=short", "--"]);
            return now.Explain;
        }
        if (member === "Resync")
            return [typed({ RulesAdded: 3, RulesRemoved: 1 })];
        return [now[member.replace("List", "")].map(typed)];
    };
    return now;
}

async function opened(state) {
    const now = daemon(state);
    const fake = fakeCockpit((member, args) => now.answer(member, args));
    const places = install(fake);
    delete require.cache[require.resolve("../../../cockpit/ipv6natd.js")];
    const code = require("../../../cockpit/ipv6natd.js");
    const page = code.start();
    await pause(300);
    return { now, fake, places, code, page, client: fake.clients[0] };
}

test("the page shows state, findings, mappings and networks", async () => {
    const { places } = await opened({ Findings: [FINDING] });
    assert.match(places.state.textContent, /^synced/);
    assert.match(places.facts.textContent, /Docker 28 · nft · 1 mapping/);
    assert.match(places.mappings.textContent, /\[::\]:8000.*web0.*\[fd00:a::2\]:80/);
    assert.match(places.networks.textContent, /front.*fd00:a::\/64/);
    assert.match(places.findings.textContent, /error forwarding: it is off; now.*sysctl -w a=1/);
    assert.equal(places.problem.hidden, true);
});

test("names become text, never elements, and show what cannot be seen", async () => {
    const { places } = await opened({
        Mappings: [mapping(0, { ContainerName: HOSTILE, Network: HOSTILE })],
        Networks: [{ ...NETWORK, Name: HOSTILE, Warnings: [HOSTILE] }],
        Skipped: [{ ContainerName: HOSTILE, Network: HOSTILE, Port: HOSTILE, Reason: HOSTILE }],
        Findings: [{ ...FINDING, Text: HOSTILE, Command: HOSTILE, Network: HOSTILE }],
    });
    for (const place of Object.values(places)) {
        assert.deepEqual(place.all("img"), []);
        assert.ok(!place.textContent.includes("\u202e"));
        assert.ok(!place.textContent.includes("\u0007"));
    }
    assert.match(places.mappings.textContent, /<img src=x onerror=alert\(1\)>\\u202e\\x07/);
    const source = require("node:fs").readFileSync(require.resolve("../../../cockpit/ipv6natd.js"), "utf8");
    for (const unsafe of ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("])
        assert.ok(!source.includes(unsafe), unsafe);
});

test("a copied command is announced, and one that could not be copied is not", async () => {
    const { code } = await opened();
    for (const works of [true, false]) {
        const item = code.findingItem(FINDING, async (text) => works && text === FINDING.Command);
        item.all("button")[0].fire("click");
        await pause(1);
        assert.equal(item.all("span").at(-1).textContent, works ? "Copied" : "");
    }
    let copied;
    const hostile = { ...FINDING, Command: "true\nreboot\u202e" };
    code.findingItem(hostile, async (text) => { copied = text; }).all("button")[0].fire("click");
    assert.equal(copied, "true\\nreboot\\u202e");
});

test("10,000 mappings: some are shown, and the filter finds the others", async () => {
    const Mappings = Array.from({ length: 10000 }, (_none, number) => mapping(number));
    const { places, page } = await opened({ Mappings });
    const rows = () => places.mappings.all("tbody")[0].children;
    assert.equal(rows().length, 500);
    assert.match(places.mappings.textContent, /500 of 10000; the filter finds the others/);
    page.tables.Mappings.filter.value = "WEB9999";
    page.tables.Mappings.filter.fire("input");
    assert.equal(rows().length, 1);
    assert.match(rows()[0].textContent, /web9999/);
});

test("a table is sorted by number or by text, in both directions", async () => {
    const { places, page } = await opened({ Mappings: [mapping(2000), mapping(90), mapping(100)] });
    const hosts = () => places.mappings.all("tbody")[0].children.map(
        (row) => row.children[0].textContent);
    assert.deepEqual(hosts(), ["[::]:8090", "[::]:8100", "[::]:10000"]);
    const button = page.tables.Mappings.heads[0].all("button")[0];
    button.fire("click");
    assert.deepEqual(hosts(), ["[::]:10000", "[::]:8100", "[::]:8090"]);
    assert.equal(page.tables.Mappings.heads[0].getAttribute("aria-sort"), "descending");
});

test("names and ports with numbers are sorted by the numbers", async () => {
    const Skipped = ["8080/tcp", "443/tcp", "80/tcp"].map((Port, i) =>
        ({ ContainerName: `web${11 - i}`, Network: "front", Port, Reason: "" }));
    const { places, page } = await opened({ Skipped });
    const cells = (column) => places.skipped.all("tbody")[0].children.map(
        (row) => row.children[column].textContent);
    assert.deepEqual(cells(0), ["web9", "web10", "web11"]);
    page.tables.Skipped.heads[2].all("button")[0].fire("click");
    assert.deepEqual(cells(2), ["80/tcp", "443/tcp", "8080/tcp"]);
});

test("an update keeps the rows that are the same", async () => {
    const { now, places, client } = await opened({ Mappings: [mapping(0), mapping(1)] });
    const [first] = places.mappings.all("tbody")[0].children;
    now.Mappings = [mapping(0), mapping(2)];
    now.properties.Generation = 2;
    client.signalled();
    client.signalled();
    await pause(300);
    const [kept, other] = places.mappings.all("tbody")[0].children;
    assert.equal(kept, first);
    assert.match(other.textContent, /web2/);
    assert.equal(now.calls.filter((member) => member === "ListMappings").length, 2);
});

test("without a new generation only findings are read again", async () => {
    const { now, places, client } = await opened();
    now.Findings = [FINDING];
    client.signalled();
    await pause(300);
    assert.match(places.findings.textContent, /it is off/);
    assert.equal(now.calls.filter((member) => member === "ListMappings").length, 1);
});

test("a daemon that stops and starts again is shown", async () => {
    const { now, places, page, client } = await opened();
    client.fire("owner");
    client.listeners.owner[0]({}, null);
    assert.match(places.problem.textContent, /not running: systemctl start ipv6natd/);
    assert.equal(page.resync.disabled, true);
    now.Mappings = [mapping(7)];
    client.listeners.owner[0]({}, ":1.9");
    await pause(300);
    assert.equal(places.problem.hidden, true);
    assert.match(places.mappings.textContent, /web7/);
});

test("a user without rights sees why", async () => {
    const { places } = await opened({ error: new Error("polkit does not allow you to read") });
    assert.equal(places.problem.hidden, false);
    assert.match(places.problem.textContent, /polkit does not allow you/);
    assert.equal(places.nothing.hidden, true);
});

test("only a list that was read says that nothing was found", async () => {
    const { readFileSync } = require("node:fs");
    const page = readFileSync(require.resolve("../../../cockpit/index.html"), "utf8");
    assert.match(page, /<p id="nothing" class="quiet" hidden translate>/);
    const { places } = await opened();
    assert.equal(places.nothing.hidden, false);
});

test("a resync uses the administrative access and may ask polkit", async () => {
    const { now, fake, page, places } = await opened();
    page.resync.fire("click");
    await pause(300);
    assert.ok(now.calls.includes("Resync"));
    assert.equal(fake.clients[1].options.superuser, "try");
    assert.match(places.actions.textContent, /rules added: 3, removed: 1/);
});

test("a second click during a request asks nothing, and the button keeps the focus", async () => {
    const { now, page } = await opened();
    const first = now.answer;
    let release;
    now.answer = async (member, args) => {
        if (member === "Resync")
            await new Promise((end) => { release = end; });
        return first(member, args);
    };
    page.resync.fire("click");
    await pause(10);
    page.resync.fire("click");
    assert.equal(page.resync.disabled, false);
    assert.equal(page.resync.getAttribute("aria-disabled"), "true");
    release();
    await pause(10);
    assert.equal(page.resync.getAttribute("aria-disabled"), "false");
    assert.equal(now.calls.filter((member) => member === "Resync").length, 1);
});

test("a container is explained in a dialog", async () => {
    const port = { Binding: "[::]:8000 -> 80/tcp", Outcome: "forwarded", Reason: "", Rule: "-j DNAT",
                   Connections: 3, Server: "refused" };
    const { places } = await opened({
        Explain: [{
            ContainerId: "1", Networks: [], Loopback: "the proxy answers", Ports: [port],
            Skipped: [{ ContainerName: "web0", Network: "front", Port: "99999/tcp", Reason: "unreadable" }],
        }],
    });
    places.mappings.all("tbody")[0].all("button")[0].fire("click");
    await pause(60);
    assert.equal(places.explanation.open, true);
    const text = places["explanation-text"].textContent;
    assert.match(text, /3 connections.*refused.*-j DNAT/);
    assert.match(text, /refused.*let the server listen on \[::\], not only on 0\.0\.0\.0/);
    assert.match(text, /skipped 99999\/tcp: unreadable/);
});

test("the focus returns to a container of the diagram that was drawn again", async () => {
    const { now, places, client } = await opened();
    const container = () => places.diagram.all("g").find((node) => node.id === "container-n1-c0");
    const before = container();
    before.focus();
    before.fire("keydown", { key: "Enter" });
    await pause(60);
    document.activeElement = places.explanation;
    now.properties.Generation = 2;
    now.Mappings = [mapping(0), mapping(1)];
    client.signalled();
    await pause(300);
    assert.notEqual(container(), before);
    places.explanation.fire("close");
    assert.equal(document.activeElement, container());
});

test("an answer that comes late does not replace that about another container", async () => {
    const { now, places, page } = await opened({ Mappings: [mapping(0), mapping(1)] });
    const answers = {};
    now.answer = (_member, args) => new Promise((answer) => { answers[args[4]] = answer; });
    const questions = [page.explain("web0"), page.explain("web1")];
    await pause(1);
    const row = (loopback) => [{ Networks: [], Loopback: loopback, Ports: [] }];
    answers.web1(row("of the second"));
    answers.web0(row("of the first"));
    await Promise.all(questions);
    assert.equal(places["explanation-title"].textContent, "web1");
    assert.match(places["explanation-text"].textContent, /of the second/);
});

test("a read during a read comes after it", async () => {
    const { now, client } = await opened();
    const [calls, first] = [now.calls, now.answer];
    let release;
    now.answer = async (member, args) => {
        if (member === "GetAll")
            await new Promise((end) => { release = end; });
        return first(member, args);
    };
    calls.length = 0;
    client.signalled();
    await pause(300);
    client.signalled();
    await pause(300);
    assert.deepEqual(calls, []);
    release();
    await pause(300);
    release();
    await pause(50);
    assert.deepEqual(calls.filter((member) => member === "GetAll").length, 2);
});

test("what has not changed keeps its nodes, also in another order", async () => {
    const { now, places, client } = await opened({ Findings: [FINDING] });
    const nodes = () => [...places.findings.children, ...places.mappings.all("tbody")[0].children];
    const before = nodes();
    now.properties.Generation = 2;
    now.Mappings = [mapping(5), mapping(0)];
    now.Findings = [{ ...FINDING, Text: "first" }, FINDING];
    client.signalled();
    await pause(300);
    const after = nodes();
    assert.deepEqual([after[1], after[2]], before);
    assert.match(after[3].textContent, /web5/);
});

test("the diagram opens few containers, and closes many until a network is chosen", async () => {
    const few = await opened({ Mappings: Array.from({ length: 5 }, (_none, i) => mapping(i)) });
    assert.equal(few.places.diagram.all("path").length, 10);
    const many = await opened({ Mappings: Array.from({ length: 500 }, (_none, i) => mapping(i)) });
    const network = () => many.places.diagram.all("g").find((node) => node.id === "network-n1");
    assert.equal(many.places.diagram.all("path").length, 0);
    assert.match(network().getAttribute("aria-label"), /500 containers, 500 ports/);
    network().focus();
    network().fire("keydown", { key: "Enter" });
    assert.equal(many.places.diagram.all("path").length, 1000);
    assert.equal(document.activeElement, network());
    assert.equal(network().getAttribute("aria-expanded"), "true");
});

test("a box of the diagram shows the port and the counts, and the text stays in it", async () => {
    const name = "a-network-with-a-name-that-is-much-too-long-for-its-box";
    const { places } = await opened({
        Networks: [{ ...NETWORK, Name: name }, { ...NETWORK, Id: "n2", Name: "\u202e".repeat(30) }],
        Mappings: [mapping(0, { HostAddress: "2001:db8:1234:5678:9abc:def0:1234:5678", HostPortEnd: 9000 })],
    });
    const texts = places.diagram.all("text").map((node) => node.textContent);
    /* The network without a port has the name that comes first. */
    assert.match(texts[0], /^\\u202e.*…: 0 containers, 0 ports$/);
    assert.match(texts[1], /^tcp \[2001:db8.*…\]:8000-9000$/);
    assert.ok(texts.some((text) => /^a-netw.*…: 1 container, 1 port$/.test(text)), texts);
    assert.ok(texts.every((text) => text.length <= 31), texts);
    /* A browser draws nothing outside of an inner "svg". */
    for (const node of places.diagram.all("g")) {
        const [frame, inner] = ["rect", "svg"].map((tag) => Number(node.all(tag)[0].getAttribute("width")));
        assert.ok(inner < frame);
    }
    assert.match(places.diagram.textContent, new RegExp(`${name}: 1 container`));
});

test("an update does not scroll to the focus in the diagram", async () => {
    const { now, places, client } = await opened();
    places.diagram.all("g").find((node) => node.id === "network-n1").focus({ preventScroll: true });
    now.properties.Generation = 2;
    now.Mappings = [mapping(0), mapping(1)];
    client.signalled();
    await pause(300);
    const network = places.diagram.all("g").find((node) => node.id === "network-n1");
    assert.equal(document.activeElement, network);
    assert.match(network.getAttribute("aria-label"), /2 containers/);
    assert.equal(document.scrolled, false);
});

test("the page has the language of its texts", async () => {
    const fake = fakeCockpit(async () => [[]]);
    fake.language = "zh_CN";
    install(fake);
    delete require.cache[require.resolve("../../../cockpit/ipv6natd.js")];
    require("../../../cockpit/ipv6natd.js").start();
    assert.equal(document.documentElement.lang, "zh-CN");
    await pause(250);
});

test("the theme is that of the shell", async () => {
    const now = daemon();
    const fake = fakeCockpit((member, args) => now.answer(member, args));
    fake.style = "dark";
    install(fake);
    delete require.cache[require.resolve("../../../cockpit/ipv6natd.js")];
    require("../../../cockpit/ipv6natd.js").start();
    assert.ok(document.documentElement.classList.contains("dark"));
    await pause(250);
});

test("every text is translated, and nothing else", async () => {
    const { readFileSync } = require("node:fs");
    const read = (name) => readFileSync(require.resolve(`../../../cockpit/${name}`), "utf8");
    const code = read("ipv6natd.js");
    const all = (text, pattern) => [...text.matchAll(pattern)].map((found) => found[1]);
    const plurals = all(code, /\bcounted\([^"]*"([^"]+)", "[^"]+"\)/g);
    const used = [
        ...plurals,
        ...all(code, /\b(?:_|mark)\("([^"]+)"\)/g),
        ...all(read("index.html"), / translate>([^<]+)</g),
    ];
    let translated;
    globalThis.cockpit = { locale: (texts) => { translated = texts; } };
    require("../../../cockpit/po.de.js");
    assert.deepEqual(Object.keys(translated).filter((text) => text !== "").sort(),
                     [...new Set(used)].sort());
    for (const [text, words] of Object.entries(translated).filter(([key]) => key !== "")) {
        assert.equal(words.length, plurals.includes(text) ? 3 : 2, text);
        const places = (one) => (one.match(/\$\d/g) || []).sort().join();
        assert.ok(words.slice(1).every((word) => places(word) === places(text)), text);
    }
});

test("the colours of both themes have the contrast of WCAG AA", () => {
    const css = require("node:fs").readFileSync(require.resolve("../../../cockpit/ipv6natd.css"), "utf8");
    const light = (colour) => {
        const hex = colour.length === 4 ? colour.replace(/[0-9a-f]/g, "$&$&") : colour;
        const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
            .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const contrast = (a, b) => {
        const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
        return (bright + 0.05) / (dark + 0.05);
    };
    const themes = [...css.matchAll(/:root(?:\.dark)? \{([^}]+)\}/g)].map((found) =>
        Object.fromEntries([...found[1].matchAll(/--(\w+): (#\w+)/g)].map((pair) => pair.slice(1))));
    assert.equal(themes.length, 2);
    for (const theme of themes) {
        for (const text of ["text", "quiet", "accent", "good", "warning", "bad"]) {
            for (const behind of ["page", "card"])
                assert.ok(contrast(theme[text], theme[behind]) >= 4.5, `${text} on ${behind}`);
        }
    }
});
