/* The page at a real cockpit-bridge: `node live.js` prints the texts of the page as a line of JSON
 * after each change. A line "click ID" on the input clicks the first button there; "explain" clicks
 * the first container. */
"use strict";

const { spawn } = require("node:child_process");
const readline = require("node:readline");
const { Node, fakeCockpit, install } = require("./document.js");

/* The bridge speaks in frames: a length, a newline, then a channel, a newline and JSON. The channel
 * without a name is for control messages. */
class Bridge {
    constructor() {
        this.waiting = [];
        this.channels = new Map();
        this.received = Buffer.alloc(0);
        this.child = spawn("cockpit-bridge", [], { stdio: ["pipe", "pipe", "inherit"] });
        this.child.stdout.on("data", (data) => this.read(data));
        this.child.on("exit", (code) => {
            console.error(`cockpit-bridge ended with ${code}`);
            process.exit(1);
        });
    }

    read(data) {
        this.received = Buffer.concat([this.received, data]);
        for (;;) {
            const head = this.received.indexOf("\n");
            const size = Number(this.received.subarray(0, head).toString());
            if (head < 0 || this.received.length < head + 1 + size)
                return;
            const frame = this.received.subarray(head + 1, head + 1 + size).toString();
            this.received = this.received.subarray(head + 1 + size);
            const channel = frame.slice(0, frame.indexOf("\n"));
            const data = frame.slice(channel.length + 1);
            this.frame(channel, channel.startsWith("spawn") ? { text: data } : JSON.parse(data));
        }
    }

    frame(channel, message) {
        if (channel !== "")
            this.channels.get(channel)?.(message);
        else if (message.command === "init") {
            this.write("", { command: "init", version: 1, host: "localhost" });
            const waiting = this.waiting;
            this.waiting = null;
            waiting.forEach(([name, item]) => this.write(name, item));
        } else if (message.command === "close")
            this.channels.get(message.channel)?.({ closed: message });
    }

    send(channel, message) {
        if (this.waiting)
            this.waiting.push([channel, message]);
        else
            this.write(channel, message);
    }

    write(channel, message) {
        const frame = Buffer.from(`${channel}\n${JSON.stringify(message)}`);
        this.child.stdin.write(`${frame.length}\n`);
        this.child.stdin.write(frame);
    }
}

/* `cockpit.dbus`, over the bridge. */
class Client extends Node {
    constructor(bridge, name, options) {
        super("client");
        this.bridge = bridge;
        this.channel = `dbus${bridge.channels.size}`;
        this.calls = new Map();
        this.matches = [];
        bridge.channels.set(this.channel, (message) => this.got(message));
        bridge.send("", { command: "open", channel: this.channel, payload: "dbus-json3", name,
                          ...options });
    }

    got(message) {
        if ("owner" in message)
            this.listeners.owner?.forEach((act) => act({}, message.owner));
        else if (message.closed)
            this.listeners.close?.forEach((act) => act({}, message.closed));
        else if (message.signal)
            this.matches.forEach((act) => act(...message.signal));
        else if (this.calls.has(message.id)) {
            const [answer, fail] = this.calls.get(message.id);
            this.calls.delete(message.id);
            if (message.error)
                fail(Object.assign(new Error(message.error[1][0]), { name: message.error[0] }));
            else
                answer(message.reply[0]);
        }
    }

    subscribe(match, act) {
        this.matches.push(act);
        this.bridge.send(this.channel, { "add-match": match });
    }

    call(path, part, member, args, options = {}) {
        const id = String(Math.random());
        this.bridge.send(this.channel, { call: [path, part, member, args], id, ...options });
        return new Promise((...ends) => this.calls.set(id, ends));
    }

    close() {
        this.bridge.send("", { command: "close", channel: this.channel });
    }
}

/* `cockpit.spawn`, over the bridge. */
function spawned(words, options) {
    const channel = `spawn${bridge.channels.size}`;
    let text = "";
    return new Promise((answer, fail) => {
        bridge.channels.set(channel, (message) => {
            if (message.text)
                text += message.text;
            else if (message.closed?.problem || message.closed?.["exit-status"])
                fail(new Error(message.closed.message || message.closed.problem));
            else if (message.closed)
                answer(text);
        });
        bridge.send("", { command: "open", channel, payload: "stream", spawn: words, ...options });
    });
}

const bridge = new Bridge();
const cockpit = fakeCockpit();
cockpit.dbus = (name, options) => new Client(bridge, name, options);
cockpit.spawn = spawned;
const places = install(cockpit);
require("../../../cockpit/ipv6natd.js").start();

let printed = "";
setInterval(() => {
    const texts = Object.entries(places).map(([id, place]) => [id, place.hidden ? "" : place.textContent]);
    const line = JSON.stringify(Object.fromEntries(texts));
    if (line !== printed)
        console.log(printed = line);
}, 50);

const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
    const place = line === "explain" ? places.mappings.all("tbody")[0] : places[line.split(" ")[1]];
    place.all("button")[0].fire("click");
});
input.on("close", () => {
    bridge.child.removeAllListeners("exit");
    bridge.child.on("exit", () => process.exit(0));
    bridge.child.stdin.end();
});
