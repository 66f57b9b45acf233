// The operators of two reports beside each other, matched.

function changesSection(changes) {
  const rows = changes.map((change, index) => ({
    index, ...change, delta: change.after_s - change.before_s,
    text: `${change.name} ${change.op} ${change.state} ${change.bound}`.toLowerCase(),
  }));
  const signed = (value, text) => element("span", { class: value > 0 ? "worse" : value < 0 ? "better" : null }, `${value > 0 ? "+" : value < 0 ? "−" : ""}${text(Math.abs(value))}`);
  const columns = [
    { title: "operator", value: (row) => row.name, show: (row) => row.name },
    { title: "op", value: (row) => row.op, show: (row) => row.op, choice: true },
    { title: "state", value: (row) => row.state, show: (row) => row.state, choice: true },
    { title: "before", value: (row) => row.before_s, show: (row) => seconds(row.before_s), figure: true },
    { title: "after", value: (row) => row.after_s, show: (row) => seconds(row.after_s), figure: true },
    { title: "change", value: (row) => Math.abs(row.delta), show: (row) => signed(row.delta, seconds), figure: true, first: true },
    { title: "FLOPs", value: (row) => Math.abs(row.flops), show: (row) => signed(row.flops, scaled), figure: true },
    { title: "bytes", value: (row) => Math.abs(row.bytes), show: (row) => signed(row.bytes, (value) => scaled(value, "B")), figure: true },
    { title: "bound", value: (row) => row.bound, show: (row) => row.bound, choice: true },
  ];
  return element("section", {}, element("h2", {}, "What changes"), new OperatorTable(rows, columns).element);
}
