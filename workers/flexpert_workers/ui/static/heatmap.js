// The heat map: a grid on a canvas, as large pools need, with a cursor that keys and pointers move.
// Lightness follows the load (cividis, which people with any colour vision read alike); everything else about a cell is
// drawn as a shape, and said in words when the cell is chosen.

import { svg } from "./dom.js";

const CIVIDIS = [
  [0, 34, 78],
  [53, 69, 108],
  [102, 105, 112],
  [148, 142, 119],
  [200, 184, 102],
  [254, 232, 56],
];
const LEFT = 34;
const TOP = 20;
const FONT = "11px system-ui, sans-serif";

/** Red, green and blue of a load, on a scale of square roots up to `top`. */
export function colour(load, top) {
  const place = Math.sqrt(Math.min(Math.max(load / top, 0), 1)) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  return CIVIDIS[low].map((one, part) => Math.round(one + (CIVIDIS[low + 1][part] - one) * (place - low)));
}

/** The scale, with loads written beneath it. */
export function legend(parent, top) {
  const [width, steps] = [330, 52];
  const picture = svg("svg", { width, height: 34, viewBox: `0 0 ${width} 34`, role: "img" });
  picture.setAttribute("aria-label", `Scale from 0, dark, to ${top.toFixed(1)} times the layer's mean, light`);
  for (let step = 0; step < steps; step++) {
    const [red, green, blue] = colour(top * (step / (steps - 1)) ** 2, top);
    picture.append(
      svg("rect", { x: (step * 240) / steps, y: 0, width: 6, height: 12, fill: `rgb(${red},${green},${blue})` }),
    );
  }
  for (const part of [0, 0.5, 1]) {
    const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
    picture.append(svg("text", { x: 240 * part, y: 28, "text-anchor": anchor }, `${(top * part ** 2).toFixed(1)} ×`));
  }
  picture.append(svg("text", { x: 246, y: 11 }, "× the mean"));
  parent.replaceChildren(picture);
}

/**
 * A grid of `rows` × `columns` loads. The figure that `show` takes has them, and what to say and mark of each cell:
 * {rows, columns, top, name(column), load(row, column), say(row, column), marks(row, column)}; a load of NaN is no
 * cell, marks are letters: o outlined, m moving, x lost, r several replicas.
 */
