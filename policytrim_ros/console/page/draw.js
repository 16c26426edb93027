// Pictures made of figures, as SVG: success with its interval, and the newest values of a series.

const make = (name, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

const percent = (share) => `${Math.round(100 * share)} %`;
const WIDTH = 640;
const LEFT = 230;
const RIGHT = 140;
const ROW = 26;
const HEAD = 22;

const MARKS = [ // arms differ in shape as well as in colour
  (x, y) => make("circle", { cx: x, cy: y, r: 6, class: "arm-0" }),
  (x, y) => make("rect", { x: x - 5.5, y: y - 5.5, width: 11, height: 11, class: "arm-1" }),
  (x, y) => make("path", { d: `M${x} ${y - 7}l7 12h-14z`, class: "arm-2" }),
  (x, y) => make("path", { d: `M${x} ${y - 7}l7 7l-7 7l-7 -7z`, class: "arm-3" }),
];

// `rows`: [{task, setting, arm, n, successes, low, high, seconds}], shares between 0 and 1.
export function intervals(rows, title) {
  const arms = [...new Set(rows.map((row) => row.arm))];
  const height = HEAD + ROW * rows.length + 8;
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", class: "intervals" });
  svg.append(make("title", {}, title));
  const x = (share) => LEFT + (WIDTH - LEFT - RIGHT) * share;
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(make("line", { x1: x(share), x2: x(share), y1: HEAD - 4, y2: height - 4, class: "grid" }));
    svg.append(make("text", { x: x(share), y: 13, class: "axis" }, percent(share)));
  }
  let cell = "";
  rows.forEach((row, i) => {
    const y = HEAD + ROW * (i + 0.5);
    const here = `${row.task} ${row.setting}`;
    if (here !== cell && i) svg.append(make("line", { x1: 0, x2: WIDTH, y1: y - ROW / 2, y2: y - ROW / 2, class: "cell" }));
    if (here !== cell) svg.append(make("text", { x: 0, y: y + 5, class: "label" }, here));
    cell = here;
    svg.append(make("text", { x: LEFT - 10, y: y + 5, class: "arm-name" }, row.arm));
    svg.append(make("line", { x1: x(row.low), x2: x(row.high), y1: y, y2: y, class: `whisker arm-${arms.indexOf(row.arm) % MARKS.length}` }));
    if (row.n) svg.append(MARKS[arms.indexOf(row.arm) % MARKS.length](x(row.successes / row.n), y));
    const seconds = row.seconds == null ? "" : `, ${row.seconds.toFixed(1)} s`;
    svg.append(make("text", { x: WIDTH - RIGHT + 12, y: y + 5, class: "figures" }, `${row.successes}/${row.n}${seconds}`));
  });
  return svg;
}

// Draws `values` into `svg`, whose viewBox is 240 x 40.
export function sparkline(svg, values) {
  const top = Math.max(...values, 1e-6);
  const points = values.map((value, i) => `${(240 * (i + 1)) / values.length},${38 - (34 * value) / top}`);
  svg.replaceChildren(make("polyline", { points: points.join(" "), class: "spark" }));
}
