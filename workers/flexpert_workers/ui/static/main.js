// The page: takes the state from the store, and has each of its parts brought up to date, once a frame at most.

import { byId, setText } from "./dom.js";
import { LoadView } from "./load.js";
import { PlanForm } from "./plan.js";
import { showEngines, showFigures, showHead, showHistory, showWorkers } from "./pool.js";
import { announcement, showReconfiguration } from "./reconfiguration.js";
import { Store } from "./store.js";
import { timeline } from "./timeline.js";

const form = new PlanForm(() => render());
const loads = new LoadView(() => form.placement);
const store = new Store(changed, connected);
let waiting = false;
let told = { epoch: "", operation: "" };

function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    render();
  });
}

function render() {
  const { state } = store;
  if (!state) return;
  showHead(state);
  form.update(state);
  const { tokens, imbalance } = loads.update(store);
  showFigures(store, imbalance);
  showReconfiguration(state);
  showWorkers(state, tokens);
  showEngines(store);
  showHistory(state);
  timeline(byId("chart"), store);
  announce(state);
}

/** Tell screen readers what matters: another epoch, another phase. */
function announce({ pool, operation }) {
  const now = { epoch: pool.epoch, operation: announcement(operation) };
  const news = [];
  if (told.epoch && now.epoch !== told.epoch) news.push(`Epoch ${now.epoch} is in force`);
  if (told.epoch && now.operation !== told.operation) news.push(now.operation);
  if (news.length) setText(byId("announcement"), news.join(". "));
  told = now;
}

function connected(live) {
  const line = byId("connection");
  line.dataset.state = live ? "live" : "away";
  setText(line, live ? "Live" : "The pool controller does not answer; trying again");
}

new ResizeObserver(() => changed()).observe(byId("chart"));
store.connect();
