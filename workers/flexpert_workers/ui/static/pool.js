// Key figures, workers, engines, and what happened: the parts of the page that are lists and tables.

import { byId, bytes, clock, seconds, setRows, setTerms, setText, whole, words } from "./dom.js";
import { shares } from "./loads.js";

const TONES = { READY: "good", SUCCEEDED: "good", LOST: "bad", FAILED: "bad", ROLLED_BACK: "bad" };

function state(name) {
  return { text: words(name), tone: TONES[name] ?? "wait" };
}

function span(latency) {
  return latency ? `${seconds(latency.half)} / ${seconds(latency.most)}` : "none lately";
}

/** The name, what is served, and why not if it is not. */
export function showHead({ pool, model }) {
  setText(byId("name"), pool.name || pool.uid);
  document.title = `${pool.name || pool.uid} – Flexpert pool`;
  byId("message").hidden = !pool.message;
  setText(byId("message"), pool.message);
  setText(byId("model"), model ? served(model) : "");
}

function served({ architecture, source, layers, experts, expertsPerToken }) {
  return `${architecture} from ${source}: ${layers} layers of ${experts} experts, ${expertsPerToken} a token`;
}

/** The figures at the top. */
export function showFigures(store, imbalance) {
  const { pool, workers, engines, placement } = store.state;
  const ready = workers.filter((worker) => worker.state === "READY").length;
  const standby = workers.filter((worker) => worker.state === "STANDBY").length;
  const sum = (rows, field) => rows.reduce((total, row) => total + row[field], 0);
  const live = workers.filter((worker) => worker.state !== "LOST");
  const batch = store.batch();
  const serving = engines.filter((engine) => engine.state === "READY");
  setTerms(byId("figures"), [
    ["Epoch", pool.epoch],
    ["Workers ready", `${ready} of ${pool.wantedWorkers ?? live.length}${standby ? `, ${standby} standby` : ""}`],
    ["Engines ready", `${serving.length} of ${pool.wantedEngines}`],
    ["Replicas", whole(placement.replicas.reduce((count, row) => count + row.length / 2, 0))],
    ["Experts lost", whole(pool.lost.length)],
    ["Imbalance", imbalance === null ? "no load" : `${imbalance.toFixed(2)} × mean`],
    ["Expert memory", `${bytes(sum(live, "residentBytes"))} of ${bytes(sum(live, "memoryBytes"))}`],
    ["Tokens/s", whole(store.tokensPerSecond())],
    ["Requests running", whole(sum(serving, "running"))],
    ["Requests waiting", whole(sum(serving, "waiting"))],
    ["To first token, p50 / p99", span(store.latency("ttft_seconds"))],
    ["Between tokens, p50 / p99", span(store.latency("tpot_seconds"))],
    ["In the queue, p50 / p99", span(store.latency("queue_seconds"))],
    ["Tokens a step, p50", batch ? whole(batch.half) : "none lately"],
  ]);
}

/** The table of workers; `tokens` are loads by expert. */
export function showWorkers({ workers, placement }, tokens) {
  const part = shares(tokens, placement);
  setRows(
    byId("workers"),
    workers.map((worker) => [
      worker.id,
      state(worker.state),
      { number: whole(worker.replicas) },
      { number: `${(100 * (part.get(worker.id) ?? 0)).toFixed(1)} %` },
      {
        meter: [worker.residentBytes, worker.memoryBytes],
        label: `memory of ${worker.id}`,
        text: `${bytes(worker.residentBytes)} of ${bytes(worker.memoryBytes)}`,
      },
      worker.pod,
      worker.node,
    ]),
  );
}

/** The table of engines. */
export function showEngines(store) {
  setRows(
    byId("engines"),
    store.state.engines.map((engine) => [
      engine.id,
      state(engine.state),
      { number: whole(engine.running) },
      { number: whole(engine.waiting) },
      { meter: [engine.kvUse, 1], label: `KV cache of ${engine.id}`, text: `${Math.round(100 * engine.kvUse)} %` },
      { number: whole(store.rates.get(engine.id) ?? 0) },
      engine.epoch,
      engine.pod,
    ]),
  );
}

/** The table of what happened. */
export function showHistory({ history }) {
  setRows(
    byId("history"),
    [...history]
      .reverse()
      .map((one) => [
        clock(one.startedAt),
        one.epoch || "–",
        words(one.cause),
        state(one.phase),
        { number: seconds(one.finishedAt - one.startedAt) },
        { number: whole(one.movedExperts) },
        { number: bytes(one.movedBytes) },
        one.message ? `${one.id}: ${one.message}` : one.id,
      ]),
  );
}
