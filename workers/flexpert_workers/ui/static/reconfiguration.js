// The reconfiguration that runs or ran last: its phase, what each worker is given, every move and how far it is.

import { byId, bytes, element, seconds, setRows, setTerms, setText, whole, words } from "./dom.js";
import { expertName } from "./loads.js";

const PHASES = ["PREPARE", "COMMIT", "RETIRE", "SUCCEEDED"];
const STAGES = {
  w: { text: "waiting", tone: "" },
  c: { text: "arriving", tone: "wait" },
  t: { text: "arrived", tone: "" },
  s: { text: "serving", tone: "good" },
  u: { text: "undone", tone: "bad" },
};
const MOST_MOVES = 200;

/** Bring the part of the page up to date. */
export function showReconfiguration(state) {
  const { operation } = state;
  if (!operation) return;
  setText(byId("operation"), sentence(state));
  showPhases(operation);
  showFacts(operation);
  const known = state.moves && state.progress && state.moves.operation === operation.id && state.model;
  byId("moving").hidden = !known || !state.moves.moves.length;
  if (known) showMoves(state);
}

/** What is announced when it becomes another one. */
export function announcement(operation) {
  return operation ? `Reconfiguration for ${words(operation.cause)}: ${words(operation.phase)}` : "";
}

/** Cells of the heat map whose expert moves now: expert → where to. */
export function moving(state) {
  const targets = new Map();
  if (!state.moves || !state.progress || state.operation?.finishedAt !== null) return targets;
  state.moves.moves.forEach(([expert, to], number) => {
    if ("wct".includes(state.progress.stages[number])) targets.set(expert, state.moves.workers[to]);
  });
  return targets;
}

function sentence({ operation, progress, moves }) {
  const { id, cause, phase, startedAt, finishedAt, message } = operation;
  const ran = finishedAt === null ? "under way" : `took ${seconds(finishedAt - startedAt)}`;
  const wave = moves?.waves > 1 && progress ? `, wave ${progress.wave} of ${moves.waves}` : "";
  return `${id}, for ${words(cause)}: ${words(phase)}${wave}; ${ran}. ${message}`.trim();
}

function showFacts(operation) {
  const { predictedSeconds, movedExperts, attachedExperts, baseEpoch, epoch } = operation;
  setTerms(byId("operation-facts"), [
    ["Experts moved", whole(movedExperts), `${whole(attachedExperts)} without a copy`],
    ["Copied", bytes(operation.movedBytes)],
    ["Epoch", epoch || baseEpoch, epoch ? `after ${baseEpoch}` : "until it commits"],
    ["Predicted", predictedSeconds === null ? "–" : seconds(predictedSeconds)],
  ]);
}

function showPhases(operation) {
  const list = byId("phases");
  list.hidden = false;
  const undone = !PHASES.includes(operation.phase) && operation.phase !== "PENDING";
  const names = undone ? [...PHASES.slice(0, 2), operation.phase] : PHASES;
  const now = names.indexOf(operation.phase);
  if (list.children.length !== names.length) list.replaceChildren(...names.map(() => element("li")));
  names.forEach((name, number) => {
    const item = list.children[number];
    const took = operation.phaseSeconds[name.toLowerCase()];
    setText(item, words(name) + (took === undefined || number >= now ? "" : `: ${seconds(took)}`));
    item.toggleAttribute("data-done", number < now && !undone);
    if (number === now) item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  });
}

function showMoves({ model, moves, progress }) {
  const targets = Object.entries(progress.targets);
  setRows(
    byId("targets"),
    targets.map(([id, told]) => [
      id,
      { number: whole(told.come) },
      { number: whole(told.coming) },
      { number: bytes(told.bytes) },
      { bar: [told.come, told.coming], label: `experts that have arrived at ${id}` },
    ]),
  );
  const counts = [...progress.stages].reduce((sums, stage) => ({ ...sums, [stage]: (sums[stage] ?? 0) + 1 }), {});
  const summed = Object.entries(STAGES)
    .filter(([stage]) => counts[stage])
    .map(([stage, { text }]) => `${whole(counts[stage])} ${text}`);
  setText(byId("moves-summary"), `${whole(moves.moves.length)} moves: ${summed.join(", ")}`);
  setText(byId("moves-caption"), moves.moves.length > MOST_MOVES ? `The first ${MOST_MOVES} moves` : "Moves");
  setRows(
    byId("moves"),
    moves.moves
      .slice(0, MOST_MOVES)
      .map(([expert, to, from], number) => [
        expertName(expert, model),
        moves.workers[to],
        from < 0 ? "the checkpoint" : moves.workers[from],
        STAGES[progress.stages[number]],
      ]),
  );
}
