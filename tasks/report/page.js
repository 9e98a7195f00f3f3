"use strict";
(() => {
  const LEGEND_ROW_PX = 20, BASE_HEIGHT_PX = 310;
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Room for the legend below the axis: Plotly gives every entry the width of the widest.
  function legendRows(spec, width) {
    const names = spec.data.filter((trace) => trace.name).map((trace) => trace.name);
    if (spec.layout.showlegend === false || names.length < 2) return 0;
    const widest = 7 * Math.max(...names.map((name) => name.length)) + 56;
    return Math.ceil(names.length / Math.max(1, Math.floor((width - 60) / widest)));
  }

  function layout(own, rows) {
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--grid"), zerolinecolor: colour("--grid"),
      automargin: true, fixedrange: true,
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--muted") },
      margin: { l: 48, r: 12, t: 8, b: 44 + rows * LEGEND_ROW_PX },
      legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", traceorder: "normal" },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--grid"), font: { color: colour("--ink") } },
      bargap: 0.45,
      ...own,
      xaxis: { ...axis, showgrid: false, zeroline: false, ...own.xaxis },
      yaxis: { ...axis, ...own.yaxis },
    };
  }

  function draw() {
    for (const box of document.querySelectorAll("[data-figure]")) {
      const spec = specs[box.dataset.figure];
      const rows = legendRows(spec, box.clientWidth);
      if (rows > 1) box.style.height = `${BASE_HEIGHT_PX + rows * LEGEND_ROW_PX}px`;
      Plotly.react(box, spec.data, layout(spec.layout, rows), { responsive: true, displayModeBar: false });
    }
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
