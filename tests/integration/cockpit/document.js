/* As much of a document as the page needs. It keeps text apart from elements, as a browser does. */
"use strict";

class Node {
    constructor(tag) {
        this.tag = tag;
        this.attributes = {};
        this.listeners = {};
        this.children = [];
        this.hidden = false;
        this.value = "";
        this.disabled = false;
        this.classes = new Set();
        this.classList = {
            toggle: (name, on) => on ? this.classes.add(name) : this.classes.delete(name),
            contains: (name) => this.classes.has(name),
        };
    }

    setAttribute(name, value) { this.attributes[name] = String(value); }
    getAttribute(name) { return this.attributes[name] ?? null; }
    addEventListener(kind, act) { (this.listeners[kind] ||= []).push(act); }
    append(...children) { this.children.push(...children); }
    replaceChildren(...children) { this.children = children; }
    removeChild(child) { this.children.splice(this.children.indexOf(child), 1); }
    insertBefore(child, before) {
        if (this.children.includes(child))
            this.removeChild(child);
        this.children.splice(before ? this.children.indexOf(before) : this.children.length, 0, child);
    }

    fire(kind, event = {}) {
        for (const act of this.listeners[kind] || [])
            act({ preventDefault() {}, ...event });
    }

    focus(options = {}) {
        globalThis.document.activeElement = this;
        globalThis.document.scrolled = !options.preventScroll;
    }

    showModal() { this.open = true; }
    get id() { return this.attributes.id || ""; }
    get textContent() {
        return this.children.map((child) => typeof child === "string" ? child : child.textContent)
            .join("");
    }

    set textContent(text) { this.children = [String(text)]; }

    /* All elements below this one, in the order of the document. */
    all(tag) {
        return this.children.filter((child) => typeof child === "object").flatMap((child) =>
            [...(tag === undefined || child.tag === tag ? [child] : []), ...child.all(tag)]);
    }
}

const IDS = ["state", "facts", "actions", "problem", "findings", "nothing", "diagram", "mappings", "networks",
             "skipped", "explanation", "explanation-title", "explanation-text"];

function install(fake) {
    const places = Object.fromEntries(IDS.map((id) => [id, new Node("div")]));
    const root = new Node("html");
    globalThis.document = {
        createElement: (tag) => new Node(tag),
        createElementNS: (_space, tag) => new Node(tag),
        getElementById: (id) => places[id] ||
            Object.values(places).flatMap((place) => place.all()).find((node) => node.id === id),
        documentElement: root,
        activeElement: null,
    };
    globalThis.window = {
        addEventListener() {},
        matchMedia: () => ({ matches: false, addEventListener() {} }),
        prompt() {},
    };
    globalThis.localStorage = { getItem: () => fake.style || null };
    globalThis.cockpit = fake;
    return places;
}

/* The parts of cockpit.js that the page uses, with a daemon behind. */
function fakeCockpit(daemon) {
    return {
        clients: [],
        gettext: (text) => text,
        ngettext: (one, many, number) => number === 1 ? one : many,
        format: (text, ...values) => text.replace(/\$(\d)/g, (_all, at) => values[at]),
        message: (error) => error.message || String(error.problem || error),
        translate() {},
        spawn: async (words) => JSON.stringify(await daemon("ipv6natctl", words)),
        dbus(name, options) {
            const client = new Node("client");
            client.options = options;
            client.subscribe = (_match, act) => { client.signalled = act; };
            client.call = async (_path, _interface, member, args) => daemon(member, args);
            client.close = () => {};
            this.clients.push(client);
            return client;
        },
    };
}

module.exports = { Node, fakeCockpit, install };