export class HeatMap {
  constructor(frame, canvas, readout) {
    this.frame = frame;
    this.canvas = canvas;
    this.readout = readout;
    this.figure = null;
    this.cursor = null;
    frame.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("pointermove", (event) => this.onPointer(event));
    canvas.addEventListener("pointerdown", (event) => this.onPointer(event));
    new ResizeObserver(() => this.draw()).observe(frame);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  show(figure) {
    this.figure = figure;
    if (this.cursor && (this.cursor.row >= figure.rows || this.cursor.column >= figure.columns)) this.cursor = null;
    this.draw();
    if (this.cursor) this.say();
  }

  say() {
    const text = this.cursor ? this.figure.say(this.cursor.row, this.cursor.column) : "No cell chosen.";
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }

  choose(row, column) {
    const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
    this.cursor = { row: clamp(row, this.figure.rows), column: clamp(column, this.figure.columns) };
    this.draw();
    this.say();
  }

  onKey(event) {
    if (!this.figure || !this.figure.rows || event.ctrlKey || event.metaKey || event.altKey) return;
    const { row, column } = this.cursor ?? { row: 0, column: 0 };
    const steps = {
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      Home: [row, 0],
      End: [row, this.figure.columns - 1],
      PageUp: [row - 10, column],
      PageDown: [row + 10, column],
    };
    if (event.key === "Escape" && this.cursor) {
      this.cursor = null;
      this.draw();
      this.say();
    } else if (steps[event.key]) {
      event.preventDefault();
      if (this.cursor) this.choose(...steps[event.key]);
      else this.choose(0, 0);
    }
  }

  onPointer(event) {
    if (!this.figure || !this.figure.rows) return;
    const { width, height } = this.sizes();
    const row = Math.floor((event.offsetY - TOP) / height);
    const column = Math.floor((event.offsetX - LEFT) / width);
    if (row >= 0 && row < this.figure.rows && column >= 0 && column < this.figure.columns) this.choose(row, column);
  }

  sizes() {
    const width = Math.min(64, (this.frame.clientWidth - LEFT - 2) / this.figure.columns);
    return { width, height: Math.min(28, Math.max(7, Math.min(width, 560 / this.figure.rows))) };
  }

  draw() {
    if (!this.figure || !this.frame.clientWidth) return;
    const { rows, columns } = this.figure;
    const { width, height } = this.sizes();
    const scale = window.devicePixelRatio || 1;
    const size = [this.frame.clientWidth, TOP + rows * height + 4];
    [this.canvas.width, this.canvas.height] = size.map((length) => Math.round(length * scale));
    this.canvas.style.height = `${size[1]}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.frame);
    this.pen = pen;
    this.ink = style.getPropertyValue("--ink");
    this.quiet = style.getPropertyValue("--quiet");
    this.ground = style.getPropertyValue("--ground");
    this.drawLabels(rows, columns, width, height);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) this.drawCell(row, column, width, height);
    }
    if (this.cursor) this.drawCursor(width, height);
  }

  drawLabels(rows, columns, width, height) {
    this.pen.fillStyle = this.quiet;
    this.pen.font = FONT;
    this.pen.textBaseline = "middle";
    const down = Math.ceil(12 / height);
    for (let row = 0; row < rows; row += down) this.pen.fillText(`L${row}`, 2, TOP + (row + 0.5) * height);
    const widest = this.pen.measureText(this.figure.name(columns - 1)).width + 8;
    const across = 2 ** Math.ceil(Math.log2(Math.max(1, widest / width)));
    this.pen.textAlign = "center";
    for (let column = 0; column < columns; column += across)
      this.pen.fillText(this.figure.name(column), LEFT + (column + 0.5) * width, TOP - 9);
    this.pen.textAlign = "start";
  }

  drawCell(row, column, width, height) {
    const load = this.figure.load(row, column);
    const [x, y] = [LEFT + column * width, TOP + row * height];
    const gap = width > 6 ? 1 : 0;
    const box = [x, y, width - gap, height - (height > 6 ? 1 : 0)];
    const marks = this.figure.marks(row, column);
    if (!Number.isNaN(load)) {
      const rgb = colour(load, this.figure.top);
      this.pen.fillStyle = `rgb(${rgb})`;
      this.pen.fillRect(...box);
      const bright = 299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2] > 128_000;
      if (width >= 30 && height >= 14) this.drawText(load.toFixed(1), box, bright ? "#000" : "#fff");
      if (marks.includes("r") && width >= 9) this.drawCorner(box, bright ? "#000" : "#fff");
    }
    if (marks.includes("o")) this.drawFrame(box, this.ink, []);
    if (marks.includes("m")) this.drawFrame(box, this.ink, [3, 2]);
    if (marks.includes("x")) this.drawCross(box);
  }

  drawText(text, [x, y, width, height], fill) {
    this.pen.fillStyle = fill;
    this.pen.font = FONT;
    this.pen.textAlign = "center";
    this.pen.fillText(text, x + width / 2, y + height / 2 + 1);
    this.pen.textAlign = "start";
  }

  drawCorner([x, y, width], fill) {
    this.pen.fillStyle = fill;
    this.pen.beginPath();
    this.pen.moveTo(x + width, y);
    this.pen.lineTo(x + width - 6, y);
    this.pen.lineTo(x + width, y + 6);
    this.pen.fill();
  }

  drawFrame([x, y, width, height], stroke, dash) {
    const thick = width > 8 ? 2 : 1;
    this.pen.lineWidth = thick;
    this.pen.strokeStyle = this.ground;
    this.pen.setLineDash([]);
    this.pen.strokeRect(x + thick / 2, y + thick / 2, width - thick, height - thick);
    this.pen.strokeStyle = stroke;
    this.pen.setLineDash(dash);
    this.pen.strokeRect(x + thick / 2, y + thick / 2, width - thick, height - thick);
    this.pen.setLineDash([]);
  }

  drawCross([x, y, width, height]) {
    this.pen.strokeStyle = this.ink;
    this.pen.lineWidth = 1.5;
    this.pen.beginPath();
    this.pen.moveTo(x, y);
    this.pen.lineTo(x + width, y + height);
    this.pen.moveTo(x + width, y);
    this.pen.lineTo(x, y + height);
    this.pen.stroke();
  }

  drawCursor(width, height) {
    const { row, column } = this.cursor;
    const [x, y] = [LEFT + column * width, TOP + row * height];
    for (const [grow, stroke] of [
      [3, "#000"],
      [1.5, "#fff"],
    ]) {
      this.pen.strokeStyle = stroke;
      this.pen.lineWidth = 1.5;
      this.pen.strokeRect(x - grow, y - grow, width + 2 * grow, height + 2 * grow);
    }
  }
}
