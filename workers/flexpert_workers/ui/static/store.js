// The state of the pool as the controller tells it, and what follows from it over time: recent loads, tokens a second.

import { replicasOf } from "./loads.js";

const RECENT_S = 30;
const KEPT_S = 900;
const MEASURED_S = 60;

/** Keeps the state; `onState` is called after every change with the names of the sections that are new. */
export class Store {
  constructor(onState, onConnection) {
    this.state = null;
    this.samples = []; // {time, ready, engines, replicas, rate, ttft, tpot}, one a second, of a quarter of an hour
    this.recent = new Float64Array(0); // tokens per expert of the last RECENT_S
    this.rates = new Map(); // engine → tokens a second
    this.added = []; // {time, tokens} that `recent` sums up
    this.measured = []; // {time, figures} of the last MEASURED_S, the oldest first
    this.told = new Map(); // engine → {time, tokens} that its rate was taken from
    this.onState = onState;
    this.onConnection = onConnection;
  }

  connect() {
    const source = new EventSource("/ui/api/events");
    source.addEventListener("state", (event) => this.begin(JSON.parse(event.data)));
    source.addEventListener("change", (event) => this.take(JSON.parse(event.data)));
    source.addEventListener("open", () => this.onConnection(true));
    source.addEventListener("error", () => this.onConnection(false));
  }

  /** Everything is told, at first and after every loss of the connection. */
  begin(state) {
    this.state = state;
    this.recent = new Float64Array(state.loads.tokens.length);
    this.added = [];
    this.observe();
    this.onState(new Set(Object.keys(state)));
  }

  /** Some sections are new. */
  take(change) {
    const { loads, ...sections } = change;
    Object.assign(this.state, sections);
    if (loads?.tokens) [this.state.loads, this.recent, this.added] = [loads, new Float64Array(loads.tokens.length), []];
    else if (loads) this.add(loads.added, change.time);
    this.forget(change.time);
    this.observe();
    this.onState(new Set(Object.keys(change)));
  }

  add(tokens, time) {
    const { tokens: all } = this.state.loads;
    tokens.forEach((count, expert) => {
      all[expert] += count;
      this.recent[expert] += count;
    });
    this.added.push({ time, tokens: Uint32Array.from(tokens) });
  }

  forget(now) {
    while (this.added.length && this.added[0].time < now - RECENT_S) {
      const { tokens } = this.added.shift();
      tokens.forEach((count, expert) => {
        this.recent[expert] -= count;
      });
    }
  }

  observe() {
    const { time, workers, engines } = this.state;
    for (const engine of engines) this.observeEngine(engine, time);
    for (const id of this.told.keys()) if (!engines.some((engine) => engine.id === id)) this.lose(id);
    this.measure(time);
    const last = this.samples.at(-1);
    if (last && time - last.time < 1) this.samples.pop();
    const ready = (members) => members.filter((member) => member.state === "READY").length;
    this.samples.push({
      time: last && time - last.time < 1 ? last.time : time,
      ready: ready(workers),
      engines: ready(engines),
      replicas: replicasOf(this.state),
      rate: this.tokensPerSecond(),
      ttft: this.latency("ttft_seconds"),
      tpot: this.latency("tpot_seconds"),
    });
    while (this.samples[0].time < time - KEPT_S) this.samples.shift();
  }

  observeEngine(engine, time) {
    const told = this.told.get(engine.id);
    if (!told || engine.generatedTokens < told.tokens) {
      this.told.set(engine.id, { time, tokens: engine.generatedTokens });
      this.rates.set(engine.id, 0);
    } else if (time - told.time >= 1) {
      this.rates.set(engine.id, (engine.generatedTokens - told.tokens) / (time - told.time));
      this.told.set(engine.id, { time, tokens: engine.generatedTokens });
    }
  }

  lose(engine) {
    this.told.delete(engine);
    this.rates.delete(engine);
  }

  measure(time) {
    const { figures } = this.state;
    if (this.measured.length && this.measured[0].figures.incarnation !== figures.incarnation) this.measured = [];
    if (this.measured.at(-1)?.figures !== figures) this.measured.push({ time, figures });
    while (this.measured.length > 1 && this.measured[1].time < time - MEASURED_S) this.measured.shift();
  }

  /**
   * A latency's percentiles in the last minute, as ingresses measure it, else engines: {half, most (of 99 %), count}.
   * null where no request was measured.
   */
  latency(name) {
    const { histograms } = this.state.figures;
    const known = [`ingress_${name}`, `engine_${name}`].find((one) => histograms[one]);
    return known ? percentiles(histograms[known], this.measured[0].figures.histograms[known]) : null;
  }

  /** Percentiles of the tokens in a step of an engine in the last minute; null where there was none. */
  batch() {
    const now = this.state.figures.histograms.engine_step_tokens;
    return now ? percentiles(now, this.measured[0].figures.histograms.engine_step_tokens) : null;
  }

  /** Of all engines together, over the last second or two. */
  tokensPerSecond() {
    const live = new Set(this.state.engines.filter((engine) => engine.state !== "LOST").map((engine) => engine.id));
    return [...this.rates].reduce((sum, [id, rate]) => sum + (live.has(id) ? rate : 0), 0);
  }
}

function percentiles({ bounds, counts }, before) {
  const lately = counts.map((count, number) => count - (before?.counts[number] ?? 0));
  const count = lately.reduce((sum, one) => sum + one, 0);
  return count > 0
    ? { half: quantile(bounds, lately, count / 2), most: quantile(bounds, lately, 0.99 * count), count }
    : null;
}

/** The value that `wanted` observations do not exceed; evenly spread within a bucket, as Prometheus has it. */
function quantile(bounds, counts, wanted) {
  let [below, lower] = [0, 0];
  for (let number = 0; number < bounds.length; number++) {
    if (counts[number] && below + counts[number] >= wanted) {
      return lower + ((bounds[number] - lower) * Math.max(wanted - below, 0)) / counts[number];
    }
    [below, lower] = [below + counts[number], bounds[number]];
  }
  return bounds.at(-1);
}
