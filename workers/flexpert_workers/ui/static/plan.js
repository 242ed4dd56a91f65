// The dry run of a plan: asks the controller, shows what would come of it. It changes nothing.

import { byId, bytes, element, seconds, setRows, setTerms, setText, whole } from "./dom.js";
import { expertName } from "./loads.js";

const MOST_MOVES = 200;

/** The form and its answer; `onResult` is called when what the heat map may show is another placement (or null). */
export class PlanForm {
  constructor(onResult) {
    this.state = null;
    this.result = null;
    this.asking = false;
    this.onResult = onResult;
    byId("plan-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.asking) this.ask();
    });
    byId("plan-shown").addEventListener("change", () => this.onResult());
  }

  /** The placement that the heat map is to show in place of the one in force, or null. */
  get placement() {
    return this.result && byId("plan-shown").checked ? this.result.placement : null;
  }

  /** Bring the choice of workers up to date; what was chosen stays chosen. */
  update(state) {
    this.state = state;
    const ids = state.workers.filter((worker) => worker.state === "READY").map((worker) => worker.id);
    const box = byId("plan-without");
    const known = new Map([...box.querySelectorAll("label")].map((label) => [label.dataset.worker, label]));
    for (const [id, label] of known) if (!ids.includes(id)) label.remove();
    for (const id of ids) if (!known.has(id)) box.append(this.choice(id));
  }

  choice(id) {
    const label = element("label", {}, element("input", { type: "checkbox", value: id }), ` ${id}`);
    label.dataset.worker = id;
    return label;
  }

  wish() {
    const moves = byId("plan-moves").value;
    return {
      without: [...byId("plan-without").querySelectorAll("input:checked")].map((box) => box.value),
      replicas: Number(byId("plan-replicas").value),
      moves: moves ? Number(moves) : null,
      seconds: Number(byId("plan-seconds").value),
    };
  }

  async ask() {
    const button = byId("plan-form").querySelector("button");
    this.asking = true;
    button.setAttribute("aria-disabled", "true");
    setText(byId("plan-status"), "Searching…");
    try {
      const body = JSON.stringify(this.wish());
      const answer = await fetch("/ui/api/plan", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
      });
      const content = await answer.json();
      if (answer.ok) this.show(content);
      else setText(byId("plan-status"), `Not possible: ${content.message}`);
    } catch (problem) {
      setText(byId("plan-status"), `The pool controller does not answer: ${problem.message}`);
    } finally {
      this.asking = false;
      button.removeAttribute("aria-disabled");
    }
  }

  show(result) {
    this.result = result;
    const { prediction } = result;
    const refused = prediction.refusal ? ` The pool would refuse it: ${prediction.refusal}.` : "";
    setText(byId("plan-status"), `${needed(result)} Nothing was changed.${refused}`);
    const commits = prediction.waves === 1 ? "1 commit" : `${whole(prediction.waves)} commits`;
    const balance = (value) => (value === null ? "–" : value.toFixed(3));
    setTerms(byId("plan-figures"), [
      ["Imbalance now", balance(result.before), result.before === null ? "nothing placed" : "× the mean"],
      ["Imbalance then", balance(result.after), `at most ${(100 * result.gap).toFixed(1)} % from the best`],
      ["Moves", whole(result.moves.length), `${whole(prediction.attachedExperts)} without a copy`],
      ["Replicas dropped", whole(result.drops)],
      ["Bytes copied", bytes(prediction.movedBytes)],
      ["Would take", seconds(prediction.seconds), commits],
    ]);
    byId("plan-notes").replaceChildren(...result.notes.map((note) => element("li", {}, note)));
    this.showPeaks(result);
    this.showMoves(result);
    byId("plan-result").hidden = false;
    this.onResult();
  }

  showPeaks({ placement, prediction }) {
    const then = new Map();
    for (const row of placement.replicas) {
      for (let at = 0; at < row.length; at += 2)
        then.set(placement.workers[row[at]], (then.get(placement.workers[row[at]]) ?? 0) + 1);
    }
    const now = new Map(this.state.workers.map((worker) => [worker.id, worker.replicas]));
    const ids = Object.keys(prediction.peakBytes).sort();
    setRows(
      byId("plan-peaks"),
      ids.map((id) => [
        id,
        { number: whole(now.get(id) ?? 0) },
        { number: whole(then.get(id) ?? 0) },
        { number: bytes(prediction.peakBytes[id]) },
      ]),
    );
  }

  showMoves({ moves }) {
    const { model } = this.state;
    byId("plan-moves-table").hidden = !moves.length;
    setText(
      byId("plan-moves-caption"),
      moves.length > MOST_MOVES ? `The first ${MOST_MOVES} moves that it would take` : "Moves that it would take",
    );
    setRows(
      byId("plan-moves-rows"),
      moves
        .slice(0, MOST_MOVES)
        .map((move) => [
          expertName(move.expert, model),
          move.to,
          move.from.length ? move.from.join(" or ") : "the checkpoint",
        ]),
    );
  }
}

function needed({ moves, drops }) {
  if (moves.length) return `${whole(moves.length)} moves would be needed.`;
  return drops ? "No expert would move." : "No expert would move; at most the shares of replicas would change.";
}
