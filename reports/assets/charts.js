// The charts of one report. Each function returns the options of an ECharts chart, or null where the
// report has nothing to draw.

const PHASE_COLOURS = { forward: 0, prefill: 0, backward: 1, decode: 1, recompute: 7, optimizer: 2, communication: 3 };
const phaseColour = (phase) => PALETTE[PHASE_COLOURS[phase] ?? 6];

const axisStyle = () => ({
  axisLine: { lineStyle: { color: css("line") } },
  axisLabel: { color: css("soft") },
  splitLine: { lineStyle: { color: css("line"), opacity: 0.5 } },
  nameTextStyle: { color: css("soft") },
});

const common = (description) => ({
  animation: false,
  textStyle: { color: css("text"), fontFamily: "system-ui, sans-serif" },
  aria: { enabled: true, label: { description } },
  tooltip: {
    confine: true, backgroundColor: css("page"), borderColor: css("line"), textStyle: { color: css("text") },
  },
});

function describe(row) {
  return tip(row.label, [
    ["operator", `${row.op}, ${row.phase}${row.count > 1 ? `, ${row.count} times` : ""}`],
    ["shapes", row.shapes],
    ["bound", `${row.bound}, ${percent(row.use)} used (${row.engine})`],
    ["time", `${seconds(row.time)}, ${percent(row.share)} of the step`],
    ["work", `${scaled(row.flops)} FLOPs, ${scaled(row.read, "B")} read, ${scaled(row.written, "B")} written`],
    ...(row.intensity ? [["intensity", `${scaled(row.intensity)} FLOP/B, ${scaled(row.rate, "FLOP/s")}`]] : []),
  ]);
}

const decade = (value, up) => 10 ** (up ? Math.ceil(Math.log10(value)) : Math.floor(Math.log10(value)));

function rooflineOptions(report) {
  const drawn = report.rows.filter((row) => row.intensity > 0 && row.rate > 0);
  if (!drawn.length) return null;
  const longest = drawn.reduce((most, row) => Math.max(most, row.time), 0);
  const compute = report.ceilings.filter((ceiling) => ceiling.kind === "compute");
  const roof = Math.max(...compute.map((ceiling) => ceiling.per_s), ...drawn.map((row) => row.rate));
  const slopes = report.ceilings.filter((ceiling) => ceiling.kind !== "compute");
  const ridges = slopes.map((ceiling) => roof / ceiling.per_s);
  const low = decade(Math.min(...drawn.map((row) => row.intensity), ...ridges) / 2, false);
  const high = decade(Math.max(...drawn.map((row) => row.intensity), ...ridges) * 2, true);
  const bottom = decade(Math.min(...drawn.map((row) => row.rate)) / 2, false);
  const line = (ceiling, points, colour, dash) => ({
    type: "line", name: ceiling.name, data: points, symbol: "none", silent: true, clip: true, z: 1,
    lineStyle: { color: colour, width: 1.5, type: dash }, tooltip: { show: false },
  });
  const ceilings = report.ceilings.map((ceiling) => {
    if (ceiling.kind === "compute") {
      return line(ceiling, [[low, ceiling.per_s], [high, ceiling.per_s]], css("compute"), "solid");
    }
    return line(
      ceiling, [[low, low * ceiling.per_s], [roof / ceiling.per_s, roof]], css(ceiling.kind),
      ceiling.kind === "network" ? "dashed" : "solid",
    );
  });
  // Labels sit on the lines: at the right end of a roof, in the lower half of a slope.
  const labels = report.ceilings.map((ceiling, i) => {
    const slope = ceiling.kind !== "compute";
    const ridge = roof / ceiling.per_s;
    const x = slope ? Math.sqrt(Math.max(low, bottom / ceiling.per_s) * ridge) : high / 1.2 / 30 ** i;
    return {
      value: [Math.min(x, slope ? ridge : high), slope ? Math.min(x, ridge) * ceiling.per_s : ceiling.per_s],
      label: {
        show: true, formatter: `${ceiling.name}: ${scaled(ceiling.per_s, slope ? "B/s" : "FLOP/s")}`,
        position: slope ? "left" : "insideBottomRight", offset: slope ? [0, -6] : [-4, -3], align: "right",
        color: css(ceiling.kind), fontSize: 11, textBorderColor: css("panel"), textBorderWidth: 2,
      },
    };
  });
  const series = Object.keys(SYMBOLS).map((kind) => ({
    type: "scatter", name: kind, symbol: SYMBOLS[kind], z: 3, large: false,
    itemStyle: { color: boundColour(kind), opacity: 0.75, borderColor: css("page"), borderWidth: 0.5 },
    emphasis: { itemStyle: { opacity: 1, borderColor: css("text"), borderWidth: 2 } },
    symbolSize: (value) => 5 + 32 * Math.sqrt(value[2] / longest),
    data: drawn.filter((row) => kindOf(row.bound) === kind)
      .map((row) => ({ value: [row.intensity, row.rate, row.time], name: row.index, row })),
  })).filter((part) => part.data.length);
  return {
    ...common("Roofline: achieved FLOP per second over arithmetic intensity of every operator, both axes logarithmic; the table below has the same figures."),
    grid: { left: 70, right: 25, top: 40, bottom: 50 },
    legend: { top: 8, textStyle: { color: css("text") }, data: series.map((part) => part.name) },
    xAxis: { type: "log", min: low, max: high, name: "FLOP per byte", nameLocation: "middle", nameGap: 28, ...axisStyle(), axisLabel: { color: css("soft"), formatter: (value) => scaled(value) } },
    yAxis: { type: "log", min: bottom, max: decade(roof * 1.5, true), name: "FLOP/s", ...axisStyle(), axisLabel: { color: css("soft"), formatter: (value) => scaled(value) } },
    dataZoom: [{ type: "inside", xAxisIndex: 0, zoomOnMouseWheel: "ctrl" }, { type: "inside", yAxisIndex: 0, zoomOnMouseWheel: "ctrl" }],
    tooltip: { ...common("").tooltip, trigger: "item", formatter: (item) => (item.data.row ? describe(item.data.row) : "") },
    series: [
      ...ceilings,
      { type: "scatter", name: "ceilings", silent: true, symbolSize: 0, data: labels, z: 2, tooltip: { show: false } },
      ...series,
    ],
  };
}

