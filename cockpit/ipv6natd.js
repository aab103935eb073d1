/* The page of ipv6natd in Cockpit. It shows what org.ipv6natd1 has, and reads it again after the
 * signals of the daemon. All texts reach the document as text nodes and attributes, never as HTML:
 * names of containers and networks can be anything. */
"use strict";

const NAME = "org.ipv6natd1";
const PATH = "/org/ipv6natd1";
const MANAGER = "org.ipv6natd1.Manager";
const PROPERTIES = "org.freedesktop.DBus.Properties";
const LISTS = ["Mappings", "Networks", "Skipped", "Findings"];
/* Rows that a table shows; a filter finds the others. */
const MAX_ROWS = 500;
/* Networks whose containers the diagram shows from the beginning. */
const MAX_OPEN = 30;
/* Milliseconds: many signals cause one read. */
const PAUSE = 200;
const RETRY = 3000;

const _ = (text) => cockpit.gettext(text);
/* For translators: a text that is translated where it is shown. */
const mark = (text) => text;
/* Some languages separate thousands by other spaces. */
const counted = (number, one, many) =>
    cockpit.format(cockpit.ngettext(one, many, number), number.toLocaleString().replace(/\p{Z}/gu, " "));

/* An element with attributes, listeners ("onclick") and children; strings become text nodes. */
function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "rect", "path", "text", "title"].includes(tag);
    const node = svg
        ? document.createElementNS("http://www.w3.org/2000/svg", tag)
        : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on"))
            node.addEventListener(name.slice(2), value);
        else if (value !== null && value !== undefined && value !== false)
            node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.flat().filter((child) => child !== null).map(nodeOrText));
    return node;
}

const nodeOrText = (child) => typeof child === "object" ? child : visible(child);

/* The text with all characters escaped that cannot be seen or look like a space, as `printable` of
 * ipv6natd/system/terminal.py does it: "\x1b", "\n", "\u202e". */
function visible(text) {
    return String(text).replace(/(?! )[\p{C}\p{Z}]/gu, (char) => {
        const code = char.codePointAt(0);
        const short = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
        const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
        return short || `\\${letter}${code.toString(16).padStart(digits, "0")}`;
    });
}

/* The nodes of rows. A row that was shown before keeps its node, and with it focus and selection. */
function kept(shown, rows, build) {
    return new Map(rows.map((row) => {
        const key = JSON.stringify(row);
        return [key, shown.get(key) || build(row)];
    }));
}

/* Give an element these children, in this order; those in their place are not touched. */
function arrange(parent, nodes) {
    const wanted = new Set(nodes);
    for (const child of [...parent.children]) {
        if (!wanted.has(child))
            parent.removeChild(child);
    }
    nodes.forEach((node, at) => {
        if (parent.children[at] !== node)
            parent.insertBefore(node, parent.children[at] || null);
    });
}

/* A text that is read aloud when it changes, so it is written only then. */
function setText(node, text) {
    if (node.textContent !== text)
        node.textContent = text;
}

const plain = (value) => {
    if (Array.isArray(value))
        return value.map(plain);
    if (value !== null && typeof value === "object") {
        if ("t" in value && "v" in value)
            return plain(value.v);
        return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
    }
    return value;
};

/* Why the daemon refuses a call, and what permits it here. */
function refusal(error) {
    const text = visible(cockpit.message(error));
    return /\.(AccessDenied|InteractiveAuthorizationRequired)$/.test(error.name)
        ? cockpit.format(_("$0; or turn on administrative access, at the top of Cockpit's window"), text)
        : text;
}

const socket = (address, first, last) =>
    `[${address}]:${first}` + (last === first ? "" : `-${last}`);

const KINDS = {
    synced: "good", "waiting-for-docker": "warning", starting: "warning", degraded: "bad",
    stopped: "bad", error: "bad", warning: "warning", note: "quiet", active: "good", native: "good",
    forwarded: "good", direct: "good", skipped: "bad", refused: "bad", "no-answer": "bad",
    accepted: "good",
};
const word = (text) => make("span", { class: `word ${KINDS[text] || "quiet"}` }, text);

