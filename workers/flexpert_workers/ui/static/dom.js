// Small things that every part of the page uses: elements, tables that are brought up to date, numbers for people.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element with attributes and children (strings are text). */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text where it is another one: what did not change is not announced, and keeps its selection. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Bring a list of terms up to date: [[term, value, further words or nothing, tone or nothing], …]. */
export function setTerms(list, terms) {
  fit(list, terms.length, () => element("div", {}, element("dt"), element("dd"), element("dd")));
  terms.forEach(([term, value, further = "", tone = ""], number) => {
    const [name, first, second] = list.children[number].children;
    setText(name, term);
    setText(first, value);
    setText(second, further);
    second.hidden = !further;
    if ((first.dataset.tone ?? "") !== tone) first.dataset.tone = tone;
  });
}

/**
 * Bring a table's rows up to date. A row is a list of cells, the first its header. A cell is a text, a number's text
 * ({number}), or has a tone ({text, tone}), a meter ({text, meter: [value, most], label}) or a bar ({bar, label}).
 */
export function setRows(body, rows) {
  const width = rows.length ? rows[0].length : 0;
  fit(body, rows.length, () => {
    const row = element("tr", {}, element("th", { scope: "row" }));
    for (let number = 1; number < width; number++) row.append(element("td"));
    return row;
  });
  rows.forEach((cells, number) =>
    cells.forEach((cell, column) => setCell(body.children[number].children[column], cell)),
  );
}

function setCell(node, cell) {
  if (typeof cell !== "object") return setText(node, String(cell));
  if (cell.bar) return setGauge(node, "progress", cell.bar, cell.label, "");
  if (cell.meter) return setGauge(node, "meter", cell.meter, cell.label, cell.text);
  if (cell.number !== undefined) node.className = "number";
  if (cell.tone !== undefined && node.dataset.tone !== cell.tone) node.dataset.tone = cell.tone;
  return setText(node, cell.number ?? cell.text);
}

function setGauge(node, kind, [value, most], label, text) {
  if (!node.firstElementChild) node.replaceChildren(element(kind), element("span"));
  const [gauge, words] = node.children;
  gauge.max = Math.max(most, 1e-9);
  gauge.value = value;
  if (gauge.getAttribute("aria-label") !== label) gauge.setAttribute("aria-label", label);
  setText(words, text ? ` ${text}` : "");
  return undefined;
}

function fit(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
}

/** Bring a select's options up to date: [[value, text], …]; what was chosen stays chosen. */
export function setOptions(select, options) {
  const wanted = options.map(([value, text]) => `${value}\n${text}`).join("\n");
  if (select.dataset.options === wanted) return;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
  select.dataset.options = wanted;
}

/** A number of bytes: 12.3 MiB. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let number = 0;
  while (count >= 1024 && number < units.length - 1) [count, number] = [count / 1024, number + 1];
  return `${number && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[number]}`;
}

/** A whole number, with its thousands apart. */
export function whole(count) {
  return Math.round(count).toLocaleString("en");
}

/** A time span. */
export function seconds(count) {
  if (count < 1) return `${Math.round(count * 1000)} ms`;
  return count < 120 ? `${count.toFixed(1)} s` : `${Math.round(count / 60)} min`;
}

/** A time of the day. */
export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString([], { hour12: false });
}

/** LOST → lost, ROLLED_BACK → rolled back. */
export function words(name) {
  return name.toLowerCase().replaceAll("_", " ");
}