// The time by module, as a tree: a.b.c under a.b under a, operators as leaves.
function moduleTree(report) {
  const root = { children: new Map(), time: 0, bounds: {} };
  for (const row of report.rows) {
    if (!row.time) continue;
    let place = root;
    const path = row.module ? row.module.split(/[./](?![^[]*\])/).filter(Boolean) : [];
    for (const part of [...path, row]) {
      place.time += row.time;
      place.bounds[kindOf(row.bound)] = (place.bounds[kindOf(row.bound)] || 0) + row.time;
      const key = part === row ? `#${row.index}` : part;
      if (!place.children.has(key)) {
        place.children.set(key, { name: part === row ? row.op : part, row: part === row ? row : null, children: new Map(), time: 0, bounds: {} });
      }
      place = place.children.get(key);
    }
    place.time = row.time;
    place.bounds = { [kindOf(row.bound)]: row.time };
  }
  return root;
}

const MOST_CHILDREN = 60;

// The largest children, and one that stands for the rest: nobody can see ten thousand boxes.
function largest(children) {
  if (children.length <= MOST_CHILDREN) return children;
  const sorted = [...children].sort((a, b) => b.time - a.time);
  const rest = sorted.slice(MOST_CHILDREN - 1);
  const bounds = {};
  for (const { bounds: own } of rest) for (const [bound, time] of Object.entries(own)) bounds[bound] = (bounds[bound] || 0) + time;
  const time = rest.reduce((sum, child) => sum + child.time, 0);
  return [...sorted.slice(0, MOST_CHILDREN - 1), { name: `${rest.length} more`, row: null, children: new Map(), time, bounds }];
}

