// Small things that every part of the page uses: elements, numbers as text, colours, tooltips.
// Names come from model files. They only ever become text nodes, never markup.

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

function threeDigits(value) {
  const size = Math.abs(value);
  return size >= 99.95 ? value.toFixed(0) : size >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

function scaled(value, unit = "") {
  for (const [factor, prefix] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= factor * 0.9995) return `${threeDigits(value / factor)} ${prefix}${unit}`;
  }
  return `${Number.isInteger(value) ? value : threeDigits(value)} ${unit}`.trim();
}

function seconds(value) {
  for (const [factor, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
    if (Math.abs(value) >= factor * 0.9995) return `${threeDigits(value / factor)} ${unit}`;
  }
  return value ? `${threeDigits(value / 1e-9)} ns` : "0 s";
}

function percent(part) {
  const value = part * 100;
  if (value === 0) return "0 %";
  if (Math.abs(value) < 0.1) return "<0.1 %";
  return Math.abs(value) >= 9.95 ? `${value.toFixed(0)} %` : `${value.toFixed(1)} %`;
}

// memory:dram and memory:l2 are both "memory".
const kindOf = (bound) => bound.split(":")[0];
const SYMBOLS = { compute: "circle", memory: "rect", network: "diamond", latency: "triangle", unknown: "pin" };

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const boundColour = (bound) => css(kindOf(bound)) || css("unknown");

// One colour per phase or kind of memory, told apart by the colour-blind as well (Okabe and Ito 2008).
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8f98", "#b8a100"];

function tip(title, lines) {
  const box = element("div", { class: "tip" }, element("b", {}, title));
  for (const [key, value] of lines) box.append(element("div", {}, `${key}: ${value}`));
  return box;
}

function plainTable(headers, rows, figures) {
  const cell = (tag, text, i) => element(tag, { class: figures[i] ? "figure" : null }, text);
  return element(
    "table", {},
    element("thead", {}, element("tr", {}, ...headers.map((text, i) => cell("th", text, i)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, i) => cell("td", text, i))))),
  );
}
