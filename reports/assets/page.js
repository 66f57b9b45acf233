// Puts the page together: one column for one report, two side by side for a comparison.

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Columns to objects: the file holds each text once, and each figure in the column of its kind.
function readRows(report) {
  const { strings, rows: columns } = report;
  report.rows = columns.name.map((name, index) => {
    const row = {
      index, name: strings[name], module: strings[columns.module[index]], op: strings[columns.op[index]],
      phase: strings[columns.phase[index]], bound: strings[columns.bound[index]], engine: strings[columns.engine[index]],
      shapes: strings[columns.shapes[index]], dtype: strings[columns.dtype[index]], label: strings[columns.label[index]],
      count: columns.count[index], flops: columns.flops[index], read: columns.read[index], written: columns.written[index],
      sent: columns.sent[index], time: columns.time[index], use: columns.use[index],
    };
    const moved = row.read + row.written;
    row.share = report.step_s ? row.time / report.step_s : 0;
    row.intensity = moved ? row.flops / moved : 0;
    row.rate = row.time ? row.flops / row.time : 0;
    row.text = `${row.label} ${row.module} ${row.op} ${row.phase} ${row.bound} ${row.engine} ${row.dtype} ${row.shapes}`.toLowerCase();
    return row;
  });
  report.timeline = report.timeline.map(([stage, stream, name, phase, microbatch, start, duration]) => ({
    lane: `stage ${stage} ${strings[stream]}`, name: strings[name], phase: strings[phase], microbatch, start, duration,
  }));
}

const charts = [];

function chart(options, onClick, low = false, tall = 0) {
  const box = element("div", { class: low ? "chart low" : "chart", role: "img", style: tall > 420 ? `height:${tall}px` : null });
  charts.push({ box, options, onClick, drawn: null });
  return box;
}

function drawCharts() {
  for (const entry of charts) {
    entry.drawn?.dispose();
    entry.drawn = echarts.init(entry.box);
    const options = entry.options();
    entry.drawn.setOption(options);
    entry.box.setAttribute("aria-label", options.aria.label.description);
    if (entry.onClick) entry.drawn.on("click", (event) => event.data?.row && entry.onClick(event.data.row));
  }
}

function showPoint(report, row) {
  for (const { box, drawn } of charts) {
    if (box !== report.roofline || !drawn) continue;
    drawn.getOption().series.forEach((series, seriesIndex) => {
      drawn.dispatchAction({ type: "downplay", seriesIndex });
      const dataIndex = series.type === "scatter" ? series.data.findIndex((point) => point.row?.index === row.index) : -1;
      if (dataIndex < 0) return;
      drawn.dispatchAction({ type: "highlight", seriesIndex, dataIndex });
      drawn.dispatchAction({ type: "showTip", seriesIndex, dataIndex });
    });
  }
}

const boundMark = (bound) => element("span", { class: `bound ${kindOf(bound)}` }, bound);

function operatorColumns(report) {
  const sends = report.rows.some((row) => row.sent);
  return [
    { title: "operator", value: (row) => row.label, show: (row) => row.label },
    { title: "op", value: (row) => row.op, show: (row) => row.op, choice: true },
    { title: "phase", value: (row) => row.phase, show: (row) => row.phase, choice: true },
    { title: "count", value: (row) => row.count, show: (row) => String(row.count), figure: true },
    { title: "shapes", value: (row) => row.shapes, show: (row) => row.shapes },
    { title: "dtype", value: (row) => row.dtype, show: (row) => row.dtype },
    { title: "FLOPs", value: (row) => row.flops, show: (row) => scaled(row.flops), figure: true },
    { title: "read", value: (row) => row.read, show: (row) => scaled(row.read, "B"), figure: true },
    { title: "written", value: (row) => row.written, show: (row) => scaled(row.written, "B"), figure: true },
    { title: "FLOP/B", value: (row) => row.intensity, show: (row) => (row.intensity ? scaled(row.intensity) : "-"), figure: true },
    ...(sends ? [{ title: "sent", value: (row) => row.sent, show: (row) => scaled(row.sent, "B"), figure: true }] : []),
    { title: "time", value: (row) => row.time, show: (row) => seconds(row.time), figure: true, first: true },
    { title: "share", value: (row) => row.share, show: (row) => shareBar(row.share), figure: true },
    { title: "bound", value: (row) => row.bound, show: (row) => boundMark(row.bound), choice: true },
    { title: "engine", value: (row) => row.engine, show: (row) => row.engine },
    { title: "use", value: (row) => row.use, show: (row) => percent(row.use), figure: true },
  ];
}