/* The columns of the tables: title, text of a cell, what it is sorted by, and its content. */
const COLUMNS = {
    Mappings: [
        { title: mark("Host"), text: (row) => socket(row.HostAddress, row.HostPort, row.HostPortEnd),
          order: (row) => row.HostPort },
        { title: mark("Protocol"), text: (row) => row.Protocol },
        { title: mark("Container"), text: (row) => row.ContainerName, explains: true },
        { title: mark("Address"),
          text: (row) => socket(row.ContainerAddress, row.ContainerPort, row.ContainerPortEnd) },
        { title: mark("Network"), text: (row) => row.Network },
        { title: mark("State"), text: (row) => row.State, content: (row) => word(row.State) },
    ],
    Networks: [
        { title: mark("Network"), text: (row) => row.Name },
        { title: mark("Bridge"), text: (row) => row.Bridge },
        { title: mark("Mode"), text: (row) => row.Mode },
        { title: mark("Managed by"), text: (row) => row.ManagedBy },
        { title: mark("Subnets"), text: (row) => row.Subnets.join(", ") },
        { title: mark("Warnings"), text: (row) => row.Warnings.join("; ") },
    ],
    Skipped: [
        { title: mark("Container"), text: (row) => row.ContainerName, explains: true },
        { title: mark("Network"), text: (row) => row.Network },
        { title: mark("Port"), text: (row) => row.Port },
        { title: mark("Reason"), text: (row) => row.Reason },
    ],
};

/* "web9" before "web10". */
const ORDER = new Intl.Collator(undefined, { numeric: true });

/* The rows that contain each word of the filter, in the order of a column. */
function chosen(rows, columns, filter, sorted, descending) {
    const words = filter.toLowerCase().split(/\s+/).filter((part) => part !== "");
    const found = rows.filter((row) => {
        const text = columns.map((column) => column.text(row)).join(" ").toLowerCase();
        return words.every((part) => text.includes(part));
    });
    const key = columns[sorted].order || columns[sorted].text;
    const sign = descending ? -1 : 1;
    return found.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        return sign * (typeof x === "number" ? x - y : ORDER.compare(x, y));
    });
}

/* A table with a filter. Rows are kept and moved, so that an update changes only what differs. */
class Table {
    constructor(place, columns, explain) {
        this.columns = columns;
        this.explain = explain;
        this.rows = [];
        this.sorted = 0;
        this.descending = false;
        this.shown = new Map();
        this.filter = make("input", {
            type: "search", placeholder: _("Filter"), "aria-label": _("Filter"),
            oninput: () => this.draw(),
        });
        this.count = make("span", { class: "quiet", role: "status" });
        this.heads = columns.map((column, index) => make("th", { scope: "col" },
            make("button", { type: "button", onclick: () => this.sort(index) }, _(column.title))));
        this.body = make("tbody");
        place.append(
            make("div", { class: "tools" }, this.filter, this.count),
            make("div", { class: "scroll" },
                make("table", {}, make("thead", {}, make("tr", {}, this.heads)), this.body)));
    }

    sort(index) {
        this.descending = this.sorted === index && !this.descending;
        this.sorted = index;
        this.draw();
    }

    update(rows) {
        this.rows = rows;
        this.draw();
    }

    draw() {
        const found = chosen(this.rows, this.columns, this.filter.value || "", this.sorted,
                             this.descending);
        this.heads.forEach((head, index) => head.setAttribute("aria-sort",
            index !== this.sorted ? "none" : this.descending ? "descending" : "ascending"));
        const rows = kept(this.shown, found.slice(0, MAX_ROWS), (row) => this.row(row));
        this.shown = rows;
        arrange(this.body, [...rows.values()]);
        setText(this.count, found.length > rows.size
            ? cockpit.format(_("$0 of $1; the filter finds the others"), rows.size, found.length)
            : counted(found.length, "$0 row", "$0 rows"));
    }

