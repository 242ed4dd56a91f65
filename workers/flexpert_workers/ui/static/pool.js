// Key figures, workers, engines, and what happened: the parts of the page that are lists and tables.

import { byId, bytes, clock, seconds, setRows, setTerms, setText, whole, words } from "./dom.js";
import { replicasOf, shares } from "./loads.js";

const TONES = { READY: "good", SUCCEEDED: "good", LOST: "bad", FAILED: "bad", ROLLED_BACK: "bad" };

function state(name) {
  return { text: words(name), tone: TONES[name] ?? "wait" };
}

function latency(store, term, name) {
  const lately = store.latency(name);
  return lately ? [term, seconds(lately.half), `p99 ${seconds(lately.most)}`] : [term, "–", "none lately"];
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
  const { pool, workers, engines } = store.state;
  const sum = (rows, field) => rows.reduce((total, row) => total + row[field], 0);
  const live = workers.filter((worker) => worker.state !== "LOST");
  const serving = engines.filter((engine) => engine.state === "READY");
  const [ready, standby] = ["READY", "STANDBY"].map((state) => live.filter((one) => one.state === state).length);
  const wanted = pool.wantedWorkers ?? live.length;
  const batch = store.batch();
  setTerms(byId("traffic"), [
    ["Tokens/s", whole(store.tokensPerSecond())],
    ["Requests running", whole(sum(serving, "running"))],
    ["Requests waiting", whole(sum(serving, "waiting"))],
    ["Tokens a step", batch ? whole(batch.half) : "–", batch ? `p99 ${whole(batch.most)}` : "none lately"],
  ]);
  setTerms(byId("latency"), [
    latency(store, "To first token", "ttft_seconds"),
    latency(store, "Between tokens", "tpot_seconds"),
    latency(store, "In the queue", "queue_seconds"),
    latency(store, "A step", "step_seconds"),
  ]);
  setTerms(byId("members"), [
    ["Workers ready", `${ready} of ${wanted}`, standby ? `and ${standby} standby` : "", ready < wanted ? "wait" : ""],
    ["Engines ready", `${serving.length} of ${pool.wantedEngines}`],
    ["Epoch", pool.epoch],
    ["KV cache", serving.length ? `${Math.round((100 * sum(serving, "kvUse")) / serving.length)} %` : "–", "in use"],
  ]);
  const balance = imbalance === null ? ["–", "no load"] : [`${imbalance.toFixed(2)} ×`, "the mean"];
  const [resident, memory] = [sum(live, "residentBytes"), sum(live, "memoryBytes")];
  setTerms(byId("holdings"), [
    ["Replicas", whole(replicasOf(store.state))],
    ["Experts lost", whole(pool.lost.length), "", pool.lost.length ? "bad" : ""],
    ["Imbalance", ...balance],
    ["Memory", bytes(resident), `of ${bytes(memory)}`],
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
