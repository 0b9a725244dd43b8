// Pictures as SVG. Colours and fonts are the style sheet's.

const LEAST_STEPS = 3;
const SPACE = "http://www.w3.org/2000/svg";

/** "0.0123 ms", "1.23 ms", "123 ms" or "1.23 s" as [number, unit]. */
export function timeParts(ms) {
  if (ms >= 1000) return [figure(ms / 1000), "s"];
  if (ms < 0.1) return [figure(ms * 1000), "µs"];
  return [figure(ms), "ms"];
}

export const timeText = (ms) => timeParts(ms).join("\u00a0");

/** The same for a round number: "0", "5 ms" or "2.5 s". */
function tickText(ms) {
  const [value, unit] = timeParts(ms);
  return ms === 0 ? "0" : `${Number(value)}\u00a0${unit}`;
}

/** 3.1e-8 as "3.1·10⁻⁸". */
export function errorText(value) {
  const [digits, power] = value.toExponential(1).split("e");
  if (value === 0) return "0";
  const raised = [...String(Number(power))].map((sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign])).join("");
  return `${digits}·10${raised}`;
}

function figure(value) {
  if (value >= 99.95) return value.toFixed(0);
  return value.toFixed(value >= 9.995 ? 1 : 2);
}

/** Two rows of timings, one dot each, over a bar that ends at the median, with a whisker to the 95th percentile. */
export function comparisonChart(width, result) {
  const [left, right, top, row] = [52, 16, 8, 54];
  const height = top + 2 * row + 26;
  const last = axisEnd(result);
  const across = (ms) => left + (ms / last) * (width - left - right);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": spoken(result) });
  for (const tick of ticks(last, Math.max(2, Math.floor((width - left) / 90)))) {
    svg.append(make("line", { class: "grid", x1: across(tick), x2: across(tick), y1: top, y2: top + 2 * row }));
    const anchor = tick === 0 ? "start" : "middle";
    svg.append(make("text", { x: across(tick), y: height - 8, "text-anchor": anchor }, tickText(tick)));
  }
  ["dense", "slim"].forEach((name, i) => {
    const middle = top + (i + 0.5) * row;
    svg.append(make("text", { class: "name", x: 0, y: middle + 4 }, name), ...rowOf(name, result[name], middle, across, last));
  });
  return svg;
}

/** A stray timing must not squeeze the rest: the axis ends a little beyond the slower network's p95. */
export const axisEnd = ({ dense, slim }) => 1.15 * Math.max(dense.p95_ms, slim.p95_ms);

function rowOf(name, { p50_ms, p95_ms, times_ms }, middle, across, last) {
  const [start, mid, far] = [across(0), across(p50_ms), across(p95_ms)];
  const dots = times_ms.flatMap((ms, i) => {
    const offset = (((i * 0.618034) % 1) - 0.5) * 28; // the golden ratio spreads neighbours evenly
    return ms > last ? [] : [make("circle", { class: `dot ${name}`, cx: across(ms), cy: middle + offset, r: 1.8 })];
  });
  return [
    make("rect", { class: `bar ${name}`, x: start, y: middle - 18, width: Math.max(mid - start, 1), height: 36, rx: 4 }),
    ...dots,
    make("path", { class: `whisker ${name}`, d: `M${mid} ${middle}H${far}M${far} ${middle - 6}V${middle + 6}` }),
    make("line", { class: `middle ${name}`, x1: mid, x2: mid, y1: middle - 20, y2: middle + 20 }),
  ];
}

function spoken({ dense, slim }) {
  const one = (name, { p50_ms, p95_ms }) => `${name}: p50 ${timeText(p50_ms)}, p95 ${timeText(p95_ms)}`;
  return `${one("dense", dense)}; ${one("slim", slim)}`;
}

/**
 * The measurements of a layer as curves: over its outputs where its inputs stay, over its inputs where its outputs
 * stay, or over both where they become fewer together. Gives `{label, steps: [{width, ms}]}`.
 */
export function stairsOf(points) {
  const curves = [
    ...curvesOver(points, "width_out", "width_in", (n) => `${n} in`),
    ...curvesOver(points, "width_in", "width_out", (n) => `${n} out`),
  ];
  const all = points.map(({ width_out, ms }) => ({ width: width_out, ms }));
  return curves.length ? curves : [{ label: "in and out together", steps: all }];
}

function curvesOver(points, free, fixed, labelled) {
  return [...new Set(points.map((point) => point[fixed]))]
    .map((value) => {
      const steps = points.filter((point) => point[fixed] === value).map((point) => ({ width: point[free], ms: point.ms }));
      return { label: labelled(value), steps };
    })
    .filter(({ steps }) => new Set(steps.map(({ width }) => width)).size >= LEAST_STEPS);
}

/** The times of one layer over one of its widths, from zero: a dot for each that was measured. */
export function stairChart(points) {
  const [width, height, left, right, top, bottom] = [160, 92, 4, 4, 18, 18];
  const sorted = [...points].sort((a, b) => a.width - b.width);
  const [first, last] = [sorted[0], sorted.at(-1)];
  const most = Math.max(...sorted.map((point) => point.ms));
  const across = (value) => left + ((value - first.width) / Math.max(last.width - first.width, 1)) * (width - left - right);
  const up = (ms) => height - bottom - (ms / most) * (height - top - bottom);
  const label = sorted.map((point) => `width ${point.width}: ${timeText(point.ms)}`).join(", ");
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.append(
    make("line", { class: "grid", x1: 0, x2: width, y1: up(0), y2: up(0) }),
    make("path", { class: "stair", d: `M${sorted.map((point) => `${across(point.width)} ${up(point.ms)}`).join("L")}` }),
    ...sorted.map((point) => make("circle", { class: "stair-dot", cx: across(point.width), cy: up(point.ms), r: 2.5 })),
    make("text", { x: 0, y: height - 4 }, String(first.width)),
    make("text", { x: width, y: 10, "text-anchor": "end" }, timeText(most)),
  );
  if (last.width > first.width) {
    svg.append(make("text", { x: width, y: height - 4, "text-anchor": "end" }, String(last.width)));
  }
  return svg;
}

/** Round numbers from 0 to at most `last`, about `count` of them. */
function ticks(last, count) {
  const rough = last / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  return Array.from({ length: Math.floor(last / step) + 1 }, (_, i) => i * step);
}

function make(name, attributes, text = null) {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}