    row(row) {
        return make("tr", {}, this.columns.map((column) => {
            let content = column.content ? column.content(row) : column.text(row) || "–";
            if (column.explains && row.ContainerName)
                content = make("button", { type: "button",
                                           onclick: () => this.explain(row.ContainerName) }, content);
            return make("td", { "data-title": _(column.title) }, content);
        }));
    }
}

/* Networks with their containers and host ports, for the diagram. */
function grouped(mappings, networks) {
    const groups = new Map(networks.map((row) => [row.Id, { network: row, containers: new Map() }]));
    for (const row of mappings) {
        const group = groups.get(row.NetworkId);
        if (!group)
            continue;
        const ports = group.containers.get(row.ContainerId) ||
            { id: row.ContainerId, name: row.ContainerName, ports: [] };
        ports.ports.push(row);
        group.containers.set(row.ContainerId, ports);
    }
    return [...groups.values()].sort((a, b) => ORDER.compare(a.network.Name, b.network.Name));
}

const HEIGHT = 26;
const LEFT = 210;
const MIDDLE = 240;
const RIGHT = 240;
const GAP = 70;

/* Host ports on the left, networks in the middle, containers on the right. A network with many
 * containers is closed until it is chosen. */
class Diagram {
    constructor(place, explain) {
        this.scroll = make("div", { class: "scroll" });
        this.explain = explain;
        /* Id of a network -> whether the user wants it open. */
        this.chosen = new Map();
        this.groups = [];
        place.append(this.scroll);
    }

    update(mappings, networks) {
        this.groups = grouped(mappings, networks);
        this.draw();
    }

    draw() {
        const parts = [];
        const few = this.groups.reduce((sum, group) => sum + group.containers.size, 0) <= MAX_OPEN;
        let top = 0;
        for (const group of this.groups) {
            const open = this.chosen.get(group.network.Id) ?? few;
            top = this.group(parts, group, open, top) + HEIGHT / 2;
        }
        const width = LEFT + MIDDLE + RIGHT + 2 * GAP;
        const focused = document.activeElement && document.activeElement.id;
        this.scroll.replaceChildren(this.groups.length === 0
            ? make("p", { class: "quiet" }, _("No network is managed."))
            : make("svg", {
                viewBox: `0 0 ${width} ${top}`, width, height: top, role: "group",
                "aria-label": _("Host ports, networks and containers"),
            }, parts));
        if (/^(network|container)-/.test(focused))
            document.getElementById(focused)?.focus({ preventScroll: true });
    }

    group(parts, group, open, top) {
        const { network, containers } = group;
        const ports = [...containers.values()].reduce((sum, item) => sum + item.ports.length, 0);
        const rows = open ? [...containers.values()] : [];
        const height = Math.max(rows.reduce((sum, item) => sum + item.ports.length, 0), 1) * HEIGHT;
        const middle = top + height / 2;
        let line = top;
        for (const container of rows) {
            const half = line + container.ports.length * HEIGHT / 2;
            for (const row of container.ports) {
                const y = line + HEIGHT / 2;
                const place = socket(row.HostAddress, row.HostPort, row.HostPortEnd);
                const port = place.slice(place.lastIndexOf("]"));
                parts.push(box(0, y, LEFT, `${row.Protocol} ${place}`, port),
                           edge(LEFT, y, LEFT + GAP, middle));
                line += HEIGHT;
            }
            const from = LEFT + GAP + MIDDLE;
            parts.push(edge(from, middle, from + GAP, half),
                       this.button(box(from + GAP, half, RIGHT, container.name), container.name,
                                   `container-${network.Id}-${container.id}`,
                                   () => this.explain(container.name)));
        }
        const size = counted(containers.size, "$0 container", "$0 containers");
        const counts = `: ${size}, ${counted(ports, "$0 port", "$0 ports")}`;
        const text = network.Name + counts;
        const node = this.button(box(LEFT + GAP, middle, MIDDLE, text, counts), text,
                                 `network-${network.Id}`, () => this.open(network.Id, !open));
        node.setAttribute("aria-expanded", String(open));
        if (open)
            node.setAttribute("class", "open");
        parts.push(node);
        return top + height;
    }

