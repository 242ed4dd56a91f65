// The state of the pool as the controller tells it, and what follows from it over time: recent loads, tokens a second.

const RECENT_S = 30;
const KEPT_S = 900;

/** Keeps the state; `onState` is called after every change with the names of the sections that are new. */
export class Store {
  constructor(onState, onConnection) {
    this.state = null;
    this.samples = []; // {time, ready, standby, engines, tokens a second}, one a second, of the last quarter of an hour
    this.recent = new Float64Array(0); // tokens per expert of the last RECENT_S
    this.rates = new Map(); // engine → tokens a second
    this.openedAt = 0;
    this.added = []; // {time, tokens} that `recent` sums up
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
    this.openedAt ||= state.time;
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
      tokens.forEach((count, expert) => { this.recent[expert] -= count; });
    }
  }

  observe() {
    const { time, workers, engines } = this.state;
    for (const engine of engines) this.observeEngine(engine, time);
    for (const id of this.told.keys()) if (!engines.some((engine) => engine.id === id)) this.lose(id);
    const last = this.samples.at(-1);
    if (last && time - last.time < 1) this.samples.pop();
    const counted = (state) => workers.filter((worker) => worker.state === state).length;
    this.samples.push({
      time: last && time - last.time < 1 ? last.time : time,
      ready: counted("READY"),
      standby: counted("STANDBY"),
      engines: engines.filter((engine) => engine.state === "READY").length,
      rate: this.tokensPerSecond(),
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

  /** Of all engines together, over the last second or two. */
  tokensPerSecond() {
    const live = new Set(this.state.engines.filter((engine) => engine.state !== "LOST").map((engine) => engine.id));
    return [...this.rates].reduce((sum, [id, rate]) => sum + (live.has(id) ? rate : 0), 0);
  }
}
