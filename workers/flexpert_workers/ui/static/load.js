// The part of the page about load: what the heat map shows, and the tables that say the same.

import { byId, clock, setOptions, setRows, setText, whole } from "./dom.js";
import { HeatMap, legend } from "./heatmap.js";
import { busyness, expertName, holders, imbalance, loadsOf, relative } from "./loads.js";
import { moving } from "./reconfiguration.js";

const LEAST_TOP = 2;

function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`).value;
}

/** Shows loads; `planned` gives a placement to show in place of the one in force, or null. */
export class LoadView {
  constructor(planned) {
    this.planned = planned;
    this.map = new HeatMap(byId("heat"), byId("heat-canvas"), byId("heat-cell"));
    this.store = null;
    this.top = 0;
    for (const control of document.querySelectorAll(".controls input, .controls select, #layer")) {
      control.addEventListener("change", () => this.update(this.store));
    }
    for (const details of document.querySelectorAll("#load details"))
      details.addEventListener("toggle", () => this.update(this.store));
  }

  /** Loads as they are; returns them by expert, and the imbalance that they make. */
  update(store) {
    this.store = store;
    const { model, workers } = store?.state ?? {};
    if (!model) return { tokens: [], imbalance: null };
    const placement = this.planned() ?? store.state.placement;
    const { tokens, recent } = loadsOf(store, chosen("tokens"));
    const heat = relative(tokens, model);
    const busy = busyness(tokens, model, placement);
    setText(byId("heat-about"), this.about(recent, placement));
    setOptions(byId("outlined"), [["", "none"], ...workers.map((worker) => [worker.id, worker.id])]);
    setOptions(
      byId("layer"),
      Array.from({ length: model.layers }, (_, layer) => [String(layer), String(layer)]),
    );
    const facts = { model, placement, tokens, heat, busy, state: store.state };
    const figure = chosen("columns") === "experts" ? this.byExpert(facts) : this.byWorker(facts);
    this.map.show(figure);
    if (figure.top !== this.top) legend(byId("legend"), (this.top = figure.top));
    this.showTables(facts);
    return { tokens, imbalance: imbalance(busy, placement.workers.length) };
  }

  about(recent, placement) {
    const since = recent ? "Tokens of the last 30 s" : `Tokens since ${clock(this.store.state.loads.since)}`;
    const planned =
      placement === this.store.state.placement ? "" : " The placement is the planned one, not the one in force.";
    return `${since}; the lighter a cell, the more load.${planned}`;
  }

  byExpert({ model, placement, tokens, heat, state }) {
    const [moves, lost, worker] = [
      moving(state),
      new Set(state.pool.lost),
      placement.workers.indexOf(byId("outlined").value),
    ];
    return {
      rows: model.layers,
      columns: model.experts,
      top: top(heat),
      name: (index) => `${index}`,
      load: (layer, index) => heat[layer * model.experts + index],
      say: (layer, index) => {
        const expert = layer * model.experts + index;
        const going = moves.has(expert) ? `; a copy is on its way to ${moves.get(expert)}` : "";
        const gone = lost.has(expert) ? "; it has no live replica" : "";
        const load = `${heat[expert].toFixed(2)} × the layer's mean, ${whole(tokens[expert])} tokens`;
        return `${sentence(expertName(expert, model))}: ${load}; on ${holders(expert, placement)}${going}${gone}`;
      },
      marks: (layer, index) => {
        const expert = layer * model.experts + index;
        const row = placement.replicas[expert] ?? [];
        const outlined = worker >= 0 && row.some((held, at) => at % 2 === 0 && held === worker);
        return (
          (outlined ? "o" : "") +
          (moves.has(expert) ? "m" : "") +
          (lost.has(expert) ? "x" : "") +
          (row.length > 2 ? "r" : "")
        );
      },
    };
  }

  byWorker({ model, placement, busy }) {
    const [width, outlined] = [placement.workers.length, placement.workers.indexOf(byId("outlined").value)];
    const load = (layer, worker) => busy[layer * width + worker];
    return {
      rows: width ? model.layers : 0,
      columns: width,
      top: top(busy),
      name: (worker) => placement.workers[worker],
      load,
      say: (layer, worker) => {
        const said = Number.isNaN(load(layer, worker))
          ? "holds nothing of it"
          : `${load(layer, worker).toFixed(2)} × the workers' mean`;
        return `${sentence(`layer ${layer}`)}, worker ${placement.workers[worker]}: ${said}`;
      },
      marks: (_, worker) => (worker === outlined ? "o" : ""),
    };
  }

  showTables(facts) {
    const [layers, experts] = document.querySelectorAll("#load details");
    if (layers.open) setRows(byId("layers"), layerRows(facts));
    if (experts.open) {
      const layer = Number(byId("layer").value);
      setText(byId("experts-caption"), `Experts of layer ${layer}`);
      setRows(byId("experts"), expertRows(facts, layer));
    }
  }
}

function layerRows({ model, placement, tokens, heat, busy }) {
  const width = placement.workers.length;
  return Array.from({ length: model.layers }, (_, layer) => {
    const first = layer * model.experts;
    const hottest = highest(heat.subarray(first, first + model.experts));
    const busiest = highest(busy.subarray(layer * width, (layer + 1) * width));
    const sum = tokens.slice(first, first + model.experts).reduce((total, count) => total + count, 0);
    return [
      `${layer}`,
      { number: whole(sum) },
      { number: `${hottest}` },
      { number: heat[first + hottest].toFixed(2) },
      placement.workers[busiest] ?? "–",
      { number: width ? (busy[layer * width + busiest] || 0).toFixed(2) : "–" },
    ];
  });
}

function expertRows({ model, placement, tokens, heat }, layer) {
  return Array.from({ length: model.experts }, (_, index) => {
    const expert = layer * model.experts + index;
    const count = (placement.replicas[expert] ?? []).length / 2;
    return [
      `${index}`,
      { number: whole(tokens[expert]) },
      { number: heat[expert].toFixed(2) },
      { number: `${count}` },
      holders(expert, placement),
    ];
  });
}

function highest(loads) {
  return loads.reduce((best, load, number) => ((load || 0) > (loads[best] || 0) ? number : best), 0);
}

/** The end of the scale: the highest load, in steps, so that colours do not flicker. */
function top(loads) {
  const most = loads.reduce((best, load) => Math.max(best, load || 0), 0);
  return most <= LEAST_TOP ? LEAST_TOP : 2 ** (Math.ceil(2 * Math.log2(most)) / 2);
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1);
}