function shareBar(share) {
  const bar = element("span", { class: "share", style: `width:${Math.round(60 * Math.min(share, 1))}px` });
  return element("span", {}, bar, percent(share));
}

// A part of the page: a heading, and for each report what `build` makes of it.
function section(title, reports, build, id = null) {
  const built = reports.map(build);
  if (built.every((part) => part === null)) return null;
  const titled = built.map((part, i) => element(
    "div", {}, reports.length > 1 ? element("h3", {}, reports[i].label) : null,
    part ?? element("p", { class: "soft" }, "nothing to show"),
  ));
  return element("section", { id }, element("h2", {}, title), element("div", { class: reports.length > 1 ? "columns two" : "columns" }, ...titled));
}

function summary(report) {
  const cards = report.cards.map(([label, value, detail]) => element("div", { class: "card" }, element("span", {}, label), element("b", {}, value), element("span", {}, detail)));
  return element(
    "div", {},
    element("div", { class: "cards" }, ...cards),
    element("ul", {}, ...report.conclusions.map((line) => element("li", {}, line))),
    element("details", {}, element("summary", {}, "What was analysed"), plainTable(["", ""], [...report.header, ...report.totals], [])),
  );
}

function collectives(report) {
  if (!report.collectives.length) return null;
  return plainTable(
    ["mesh axis", "collective", "count", "sent per device", "time", "of the step"],
    report.collectives.map((one) => [one.axis, one.op, String(one.count), scaled(one.bytes, "B"), seconds(one.time_s), percent(report.step_s ? one.time_s / report.step_s : 0)]),
    [false, false, true, true, true, true],
  );
}

function operators(report) {
  const table = new OperatorTable(report.rows, operatorColumns(report), (row) => showPoint(report, row));
  report.table = table;
  return table.element;
}

function roofline(report) {
  if (!rooflineOptions(report)) return null;
  const without = report.rows.filter((row) => row.time && !row.flops).length;
  report.roofline = chart(() => rooflineOptions(report), (row) => report.table?.reveal(row.index));
  return element(
    "div", {}, report.roofline,
    element("p", { class: "soft" }, `Size is time, shape and colour are the bound. A click finds the operator in the table. ${without ? `${without} operators without FLOPs are in the table only.` : ""}`),
  );
}

function drawn(options, onClick, low = false) {
  return (report) => (options(report) ? chart(() => options(report), onClick ? (row) => onClick(report, row) : null, low) : null);
}

function timeline(report) {
  if (!timelineOptions(report)) return null;
  const lanes = new Set(report.timeline.map((event) => event.lane)).size;
  return chart(() => timelineOptions(report), null, lanes < 3, 120 + 26 * lanes);
}

function themeButton() {
  return element("button", { type: "button", onclick: () => {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    drawCharts();
  } }, "Light / dark");
}

function build(data) {
  const { reports } = data;
  reports.forEach(readRows);
  const reveal = (report, row) => report.table?.reveal(row.index);
  const head = element(
    "div", { class: "top" },
    element("div", {}, element("h1", {}, data.title), element("p", { class: "soft" }, data.subtitle)), themeButton(),
  );
  const parts = [
    section("Summary", reports, summary),
    data.changes.length ? changesSection(data.changes) : null,
    section("Roofline", reports, roofline),
    section("Time by phase and bound", reports, drawn(splitOptions, null, true)),
    section("Time by module", reports, drawn(treemapOptions, reveal)),
    section("Memory over the step", reports, drawn(memoryOptions)),
    section("Timeline", reports, timeline),
    section("Collectives", reports, collectives),
    section("Operators", reports, operators, "operators"),
  ];
  document.getElementById("page").append(head, ...parts.filter(Boolean));
  drawCharts();
  window.addEventListener("resize", () => charts.forEach((entry) => entry.drawn?.resize()));
}

document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
unpack("data").then(build).catch((error) => {
  document.getElementById("page").append(element("p", {}, `This report cannot be shown: ${error.message}`));
  throw error;
});
