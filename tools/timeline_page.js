// SPDX-License-Identifier: BSD-3-Clause
// The page of vfmig timeline: moves what the picture has drawn. "T" is put in front of this:
// moments in nanoseconds, and where the rows are.
"use strict";
const svg = document.getElementById("picture");
const tip = document.getElementById("tip");
const axis = document.getElementById("axis");
const lens = document.getElementById("lens");
const NS = "http://www.w3.org/2000/svg";
const LEAST = 1000; // ns across the band
let from = T.zoomBegin, to = T.zoomEnd;

const at = (t) => T.x + T.width * (t - from) / (to - from);
const atAll = (t) => T.x + T.width * (t - T.begin) / (T.end - T.begin);

// Titles become tooltips of our own, which come at once.
for (const title of [...svg.querySelectorAll("title")]) {
    const owner = title.parentNode;
    if (owner !== svg)
        owner.dataset.tip = title.textContent;
    title.remove();
}

const things = [...svg.querySelectorAll("[data-b]") ].map((node) => ({
                                                              node,
                                                              b : +node.dataset.b,
                                                              e : +node.dataset.e,
                                                              kind : node.tagName,
                                                              needs : +(node.dataset.w || 0),
                                                              message : +(node.dataset.m || 0),
                                                          }));

function show(node, yes)
{
    if (yes)
        node.removeAttribute("display");
    else
        node.setAttribute("display", "none");
}

function place(thing, state)
{
    const {node, b, e} = thing;
    const inside = e >= from && b <= to;
    const x = at(Math.max(b, from)), end = at(Math.min(e, to));
    if (thing.kind === "rect") {
        show(node, inside);
        if (!inside)
            return;
        node.setAttribute("x", x);
        node.setAttribute("width", Math.max(end - x, 0.8));
    } else if (thing.kind === "line") {
        const seen = b >= from && b <= to && e >= from && e <= to;
        show(node, seen);
        if (!seen)
            return;
        node.setAttribute("x1", at(b));
        node.setAttribute("x2", at(e));
    } else if (thing.message) {
        const left = at(b);
        const room = b >= from && b <= to && left > state.last + 4;
        show(node, room);
        if (!room)
            return;
        node.setAttribute("x", left + 4);
        state.last = left + thing.message;
    } else {
        const room = inside && end - x >= thing.needs;
        show(node, room);
        if (room)
            node.setAttribute("x", (x + end) / 2);
    }
}

function time(ns)
{
    if (ns < 1e3)
        return ns.toFixed(0) + " ns";
    if (ns < 1e6)
        return (ns / 1e3).toFixed(ns < 1e5 ? 1 : 0) + " µs";
    if (ns < 1e9)
        return (ns / 1e6).toFixed(ns < 1e7 ? 2 : ns < 1e8 ? 1 : 0) + " ms";
    return (ns / 1e9).toFixed(2) + " s";
}

function add(kind, attributes, text)
{
    const node = document.createElementNS(NS, kind);
    for (const [name, value] of Object.entries(attributes))
        node.setAttribute(name, value);
    if (text !== undefined)
        node.textContent = text;
    axis.appendChild(node);
}

function drawAxis()
{
    const zero = T.zero;
    let step = 1;
    for (let i = 0; step * 11 < to - from; i++)
        step = i % 3 === 1 ? step / 2 * 5 : step * 2;
    axis.replaceChildren();
    for (let t = zero + Math.ceil((from - zero) / step) * step; t <= to; t += step) {
        const sign = t < zero ? "−" : zero && t > zero ? "+" : "";
        add("line",
            {class : "grid", x1 : at(t), x2 : at(t), y1 : T.axisTop + 4, y2 : T.axisBottom});
        add("text", {class : "tick", x : at(t), y : T.axisTop},
            t === zero ? "0" : sign + time(Math.abs(t - zero)));
    }
}

function drawLens()
{
    const {top, bottom, below} = lens.dataset;
    const x = atAll(from), end = Math.max(atAll(to), x + 1.5);
    lens.setAttribute(
        "d",
        `M${x},${top} H${end} V${bottom} L${T.x + T.width},${below} H${T.x} L${x},${bottom} Z`);
}

function look(begin, end)
{
    const most = T.end - T.begin;
    const span = Math.min(Math.max(end - begin, LEAST), most);
    from = Math.min(Math.max(begin, T.begin), T.end - span);
    to = from + span;
    const state = {last : -1e9};
    for (const thing of things)
        place(thing, state);
    drawAxis();
    drawLens();
    document.getElementById("span").textContent = time(to - from) + " shown";
}

function zoomBy(factor, about)
{
    look(about - (about - from) * factor, about + (to - about) * factor);
}

// --- mouse, fingers, keys ---

function point(event)
{
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    return {x : (event.clientX - box.left) * scale, y : (event.clientY - box.top) * scale};
}
const inOverview = (p) => p.y < +lens.dataset.bottom;
const momentAt = (p) => from + (to - from) * (p.x - T.x) / T.width;
const momentOfAll = (p) => T.begin + (T.end - T.begin) * (p.x - T.x) / T.width;

svg.addEventListener("wheel", (event) => {
    const p = point(event);
    if (inOverview(p) || p.x < T.x)
        return;
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        const by = (to - from) * (event.deltaX || event.deltaY) / 1000;
        look(from + by, to + by);
    } else {
        zoomBy(Math.exp(event.deltaY / 400), momentAt(p));
    }
}, {passive : false});

let drag = null;
svg.addEventListener("pointerdown", (event) => {
    const p = point(event);
    if (p.x < T.x || event.button)
        return;
    drag = inOverview(p) ? {all : momentOfAll(p)} : {x : p.x, from, to};
    svg.setPointerCapture(event.pointerId);
});
svg.addEventListener("pointermove", (event) => {
    const p = point(event);
    if (drag && drag.all !== undefined) {
        const now = momentOfAll(p);
        if (Math.abs(now - drag.all) > (T.end - T.begin) / 400)
            look(Math.min(now, drag.all), Math.max(now, drag.all));
    } else if (drag) {
        const by = (drag.x - p.x) / T.width * (drag.to - drag.from);
        look(drag.from + by, drag.to + by);
    }
    const text = !drag && event.target.dataset && event.target.dataset.tip;
    tip.hidden = !text;
    if (!text)
        return;
    tip.textContent = text;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top =
        (event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10
                                                             : event.clientY + 18) +
        "px";
});
svg.addEventListener("pointerup", () => { drag = null; });
svg.addEventListener("pointerleave", () => { tip.hidden = true; });
svg.addEventListener("dblclick", () => look(T.zoomBegin, T.zoomEnd));

const middle = () => (from + to) / 2;
const keys = {
    "+" : () => zoomBy(0.6, middle()),
    "=" : () => zoomBy(0.6, middle()),
    "-" : () => zoomBy(1.6, middle()),
    "ArrowLeft" : () => look(from - (to - from) / 8, to - (to - from) / 8),
    "ArrowRight" : () => look(from + (to - from) / 8, to + (to - from) / 8),
    "0" : () => look(T.zoomBegin, T.zoomEnd),
    "a" : () => look(T.begin, T.end),
};
addEventListener("keydown", (event) => {
    const action = !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key];
    if (!action)
        return;
    event.preventDefault();
    action();
});
document.getElementById("in").onclick = keys["+"];
document.getElementById("out").onclick = keys["-"];
document.getElementById("close").onclick = keys["0"];
document.getElementById("all").onclick = keys["a"];
look(from, to);
