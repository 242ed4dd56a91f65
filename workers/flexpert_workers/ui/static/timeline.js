// Epochs, reconfigurations, the size of the pool, tokens a second and latencies over one axis of time. The table below
// it says the same of the reconfigurations.

import { clock, seconds, svg, whole, words } from "./dom.js";

const [TITLE, BAND, BARS, LANE, AXIS, RIGHT] = [22, 20, 16, 44, 20, 8];
const TICKS_S = [10, 15, 30, 60, 120, 180, 300];
const TICK_WIDTH = 110;
const LEAST_S = 60;
const MOST_S = 900;
const LANES = [
  { title: "Ready", say: whole, lines: { workers: (at) => at.ready, engines: (at) => at.engines } },
  { title: "Replicas of experts", say: whole, lines: { replicas: (at) => at.replicas }, least: replicasAtLeast },
  { title: "Tokens per second", say: whole, lines: { tokens: (at) => at.rate }, round: true, filled: true },
  { title: "Time to first token", say: seconds, lines: percentiles("ttft"), round: true },
  { title: "Time between tokens", say: seconds, lines: percentiles("tpot"), round: true },
];
const [EPOCHS, FIRST] = [TITLE, TITLE + BAND + BARS];
const BOTTOM = FIRST + LANES.length * (TITLE + LANE);

/** Draw it anew. */
export function timeline(parent, store) {
  const width = parent.clientWidth;
  if (!width) return;
  const { time, history } = store.state;
  const begun = history.map((operation) => operation.startedAt).filter((at) => time - at < MOST_S);
  const from = Math.min(time - LEAST_S, store.samples[0].time, ...begun.slice(-12));
  const left = width < 480 ? 48 : 60;
  const right = width - RIGHT;
  const place = (at) => left + ((Math.max(at, from) - from) / (time - from)) * (right - left);
  const view = { store, time, from, left, right, place };
  const picture = svg("svg", { width, height: BOTTOM + AXIS, viewBox: `0 0 ${width} ${BOTTOM + AXIS}`, role: "img" });
  picture.setAttribute("aria-label", summary(view));
  const bands = epochs(view);
  picture.append(...beforeThePage(view), ...ticks(view), ...drawBands(view, bands), ...operations(view));
  LANES.forEach((lane, number) => picture.append(...drawLane(view, lane, topOf(number))));
  picture.append(...changes(view, bands));
  parent.replaceChildren(picture);
}

function topOf(lane) {
  return FIRST + lane * (TITLE + LANE) + TITLE;
}

/** At a moment, through the epochs and every lane, but not through their titles. */
function upright(kind, x) {
  const parts = LANES.map((_, number) => `M${x},${topOf(number)}v${LANE}`);
  return svg("path", { class: kind, d: `M${x},${EPOCHS}v${BAND}${parts.join("")}` });
}

function percentiles(name) {
  return { p50: (at) => at[name]?.half ?? null, p99: (at) => at[name]?.most ?? null };
}

/** One copy of each: the foot of the replicas' lane. */
function replicasAtLeast({ state: { placement } }) {
  return placement.replicas.length;
}

function summary({ store, from }) {
  const { state } = store;
  const count = state.history.filter((operation) => operation.startedAt >= from).length;
  const last = store.samples.at(-1);
  const latency = last.ttft ? `, ${seconds(last.ttft.half)} to the first token` : "";
  return (
    `Since ${clock(from)}: ${count} reconfigurations, now epoch ${state.pool.epoch}, ${last.ready} workers ready, ` +
    `${whole(last.replicas)} replicas, ${whole(last.rate)} tokens a second${latency}. ` +
    `The table below lists the reconfigurations.`
  );
}

/** The time of which nothing is known but reconfigurations. */
function beforeThePage({ store, from, left, place }) {
  const width = place(store.samples[0].time) - left;
  if (store.samples[0].time <= from || width < 2) return [];
  const boxes = LANES.map((_, number) =>
    svg("rect", { class: "before", x: left, y: topOf(number), width, height: LANE }),
  );
  const said = "before this page was open";
  if (width < 7 * said.length) return boxes;
  return [...boxes, svg("text", { x: left + width / 2, y: topOf(0) + LANE / 2 + 4, "text-anchor": "middle" }, said)];
}

function ticks({ time, from, left, right, place }) {
  const most = Math.max(1, (right - left) / TICK_WIDTH);
  const step = TICKS_S.find((one) => (time - from) / one <= most) ?? TICKS_S.at(-1);
  const drawn = [svg("text", { x: right, y: BOTTOM + 15, "text-anchor": "end" }, `now, ${clock(time)}`)];
  for (let at = Math.ceil(from / step) * step; place(at) < right - 1; at += step) {
    const x = place(at);
    drawn.push(upright("grid", x));
    if (x > left + 20 && x < right - 130)
      drawn.push(svg("text", { x, y: BOTTOM + 15, "text-anchor": "middle" }, clock(at)));
  }
  return drawn;
}

/** The epochs in force: [{epoch, from, until}, …]. */
function epochs({ store, time, from }) {
  const { operation, history, pool } = store.state;
  const known = operation && operation.finishedAt === null ? [...history, operation] : history;
  const committed = known.filter((one) => one.epoch);
  const flips = committed.map((one) => ({ epoch: one.epoch, at: committedAt(one, time) }));
  return [{ epoch: committed[0]?.baseEpoch ?? pool.epoch, at: from }, ...flips]
    .map(({ epoch, at }, number, all) => ({ epoch, from: at, until: all[number + 1]?.at ?? time }))
    .filter((band) => band.until > from && !band.epoch.endsWith(".0"));
}

