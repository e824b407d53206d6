// Charts share their colours with the style sheet, follow the reader's theme, and hold names that cannot do anything.
import { number } from "./live.js";

const BIT_COLOURS = { 2: "#f08a5d", 3: "#f3a683", 4: "#f6c667", 8: "#8fd3a8", 16: "#9cc5ee", 32: "#c9d1da" };
const SERIES_COLOURS = ["#1f6fc4", "#d9622b", "#2c9a68", "#9a5cc6", "#c23b62", "#8a7a1c"];
const drawn = new Map();

export const seriesColour = (index) => SERIES_COLOURS[index % SERIES_COLOURS.length];

export function weightBits(precision) {
  const quantized = /^w(\d+)a/.exec(precision);
  return quantized ? Number(quantized[1]) : { fp16: 16, bf16: 16, fp8: 8 }[precision] ?? 32;
}

export const bitColour = (precision) => BIT_COLOURS[weightBits(precision)] ?? "#d7b9ec";

export function theme() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ink: of("ink"), soft: of("soft"), faint: of("faint"), line: of("line"), paper: of("raised"), blue: of("blue"), good: of("good"), bad: of("bad"), warm: of("warm"), wash: of("none-wash"), dark: matchMedia("(prefers-color-scheme: dark)").matches };
}

// A tick of a log axis: 10⁻⁵, 0.01.
export const power = (value) => (value >= 1e-2 && value <= 1e3 ? number(value, 2) : number(value, 1).replace(/^1·/, ""));

// `{` and `|` steer rich text: a name may not carry them into a label or tooltip.
export const inert = (name) => String(name).replace(/[{}|]/g, "_");

// `option(theme)` gives the chart; it is asked again when the reader's theme changes.
export function draw(place, option, { canvas = false } = {}) {
  const chart = echarts.getInstanceByDom(place) ?? echarts.init(place, null, { renderer: canvas ? "canvas" : "svg" });
  const show = () => chart.setOption(base(theme(), option), { notMerge: true });
  if (!drawn.has(place)) new ResizeObserver(() => chart.resize()).observe(place);
  drawn.set(place, show);
  show();
  return chart;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((show) => show()));

function base(colours, option) {
  const made = option(colours);
  const axis = (one) => one && {
    nameTextStyle: { color: colours.soft }, axisTick: { show: false }, ...one,
    axisLine: { lineStyle: { color: colours.faint }, ...one.axisLine },
    axisLabel: { color: colours.soft, hideOverlap: true, ...one.axisLabel },
    splitLine: { lineStyle: { color: colours.line }, ...one.splitLine },
  };
  return {
    animation: false, backgroundColor: "transparent", textStyle: { color: colours.ink, fontFamily: "system-ui, sans-serif" },
    ...made, xAxis: axis(made.xAxis), yAxis: axis(made.yAxis),
    legend: made.legend && { textStyle: { color: colours.soft }, itemGap: 16, itemWidth: 16, top: 0, left: 0, ...made.legend },
    tooltip: made.tooltip && { renderMode: "richText", confine: true, backgroundColor: colours.paper, borderColor: colours.line, textStyle: { color: colours.ink, fontSize: 12, lineHeight: 18 }, ...made.tooltip },
  };
}

// Whiskers of [x, y, xLow, xHigh, yLow, yHigh] rows; a missing end is not drawn.
export function whiskers(name, rows, colour) {
  return {
    type: "custom", name, silent: true, z: 1, data: rows, encode: { x: [0, 2, 3], y: [1, 4, 5] },
    renderItem: (_, api) => {
      const [x, y, xLow, xHigh, yLow, yHigh] = [0, 1, 2, 3, 4, 5].map((index) => api.value(index));
      const line = (from, to) => ({ type: "line", shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1] }, style: { stroke: colour, lineWidth: 1.2, opacity: 0.7 } });
      const children = [];
      if (Number.isFinite(yLow) && Number.isFinite(yHigh)) children.push(line(api.coord([x, yLow]), api.coord([x, yHigh])));
      if (Number.isFinite(xLow) && Number.isFinite(xHigh)) children.push(line(api.coord([xLow, y]), api.coord([xHigh, y])));
      return { type: "group", children };
    },
  };
}

// The smallest and largest of the values with room around them; on a log axis the room is a factor.
export function extent(values, { log = false, room = 0.06 } = {}) {
  const known = values.filter((one) => Number.isFinite(one) && (!log || one > 0));
  if (!known.length) return log ? [1e-6, 1] : [0, 1];
  const [least, most] = [Math.min(...known), Math.max(...known)];
  if (log) return [10 ** Math.floor(Math.log10(least) - 0.05), 10 ** Math.ceil(Math.log10(most) + 0.05)];
  const margin = room * (most - least || most || 1);
  return [Math.max(0, least - margin), most + margin];
}
