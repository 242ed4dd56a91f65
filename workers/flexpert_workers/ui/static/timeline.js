// Epochs, reconfigurations, the size of the pool and its tokens a second, over time. The table below it says the same.

import { clock, seconds, svg, whole, words } from "./dom.js";

const HEIGHT = 274;
const [LEFT, RIGHT] = [8, 8];
const LANES = { operations: [24, 56], workers: [78, 120], tokens: [142, 184], latency: [206, 248] };
const LEAST_S = 60;
const MOST_S = 900;

/** Draw it anew. */
export function timeline(parent, store) {
  const width = parent.clientWidth;
  if (!width) return;
  const { time } = store.state;
  const begun = store.state.history.map((operation) => operation.startedAt).filter((at) => time - at < MOST_S);
  const from = Math.min(time - LEAST_S, store.samples[0].time, ...begun.slice(-12));
  const place = (at) => LEFT + ((Math.max(at, from) - from) / (time - from)) * (width - LEFT - RIGHT);
  const picture = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  picture.setAttribute("aria-label", summary(store, from));
  picture.append(
    ...frames(width),
    ...operations(store, place, from, width),
    ...workers(store, place),
    ...tokens(store, place),
    ...latency(store, place),
  );
  picture.append(
    svg("text", { class: "axis", x: LEFT, y: HEIGHT - 6 }, clock(from)),
    svg("text", { class: "axis", x: width - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, `now, ${clock(time)}`),
  );
  parent.replaceChildren(picture);
}

function summary(store, from) {
  const { state } = store;
  const count = state.history.filter((operation) => operation.startedAt >= from).length;
  const last = store.samples.at(-1);
  return (
    `Since ${clock(from)}: ${count} reconfigurations, now epoch ${state.pool.epoch}, ${last.ready} workers ready, ` +
    `${whole(last.rate)} tokens a second. The table below lists the reconfigurations.`
  );
}

function frames(width) {
  const titles = {
    operations: "epochs",
    workers: "workers ready —, engines ready - -",
    tokens: "tokens a second",
    latency: "time to first token, p50 —, p99 - -",
  };
  return Object.entries(LANES).flatMap(([name, [top, bottom]]) => [
    svg("rect", { class: "frame", x: LEFT, y: top, width: width - LEFT - RIGHT, height: bottom - top }),
    svg("text", { class: "note", x: LEFT, y: top - 5 }, titles[name]),
  ]);
}

function operations(store, place, from, width) {
  const [top, bottom] = LANES.operations;
  const { operation, history, time } = store.state;
  const shown = history.filter((one) => (one.finishedAt ?? time) >= from);
  if (operation && operation.finishedAt === null) shown.push(operation);
  const bars = shown.map((one) => bar(one, place(one.startedAt), place(one.finishedAt ?? time), top, bottom));
  let free = LEFT;
  const names = shown.flatMap((one) => {
    const said = one.epoch || (isBad(one) ? "✕" : "…");
    const wide = 7 * said.length;
    const at = Math.min(place(one.startedAt) + 3, width - RIGHT - wide);
    if (at < free) return [];
    free = at + wide + 4;
    return [svg("text", { class: "word", x: at, y: (top + bottom) / 2 + 4 }, said)];
  });
  return [...bars, ...names];
}

function bar(one, left, right, top, bottom) {
  const box = { x: left, y: top + 2, width: Math.max(3, right - left), height: bottom - top - 4 };
  const made = svg("rect", { class: isBad(one) ? "operation bad" : "operation", ...box });
  const epoch = one.epoch ? `, epoch ${one.epoch}` : "";
  made.append(svg("title", {}, `${one.id}: ${words(one.cause)}, ${words(one.phase)}${epoch}`));
  return made;
}

function isBad({ phase }) {
  return !["SUCCEEDED", "PREPARE", "COMMIT", "RETIRE", "PENDING"].includes(phase);
}

function workers(store, place) {
  const [top, bottom] = LANES.workers;
  const most = Math.max(1, ...store.samples.map((sample) => Math.max(sample.ready, sample.engines)));
  return [
    svg("polyline", { class: "line", points: steps(store, place, (sample) => sample.ready / most, top, bottom) }),
    svg("polyline", { class: "dashed", points: steps(store, place, (sample) => sample.engines / most, top, bottom) }),
    svg("text", { class: "note", x: LEFT + 3, y: top + 12 }, whole(most)),
  ];
}

function tokens(store, place) {
  const [top, bottom] = LANES.tokens;
  const most = Math.max(1, ...store.samples.map((sample) => sample.rate));
  return [
    svg("polyline", { class: "line", points: steps(store, place, (sample) => sample.rate / most, top, bottom) }),
    svg("text", { class: "note", x: LEFT + 3, y: top + 12 }, whole(most)),
  ];
}

function latency(store, place) {
  const [top, bottom] = LANES.latency;
  const most = Math.max(...store.samples.map((sample) => sample.ttft?.most ?? 0));
  if (!most) return [svg("text", { class: "note", x: LEFT + 3, y: top + 12 }, "no requests")];
  return [
    svg("polyline", {
      class: "line",
      points: steps(store, place, (sample) => (sample.ttft?.half ?? 0) / most, top, bottom),
    }),
    svg("polyline", {
      class: "dashed",
      points: steps(store, place, (sample) => (sample.ttft?.most ?? 0) / most, top, bottom),
    }),
    svg("text", { class: "note", x: LEFT + 3, y: top + 12 }, seconds(most)),
  ];
}

function steps(store, place, part, top, bottom) {
  const level = (sample) => (bottom - 1 - part(sample) * (bottom - top - 14)).toFixed(1);
  const points = store.samples.flatMap((sample, number) => {
    const x = place(sample.time).toFixed(1);
    return number ? [`${x},${level(store.samples[number - 1])}`, `${x},${level(sample)}`] : [`${x},${level(sample)}`];
  });
  return [...points, `${place(store.state.time).toFixed(1)},${level(store.samples.at(-1))}`].join(" ");
}
