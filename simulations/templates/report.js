"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const fine = window.matchMedia("(pointer: fine)").matches;
  const toggle = document.getElementById("theme");
  const wanted = new URLSearchParams(window.location.search).get("theme");
  if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  const DATA = new Set(["x", "y", "z", "base", "text", "ticktext", "customdata", "hovertemplate"]);

  function painted(value, style) {
    if (typeof value === "string" && value.startsWith("var:")) {
      return style.getPropertyValue("--" + value.slice(4)).trim();
    }
    if (Array.isArray(value)) return value.map((item) => painted(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, DATA.has(k) ? v : painted(v, style)]));
    }
    return value;
  }

  function axis(own, style) {
    const line = style.getPropertyValue("--line").trim();
    const soft = style.getPropertyValue("--soft").trim();
    return {
      gridcolor: style.getPropertyValue("--grid").trim(), linecolor: line, zerolinecolor: line,
      tickcolor: line, automargin: true, fixedrange: !fine, ...own,
      title: { font: { size: 12, color: soft }, standoff: 8, ...own.title },
      tickfont: { size: 12, color: soft, ...own.tickfont },
    };
  }

  function draw() {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink").trim();
    const soft = style.getPropertyValue("--soft").trim();
    const page = style.getPropertyValue("--page").trim();
    let drawn = 0;
    for (const plot of document.querySelectorAll(".plot")) {
      const { data, layout } = painted(figures[plot.id], style);
      Plotly.react(plot, data, {
        ...layout,
        autosize: true, height: Number(plot.dataset.height), showlegend: false, dragmode: fine ? "zoom" : false,
        margin: { l: 52, r: 14, t: 12, b: 48, ...layout.margin },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", bargap: 0.15,
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
        hoverlabel: { bgcolor: page, bordercolor: soft, font: { color: ink }, align: "left" },
        xaxis: axis(layout.xaxis || {}, style), yaxis: axis(layout.yaxis || {}, style),
      }, {
        responsive: true, displaylogo: false, scrollZoom: false, displayModeBar: fine ? "hover" : false,
        modeBarButtonsToRemove: ["select2d", "lasso2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
      });
      drawn += 1;
    }
    toggle.textContent = dark() ? "Light theme" : "Dark theme";
    root.dataset.drawn = String(drawn);
  }

  toggle.hidden = false;
  toggle.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; draw(); });
  system.addEventListener("change", draw);

  let before;
  window.addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; draw(); });
  window.addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    draw();
  });

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
    });
  }
  draw();
})();