function committedAt({ startedAt, finishedAt, phaseSeconds }, time) {
  const { pending = 0, prepare = 0, commit = 0 } = phaseSeconds;
  return Math.min(startedAt + pending + prepare + commit, finishedAt ?? time);
}

function drawBands({ left, place }, bands) {
  const title = svg("text", { class: "title", x: left, y: EPOCHS - 7 }, "Epochs, and reconfigurations");
  const drawn = bands.flatMap((band, number) => {
    const x = place(band.from);
    const width = Math.max(1, place(band.until) - x);
    const shape = { class: number % 2 ? "band other" : "band", x, y: EPOCHS, width, height: BAND };
    const box = svg("rect", shape, svg("title", {}, `epoch ${band.epoch} from ${clock(band.from)}`));
    const fits = width > 7 * band.epoch.length + 10;
    return fits ? [box, svg("text", { class: "title", x: x + 5, y: EPOCHS + 14 }, band.epoch)] : [box];
  });
  return [title, ...drawn];
}

function operations({ store, time, from, right, place }) {
  const { operation, history } = store.state;
  const shown = history.filter((one) => (one.finishedAt ?? time) >= from);
  if (operation && operation.finishedAt === null) shown.push(operation);
  return shown.flatMap((one, number) => {
    const x = place(one.startedAt);
    const width = Math.max(3, place(one.finishedAt ?? time) - x);
    const box = { class: isBad(one) ? "operation bad" : "operation", x, y: EPOCHS + BAND + 4, width, height: 8 };
    const title = `${one.id}: ${words(one.cause)}, ${words(one.phase)}${one.epoch ? `, epoch ${one.epoch}` : ""}`;
    const bar = svg("rect", box, svg("title", {}, title));
    const said = isBad(one) ? `${words(one.cause)}: ${words(one.phase)}` : words(one.cause);
    const next = number + 1 < shown.length ? place(shown[number + 1].startedAt) : right;
    const fits = x + width + 5 + 7 * said.length < next;
    return fits ? [bar, svg("text", { x: x + width + 5, y: EPOCHS + BAND + 12 }, said)] : [bar];
  });
}

function isBad({ phase }) {
  return !["SUCCEEDED", "PREPARE", "COMMIT", "RETIRE", "PENDING"].includes(phase);
}

function changes({ left, place }, bands) {
  return bands
    .map((band) => place(band.from))
    .filter((x) => x > left + 1)
    .map((x) => upright("epoch", x));
}

function drawLane(view, lane, top) {
  const { store, left, right } = view;
  const lines = Object.entries(lane.lines);
  const seen = lines.flatMap(([, value]) => store.samples.map(value)).filter((one) => one !== null);
  const foot = Math.min(lane.least?.(store) ?? 0, ...seen);
  const most = Math.max(foot, ...seen);
  const head = (lane.round ? rounded(most) : most) || 1;
  const level = (value) => (top + LANE - ((value - foot) / (head - foot || 1)) * LANE).toFixed(1);
  const [above, below] = [
    [top + 9, lane.say(head)],
    [top + LANE, lane.say(foot)],
  ].map(([y, said]) => svg("text", { x: left - 6, y, "text-anchor": "end" }, said));
  return [
    svg("rect", { class: "frame", x: left, y: top, width: right - left, height: LANE }),
    svg("text", { class: "title", x: left, y: top - 6 }, lane.title),
    ...(seen.length ? [above, below] : [svg("text", { x: left + 6, y: top + 16 }, "no requests")]),
    ...(lane.filled ? [svg("path", { class: "area", d: area(view, lines[0][1], level, top + LANE) })] : []),
    ...lines.map(([, value], number) =>
      svg("path", { class: number ? "dashed" : "line", d: steps(view, value, level) }),
    ),
    ...(lines.length > 1 ? key(lines, right, top) : []),
  ];
}

/** Which line is which, at the right end of a lane's title. */
function key(lines, right, top) {
  let end = right;
  return lines.toReversed().flatMap(([name], number) => {
    const start = end - 7 * name.length;
    const drawn = [
      svg("text", { x: end, y: top - 6, "text-anchor": "end" }, name),
      svg("path", { class: number ? "line" : "dashed", d: `M${start - 24},${top - 10}H${start - 5}` }),
    ];
    end = start - 36;
    return drawn;
  });
}

/** A value holds from its sample to the next; null is a gap. */
function steps({ store, time, place }, value, level) {
  let down = false;
  return [...store.samples, { ...store.samples.at(-1), time }]
    .map((sample) => {
      const [x, worth, drew] = [place(sample.time).toFixed(1), value(sample), down];
      down = worth !== null;
      const there = drew ? `H${x}` : "";
      return there + (down ? (drew ? `V${level(worth)}` : `M${x},${level(worth)}`) : "");
    })
    .join("");
}

function area(view, value, level, foot) {
  return `${steps(view, value, level)}V${foot}H${view.place(view.store.samples[0].time).toFixed(1)}Z`;
}

/** The next of 1, 2, 5, 10, 20, … */
function rounded(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((one) => one >= value);
}