function treemapOptions(report) {
  const plain = (node) => {
    // A module with a single child says nothing by itself: join the two names.
    while (node.children.size === 1 && !node.row) {
      const [child] = node.children.values();
      node = { ...child, name: node.name ? `${node.name}.${child.name}` : child.name };
    }
    const most = Object.entries(node.bounds).sort((a, b) => b[1] - a[1])[0];
    const children = largest([...node.children.values()]).map(plain);
    return {
      name: node.name || report.label, value: node.time, bounds: node.bounds, row: node.row,
      itemStyle: { color: boundColour(most ? most[0] : "unknown"), borderColor: css(children.length ? "line" : "panel") },
      children: children.length ? children : undefined,
    };
  };
  const tree = plain(moduleTree(report));
  if (!tree.value) return null;
  const roots = tree.children || [tree];
  return {
    ...common("Treemap of the time by module; coloured by the bound that takes most of it."),
    tooltip: {
      ...common("").tooltip,
      formatter: ({ data, treePathInfo }) => {
        if (!data || !data.bounds) return "";
        if (data.row) return describe(data.row);
        const path = treePathInfo.slice(1).map((part) => part.name).join(" › ");
        const bounds = Object.entries(data.bounds).sort((a, b) => b[1] - a[1]);
        return tip(path, [["time", `${seconds(data.value)}, ${percent(data.value / report.step_s)} of the step`],
          ...bounds.map(([bound, time]) => [bound, `${seconds(time)} (${percent(time / data.value)})`])]);
      },
    },
    series: [{
      type: "treemap", data: roots, roam: false, nodeClick: "zoomToNode", top: 6, left: 6, right: 6, bottom: 34,
      name: "all", visibleMin: 60,
      label: { fontSize: 11, color: css("page"), textBorderColor: "transparent" },
      upperLabel: { show: true, height: 18, color: css("text"), fontSize: 11 },
      breadcrumb: { itemStyle: { color: css("panel"), borderColor: css("line"), textStyle: { color: css("text") } } },
      levels: [{ itemStyle: { gapWidth: 3, borderWidth: 0 }, upperLabel: { show: false } }, { itemStyle: { gapWidth: 2, borderWidth: 2 } }, { itemStyle: { gapWidth: 1, borderWidth: 1 } }],
    }],
  };
}

function splitOptions(report) {
  const groups = [["phase", report.splits.by_phase], ["bound", report.splits.by_bound]];
  const names = [...new Set(groups.flatMap(([, split]) => Object.keys(split)))];
  if (!names.some((name) => groups.some(([, split]) => split[name]))) return null;
  const colour = (name) => (name in report.splits.by_bound ? boundColour(name) : phaseColour(name));
  return {
    ...common("The rows' time split by phase and by bound."),
    grid: { left: 60, right: 20, top: 40, bottom: 28 },
    legend: { type: "scroll", top: 6, textStyle: { color: css("text") }, pageTextStyle: { color: css("text") } },
    tooltip: { ...common("").tooltip, trigger: "item", formatter: ({ seriesName, value }) => tip(seriesName, [["time", `${seconds(value)} (${percent(value / report.step_s)} of the step)`]]) },
    xAxis: { type: "value", ...axisStyle(), axisLabel: { color: css("soft"), formatter: seconds } },
    yAxis: { type: "category", inverse: true, data: groups.map(([name]) => `by ${name}`), ...axisStyle() },
    series: names.map((name) => ({
      type: "bar", name, stack: "time", barMaxWidth: 34, data: groups.map(([, split]) => split[name] || 0),
      itemStyle: { color: colour(name), borderColor: css("panel"), borderWidth: 1 },
    })),
  };
}