    open(id, wanted) {
        this.chosen.set(id, wanted);
        this.draw();
    }

    button(node, label, id, act) {
        node.setAttribute("id", id);
        node.setAttribute("role", "button");
        node.setAttribute("tabindex", "0");
        node.setAttribute("aria-label", visible(label));
        node.addEventListener("click", act);
        node.addEventListener("keydown", (event) => {
            if (event.key === "Enter" || event.key === " ") {
                event.preventDefault();
                act();
            }
        });
        return node;
    }
}

/* The text in a box. If it is too long, its end stays: the port, or the counts. */
function box(x, middle, width, text, end = "") {
    const [y, height] = [middle - HEIGHT / 2 + 2, HEIGHT - 4];
    return make("g", {}, make("title", {}, text),
        make("rect", { class: "box", x, y, width, height, rx: 3 }),
        /* Some letters are wider than others. What is too wide after all is cut off at the border. */
        make("svg", { x, y, width: width - 4, height },
             make("text", { x: 8, y: height / 2 + 4.5 },
                  shortened(visible(text), visible(end), Math.floor((width - 16) / 7.2)))));
}

/* The beginning of a text and its end, if it has more letters than there is room for. */
function shortened(text, end, room) {
    const letters = [...text];
    return letters.length > room
        ? `${letters.slice(0, Math.max(room - end.length - 1, 0)).join("")}…${end}`
        : text;
}

function edge(x1, y1, x2, y2) {
    const half = (x1 + x2) / 2;
    return make("path", { class: "edge", d: `M${x1} ${y1} C${half} ${y1} ${half} ${y2} ${x2} ${y2}` });
}

/* Milliseconds that the page says that a command was copied. */
const NOTICE = 3000;

function findingItem(row, copy) {
    const copied = make("span", { class: "quiet", role: "status" });
    const act = async () => {
        /* What is shown: a line break that nobody sees would run the command in a terminal. */
        if (await copy(visible(row.Command))) {
            setText(copied, _("Copied"));
            setTimeout(() => setText(copied, ""), NOTICE);
        }
    };
    return make("li", {},
        make("p", {}, word(row.Severity), ` ${row.About}`, row.Network ? ` (${row.Network})` : "",
             `: ${row.Text}`),
        row.Command
            ? make("p", {}, make("code", {}, row.Command), " ",
                   make("button", { type: "button", onclick: act }, _("Copy")), " ", copied)
            : null);
}

/* The rows of Explain. The tool also asks the servers in the containers, which the daemon may not. */
async function explained(name) {
    const words = ["ipv6natctl", "explain", "--json=short", "--", name];
    return JSON.parse(await cockpit.spawn(words, { err: "message" }));
}

/* The rules of other programs that a connection may meet; nothing without one. */
function otherRules(row) {
    const rules = row.OtherRules || [];
    if (rules.length === 0)
        return null;
    const more = row.OtherRuleCount - rules.length;
    return make("div", {},
        make("h3", {}, _("Rules of others that a new connection may meet")),
        make("ul", {}, rules.map((step) => make("li", {}, make("code", {},
            [step.Table, step.Chain, step.Rule || step.Verdict].join(" "))))),
        more > 0 ? make("p", {}, counted(more, "and $0 more", "and $0 more")) : null);
}

/* What the tool says about a server that does not accept. */
const SERVERS = {
    "refused": mark("no program in the container listens on its IPv6 address; let the server listen on [::], not only on 0.0.0.0"),
    "no-answer": mark("the container does not answer on its IPv6 address; a firewall inside it, or a server that hangs"),
};

