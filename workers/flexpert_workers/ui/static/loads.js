// What loads and placement say together: how hot experts are, and how busy workers. Pure functions over plain values.

/** Loads by expert, packed layer * experts + index: recent ones where there are any and they are asked for. */
export function loadsOf(store, wanted) {
  const recent = wanted === "recent" && store.recent.some((count) => count > 0);
  return { tokens: recent ? store.recent : store.state.loads.tokens, recent };
}

/** Load of each expert over the mean of its layer; 0 where nothing was counted. */
export function relative(tokens, model) {
  const heat = new Float64Array(tokens.length);
  for (let first = 0; first < tokens.length; first += model.experts) {
    let sum = 0;
    for (let index = first; index < first + model.experts; index++) sum += tokens[index];
    if (sum > 0)
      for (let index = first; index < first + model.experts; index++)
        heat[index] = (tokens[index] * model.experts) / sum;
  }
  return heat;
}

/**
 * How busy each worker of a placement is in each layer, over the mean of its workers: [layer * workers + worker].
 * NaN where a worker holds nothing of a layer.
 */
export function busyness(tokens, model, placement) {
  const width = placement.workers.length;
  const busy = new Float64Array(model.layers * width).fill(NaN);
  placement.replicas.forEach((row, expert) => {
    const layer = Math.floor(expert / model.experts);
    for (let at = 0; at < row.length; at += 2) {
      const cell = layer * width + row[at];
      busy[cell] = (Number.isNaN(busy[cell]) ? 0 : busy[cell]) + row[at + 1] * tokens[expert];
    }
  });
  for (let layer = 0; layer < model.layers; layer++) {
    const cells = busy.subarray(layer * width, (layer + 1) * width);
    const sum = cells.reduce((total, load) => total + (load || 0), 0);
    if (sum > 0)
      cells.forEach((load, worker) => {
        cells[worker] = (load * width) / sum;
      });
  }
  return busy;
}

/** Part of all tokens that each worker computes, by its id. */
export function shares(tokens, placement) {
  const sums = new Float64Array(placement.workers.length);
  let total = 0;
  placement.replicas.forEach((row, expert) => {
    total += tokens[expert];
    for (let at = 0; at < row.length; at += 2) sums[row[at]] += row[at + 1] * tokens[expert];
  });
  return new Map(placement.workers.map((id, number) => [id, total > 0 ? sums[number] / total : 0]));
}

/** Mean over the layers that are loaded of the busiest worker's load over the mean; null where nothing is. */
export function imbalance(busy, width) {
  const highest = [];
  for (let first = 0; first < busy.length; first += width) {
    const most = busy.subarray(first, first + width).reduce((top, load) => Math.max(top, load || 0), 0);
    if (most > 0) highest.push(most);
  }
  return highest.length ? highest.reduce((sum, load) => sum + load, 0) / highest.length : null;
}

/** How many live copies of experts the placement in force has. */
export function replicasOf({ placement }) {
  return placement.replicas.reduce((count, row) => count + row.length / 2, 0);
}

/** Who holds an expert, in words: "w-1 (60 %), w-2 (40 %)". */
export function holders(expert, placement) {
  const row = placement.replicas[expert] ?? [];
  const said = [];
  for (let at = 0; at < row.length; at += 2) {
    said.push(placement.workers[row[at]] + (row[at + 1] < 1 ? ` (${Math.round(100 * row[at + 1])} %)` : ""));
  }
  return said.length ? said.join(", ") : "nobody";
}

/** "layer 3, expert 17". */
export function expertName(expert, model) {
  return `layer ${Math.floor(expert / model.experts)}, expert ${expert % model.experts}`;
}