function memoryOptions(report) {
  const { by_kind_bytes: kinds, capacity_bytes: capacity, profile } = report.memory;
  const names = Object.keys(kinds).filter((kind) => kinds[kind] || (profile && profile.kinds[kind]?.some(Boolean)));
  const peak = Object.values(kinds).reduce((sum, size) => sum + size, 0);
  if (!peak) return null;
  const limit = capacity && capacity < 4 * peak ? [{
    type: "line", name: "capacity", data: [], markLine: {
      silent: true, symbol: "none", data: [{ yAxis: capacity }],
      label: { formatter: `capacity ${scaled(capacity, "B")}`, position: "insideEndTop", color: css("unknown") },
      lineStyle: { color: css("unknown"), type: "dashed" },
    },
  }] : [];
  const overTime = profile && profile.time_s.length > 1;
  const times = overTime ? profile.time_s : [0, report.step_s];
  const values = (kind) => (overTime ? profile.kinds[kind] || times.map(() => kinds[kind]) : times.map(() => kinds[kind]));
  return {
    ...common("Memory of the fullest device over one step, by kind."),
    grid: { left: 75, right: 25, top: 45, bottom: 50 },
    legend: { type: "scroll", top: 6, textStyle: { color: css("text") }, data: names },
    tooltip: {
      ...common("").tooltip, trigger: "axis",
      formatter: (points) => {
        const parts = points.filter((point) => names.includes(point.seriesName));
        const sum = parts.reduce((total, point) => total + point.value[1], 0);
        return tip(`at ${seconds(points[0].value[0])}: ${scaled(sum, "B")}`, parts.map((point) => [point.seriesName, scaled(point.value[1], "B")]));
      },
    },
    xAxis: { type: "value", name: overTime ? "busy time while one micro-batch passes" : "", nameLocation: "middle", nameGap: 28, max: "dataMax", ...axisStyle(), axisLabel: { color: css("soft"), formatter: seconds } },
    yAxis: { type: "value", max: limit.length ? (range) => Math.max(range.max, capacity * 1.05) : null, ...axisStyle(), axisLabel: { color: css("soft"), formatter: (value) => scaled(value, "B") } },
    series: [
      ...names.map((kind, i) => ({
        type: "line", name: kind, stack: "memory", symbol: "none", lineStyle: { width: 1, color: PALETTE[i] },
        itemStyle: { color: PALETTE[i] }, areaStyle: { color: PALETTE[i], opacity: 0.7 },
        data: values(kind).map((value, j) => [times[j], value]),
      })),
      ...limit,
    ],
  };
}

function timelineOptions(report) {
  const events = report.timeline;
  if (!events.length) return null;
  const lanes = [...new Set(events.map((event) => event.lane))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const phases = [...new Set(events.map((event) => event.phase))];
  const draw = (params, api) => {
    const [x, y] = api.coord([api.value(1), api.value(0)]);
    const end = api.coord([api.value(2), api.value(0)])[0];
    const height = Math.min(26, api.size([0, 1])[1] * 0.72);
    const area = params.coordSys;
    const left = Math.max(x, area.x), right = Math.min(end, area.x + area.width);
    if (right < area.x || left > area.x + area.width) return null;
    return { type: "rect", shape: { x: left, y: y - height / 2, width: Math.max(right - left, 0.6), height }, style: { fill: api.visual("color"), stroke: css("panel"), lineWidth: right - left > 4 ? 0.6 : 0 } };
  };
  return {
    ...common("Timeline of the simulated step: one lane per pipeline stage and stream."),
    height: null,
    grid: { left: 130, right: 25, top: 40, bottom: 75 },
    legend: { top: 6, textStyle: { color: css("text") }, data: phases },
    tooltip: { ...common("").tooltip, formatter: ({ data }) => tip(data.event.name, [["lane", data.event.lane], ["phase", data.event.phase], ...(data.event.microbatch === null ? [] : [["micro-batch", data.event.microbatch]]), ["start", seconds(data.event.start)], ["duration", seconds(data.event.duration)]]) },
    xAxis: { type: "value", min: 0, max: "dataMax", ...axisStyle(), axisLabel: { color: css("soft"), formatter: seconds } },
    yAxis: { type: "category", data: lanes, inverse: true, ...axisStyle() },
    dataZoom: [{ type: "slider", height: 18, bottom: 12, labelFormatter: (value) => seconds(value), textStyle: { color: css("soft") } }, { type: "inside", zoomOnMouseWheel: "ctrl" }],
    series: phases.map((phase) => ({
      type: "custom", name: phase, renderItem: draw, itemStyle: { color: phaseColour(phase) }, encode: { x: [1, 2], y: 0 },
      data: events.filter((event) => event.phase === phase)
        .map((event) => ({ value: [lanes.indexOf(event.lane), event.start, event.start + event.duration], event })),
    })),
  };
}