function explanation(rows) {
    return rows.map((row) => make("div", {},
        row.Networks.map((net) => make("p", {},
            `${net.Name} (${net.Bridge}) ${net.Address}: ${net.Reason}`)),
        row.Loopback ? make("p", {}, `[::1]: ${row.Loopback}`) : null,
        (row.Skipped || []).map((item) => make("p", {},
            word("skipped"), ` ${[item.Port, item.Reason].filter(Boolean).join(": ")}`)),
        make("ul", {}, row.Ports.map((port) => make("li", {},
            make("p", {}, `${port.Binding} `, word(port.Outcome),
                 port.Connections === undefined ? "" : `, ${counted(port.Connections, "$0 connection", "$0 connections")}`,
                 port.Server ? ", " : "", port.Server ? word(port.Server) : ""),
            port.Reason ? make("p", {}, port.Reason) : null,
            port.Server in SERVERS ? make("p", {}, _(SERVERS[port.Server])) : null,
            port.Rule ? make("code", {}, port.Rule) : null))),
        otherRules(row)));
}

/* The daemon on the bus: reads everything once, and again after its signals. */
class Page {
    constructor() {
        this.place = (id) => document.getElementById(id);
        const explain = (name) => this.explain(name);
        this.tables = Object.fromEntries(Object.entries(COLUMNS).map(([list, columns]) =>
            [list, new Table(this.place(list.toLowerCase()), columns, explain)]));
        this.diagram = new Diagram(this.place("diagram"), explain);
        this.resync = make("button", { type: "button", onclick: () => this.request("Resync") },
                           _("Compare all rules now"));
        /* What the last request has done. */
        this.done = make("p", { class: "quiet", role: "status" });
        this.place("actions").append(this.resync, this.done);
        this.requested = false;
        this.timer = null;
        /* The read that is going on. A daemon that ends answers none, so its end drops it. */
        this.reading = null;
        /* True if something has changed during a read. */
        this.again = false;
        this.generation = null;
        this.items = new Map();
        this.asked = null;
        this.running = true;
        this.refused = "";
        this.connect();
    }

    connect() {
        this.reading = null;
        this.client = cockpit.dbus(NAME, { bus: "system" });
        this.client.addEventListener("owner", (_event, owner) => this.owned(owner));
        this.client.addEventListener("close", (_event, problem) => {
            this.failed(problem && problem.problem
                ? cockpit.message(problem) : _("The connection to the bus has ended."));
            setTimeout(() => this.connect(), RETRY);
        });
        this.client.subscribe({ path: PATH }, () => this.later());
        this.later();
    }

    owned(owner) {
        this.generation = null;
        this.reading = null;
        this.running = Boolean(owner);
        if (this.running)
            this.later();
        else
            this.failed();
    }

    later() {
        if (this.reading)
            this.again = true;
        else if (this.timer === null)
            this.timer = setTimeout(() => this.read(), PAUSE);
    }

    async read() {
        const reading = this.reading = {};
        this.timer = null;
        this.again = false;
        try {
            const [all] = await this.client.call(PATH, PROPERTIES, "GetAll", [MANAGER]);
            const properties = plain(all);
            const lists = properties.Generation === this.generation ? ["Findings"] : LISTS;
            const rows = await Promise.all(lists.map((list) => this.list(list)));
            if (this.reading !== reading)
                return;
            this.show(properties, Object.fromEntries(lists.map((list, i) => [list, rows[i]])));
            this.generation = properties.Generation;
        } catch (error) {
            if (this.reading === reading) {
                this.generation = null;
                this.failed(cockpit.message(error));
            }
        }
        if (this.reading === reading) {
            this.reading = null;
            if (this.again)
                this.later();
        }
    }

    async list(list) {
        const [rows] = await this.client.call(PATH, MANAGER, `List${list}`, []);
        return plain(rows);
    }

    show(properties, lists) {
        this.place("problem").hidden = this.refused === "";
        setText(this.place("problem"), this.refused);
        const reason = properties.StateReason ? visible(` ${properties.StateReason}`) : "";
        if (this.place("state").textContent !== properties.State + reason)
            this.place("state").replaceChildren(word(properties.State), reason);
        const engine = properties.DockerConnected ? properties.EngineVersion : _("not connected");
        this.place("facts").textContent = visible([
            `ipv6natd ${properties.Version}`, `Docker ${engine}`, properties.Backend,
            counted(properties.MappingCount, "$0 mapping", "$0 mappings"),
            counted(properties.NetworkCount, "$0 network", "$0 networks"),
        ].join(" · "));
        this.resync.disabled = false;
        for (const [list, table] of Object.entries(this.tables)) {
            if (list in lists)
                table.update(lists[list]);
        }
        if ("Mappings" in lists)
            this.diagram.update(lists.Mappings, lists.Networks);
        this.items = kept(this.items, lists.Findings, (row) => findingItem(row, copy));
        arrange(this.place("findings"), [...this.items.values()]);
        this.place("nothing").hidden = this.items.size > 0;
    }

    failed(text) {
        const stopped = _("ipv6natd is not running: systemctl start ipv6natd");
        this.place("problem").hidden = false;
        setText(this.place("problem"), visible(this.running ? text : stopped));
        this.place("state").textContent = "";
        /* Nobody has looked. */
        this.place("nothing").hidden = true;
        this.resync.disabled = true;
    }

    /* A change needs the administrative access of Cockpit, or polkit permits it. */
    async request(member) {
        /* Not "disabled": a button that becomes so loses the focus. */
        if (this.requested)
            return;
        this.requested = true;
        this.resync.setAttribute("aria-disabled", "true");
        this.refused = "";
        setText(this.done, "");
        const client = cockpit.dbus(NAME, { bus: "system", superuser: "try" });
        try {
            const [result] = await client.call(PATH, MANAGER, member, [], { flags: "i" });
            const { RulesAdded, RulesRemoved } = plain(result);
            setText(this.done, cockpit.format(_("rules added: $0, removed: $1"), RulesAdded, RulesRemoved));
        } catch (error) {
            /* It stays until the next request. */
            this.refused = refusal(error);
        } finally {
            client.close();
            this.requested = false;
            this.resync.setAttribute("aria-disabled", "false");
            this.later();
        }
    }

    async explain(name) {
        const dialog = this.place("explanation");
        const asked = this.asked = {};
        /* An answer that comes after the next question is left out. */
        const answer = (...nodes) => {
            if (this.asked === asked)
                text.replaceChildren(...nodes);
        };
        this.place("explanation-title").textContent = visible(name);
        const text = this.place("explanation-text");
        text.replaceChildren(make("p", { class: "quiet" }, _("Reading …")));
        const opener = document.activeElement?.id;
        dialog.showModal();
        dialog.addEventListener("close", () => {
            /* An update has perhaps made the node again that gets the focus back. */
            if (opener && document.activeElement?.id !== opener)
                this.place(opener)?.focus({ preventScroll: true });
        }, { once: true });
        try {
            answer(...explanation(await explained(name)));
        } catch (error) {
            answer(make("p", { class: "bad" }, cockpit.message(error)));
        }
    }
}

/* Whether the text is in the clipboard. Without TLS, a browser has no clipboard for the page. */
async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        window.prompt(_("Copy this command"), text);
        return false;
    }
}

/* The theme that the shell of Cockpit has: auto, light or dark. */
function applyTheme(style) {
    const wanted = style || localStorage.getItem("shell:style") || "auto";
    const dark = wanted === "dark" ||
        (wanted === "auto" && window.matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.classList.toggle("dark", dark);
}

function start() {
    applyTheme();
    window.addEventListener("storage", (event) => {
        if (event.key === "shell:style")
            applyTheme();
    });
    window.addEventListener("cockpit-style", (event) => applyTheme(event.detail.style));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme());
    cockpit.translate();
    /* For the voice of a screen reader. */
    document.documentElement.lang = (cockpit.language || "en").replace("_", "-");
    return new Page();
}

if (typeof module === "undefined")
    document.addEventListener("DOMContentLoaded", start);
else
    module.exports = { Diagram, Table, chosen, explanation, findingItem, grouped, plain, start, visible };
